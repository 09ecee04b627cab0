"""Random scenarios with every invariant on. A seed that ever failed stays in the list."""

from __future__ import annotations

import pytest

from spillway.core.errors import InvariantViolation
from spillway.sim import sweep

# 3: a client left while its abort was still on the way, and its first token came after that.
SEEDS = [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_scenario_keeps_every_invariant(seed: int) -> None:
    output = sweep.sweep_one(seed)
    assert sum(output.counts.values()) == len(output.records)
    assert output.work.policy_failures == 0


def test_a_clean_sweep_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--count", "1", "--first", "5"]) == 0
    assert "1 scenarios" in capsys.readouterr().out


def test_the_first_failing_seed_is_printed_with_its_scenario(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int) -> None:
        if seed == 2:
            raise InvariantViolation("INV-12: made up")

    class Nothing:
        records: tuple[()] = ()

        class work:
            events = 0

    monkeypatch.setattr(sweep, "sweep_one", lambda seed: fail(seed) or Nothing)
    with pytest.raises(InvariantViolation, match="made up"):
        sweep.main(["--count", "5"])
    text = capsys.readouterr().err
    assert "seed 2 fails" in text
    assert "--first 2 --count 1" in text
    assert "Scenario(cluster=" in text
