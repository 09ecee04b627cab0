"""What decisions cost: policies, chunk plans, ledger, dispatcher, report decoding, trace readers.

The states are those in which a decision is worth most and costs most: prefill nodes with seconds of
backlog, decode nodes with a working batch, so that a deflection to every one of them is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from random import Random
from typing import NamedTuple

from bench_sim import requests
from figures import Effort, Figure, cpu_us_per_call, figure
from mocks import BUILD, BenchError
from work import work_of

from spillway.core.chunks import plan_chunks
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import (
    FirstToken,
    NodeReported,
    NodeState,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    StartPrefill,
)
from spillway.core.latency import prefill_s, token_pairs
from spillway.core.ledger import Ledger
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.types import ClusterView, NodeSpec, NodeView, RequestView, Role, Slo
from spillway.sim.run import run as simulate
from spillway.sim.scenario import Scenario
from spillway.wire import report
from spillway.wire.profile import DEFAULT_PROFILE, load_profile_file
from spillway.workload.seeds import stream
from spillway.workload.traces import read_trace

NOW_S = 1000.0
SLO = Slo(ttft_s=1.0, tbt_s=0.06)
PROMPTS_TOKENS = (1024, 8192, 32768)
READER_ROWS = 2_000
SIMULATED_ROWS = 500
PREFILL_NODES_WIDE, DECODE_NODES_WIDE = 32, 128


class Case(NamedTuple):
    """Something to call again and again, and a remark on what it is. units: rows in one call."""

    name: str
    call: Callable[[], object]
    note: str = ""
    units: int = 1


def run(effort: Effort) -> Iterator[Figure]:
    """Yield the figures of the decision core. Raises BenchError if no deflection is evaluated."""
    every = cases()
    rounds = 20 if effort.quick else 100
    samples = cpu_us_per_call({case.name: case.call for case in every}, rounds)
    figures = []
    for case in every:
        per_unit_us = [us / case.units for us in samples[case.name]]
        figures.append(figure(case.name, per_unit_us, "us", note=case.note))
    yield _slowest_prompt("decision_2p2d", figures, target_us=20.0)
    yield _slowest_prompt("decision_128d", figures, target_us=300.0)
    yield from figures
    for case in every:
        work = work_of(case.call)
        yield figure(f"{case.name}_calls", [work.calls / case.units], "", note="functions called")
        yield figure(f"{case.name}_peak", [work.peak_bytes / case.units], "B", note="of memory")


def cases() -> list[Case]:
    """Return everything that is measured here, over states that are the same every time."""
    small, wide = loaded_cluster(2, 2), loaded_cluster(PREFILL_NODES_WIDE, DECODE_NODES_WIDE)
    return [
        *_headroom("decision_2p2d", small),
        *_headroom("decision_128d", wide),
        *_other_decisions(small),
        *_plans(small.decode[0]),
        _dispatcher_cycle(),
        *_ledger(),
        _report_decode(),
        *_readers(),
        *_simulations(),
    ]


def versions() -> dict[str, str]:
    """Return what is compared, by name: nothing but this project."""
    return {}


def _slowest_prompt(name: str, figures: list[Figure], target_us: float) -> Figure:
    """Return the figure of the prompt length that takes longest, under the plain name."""
    lengths = [one for one in figures if one.name.startswith(f"{name}_prompt")]
    slowest = max(lengths, key=lambda one: one.value)
    note = "headroom under pressure, the slowest of three prompt lengths"
    return slowest._replace(name=name, target=target_us, note=note)


def loaded_cluster(prefill_nodes: int, decode_nodes: int, *, calm: bool = False) -> ClusterView:
    """Return a cluster at work: seconds of prefill backlog unless calm, every batch different."""
    draws = stream(1, "bench/cluster")
    return ClusterView(
        now_s=NOW_S,
        prefill=tuple(
            _prefill_view(spec, 0 if calm else draws.randint(3, 8))
            for spec in _specs(Role.PREFILL, prefill_nodes)
        ),
        decode=tuple(_decode_view(spec, draws) for spec in _specs(Role.DECODE, decode_nodes)),
    )


def _specs(role: Role, nodes: int) -> list[NodeSpec]:
    file = load_profile_file(DEFAULT_PROFILE)
    return [
        NodeSpec(
            node_id=f"{role}-{at:03}",
            role=role,
            profile=file.latency(),
            kv_capacity_tokens=file.kv_capacity_tokens,
        )
        for at in range(nodes)
    ]


def _prefill_view(spec: NodeSpec, prompts: int) -> NodeView:
    tokens, pairs = 4096 * prompts, prompts * token_pairs(4096, 0)
    return NodeView(
        spec=spec,
        backlog_prompts=prompts,
        backlog_tokens=tokens,
        backlog_token_pairs=pairs,
        backlog_until_s=NOW_S + prefill_s(spec.profile, tokens, pairs, spec.step_tokens_max),
        kv_capacity_tokens=spec.kv_capacity_tokens,
        heard_at_s=NOW_S,
        reporting=True,
    )


def _decode_view(spec: NodeSpec, draws: Random) -> NodeView:
    seqs = draws.randint(8, 48)
    return NodeView(
        spec=spec,
        decode_seqs=seqs,
        kv_used_tokens=min(seqs * draws.randint(500, 2000), spec.kv_capacity_tokens // 2),
        kv_capacity_tokens=spec.kv_capacity_tokens,
        tbt_s_min=SLO.tbt_s,
        heard_at_s=NOW_S,
        reporting=True,
    )


def request(prompt_tokens: int, request_id: str = "r") -> RequestView:
    """Return a request that arrives now."""
    return RequestView(request_id, NOW_S, prompt_tokens, 256, SLO)


def _headroom(name: str, cluster: ClusterView) -> Iterator[Case]:
    policy = build_policy("headroom")
    for prompt_tokens in PROMPTS_TOKENS:
        asked = request(prompt_tokens)
        decision = policy.decide(asked, cluster)
        if all(one.prefill_node_id or not one.estimate for one in decision.candidates):
            raise BenchError(f"{name}: no deflection was evaluated; the states prove nothing")
        note = f"{decision.route}: {decision.reason}, {len(decision.candidates)} candidates"
        call = partial(policy.decide, asked, cluster)
        yield Case(f"{name}_prompt_{prompt_tokens // 1024}k", call, note)


def _other_decisions(cluster: ClusterView) -> Iterator[Case]:
    asked, calm = request(8192), loaded_cluster(2, 2, calm=True)
    call = partial(build_policy("headroom").decide, request(1024), calm)
    yield Case("decision_2p2d_calm", call, "headroom, no prefill backlog, 1,024 tokens")
    for name in POLICY_NAMES:
        if name != "headroom":
            call = partial(build_policy(name).decide, asked, cluster)
            yield Case(f"decision_2p2d_{name.replace('-', '_')}", call)


def _plans(node: NodeView) -> Iterator[Case]:
    spec = node.spec
    for prompt_tokens in PROMPTS_TOKENS:
        call = partial(
            plan_chunks,
            spec.profile,
            node.decode_seqs,
            node.kv_used_tokens,
            0,
            prompt_tokens,
            SLO.tbt_s,
            spec.chunk_tokens_max,
            spec.chunk_tokens_multiple,
        )
        plan = call()
        note = f"{plan.steps} steps of {len(plan.chunks)} sizes" if plan else "no safe plan"
        yield Case(f"plan_chunks_{prompt_tokens // 1024}k", call, note)


def _dispatcher_cycle() -> Case:
    """A whole request through the dispatcher, prefill path, with the reports it brings about."""
    specs = [*_specs(Role.PREFILL, 2), *_specs(Role.DECODE, 2)]
    call = dispatcher_cycle(Dispatcher(build_policy("headroom"), specs))
    note = "arrival, prefill done, first token, end, and one report of each node"
    return Case("dispatcher_cycle_2p2d", call, note)


def dispatcher_cycle(dispatcher: Dispatcher) -> Callable[[], None]:
    """Return a call that takes one request from arrival to end, later with every call."""
    ids, now_s = count(), NOW_S
    node_ids = sorted(dispatcher.ledger.nodes)

    def cycle() -> None:
        nonlocal now_s
        now_s += 0.1
        at = next(ids)
        request_id = f"r{at}"
        arrived = RequestArrived(request(2048, request_id)._replace(arrival_s=now_s))
        orders = dispatcher.handle(arrived, now_s)
        if isinstance(orders[-1], StartPrefill):
            dispatcher.handle(PrefillFinished(request_id), now_s + 0.02)
        dispatcher.handle(FirstToken(request_id), now_s + 0.03)
        dispatcher.handle(RequestFinished(request_id, 64), now_s + 0.04)
        for node_id in node_ids:
            dispatcher.handle(NodeReported(_idle(node_id, now_s + 0.05, 2 * at + 2)), now_s + 0.05)

    return cycle


def _idle(node_id: str, taken_at_s: float, dispatch_seen: int) -> NodeState:
    return NodeState(node_id, taken_at_s, 0, dispatch_seen, 0, 0, 0.0, 0, 0, 200_000, float("inf"))


def _ledger() -> Iterator[Case]:
    """A report into the book of one node, and the view of all nodes after it."""
    for name, nodes in (("2p2d", 2), ("128d", DECODE_NODES_WIDE)):
        specs = [*_specs(Role.PREFILL, 2), *_specs(Role.DECODE, nodes)]
        ledger = Ledger(specs, report_age_max_s=1.0)
        ticks = count(1)

        def hear(ledger: Ledger = ledger, ticks: Iterator[int] = ticks) -> None:
            at_s = NOW_S + 0.001 * next(ticks)
            ledger.nodes["decode-001"].report(_idle("decode-001", at_s, 0))
            ledger.cluster(at_s, 0)

        yield Case(f"ledger_report_{name}", hear, "one node's report, then the view of all nodes")


def _readers() -> Iterator[Case]:
    """Traces of the public formats, read from a file, by the row."""
    BUILD.mkdir(parents=True, exist_ok=True)
    azure = "".join(
        f"2023-11-16 18:{at // 60 % 60:02}:{at % 60:02}.{at:07},{200 + at},{20 + at % 300}\n"
        for at in range(READER_ROWS)
    )
    mooncake = "".join(
        f'{{"timestamp":{20 * at},"input_length":{512 * 8},"output_length":{20 + at % 300},'
        f'"hash_ids":{list(range(at, at + 8))}}}\n'
        for at in range(READER_ROWS)
    )
    texts = {
        "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n" + azure,
        "mooncake": mooncake,
    }
    for name, text in texts.items():
        path = BUILD / f"reader.{name}"
        path.write_text(text, encoding="utf-8")
        note = f"a row of {READER_ROWS:,}, the file read and its format recognised"
        yield Case(f"read_{name}_row", partial(read_trace, path), note, READER_ROWS)


def _report_decode() -> Case:
    line = report.encode(
        report.NodeReport(
            node_id="decode-000",
            role=Role.DECODE,
            seq=4711,
            step=123456,
            backlog_prompts=1,
            backlog_tokens=2048,
            backlog_token_pairs=2099200.0,
            decode_seqs=33,
            kv_used_tokens=60000,
            kv_capacity_tokens=200000,
            dispatch_seen={"router-1": 98765},
            tbt_s_min=0.06,
            last_step_predicted_s=0.021,
            last_step_actual_s=0.022,
        )
    )
    return Case(
        "report_decode",
        lambda: report.to_state(report.decode(line), NOW_S, "router-1"),
        f"{len(line)} bytes, to the core's NodeState",
    )


def _simulations() -> Iterator[Case]:
    """Whole runs of the simulator on the requests that the peers are given, for one request."""
    rows = requests(SIMULATED_ROWS)
    for name, policy, cluster in (
        ("simulated_request_least_loaded", "least-loaded", "2p2d"),
        ("simulated_request_headroom", "headroom", "2p2d"),
        ("simulated_request_32p32d", "least-loaded", "32p32d"),
    ):
        call = partial(simulate, Scenario(cluster=cluster, policy=policy), rows, 1)
        yield Case(name, call, f"{policy} on {cluster}", SIMULATED_ROWS)
