"""The live page: its figures are the router's, and a real browser shows them and complains not."""

from __future__ import annotations

import asyncio
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE_ID = "<img src=x onerror=alert(1)>"


def script() -> ModuleType:
    spec = spec_from_file_location("dashboard_shot", ROOT / "scripts" / "dashboard_shot.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_page_needs_nothing_from_elsewhere(bench) -> None:
    _, _, server = await bench.pair()
    answer = await bench.page(server, "/dashboard")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.body.decode()
    outside = re.findall(r"""(?:src|href)=|url\(|@import|https?://[^"\s]+""", page)
    assert outside == ["http://www.w3.org/2000/svg"], "a name space, which is never fetched"
    assert "innerHTML" not in page


async def test_the_figures_are_the_routers(bench, body, deflect) -> None:
    prefill, _, server = await bench.pair(deflect())
    for _ in range(3):
        await bench.ask(server, body)
    answer = await bench.page(server, "/dashboard/data")
    assert answer.headers["cache-control"] == "no-store"
    said = answer.json
    assert said["requests"] == [["deflected", "finished", 3]]
    assert said["decisions"] == {"faster_on_decode": 3}
    assert sum(said["ttft"]["deflected"]) == 3
    assert len(said["ttft"]["prefill"]) == len(said["bounds_s"]) + 1
    assert [(node["id"], node["role"]) for node in said["nodes"]] == [
        ("d0", "decode"),
        ("p0", "prefill"),
    ]
    assert len(said["last"]) == 3
    assert said["last"][0]["predicted_s"] == 0.25
    assert prefill.url.removeprefix("http://") not in answer.body.decode()


@pytest.mark.slow
async def test_a_browser_shows_what_happens(bench, body, deflect) -> None:
    shot = script()
    program = shot.chromium()
    if program is None:
        pytest.skip("no chromium here")
    _, _, server = await bench.pair(deflect())
    await bench.ask(server, body, headers=[f"x-request-id: {HOSTILE_ID}"])
    async with shot.browser_tab(program) as tab:
        await tab.open(f"http://127.0.0.1:{server.port}/dashboard", 1280, 1000)
        text = ""
        async with asyncio.timeout(15.0):
            while "live" not in text or HOSTILE_ID not in text:
                text = await tab.value("document.body ? document.body.innerText : ''")
                await asyncio.sleep(0.1)
        for expected in ("p0", "d0", "always-deflect", "faster on decode", "250 ms"):
            assert expected in text
        assert await tab.value("document.images.length") == 0, "an id is text, whatever it says"
        assert await tab.value("document.querySelectorAll('#spill circle').length") == 1
        assert (await tab.picture()).startswith(b"\x89PNG")
        assert tab.complaints == []
