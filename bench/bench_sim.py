"""How many requests a second the simulator gets through, and how long the whole command takes.

The rows are drawn to resemble the public Azure 2023 traces: a code-completion hour (long prompts,
few output tokens) and a conversation hour (shorter prompts, many output tokens).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Effort, Figure, figure
from mocks import BUILD, BenchError

from spillway.sim.run import run as simulate
from spillway.sim.scenario import Scenario
from spillway.workload.arrivals import Gamma
from spillway.workload.lengths import Lognormal
from spillway.workload.row import Row
from spillway.workload.seeds import stream

ROWS = 10_000
COMMAND_S_MAX = 2.0


def run(effort: Effort) -> Iterator[Figure]:
    """Yield the figures of the simulator. Raises BenchError if the command fails."""
    repeats = 2 if effort.quick else 5
    yield from _loops(repeats)
    yield from _command(code_rows(), 1 if effort.quick else 3)


def code_rows() -> list[Row]:
    """Return rows like the code trace: 2.5/s in bursts, 2,048 prompt and 28 output tokens."""
    return _rows("code", 2.5, Lognormal(2048.0, cv=0.95, tokens_max=7437), Lognormal(28.0, cv=1.7))


def chat_rows() -> list[Row]:
    """Return rows like the conversation trace: 5.4/s, 1,155 prompt and 211 output tokens."""
    return _rows(
        "chat", 5.4, Lognormal(1155.0, cv=0.95, tokens_max=14050), Lognormal(211.0, cv=0.77)
    )


def _rows(name: str, rate_per_s: float, prompt: Lognormal, output: Lognormal) -> list[Row]:
    arrivals, prompts, outputs = (
        stream(1, f"bench/{name}/{purpose}") for purpose in ("arrivals", "prompts", "outputs")
    )
    times_s = Gamma(cv=2.0).draw(arrivals, rate_per_s, 1.2 * ROWS / rate_per_s)[:ROWS]
    return [Row(at_s, prompt.draw(prompts), output.draw(outputs)) for at_s in times_s]


def _loops(repeats: int) -> Iterator[Figure]:
    code, chat = code_rows(), chat_rows()
    cases = {
        "sim_requests_per_s": ("least-loaded", code, 20_000.0),
        "sim_requests_per_s_headroom": ("headroom", code, 10_000.0),
        "sim_requests_per_s_chat": ("least-loaded", chat, None),
        "sim_requests_per_s_chat_headroom": ("headroom", chat, None),
    }
    per_s: dict[str, list[float]] = {name: [] for name in cases}
    notes = {}
    for _ in range(repeats):
        for name, (policy, rows, _target) in cases.items():
            start_s = time.thread_time()
            output = simulate(Scenario(cluster="2p2d", policy=policy), rows, 1)
            per_s[name].append(len(rows) / (time.thread_time() - start_s))
            deflected = sum(record.route == "deflected" for record in output.records)
            notes[name] = f"{policy}; {deflected:,} deflected, {output.work.events:,} events"
    for name, (_policy, _rows, target) in cases.items():
        yield figure(name, per_s[name], "1/s", target=target, at_least=True, note=notes[name])


def _command(rows: list[Row], repeats: int) -> list[Figure]:
    """The whole command, interpreter start, reading and table included."""
    trace = BUILD / "rows.csv"
    _write_rows(trace, rows)
    command = [sys.executable, "-m", "spillway", "simulate", "--trace", str(trace)]
    command += ["--cluster", "2p2d", "--policy", "headroom"]
    wall_s, cpu_s = [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start_s = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall_s.append(time.perf_counter() - start_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode != 0:
            raise BenchError(f"spillway simulate failed: {done.stderr.strip()[-500:]}")
    note = f"spillway simulate of {ROWS:,} requests, one policy, from shell to table"
    return [
        figure("simulate_command", wall_s, "s", target=COMMAND_S_MAX, note=note),
        figure("simulate_command_cpu", cpu_s, "s"),
    ]


def _write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{row.arrival_s:.6f},{row.prompt_tokens},{row.output_tokens}\n" for row in rows]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(lines), encoding="utf-8")
