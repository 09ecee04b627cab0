"""Drives one simulated node in tests: orders at given times, outcomes as plain tuples."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from builders import make_profile, make_spec
from spillway.core.latency import LatencyProfile
from spillway.core.types import Role
from spillway.sim.node import SimNode
from spillway.sim.residents import Finished, Job, Outcome, PrefillDone, Tokens
from spillway.sim.snapshot import recount_kv

EVENTS_MAX = 200_000

# Round numbers, so that a step can be computed by hand.
ROUND = make_profile(
    name="round",
    step_base_s=0.010,
    token_hinges=(0,),
    token_s=(1e-5,),
    kv_token_s=1e-7,
    token_pair_s=1e-9,
    kv_bytes_per_token=1000,
)


def round_node(
    role: Role = Role.DECODE, *, per_token: bool = False, skips_max: int = 8, **spec: Any
) -> SimNode:
    """A node on the round profile; keywords go to its spec."""
    spec = {"profile": ROUND} | spec
    return SimNode(make_spec("n0", role, **spec), per_token=per_token, skips_max=skips_max)


def step_of(
    seqs: int, kv_tokens: int, chunks: Iterable[tuple[int, int]] = (), p: LatencyProfile = ROUND
) -> float:
    """The step law written out: chunks are (tokens, context)."""
    scheduled = seqs + sum(tokens for tokens, _ in chunks)
    pairs = sum(tokens * (context + (tokens + 1) / 2) for tokens, context in chunks)
    assert len(p.token_s) == 1
    fixed_s = p.step_base_s + p.token_s[0] * scheduled
    return fixed_s + p.kv_token_s * kv_tokens + p.token_pair_s * pairs


def finish(node: SimNode, until_s: float = inf, *, release: bool = True) -> list[Outcome]:
    """Let the node run, event by event; recount its KV after each. Pulls prefilled KV at once."""
    outcomes: list[Outcome] = []
    for _ in range(EVENTS_MAX):
        due_s = node.next_event_s()
        if due_s > until_s or due_s == inf:
            return outcomes
        new = node.advance(due_s)
        for outcome in new:
            if release and isinstance(outcome, PrefillDone):
                node.release_kv(outcome.resident.request_id, outcome.at_s)
        outcomes += new
        recount_kv(node)
    raise AssertionError("the node never comes to rest")


def told(outcomes: Iterable[Outcome]) -> list[tuple[str, str, float]]:
    """Outcomes without tokens: (kind, request id, time to the nanosecond)."""
    return [
        (type(o).__name__, o.resident.request_id, round(o.at_s, 9))
        for o in outcomes
        if not isinstance(o, Tokens)
    ]


def times(outcomes: Iterable[Outcome], kind: type) -> dict[str, float]:
    """When each request had its outcome of `kind`."""
    return {o.resident.request_id: o.at_s for o in outcomes if isinstance(o, kind)}


def finished(outcomes: Iterable[Outcome]) -> list[str]:
    """The ids that finished, in order."""
    return [o.resident.request_id for o in outcomes if isinstance(o, Finished)]


def job(
    request_id: str = "r1", prompt_tokens: int = 1000, output_tokens: int = 5, **more: Any
) -> Job:
    return Job(request_id, prompt_tokens, output_tokens, **more)
