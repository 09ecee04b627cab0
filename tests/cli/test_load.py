"""`spillway load`: against an engine in this process, and what it says of doubtful figures."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_command import Command
from spillway.cli.load import complaints, headers_of
from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, start_engine
from spillway.loadgen.runner import LoadResult
from spillway.loadgen.schedule import Lateness
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord


@pytest.fixture
def url() -> Iterator[str]:
    """A very fast engine on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=10)  # type: ignore[arg-type]

    engine = on_loop(start_engine(EngineSettings(role=Role.DECODE, time_scale=200.0)))
    yield engine.url  # type: ignore[attr-defined]
    on_loop(engine.close())  # type: ignore[attr-defined]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.slow
def test_it_sends_measures_and_writes(spillway: Command, url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{at / 50},40,3\n" for at in range(10))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    done = spillway(
        *("load", "--url", url, "--trace", trace, "--header", "X-Test: yes"),
        *("--json", tmp_path / "out.json", "--records", tmp_path / "records.jsonl"),
    )
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "out.json").read_text())
    (run,) = written["runs"]
    assert run["policy"] == url
    assert run["requests"]["finished"] == 10
    assert written["config"]["model"] == "fake-llama", "the first model the endpoint lists"
    assert set(written["config"]["lateness_s"]) == {"p50", "p99", "max"}
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [f"load-{at}" for at in range(10)]
    assert "client lateness" in done.err


def ended(*, failed: int = 0, late_p99_s: float = 0.001) -> LoadResult:
    records = [
        RequestRecord(
            request_id=f"r{at}",
            arrival_s=0.0,
            prompt_tokens=1,
            output_tokens=1,
            slo_ttft_s=1.0,
            slo_tbt_s=0.06,
            outcome="failed" if at < failed else "finished",
            error="HTTP 502" if at < failed else "",
        )
        for at in range(10)
    ]
    return LoadResult(
        records=records,
        gaps=GapHistogram(),
        lateness=Lateness(p50_s=0.0, p99_s=late_p99_s, max_s=late_p99_s),
        overflowed=0,
        unsent=0,
        wall_s=1.0,
    )


def test_good_figures_raise_no_doubt() -> None:
    assert complaints(ended()) == []


def test_failures_and_a_late_client_do() -> None:
    assert complaints(ended(failed=3)) == ["warning: 3 of 10 requests failed: 3 x HTTP 502"]
    (line,) = complaints(ended(late_p99_s=0.08))
    assert "the client was late (p99 80 ms)" in line


def test_headers() -> None:
    given = ["Authorization: Bearer a:b", "X-A:1"]
    assert headers_of(given) == {"Authorization": "Bearer a:b", "X-A": "1"}
    with pytest.raises(ConfigError, match="write it as 'Name: value'"):
        headers_of(["nonsense"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompts", "pictures"), "choose ids or text"),
        (("--url", "http://127.0.0.1:9"), "cannot be reached"),
        (("--url", "nonsense", "--model", "m"), "must start with http"),
    ],
)
def test_a_bad_flag_is_one_line(spillway: Command, flags: tuple[str, ...], said: str) -> None:
    done = spillway("load", "--duration-s", "1", *flags)
    assert done.code == 2
    assert said in done.err
