"""Settings are searched on some windows and judged on others, within a bound on the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from spillway.core.errors import ConfigError
from spillway.core.headroom import Headroom
from spillway.core.policies import build_policy, policy_options
from spillway.sim.farm import OneProcess
from spillway.sim.scenario import Scenario
from spillway.sim.tuning import KNOBS, Trial, Windows, cut_windows, gain_of, is_worth_it, tune
from spillway.wire.tuned import Options, WindowFigures
from spillway.workload.row import Row
from spillway.workload.synthetic import family

Truth = Callable[[Options, bool, int], tuple[float, float]]  # joint share, p95 TTFT


def rows(count: int) -> list[Row]:
    return [Row(0.5 * at, 100 + at, 10) for at in range(count)]


def figures(joint_frac: float, p95_s: float = 1.0) -> WindowFigures:
    return WindowFigures(joint_frac=joint_frac, ttft_p95_s=p95_s, late_frac=0.0, deflected_frac=0.2)


class Made:
    """A farm that makes figures up, and remembers what it was asked for."""

    def __init__(self, truth: Truth, windows: Windows) -> None:
        self.truth = truth
        self.held_out = windows.held_out
        self.trials: list[Trial] = []

    def run(self, tasks: Iterable[Trial]) -> Iterator[tuple[tuple[int, int], WindowFigures]]:
        for trial in reversed(list(tasks)):  # the order must not matter
            self.trials.append(trial)
            options: Options = dict(trial.scenario.policy_options)  # type: ignore[arg-type]
            known = self.truth(options, trial.rows in self.held_out, trial.place[1])
            yield trial.place, figures(*known)


def search(truth: Truth, *, goal: str = "joint", runs_max: int = 400) -> tuple[Made, object]:
    windows = cut_windows(rows(160), 8)
    farm = Made(truth, windows)
    return farm, tune(Scenario(), windows, goal, farm, seed=1, runs_max=runs_max)  # type: ignore[arg-type]


def test_windows_alternate_and_begin_at_zero() -> None:
    cut = cut_windows(rows(83), 4)
    sizes = [len(one) for one in (*cut.tuning, *cut.held_out)]
    assert sizes == [20, 21, 21, 21]
    assert [one[0].prompt_tokens for one in cut.tuning] == [100, 141]
    assert [one[0].prompt_tokens for one in cut.held_out] == [120, 162]
    assert all(one[0].arrival_s == 0.0 for one in (*cut.tuning, *cut.held_out))
    assert cut.tuning[1][-1].arrival_s == 10.0


@pytest.mark.parametrize(
    ("requests", "count", "said"),
    [(100, 3, "from 4 to 60"), (9999, 61, "from 4 to 60"), (79, 4, "give fewer windows")],
)
def test_windows_that_say_nothing_are_refused(requests: int, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cut_windows(rows(requests), count)


def test_every_knob_is_an_option_whose_values_are_allowed() -> None:
    defaults = policy_options(Headroom)
    for knob, values in KNOBS.items():
        assert defaults[knob] in values
        for value in values:
            assert build_policy("headroom", {knob: value}).name == "headroom"


def test_what_helps_everywhere_is_found_and_worth_it() -> None:
    def truth(options: Options, held_out: bool, window: int) -> tuple[float, float]:
        good = 0.02 * (options.get("hold") is False) + 0.03 * (options.get("margin_max") == 1.6)
        return 0.8 + good + 0.01 * (window % 2), 1.0

    _, found = search(truth)
    assert found.chosen == {"margin_max": 1.6, "hold": False}  # type: ignore[attr-defined]
    assert found.worth_it  # type: ignore[attr-defined]
    assert found.gain.mean_frac == pytest.approx(0.05)  # type: ignore[attr-defined]


def test_what_only_helps_where_it_was_chosen_is_not_worth_it() -> None:
    def truth(options: Options, held_out: bool, window: int) -> tuple[float, float]:
        lucky = options.get("feed_steps") == 2.0
        return 0.8 + 0.1 * lucky * (not held_out) + 0.001 * lucky * held_out * (window == 1), 1.0

    _, found = search(truth)
    assert found.chosen == {"feed_steps": 2.0}  # type: ignore[attr-defined]
    assert not found.worth_it  # type: ignore[attr-defined]


def test_the_search_never_sees_a_held_out_window() -> None:
    farm, found = search(lambda options, held_out, window: (0.8, 1.0))
    held_out = [trial for trial in farm.trials if trial.rows in farm.held_out]
    assert farm.trials[-len(held_out) :] == held_out
    assert len(held_out) == 8
    assert found.chosen == {}  # type: ignore[attr-defined]
    assert not found.worth_it  # type: ignore[attr-defined]


@pytest.mark.parametrize("runs_max", [16, 17, 40, 123])
def test_the_runs_are_bounded_and_no_setting_is_run_twice(runs_max: int) -> None:
    def truth(options: Options, held_out: bool, window: int) -> tuple[float, float]:
        return 0.5 + 0.04 * len(options), 1.0

    farm, found = search(truth, runs_max=runs_max)
    assert len(farm.trials) == found.run_count <= runs_max  # type: ignore[attr-defined]
    searched = [
        (tuple(trial.scenario.policy_options.items()), trial.rows)
        for trial in farm.trials
        if trial.rows not in farm.held_out
    ]
    assert len(set(searched)) == len(searched)
    with pytest.raises(ConfigError, match="are 16; give more"):
        search(truth, runs_max=15)
    with pytest.raises(ConfigError, match="choose one of joint, ttft"):
        search(truth, goal="late")


def test_a_better_ttft_may_not_cost_requests_in_time() -> None:
    def truth(options: Options, held_out: bool, window: int) -> tuple[float, float]:
        if options.get("objective") == "tail-ttft":
            return 0.7, 0.2
        return 0.8, 0.6 if options.get("work_weight") == 5.0 else 1.0

    _, found = search(truth, goal="ttft")
    assert found.chosen == {"work_weight": 5.0}  # type: ignore[attr-defined]
    assert found.gain.mean_frac == pytest.approx(0.4)  # type: ignore[attr-defined]
    assert found.worth_it  # type: ignore[attr-defined]


def test_a_gain_is_paired_and_its_error_is_students() -> None:
    before = [figures(0.5), figures(0.7), figures(0.9)]
    after = [figures(0.51), figures(0.72), figures(0.93)]
    gain = gain_of("joint", before, after)
    assert (gain.least_frac, gain.most_frac) == (pytest.approx(0.01), pytest.approx(0.03))
    assert gain.mean_frac == pytest.approx(0.02)
    assert gain.error_frac == pytest.approx(4.303 * 0.01 / 3**0.5)
    assert not is_worth_it("joint", gain, before, after)
    even = [figures(one.joint_frac + 0.02) for one in before]
    assert is_worth_it("joint", gain_of("joint", before, even), before, even)
    hair = [figures(one.joint_frac + 0.0005) for one in before]
    assert not is_worth_it("joint", gain_of("joint", before, hair), before, hair)
    faster = [figures(one.joint_frac - 0.01, 0.5) for one in before]
    assert gain_of("ttft", before, faster).mean_frac == pytest.approx(0.5)
    assert not is_worth_it("ttft", gain_of("ttft", before, faster), before, faster)


@pytest.mark.slow
def test_real_runs_give_the_same_twice() -> None:
    cut = cut_windows(family("burst", 1, 12.0, 18.0), 4)
    found = [tune(Scenario(), cut, "joint", OneProcess(), seed=1, runs_max=20) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].run_count <= 20
    assert all(0.0 <= one.joint_frac <= 1.0 for one in found[0].default_held_out)
