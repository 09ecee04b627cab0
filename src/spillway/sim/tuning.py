"""Settings of `headroom` for one workload: searched on some of its windows, judged on others.

A setting that is best on the windows it was chosen on is best there by luck as well. So windows
alternate: every other one is kept out of the search, and only what is gained on those counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.core.headroom import OBJECTIVES, Headroom
from spillway.core.policies import policy_options
from spillway.sim.farm import Farm
from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.wire.results import summarise
from spillway.wire.tuned import Gain, Options, Tried, Tuned, WindowFigures
from spillway.workload.row import Row

POLICY = "headroom"
GOALS = ("joint", "ttft")
# What is tried, beside the defaults. Ablations and bounds are no knobs and are not among them.
KNOBS: Mapping[str, tuple[bool | float | str, ...]] = {
    "objective": OBJECTIVES,
    "work_weight": (0.0, 5.0, 15.0, 45.0),
    "margin_max": (1.0, 1.15, 1.3, 1.6),
    "slack_frac": (0.1, 0.3, 0.6),
    "pressure_steps": (0.0, 0.25, 0.5, 1.0, 2.0),
    "pressure_frac": (0.0, 0.15, 0.3),
    "slow_frac": (0.0, 0.25, 0.5),
    "feed_steps": (0.5, 1.0, 2.0),
    "feed_decode_steps": (1.0, 1.5, 2.0),
    "hold": (True, False),
}
REQUESTS_MIN = 20  # of a window: fewer have no 95th percentile to speak of
WINDOWS_MIN = 4
WINDOWS_MAX = 60
JOINT_LOSS_MAX_FRAC = 0.005  # what a better TTFT may cost in requests that meet both targets
WORTH_MIN_FRAC = {"joint": 0.001, "ttft": 0.01}  # a gain below this is none, however sure
# Student's t, two-sided 95 %, by degrees of freedom from 1 to 29.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045)  # fmt: skip

Watch = Callable[[int, str], None]  # runs done, and what is being done


class Windows(NamedTuple):
    """Stretches of a workload: those searched on, and those kept out of the search."""

    tuning: tuple[tuple[Row, ...], ...]
    held_out: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting on one window, complete in itself: it can be sent to any process."""

    scenario: Scenario
    rows: tuple[Row, ...]
    seed: int
    place: tuple[int, int]  # which setting, which window

    def __call__(self) -> tuple[tuple[int, int], WindowFigures]:
        """Run it."""
        output = run(self.scenario, self.rows, self.seed)
        figures = summarise(policy="", records=output.records, gaps=output.gaps, wall_s=0.0)
        return self.place, WindowFigures(
            joint_frac=figures.attainment.joint_99,
            ttft_p95_s=figures.ttft_s.p95,
            late_frac=figures.late_tokens_frac,
            deflected_frac=figures.deflected_frac,
        )


def cut_windows(rows: Sequence[Row], count: int) -> Windows:
    """Return `count` windows of as many consecutive requests each, every other one held out.

    Raises ConfigError on too few or too many windows, or when they would hold too few requests.
    """
    if not WINDOWS_MIN <= count <= WINDOWS_MAX:
        raise ConfigError(
            f"{count} windows are not possible; give from {WINDOWS_MIN} to {WINDOWS_MAX}"
        )
    if len(rows) < count * REQUESTS_MIN:
        raise ConfigError(
            f"{len(rows)} requests make {count} windows of fewer than {REQUESTS_MIN}; give fewer "
            "windows (--windows) or more of the workload (--to-s, --duration-s)"
        )
    ends = [at * len(rows) // count for at in range(count + 1)]
    cut = [_from_zero(rows[ends[at] : ends[at + 1]]) for at in range(count)]
    return Windows(tuple(cut[::2]), tuple(cut[1::2]))


def _from_zero(rows: Sequence[Row]) -> tuple[Row, ...]:
    start_s = rows[0].arrival_s
    return tuple(row._replace(arrival_s=row.arrival_s - start_s) for row in rows)


def tune(
    scenario: Scenario,
    windows: Windows,
    goal: str,
    farm: Farm,
    *,
    seed: int,
    runs_max: int,
    watch: Watch = lambda done, what: None,
) -> Tuned:
    """Return the best setting that `runs_max` simulated runs find, and what it is worth.

    goal: `joint`, more requests that meet both targets; `ttft`, a lower p95 TTFT that costs none of
    that. Raises ConfigError on an unknown goal, or when so few runs allow no comparison.
    """
    if goal not in GOALS:
        raise ConfigError(f"goal {goal!r} is not known; choose one of {', '.join(GOALS)}")
    tuning, held_out = len(windows.tuning), len(windows.held_out)
    settings_max = (runs_max - 2 * held_out) // tuning
    if settings_max < 2:
        least = 2 * held_out + 2 * tuning
        raise ConfigError(
            f"{runs_max} runs allow no search: two settings on {tuning} windows, and again on "
            f"{held_out} held-out ones, are {least}; give more (--runs) or fewer windows"
        )
    lab = _Lab(scenario, farm, seed, watch)
    search = _Search(lab, windows.tuning, goal, settings_max)
    search.go()
    tried = search.ranked()
    chosen = tried[0].options
    watch(lab.run_count, "held-out windows")
    default_held_out, chosen_held_out = lab.measure([{}, chosen], windows.held_out)
    gain = gain_of(goal, default_held_out, chosen_held_out)
    return Tuned(
        policy=POLICY,
        goal=goal,
        tried=tuple(tried),
        chosen=chosen,
        default_held_out=default_held_out,
        chosen_held_out=chosen_held_out,
        gain=gain,
        worth_it=is_worth_it(goal, gain, default_held_out, chosen_held_out),
        run_count=lab.run_count,
    )


def gain_of(goal: str, before: Sequence[WindowFigures], after: Sequence[WindowFigures]) -> Gain:
    """Return what `after` gains over `before`, the same windows in the same order (2 or more)."""
    gains = [_gain(goal, one, other) for one, other in zip(before, after, strict=True)]
    count = len(gains)
    mean = sum(gains) / count
    variance = sum((gain - mean) ** 2 for gain in gains) / (count - 1)
    return Gain(
        mean_frac=mean,
        least_frac=min(gains),
        most_frac=max(gains),
        error_frac=T_95[count - 2] * sqrt(variance / count),
    )


def is_worth_it(
    goal: str, gain: Gain, before: Sequence[WindowFigures], after: Sequence[WindowFigures]
) -> bool:
    """Return whether a gain lies outside its spread, matters, and costs nothing else."""
    lost_frac = _joint_frac(before) - _joint_frac(after)
    sure = gain.mean_frac > gain.error_frac
    return sure and gain.mean_frac >= WORTH_MIN_FRAC[goal] and lost_frac <= JOINT_LOSS_MAX_FRAC


def _gain(goal: str, before: WindowFigures, after: WindowFigures) -> float:
    if goal == "joint":
        return after.joint_frac - before.joint_frac
    return 1.0 - after.ttft_p95_s / before.ttft_p95_s if before.ttft_p95_s else 0.0


def _joint_frac(windows: Sequence[WindowFigures]) -> float:
    return sum(one.joint_frac for one in windows) / len(windows)


def ttft_p95_s(windows: Sequence[WindowFigures]) -> float:
    """Return the geometric mean of the p95 TTFT, so that no window outweighs the rest."""
    return exp(sum(log(max(one.ttft_p95_s, 1e-6)) for one in windows) / len(windows))


class _Lab:
    """Runs settings on windows, and counts the runs."""

    def __init__(self, scenario: Scenario, farm: Farm, seed: int, watch: Watch) -> None:
        self._scenario = scenario
        self._farm = farm
        self._seed = seed
        self._watch = watch
        self.run_count = 0

    def measure(
        self, settings: Sequence[Options], windows: Sequence[tuple[Row, ...]]
    ) -> list[tuple[WindowFigures, ...]]:
        """Return each setting's figures, window by window."""
        trials = [
            Trial(
                replace(self._scenario, policy=POLICY, policy_options=options),
                rows,
                self._seed,
                (at, number),
            )
            for at, options in enumerate(settings)
            for number, rows in enumerate(windows)
        ]
        found: dict[tuple[int, int], WindowFigures] = {}
        for place, figures in self._farm.run(trials):
            found[place] = figures
            self.run_count += 1
            self._watch(self.run_count, f"{len(settings)} settings")
        return [
            tuple(found[at, number] for number in range(len(windows)))
            for at in range(len(settings))
        ]


class _Search:
    """Each knob alone, then the ones that helped together, then steps from the best found.

    It ends when no step helps or when `settings_max` have been tried.
    """

    def __init__(
        self, lab: _Lab, windows: Sequence[tuple[Row, ...]], goal: str, settings_max: int
    ) -> None:
        self._lab = lab
        self._windows = windows
        self._goal = goal
        self._left = settings_max
        self._defaults = policy_options(Headroom)
        self._tried: dict[tuple[tuple[str, object], ...], Tried] = {}

    def go(self) -> None:
        """Search."""
        self._try([{}])
        self._try(self._steps({}))
        self._try(self._together())
        before: Options | None = None
        while self._left and (best := self.ranked()[0].options) != before:
            before = best
            self._try(self._steps(best))

    def ranked(self) -> list[Tried]:
        """Return what was tried, the best first; of equals the one that was tried first."""
        return sorted(self._tried.values(), key=self._badness)

    def _badness(self, one: Tried) -> tuple[float, float, int]:
        """Return what a search makes small: in the goal's terms, the other's, and knobs turned.

        In steps of a tenth of a percentage point and of one per cent: less would be chasing luck.
        """
        joint_frac, p95_steps = _joint_frac(one.windows), round(100 * log(ttft_p95_s(one.windows)))
        knobs = len(one.options)
        if self._goal == "joint":
            return -round(joint_frac, 3), p95_steps, knobs
        default_frac = _joint_frac(self._tried[()].windows)
        return float(joint_frac < default_frac - JOINT_LOSS_MAX_FRAC), p95_steps, knobs

    def _steps(self, options: Options) -> list[Options]:
        """Return the settings that differ from `options` in one knob."""
        return [
            self._with(options, {knob: value}) for knob, values in KNOBS.items() for value in values
        ]

    def _together(self) -> list[Options]:
        """Return what helped alone, joined: the best two knobs, the best three, and so on."""
        default = self._badness(self._tried[()])
        joined: Options = {}
        found = []
        for one in self.ranked():
            ((knob, value),) = one.options.items() or ((None, None),)
            if knob is None or value is None or self._badness(one) >= default:
                break
            if knob not in joined:
                joined = self._with(joined, {knob: value})
                found.append(joined)
        return found

    def _with(self, options: Options, change: Options) -> Options:
        """Return the options changed, in the order of the knobs, without what is default."""
        whole = {**options, **change}
        return {
            knob: whole[knob]
            for knob in KNOBS
            if knob in whole and whole[knob] != self._defaults[knob]
        }

    def _try(self, settings: Sequence[Options]) -> None:
        """Measure those that are new, as far as the runs last."""
        new = {tuple(options.items()): options for options in settings}
        left = [name for name in new if name not in self._tried][: self._left]
        if not left:
            return
        figures = self._lab.measure([new[name] for name in left], self._windows)
        for name, windows in zip(left, figures, strict=True):
            self._tried[name] = Tried(options=new[name], windows=windows)
        self._left -= len(left)
