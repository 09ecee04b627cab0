"""What a node says of its steps changes how it is predicted, and too much of it closes the gate."""

from __future__ import annotations

from math import inf

import pytest

from builders import make_cluster, make_request, make_spec, make_state
from fleets import decode_node
from spillway.core.calibration import GREEN_AFTER_S, Calibration, corrected
from spillway.core.decide import Reason
from spillway.core.latency import step_s
from spillway.core.ledger import Ledger
from spillway.core.placement import safe_plan, state_veto
from spillway.core.types import Role

SPEC = make_spec("d0")
SEQS, KV, CHUNK, CONTEXT = 16, 20_000, 512, 1000


def said(at_s: float = 0.0, **changes: object) -> Calibration:
    calibration = Calibration(SPEC)
    calibration.hear(make_state("d0", taken_at_s=at_s, **changes))
    return calibration


def test_a_node_that_says_nothing_keeps_its_profile() -> None:
    calibration = said()
    assert calibration.spec is SPEC
    assert not calibration.red


def test_a_node_that_is_slower_throughout_is_predicted_slower_throughout() -> None:
    slower = said(gain_decode=1.2, gain_prefill=1.2).spec
    for chunk in (0, CHUNK):
        before_s = step_s(SPEC.profile, SEQS, KV, chunk, CONTEXT)
        assert step_s(slower.profile, SEQS, KV, chunk, CONTEXT) == pytest.approx(1.2 * before_s)
    assert slower.full_step_s == pytest.approx(1.2 * SPEC.full_step_s)
    assert slower.tbt_margin_frac == SPEC.tbt_margin_frac


def test_the_margin_cuts_the_budget_and_not_the_prediction() -> None:
    scattered = said(margin=1.2).spec
    assert scattered.tbt_margin_frac == pytest.approx(SPEC.tbt_margin_frac / 1.2)
    assert scattered.profile == SPEC.profile
    node = decode_node("d0", seqs=16, tbt_s_min=0.03)
    before = safe_plan(make_request(), node)
    node.spec = scattered
    after = safe_plan(make_request(), node)
    assert before is not None
    assert after is not None
    assert after.step_s_max <= 0.03 * scattered.tbt_margin_frac + 1e-9 < before.step_s_max


def test_a_change_that_the_margin_covers_makes_no_new_profile() -> None:
    calibration = said(gain_decode=1.01)
    assert calibration.spec is SPEC


@pytest.mark.parametrize(
    "changes", [{"gain_decode": 4.2}, {"gain_prefill": 0.2}, {"margin": 1.6}], ids=str
)
def test_a_node_too_far_off_is_red_until_it_has_been_calm_for_long(
    changes: dict[str, float],
) -> None:
    calibration = said(0.0, **changes)
    assert calibration.red
    calibration.hear(make_state("d0", taken_at_s=1.0))
    calibration.hear(make_state("d0", taken_at_s=1.0 + GREEN_AFTER_S - 0.1))
    assert calibration.red
    calibration.hear(make_state("d0", taken_at_s=1.0 + GREEN_AFTER_S))
    assert not calibration.red
    assert calibration.alarms == 1


@pytest.mark.parametrize("nonsense", [0.0, 1e9])
def test_nonsense_counts_as_the_nearest_value_that_makes_sense(nonsense: float) -> None:
    calibration = said(gain_decode=nonsense, gain_prefill=nonsense, margin=nonsense)
    assert calibration.red
    assert 0.0 < calibration.spec.full_step_s < inf


def test_between_the_bounds_red_stays_red_and_green_stays_green() -> None:
    assert not said(gain_decode=3.5).red
    calibration = said(0.0, gain_decode=4.2)
    for at in range(1, 100):
        calibration.hear(make_state("d0", taken_at_s=float(at), gain_decode=3.5))
    assert calibration.red


def test_engines_that_slow_each_other_down_are_corrected_and_not_given_up() -> None:
    """Two engines on one processor take 1.8 to 3 times what each takes alone."""
    for gain in (1.8, 2.5, 3.0):
        calibration = said(gain_decode=gain)
        assert not calibration.red
        assert calibration.spec.profile.step_base_s == gain * SPEC.profile.step_base_s


def test_nothing_is_deflected_to_a_red_node() -> None:
    ledger = Ledger([SPEC, make_spec("p0", Role.PREFILL)], report_age_max_s=1.0)
    ledger.nodes["d0"].report(make_state("d0", taken_at_s=0.0, margin=1.6))
    cluster = ledger.cluster(0.0, 0)
    assert state_veto(cluster.decode[0], cluster) is Reason.DRIFT_VETO
    blind = Ledger([SPEC], report_age_max_s=1.0, calibrated=False)
    blind.nodes["d0"].report(make_state("d0", taken_at_s=0.0, margin=1.6, gain_decode=2.0))
    cluster = blind.cluster(0.0, 0)
    assert state_veto(cluster.decode[0], cluster) is None
    assert cluster.decode[0].spec is SPEC


def test_the_backlog_of_a_slower_node_takes_longer() -> None:
    drained_s = []
    for gain in (1.0, 1.5):
        ledger = Ledger([make_spec("p0", Role.PREFILL)], report_age_max_s=1.0)
        state = make_state(
            "p0", taken_at_s=0.0, backlog_prompts=2, backlog_tokens=8000, gain_prefill=gain
        )
        ledger.nodes["p0"].report(state._replace(tbt_s_min=inf))
        drained_s.append(ledger.cluster(0.0, 0).prefill[0].backlog_until_s)
    assert drained_s[0] < drained_s[1] <= 1.5 * drained_s[0]


def test_a_share_of_the_target_above_all_of_it_is_never_given() -> None:
    assert corrected(SPEC, 1.0, 1.0, 0.5).tbt_margin_frac == 1.0
    assert make_cluster(decode_node()).decode[0].drifting is False
