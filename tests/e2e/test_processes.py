"""The same as real processes: started by the command line, ended by a signal, leaving nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from spillway.cli.cluster import ClusterPlan, LocalCluster
from spillway.cli.parent import READY_LINE
from spillway.wire.faketext import expected_token, prompt_digest

pytestmark = pytest.mark.slow

READY_S_MAX = 20.0  # a busy machine takes seconds to import everything
END_S_MAX = 2.0
PROMPT = "Where does the water go?"


class Process:
    """One `spillway` command. url: what its ready line says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.url = ""

    @classmethod
    async def start(cls, *arguments: str) -> Process:
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spillway", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    async def ready(self) -> Process:
        stdout = self._process.stdout
        assert stdout is not None
        async with asyncio.timeout(READY_S_MAX):
            while not self.url:
                line = (await stdout.readline()).decode()
                assert line, "it ended before it was ready"
                found = READY_LINE.search(line)
                self.url = found[1] if found else ""
        return self

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was said on stderr."""
        self.send(number)
        return await self.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait(self) -> tuple[int, str]:
        stderr = self._process.stderr
        assert stderr is not None
        async with asyncio.timeout(END_S_MAX):
            said = await stderr.read()
            return await self._process.wait(), said.decode()

    def let_go(self) -> None:
        """Close its standard input, as the end of this process would."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def kill(self) -> None:
        if self.is_running:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.communicate()


class Cluster:
    """Engines and a router, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []

    async def start(self, *arguments: str) -> Process:
        process = await Process.start(*arguments)
        self.processes.append(process)
        return process

    async def start_all(self, router: str = "") -> tuple[Process, Process, Process]:
        """Return a prefill engine, a decode engine and a router that finds both."""
        engine = ("engine", "--port", "0", "--time-scale", "10", "--end-with-parent")
        prefill = await self.start(*engine, "--role", "prefill")
        decode = await self.start(*engine, "--role", "decode")
        await asyncio.gather(prefill.ready(), decode.ready())
        config = self.folder / "cluster.yaml"
        config.write_text(
            f"nodes:\n  prefill: [{{url: '{prefill.url}'}}]\n  decode: [{{url: '{decode.url}'}}]\n"
            f"router: {{port: 0, health_interval_s: 0.1{router}}}\n"
        )
        router_process = await self.start("serve", "--config", str(config), "--end-with-parent")
        return prefill, decode, await router_process.ready()

    async def close(self) -> None:
        for process in self.processes:
            await process.kill()


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    await cluster.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20.0)) as session:
        yield session


def body(output_tokens: int, *, stream: bool) -> dict[str, object]:
    return {
        "model": "fake-llama",
        "prompt": PROMPT,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


async def test_serve_and_engines_answer_and_end_at_once(processes, session):
    prefill, decode, router = await processes.start_all()
    url = f"{router.url}/v1/completions"
    async with session.post(url, json=body(5, stream=False)) as answer:
        assert answer.status == 200
        assert answer.headers["x-spillway-route"] in ("prefill", "deflected")
        text = (await answer.json())["choices"][0]["text"]
    digest = prompt_digest(PROMPT)
    assert text == "".join(expected_token(digest, index) for index in range(5))

    # The session's idle connection stays open: it must not keep the router.
    for process, number in ((router, "TERM"), (decode, "INT"), (prefill, "TERM")):
        code, said = await process.end(signal.Signals[f"SIG{number}"])
        assert code == 0
        assert "Traceback" not in said
        assert "never" not in said, "no coroutine and no task is left behind"


async def test_serve_ends_in_time_with_a_stream_open(processes, session):
    _, decode, router = await processes.start_all(", drain_s: 0.2")
    async with session.post(
        f"{router.url}/v1/completions", json=body(60_000, stream=True)
    ) as answer:
        await answer.content.readuntil(b"\n\n")
        code, said = await router.end()
        assert (code, "Traceback" in said) == (0, False)
        with suppress(aiohttp.ClientPayloadError):  # cut off, which nobody takes for the end
            got = await answer.content.read()
            assert b"[DONE]" not in got
            assert b'"error"' in got
    # The engine is rid of the stream, too.
    async with asyncio.timeout(END_S_MAX), session.get(f"{decode.url}/metrics") as page:
        assert 'num_requests_running{model_name="fake-llama",engine="0"} 0' in await page.text()


async def test_an_engine_that_dies_is_named_to_nobody_and_missed_by_nobody(processes, session):
    prefill, decode, router = await processes.start_all()
    await prefill.kill()
    for _ in range(3):
        async with session.post(
            f"{router.url}/v1/completions", json=body(3, stream=True)
        ) as answer:
            assert answer.status == 200
            assert answer.headers["x-spillway-route"] == "deflected"
            assert (await answer.text()).endswith("data: [DONE]\n\n")
    await decode.kill()
    async with session.post(f"{router.url}/v1/completions", json=body(3, stream=True)) as answer:
        assert answer.status == 503
        said = await answer.text()
    assert "127.0.0.1" not in said
    assert router.is_running


async def test_nobody_is_left_when_the_parent_is_gone(processes):
    started = await processes.start_all()
    for process in started:
        process.let_go()
    assert [(await process.wait())[0] for process in started] == [0, 0, 0]


async def test_a_local_cluster_ends_every_process_it_started(tmp_path: Path):
    plan = ClusterPlan(
        folder=tmp_path,
        prefill_count=1,
        decode_count=1,
        policy="headroom",
        profile="llama-3.1-8b-a100",
        slo_ttft_s=1.0,
        slo_tbt_s=0.06,
    )
    pids: list[int] = []
    with suppress(ZeroDivisionError):
        async with LocalCluster(plan) as cluster:
            pids += [child.process.pid for child in cluster._children]
            raise ZeroDivisionError("whatever happens inside")
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--prefill", "http://127.0.0.1:1"), "--decode"),
        (("serve", "--config", "missing.yaml"), "missing.yaml"),
        (("engine", "--role", "both"), "--role"),
    ],
)
async def test_what_cannot_be_started_says_why_in_one_line(processes, arguments, said):
    process = await processes.start(*arguments)
    async with asyncio.timeout(READY_S_MAX):
        stderr = (await process._process.stderr.read()).decode()
        assert await process._process.wait() == 2
    assert said in stderr
    assert stderr.count("\n") == 1
