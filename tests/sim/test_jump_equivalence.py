"""Jumping over identical steps gives what taking them one by one gives."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import make_spec
from simdrive import finish
from spillway.core.types import ChunkMode, NodeSpec, Role
from spillway.sim.node import SimNode
from spillway.sim.residents import Finished, Job, Outcome, Tokens

# Times that no sum of step times meets: a tie between an arrival and a step's end could fall on
# either side of it.
TICK_S = 0.0031415926535


class Order(NamedTuple):
    after_ticks: int
    kind: str
    job: Job
    abort_after_ticks: int | None


def orders(role: Role) -> st.SearchStrategy[list[Order]]:
    kinds = ["prefill", "local"] if role is Role.PREFILL else ["local", "pulled"]
    job = st.builds(
        Job,
        st.just(""),
        st.integers(1, 5000),
        st.integers(1, 500),
        st.sampled_from([0.0131, 0.0173, 0.0607, inf]),
        st.integers(0, 200),
        st.just(0),
        st.sampled_from([(), (), ((512, 2), (100, 3))]),
    )
    order = st.builds(
        Order,
        st.integers(0, 100),
        st.sampled_from(kinds),
        job,
        st.one_of(st.none(), st.integers(0, 400)),
    )
    return st.lists(order, min_size=1, max_size=14)


@st.composite
def specs(draw: st.DrawFn, role: Role) -> NodeSpec:
    return make_spec(
        "n0",
        role,
        kv_capacity_tokens=draw(st.sampled_from([0, 5500, 8000, 30_000])),
        chunk_mode=draw(st.sampled_from([ChunkMode.ENGINE, ChunkMode.STATIC])),
        chunk_tokens_max=draw(st.sampled_from([200, 2048])),
        step_tokens_max=draw(st.sampled_from([512, 2048])),
        seqs_max=draw(st.sampled_from([2, 256])),
    )


def play(node: SimNode, script: list[Order]) -> list[Outcome]:
    """Submit the orders, and the aborts, at their times; let the node come to rest."""
    moments: list[tuple[float, int, str, Job]] = []
    ticks = 0
    for index, order in enumerate(script):
        ticks += order.after_ticks
        job = order.job._replace(request_id=f"r{index}", dispatch_id=index)
        moments.append((ticks * TICK_S, index, order.kind, job))
        if order.abort_after_ticks is not None:
            abort_s = (ticks + order.abort_after_ticks + 0.5) * TICK_S
            moments.append((abort_s, index, "abort", job))
    submit = {
        "prefill": node.submit_prefill,
        "local": node.submit_local,
        "pulled": node.submit_pulled,
    }
    outcomes: list[Outcome] = []
    for at_s, _, kind, job in sorted(moments):
        outcomes += finish(node, at_s)
        if kind == "abort":
            node.abort(job.request_id, at_s)
        else:
            submit[kind](job, at_s)
    return outcomes + finish(node)


def summary(outcomes: list[Outcome]) -> list[tuple[str, str, int, int]]:
    return [
        (
            type(o).__name__,
            o.resident.request_id,
            o.resident.gaps_late if isinstance(o, Finished) else -1,
            o.resident.generated_tokens if isinstance(o, Finished) else -1,
        )
        for o in outcomes
        if not isinstance(o, Tokens)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_jumps_equal_single_steps(role: Role) -> None:
    work = {"segments": 0, "steps": 0, "preemptions": 0, "late": 0}
    # Two that fit together at first and not to the end: what is drawn need not preempt.
    two = [Order(0, "local", Job("", 2600, 500, 0.0131), None)] * 2

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(spec=specs(role), script=orders(role))
    @example(spec=make_spec("n0", role, kv_capacity_tokens=5500), script=two)
    def check(spec: NodeSpec, script: list[Order]) -> None:
        jumping, stepping = SimNode(spec), SimNode(spec, per_token=True)
        jumped, stepped = play(jumping, script), play(stepping, script)
        assert summary(jumped) == summary(stepped)
        plain = [o for o in stepped if not isinstance(o, Tokens)]
        for mine, other in zip(jumped, plain, strict=True):
            assert mine.at_s == pytest.approx(other.at_s, abs=1e-9)
            assert mine.resident.gap_max_s == pytest.approx(other.resident.gap_max_s, abs=1e-9)
        assert (jumping.steps, jumping.preemptions) == (stepping.steps, stepping.preemptions)
        assert jumping.gaps.count == stepping.gaps.count
        assert jumping.gaps.sum_s == pytest.approx(stepping.gaps.sum_s, abs=1e-9)
        assert jumping.gaps.max_s == pytest.approx(stepping.gaps.max_s, abs=1e-9)
        for frac in (0.1, 0.5, 0.99):
            assert jumping.gaps.quantile(frac) == pytest.approx(
                stepping.gaps.quantile(frac), rel=0.011
            )
        assert jumping.kv.used_tokens == stepping.kv.used_tokens == 0
        work["segments"] += jumping.segments
        work["steps"] += jumping.steps
        work["preemptions"] += jumping.preemptions
        work["late"] += sum(late for kind, _, late, _ in summary(jumped) if kind == "Finished")

    check()
    assert work["segments"] * 2 < work["steps"]  # it did jump
    assert work["preemptions"] > 0
    assert work["late"] > 0


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(script=orders(Role.DECODE), ticks=st.integers(0, 900))
def test_the_state_within_a_jump_is_that_of_single_steps(script: list[Order], ticks: int) -> None:
    script = [order._replace(abort_after_ticks=None) for order in script]
    jumping = SimNode(make_spec("n0", kv_capacity_tokens=0))
    stepping = SimNode(make_spec("n0", kv_capacity_tokens=0), per_token=True)
    states = []
    for node in (jumping, stepping):
        ahead = 0
        for index, order in enumerate(script):
            ahead += order.after_ticks
            if ahead <= ticks:
                finish(node, ahead * TICK_S)
                job = order.job._replace(request_id=f"r{index}")
                (node.submit_pulled if order.kind == "pulled" else node.submit_local)(
                    job, ahead * TICK_S
                )
        now_s = (ticks + 0.5) * TICK_S
        finish(node, now_s)
        states.append(node.state(now_s))
    jumped, stepped = states
    assert jumped.backlog_token_pairs == pytest.approx(stepped.backlog_token_pairs, abs=1.0)
    assert jumped.backlog_tokens == pytest.approx(stepped.backlog_tokens, abs=1)
    assert jumped._replace(backlog_token_pairs=0.0, backlog_tokens=0) == stepped._replace(
        backlog_token_pairs=0.0, backlog_tokens=0
    )
