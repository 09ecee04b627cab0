"""What a simulated request costs, beside the peers' simulators, and whether the answers agree.

The same requests through each, from the shell to the result: CPU time and peak memory of the whole
process. Prompts of about 1,000 tokens and outputs of about 200, 40 a second, log-normal, Poisson.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from comparison import OURS, Absent, Comparison
from figures import Effort, Figure, figure
from mocks import BenchError
from peers import pinned_version
from process import Cost, run_to_end
from simulators import AS_PYTHON, FOLDER, PEER_SIMULATORS, Simulator, compiled, spillway

from spillway.sim.run import run as simulate
from spillway.sim.scenario import Scenario
from spillway.workload.arrivals import Gamma, Poisson
from spillway.workload.lengths import Lognormal
from spillway.workload.row import Row
from spillway.workload.seeds import stream

NODES = 2  # of each pool
RATE_PER_S = 40.0
PROMPT = Lognormal(983.0, cv=1.0, tokens_max=8192)
OUTPUT = Lognormal(199.0, cv=0.8, tokens_max=2048)
SPEED_UP_MIN = 5.0  # over a peer with the same step times
MANY_NODES = 32
LOOP_ROWS = 10_000
MILLION_S_MAX, MILLION_MB_MAX = 60.0, 1000.0


class Repeats(NamedTuple):
    """How much is measured: requests of the two sizes, rounds of each, rows of the largest."""

    few: int
    many: int
    rounds: int
    largest: int
    loops: int


def run(effort: Effort) -> Iterator[Figure | Comparison | Absent]:
    """Yield what was measured, and what could not be. Raises BenchError if ours fails."""
    if effort.quick:
        repeats = Repeats(1_000, 4_000, 1, 20_000, 2)
    else:
        repeats = Repeats(10_000, 100_000, 3, 1_000_000, 5)
    simulators = [spillway(name=AS_PYTHON)]
    try:
        simulators.insert(0, spillway(package=compiled()))
    except BenchError as error:
        simulators = [spillway()]
        yield Absent("spillway, compiled", str(error))
    ours = simulators[0]
    for name, peer in PEER_SIMULATORS.items():
        try:
            simulators.append(peer())
        except BenchError as error:
            yield Absent(name, str(error))
    yield from _side_by_side(simulators, repeats.few, repeats.rounds)
    yield from _side_by_side(simulators, repeats.many, repeats.rounds)
    yield from _many_nodes(simulators, repeats.few)
    yield from _largest(ours, repeats.largest)
    yield from _loops(repeats.loops)


def versions() -> dict[str, str]:
    """Return what is compared, by name."""
    return {name: pinned_version(name) for name in PEER_SIMULATORS}


def requests(count: int) -> list[Row]:
    """Return the requests that every simulator is given: the same for the same count."""
    draws = {purpose: stream(1, f"bench/sim/{purpose}") for purpose in ("at", "prompt", "output")}
    times_s = Poisson().draw(draws["at"], RATE_PER_S, 1.1 * count / RATE_PER_S + 30.0)[:count]
    return [
        Row(at_s, PROMPT.draw(draws["prompt"]), OUTPUT.draw(draws["output"])) for at_s in times_s
    ]


# --- beside the peers ------------------------------------------------------------------------


def _side_by_side(
    simulators: Sequence[Simulator], count: int, rounds: int
) -> Iterator[Comparison | Absent]:
    """Run the same requests through every simulator, round by round."""
    rows, load = requests(count), f"{count:,} requests"
    costs: dict[str, list[Cost]] = {}
    for at in range(rounds):
        turned = simulators[at % len(simulators) :] + simulators[: at % len(simulators)]
        for one in turned:
            try:
                costs.setdefault(one.name, []).append(_cost(one, rows, NODES))
            except BenchError as error:
                if one.name == OURS:
                    raise
                yield Absent(f"{one.name}, {load}", str(error))
    costs = {name: found for name, found in costs.items() if len(found) == rounds}
    per_s = {name: [count / one.cpu_s for one in found] for name, found in costs.items()}
    yield Comparison(
        "2P2D", load, "requests per CPU second", "1/s", per_s, "more", {"AISimulate": SPEED_UP_MIN}
    )
    peak = {name: [one.peak_bytes / 1e6 for one in found] for name, found in costs.items()}
    yield Comparison("2P2D", load, "peak memory", "MB", peak)
    means = {
        one.name: one.means(rows, NODES) for one in simulators if one.name in costs and one.same_law
    }
    for name, mean in means.items():
        if mean.finished != count:
            yield Absent(f"{name}, {load}", f"{count - mean.finished} requests did not finish")
    ttfts = {name: [1e3 * mean.ttft_s] for name, mean in means.items()}
    yield Comparison("2P2D", load, "mean TTFT", "ms", ttfts, "equal")
    finishes = {name: [1e3 * mean.e2e_s] for name, mean in means.items()}
    yield Comparison("2P2D", load, "mean end-to-end latency", "ms", finishes, "equal")


def _many_nodes(simulators: Sequence[Simulator], count: int) -> Iterator[Comparison | Absent]:
    """The same requests on sixteen times the nodes: what idle nodes cost."""
    rows = requests(count)
    growth: dict[str, list[float]] = {}
    for one in simulators:
        try:
            few, many = _cost(one, rows, NODES), _cost(one, rows, MANY_NODES)
        except BenchError as error:
            if one.name == OURS:
                raise
            yield Absent(f"{one.name}, {MANY_NODES}P{MANY_NODES}D", str(error))
            continue
        growth[one.name] = [many.cpu_s / few.cpu_s]
    setting = f"{MANY_NODES}P{MANY_NODES}D over 2P2D"
    yield Comparison(setting, f"{count:,} requests", "CPU time", "x", growth)


def _cost(one: Simulator, rows: Sequence[Row], nodes: int, s_max: float = 600.0) -> Cost:
    trace = FOLDER / f"{one.name}.trace"
    one.write(trace, rows)
    return run_to_end(one.command(trace, nodes), s_max=s_max)


# --- ours alone ------------------------------------------------------------------------------


def _largest(ours: Simulator, count: int) -> list[Figure]:
    """A million requests by the command that users run."""
    cost = _cost(ours, requests(count), NODES, s_max=25 * MILLION_S_MAX)
    note = f"spillway simulate of {count:,} requests on 2P2D, one policy, from shell to table"
    return [
        figure("sim_largest_wall_s", [cost.wall_s], "s", target=MILLION_S_MAX, note=note),
        figure("sim_largest_cpu_s", [cost.cpu_s], "s"),
        figure("sim_largest_peak", [cost.peak_bytes / 1e6], "MB", target=MILLION_MB_MAX),
    ]


def code_rows() -> list[Row]:
    """Return rows like the public code trace: 2.5/s in bursts, 2,048 prompt, 28 output tokens."""
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
    times_s = Gamma(cv=2.0).draw(arrivals, rate_per_s, 1.2 * LOOP_ROWS / rate_per_s)[:LOOP_ROWS]
    return [Row(at_s, prompt.draw(prompts), output.draw(outputs)) for at_s in times_s]


def _loops(repeats: int) -> Iterator[Figure]:
    """The simulator's loop without interpreter start, reading and table."""
    code, chat = code_rows(), chat_rows()
    cases = {
        "sim_loop_code": ("least-loaded", code),
        "sim_loop_code_headroom": ("headroom", code),
        "sim_loop_chat": ("least-loaded", chat),
        "sim_loop_chat_headroom": ("headroom", chat),
    }
    per_s: dict[str, list[float]] = {name: [] for name in cases}
    notes = {}
    for _ in range(repeats):
        for name, (policy, rows) in cases.items():
            start_s = time.thread_time()
            output = simulate(Scenario(cluster="2p2d", policy=policy), rows, 1)
            per_s[name].append(len(rows) / (time.thread_time() - start_s))
            deflected = sum(record.route == "deflected" for record in output.records)
            notes[name] = f"{policy}; {deflected:,} deflected, {output.work.events:,} events"
    for name, samples in per_s.items():
        yield figure(name, samples, "1/s", at_least=True, note=notes[name])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield figure("sim_loop_peak", [peak_mb], "MB", note="of the process that ran the loops")
