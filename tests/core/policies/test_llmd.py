"""llm-d's decider: the score that chooses nodes, and the uncached length that decides."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node
from spillway.core.decide import Reason, Route
from spillway.core.policies.llmd import LlmdPrefix


@pytest.mark.parametrize(
    ("prompt_tokens", "cached_tokens", "options", "deflected"),
    [
        (511, 0, {}, True),
        (512, 0, {}, False),
        (2000, 1489, {}, True),
        (2000, 1488, {}, False),
        (90_000, 0, {"uncached_tokens_min": 0}, True),  # 0 never separates
        (1999, 0, {"prompt_tokens_min": 2000}, True),
        (2000, 0, {"prompt_tokens_min": 2000}, False),
    ],
)
def test_only_prompts_that_lack_much_use_the_prefill_pool(
    prompt_tokens: int, cached_tokens: int, options: dict[str, int], deflected: bool
) -> None:
    # Load does not matter: the pool is idle, or drowning.
    for backlog_tokens in (0, 90_000):
        cluster = make_cluster(prefill_node("p0", backlog_tokens), decode_node())
        request = make_request(
            prompt_tokens=prompt_tokens, cached_tokens_by_node=(("d0", cached_tokens),)
        )
        decision = LlmdPrefix(**options).decide(request, cluster)
        assert (decision.route is Route.DEFLECTED) == deflected
        assert decision.reason is (Reason.SHORT_PROMPT if deflected else Reason.NO_PRESSURE)


def test_a_held_prefix_outweighs_a_queue_and_a_queue_decides_between_equals() -> None:
    cluster = make_cluster(prefill_node(), decode_node("d0", 3), decode_node("d1", 40))
    assert LlmdPrefix().pick_decode(make_request(), cluster) == "d0"
    held = make_request(cached_tokens_by_node=(("d1", 1200),))  # 2 x 0.6 beats 1 x 1
    assert LlmdPrefix().pick_decode(held, cluster) == "d1"
    less = make_request(cached_tokens_by_node=(("d1", 900),))
    assert LlmdPrefix().pick_decode(less, cluster) == "d0"
    assert LlmdPrefix(prefix_factor=0.0).pick_decode(held, cluster) == "d0"


def test_the_prefill_node_is_chosen_by_prompts_waiting_whatever_their_length() -> None:
    one_long, two_short = prefill_node("p0", 90_000), prefill_node("p1", 100)
    two_short.backlog_prompts = 2
    decision = LlmdPrefix().decide(make_request(), make_cluster(one_long, two_short, decode_node()))
    assert decision.prefill_node_id == "p0"


def test_the_decode_node_is_chosen_first_so_its_veto_is_final() -> None:
    cluster = make_cluster(
        prefill_node(), decode_node("d0", kv_capacity_tokens=0), decode_node("d1", 3)
    )
    decision = LlmdPrefix().decide(make_request(prompt_tokens=100), cluster)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert decision.candidates[-1].verdict is Reason.KV_VETO
