"""Starting and stopping, in a loop and as a process."""

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from spillway.core.errors import ConfigError
from spillway.fakeengine.records import read_records


async def test_a_free_port_is_taken_and_said(start, client):
    one, other = await start(), await start()
    assert one.port != other.port
    assert one.url == f"http://127.0.0.1:{one.port}"
    assert one.backend.node_id == f"decode-{one.port}"


async def test_a_taken_port_is_named(start):
    engine = await start()
    with pytest.raises(ConfigError, match=str(engine.port)):
        await start(port=engine.port)


async def test_a_bad_profile_leaves_the_port_free(start):
    engine = await start()
    await engine.close()
    with pytest.raises(ConfigError, match="no-such"):
        await start(port=engine.port, profile="no-such")
    assert (await start(port=engine.port)).port == engine.port


async def test_a_stopped_node_is_unhealthy_and_serves_nothing(start, client):
    engine = await start()
    engine.backend.pace.stop("broken")
    assert (await client.get(engine, "/health"))[0] == 503
    status, answer = await client.post(engine, {"prompt": "x", "max_tokens": 1})
    assert status == 500
    assert "stopped" in answer["error"]["message"]


async def test_requests_cut_off_by_closing_are_in_the_records(start, client, tmp_path):
    path = tmp_path / "records.jsonl"
    engine = await start(records=str(path))
    asking = asyncio.ensure_future(client.post(engine, {"prompt": "x", "max_tokens": 50_000}))
    while not engine.backend.pace.flights:
        await asyncio.sleep(0.001)
    await engine.close()
    assert (await asking)[0] == 500
    assert [record.outcome for record in read_records(path)] == ["failed"]


async def test_closing_twice_is_harmless(start):
    engine = await start()
    await engine.close()
    await engine.close()


PROGRAM = """
import json, sys
from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, run_engine
settings = EngineSettings(role=Role.DECODE, **json.loads(sys.argv[1]))
run_engine(settings, lambda engine: print(engine.port, flush=True))
"""


@pytest.mark.slow
def test_a_process_stops_on_sigterm_and_leaves_its_records(fast_profile, tmp_path):
    path = tmp_path / "records.jsonl"
    options = json.dumps({"profile": fast_profile, "records": str(path)})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, options], stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        body = json.dumps({"prompt": "hi", "max_tokens": 3}).encode()
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/v1/completions", data=body, timeout=5
        ) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    assert [record.output_tokens for record in read_records(path)] == [3]
