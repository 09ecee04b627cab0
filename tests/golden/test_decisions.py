"""What each policy decides in a set of situations, as a table to be read as a diff.

The same rows go through the invariants, so a wrong table cannot hide a broken law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import strategies as sp
from builders import make_cluster, make_node, make_request
from spillway.core.decide import Candidate, Decision, Route
from spillway.core.invariants import check_decision
from spillway.core.policies import build_policy
from spillway.core.types import ChunkMode, ClusterView, NodeView, RequestView, Role

NOW_S = 100.0
POLICIES = ("round-robin", "least-loaded", "threshold", "kairos-paper", "headroom")


class Situation(NamedTuple):
    """Two prefill nodes, the second with 1000 tokens more; two decode nodes, the second busier."""

    prompt_tokens: int = 2000
    backlog_tokens: int = 0
    decode_seqs: int = 30
    kv_used_tokens: int = 45_000
    link_gb_per_s: float = 25.0
    ttft_s: float = 1.0
    tbt_s: float = 0.06
    note: str = ""


SITUATIONS = (
    Situation(note="no queue"),
    Situation(200, note="no queue, short"),
    Situation(16_000, note="no queue, long"),
    Situation(decode_seqs=0, kv_used_tokens=0, note="nothing anywhere"),
    Situation(backlog_tokens=1500, note="less than a step waits"),
    Situation(backlog_tokens=8000),
    Situation(200, 8000),
    Situation(16_000, 8000),
    Situation(backlog_tokens=40_000),
    Situation(200, 40_000),
    Situation(16_000, 40_000),
    Situation(16_000, 40_000, ttft_s=5.0, note="time enough"),
    Situation(backlog_tokens=8000, tbt_s=0.03, note="tight gaps"),
    Situation(backlog_tokens=8000, tbt_s=0.02, note="gaps too tight"),
    Situation(backlog_tokens=8000, decode_seqs=100, kv_used_tokens=200_000, note="busy decode"),
    Situation(backlog_tokens=8000, decode_seqs=180, kv_used_tokens=330_000, note="full decode"),
    Situation(link_gb_per_s=1.25, note="slow link"),
    Situation(16_000, link_gb_per_s=1.25, note="slow link, long"),
    Situation(backlog_tokens=8000, link_gb_per_s=1.25, note="slow link and a queue"),
)


def fleet(given: Situation, **changes: object) -> ClusterView:
    link = {"link_bytes_per_s": given.link_gb_per_s * 1e9}
    prefill = [make_node(f"p{at}", Role.PREFILL, heard_at_s=NOW_S, **link) for at in range(2)]
    for at, node in enumerate(prefill):
        if given.backlog_tokens:
            sp.load_backlog(node, 1, given.backlog_tokens + 1000 * at, NOW_S)
    decode = [
        make_node(
            f"d{at}",
            heard_at_s=NOW_S,
            decode_seqs=given.decode_seqs + 10 * at,
            kv_used_tokens=given.kv_used_tokens + 12_000 * at,
            tbt_s_min=given.tbt_s if given.decode_seqs + at else float("inf"),
            **link,
            **changes,
        )
        for at in range(2)
    ]
    return make_cluster(*prefill, *decode, now_s=NOW_S)


def ms(value_s: float) -> str:
    return f"{value_s * 1e3:.1f}"


def row(given: Situation, decision: Decision) -> str:
    plan, estimate = decision.plan, decision.estimate
    nodes = [one for one in (decision.prefill_node_id, decision.decode_node_id) if one]
    cells = (
        given.prompt_tokens,
        given.backlog_tokens,
        f"{given.decode_seqs} / {given.kv_used_tokens // 1000}k",
        f"{given.link_gb_per_s:g}",
        f"{given.ttft_s:g} / {given.tbt_s * 1e3:g}",
        given.note,
        f"**{decision.route}**" if decision.route is Route.DEFLECTED else str(decision.route),
        " → ".join(nodes),
        "" if plan is None else f"{plan.chunks[0][0]}×{plan.chunks[0][1]}",
        *(ms(part_s) for part_s in estimate),
        ms(estimate.total_s),
        str(decision.reason),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """\
| prompt | backlog | streams / KV | GB/s | TTFT s / TBT ms | | route | node | first chunks | queue\
 | execute | transfer | admission | first step | TTFT | reason |
|--:|--:|--:|--:|--:|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|
"""


def decided(policy: str, request: RequestView, cluster: ClusterView) -> Decision:
    decision = build_policy(policy).decide(request, cluster)
    check_decision(decision, request, cluster)
    return decision


def test_decisions_by_situation(golden: Callable[[str, str], None]) -> None:
    text = (
        "# Decisions by situation\n\n"
        "Llama-3.1-8B on A100, 2 prefill and 2 decode nodes; what `test_decisions.py` sets up."
        " Estimates in ms.\nWritten by `make golden`; read it as a diff.\n"
    )
    for policy in POLICIES:
        text += f"\n## {policy}\n\n{HEAD}"
        for given in SITUATIONS:
            request = make_request(
                arrival_s=NOW_S,
                prompt_tokens=given.prompt_tokens,
                ttft_s=given.ttft_s,
                tbt_s=given.tbt_s,
            )
            text += row(given, decided(policy, request, fleet(given))) + "\n"
    golden("decisions.md", text)


# --- vetoes ----------------------------------------------------------------------------------

QUEUE = Situation(backlog_tokens=40_000)
VETOES: dict[str, dict[str, object]] = {
    "as it should be": {},
    "silent for 1.1 s": {"heard_at_s": NOW_S - 1.1},
    "never reported": {"reporting": False},
    "chunking unknown": {"chunk_mode": ChunkMode.UNKNOWN},
    "stock engine, chunks of 512": {"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": 512},
    "stock engine, chunks of 2048": {"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": 2048},
    "decode alone over its target": {"over_budget": True},
    "KV room for 50k tokens": {"kv_capacity_tokens": 50_000},
    "KV room unknown": {"kv_capacity_tokens": 0},
    "one deflected prompt ahead": {"backlog_prompts": 1, "backlog_until_s": NOW_S + 0.2},
    "256 deflected prompts ahead": {"backlog_prompts": 256, "backlog_until_s": NOW_S + 0.9},
    "a backlog without a safe chunk": {"backlog_prompts": 1, "backlog_until_s": float("inf")},
    "lost": {"usable": False},
}


def with_changes(node: NodeView, changes: dict[str, object]) -> NodeView:
    kept = {
        "heard_at_s": NOW_S,
        "decode_seqs": node.decode_seqs,
        "kv_used_tokens": node.kv_used_tokens,
        "tbt_s_min": node.tbt_s_min,
    }
    return make_node(node.node_id, **(kept | changes))


def verdict(one: Candidate) -> str:
    return f"{one.verdict}" + ("" if one.estimate is None else f" {ms(one.estimate.total_s)}")


def test_verdicts_by_state(golden: Callable[[str, str], None]) -> None:
    policies = ("threshold", "kairos-paper", "headroom")
    text = (
        "# Verdicts on a decode node by its state\n\n"
        "A prompt of 2000 tokens behind 40 000 others, one decode node of 30 streams in the state"
        " that the row names.\nEach cell: the verdict on it, with the predicted TTFT in ms where"
        " one was made. Written by `make golden`.\n\n"
        f"| state | {' | '.join(policies)} |\n|---|{'---|' * len(policies)}\n"
    )
    cluster = fleet(QUEUE)
    for name, changes in VETOES.items():
        changed = make_cluster(
            *cluster.prefill, with_changes(cluster.decode[0], changes), now_s=NOW_S
        )
        cells = []
        for policy in policies:
            decision = decided(policy, make_request(arrival_s=NOW_S), changed)
            local = [one for one in decision.candidates if one.prefill_node_id is None]
            cells.append(", ".join(map(verdict, local)) or str(decision.reason))
        text += f"| {name} | {' | '.join(cells)} |\n"
    golden("verdicts.md", text)
