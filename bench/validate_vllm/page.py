"""Turns the figures into docs/validation.md: what was aimed at, what came out, and every table.

A target that is missed is said to be missed, with what is known of the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from spillway.cli.vllm_burst import BASELINE, TBT_STEPS, TTFT_PROMPTS
from spillway.wire.results import RunResult
from validate_vllm import gaps as streams
from validate_vllm.bursts import POLICY
from validate_vllm.results import EACH_SHAPE, BurstRun, Gaps, Law, Spread, Validation, spread

RATIO_MAX, LATE_POINTS_MAX = 0.7, 0.5
SIMULATOR_FRAC_MAX = 0.2
FIT_FRAC_MAX, FIT_ABOVE_NOISE_FRAC_MAX = 0.07, 0.01
COMMAND = "make validate-vllm"

WHY = {
    "plug-in": "The plug-in sizes chunks by the law and by what recent steps took. A step that "
    "something else delays (another process on its core, NIXL's polling thread) is late whatever "
    "its size; compare the largest gaps without a prompt.",
    "stock": "The stock chunk of 2,048 tokens fits this machine's target, so nothing was to gain.",
    "ratio": "What deflection can win is bounded by how fast the decode node prefills beside its "
    "streams, and engines, router, client and API servers share the cores here: what the decode "
    "node computes more, the others lack.",
    "late": "Handing over KV stalls decode steps, too; and see the plug-in's row.",
    "simulator": "The simulator knows the engines' steps, their noise, one delay per order and the "
    "link, all measured on an idle cluster. It does not know that router, client and API servers "
    "take their share of the same cores while a burst runs.",
    "fit": "See the noise beside it: repeats of one and the same step differ, and no law of its "
    "shape can tell them apart.",
}


class Claim(NamedTuple):
    """One target. why: key of WHY, for when it is missed."""

    what: str
    measured: str
    target: str
    holds: bool
    why: str


class Metric(NamedTuple):
    """One figure of a run that the simulator is held to."""

    name: str
    value: Callable[[RunResult], float]
    text: Callable[[float], str]


def seconds(value_s: float) -> str:
    return f"{value_s:.2f} s"


def milliseconds(value_s: float) -> str:
    return f"{value_s * 1e3:.1f} ms"


def percent(value_frac: float) -> str:
    return f"{value_frac * 100:.1f} %"


def signed(value_frac: float) -> str:
    return f"{value_frac * 100:+.0f} %"


METRICS = (
    Metric("TTFT p50", lambda run: run.ttft_s.p50, seconds),
    Metric("TTFT p95", lambda run: run.ttft_s.p95, seconds),
    Metric("token gap p99", lambda run: run.tbt_s.p99, milliseconds),
)


def page(found: Validation) -> str:
    """Return the whole document."""
    claims = all_claims(found)
    missed = list(dict.fromkeys(one.why for one in claims if not one.holds))
    parts = [
        "# Validation on real vLLM",
        f"Written by `{COMMAND}`; do not edit. Targets are multiples of what this machine's "
        "engines do, since real vLLM on a processor with a tiny model is slow. Every figure is the "
        "median of alternating repeats in one run, with the lowest and the highest in brackets.",
        _setup(found),
        "## What was aimed at",
        _table(
            ("", "measured", "target", "holds"),
            [(one.what, one.measured, one.target, _verdict(one.holds)) for one in claims],
        ),
        *(f"**Missed.** {WHY[why]}" for why in missed),
        *_gaps(found.gaps),
        *_bursts(found),
        *_simulator(found),
        *_laws(found),
    ]
    return "\n\n".join(parts) + "\n"


def all_claims(found: Validation) -> list[Claim]:
    """Return every target with its verdict."""
    return [
        *gap_claims(found.gaps),
        *burst_claims(found),
        *simulator_claims(found),
        *fit_claims(next(law for law in found.laws if law.clock == "cpu")),
    ]


def gap_claims(gaps: Gaps) -> list[Claim]:
    """The bound is the target plus what the machine adds to a gap when nothing is deflected."""
    noise = spread([one.p99_s - one.p50_s for one in gaps.of(streams.QUIET)])
    bound_s = gaps.target_s + noise.middle
    plugin, stock = (
        spread([one.p99_s for one in gaps.of(arm)]) for arm in (streams.PLUGIN, streams.STOCK)
    )
    what = f"gap p99 of {streams.STREAMS} streams beside a prompt of {streams.LONG_TOKENS:,} tokens"
    within = f"<= {milliseconds(bound_s)}: target {milliseconds(gaps.target_s)} and noise"
    return [
        Claim(
            f"{what}, plug-in",
            _spread(plugin, milliseconds),
            within,
            plugin.middle <= bound_s,
            "plug-in",
        ),
        Claim(
            f"{what}, stock",
            _spread(stock, milliseconds),
            f"> {milliseconds(bound_s)}: without the plug-in it does not hold",
            stock.middle > bound_s,
            "stock",
        ),
    ]


def burst_claims(found: Validation) -> list[Claim]:
    base, policy = (found.bursts.of(name) for name in (BASELINE, POLICY))
    both = list(zip(policy, base, strict=True))
    ratios = spread([p.measured.ttft_s.p95 / b.measured.ttft_s.p95 for p, b in both])
    points = spread(
        [100 * (p.measured.late_tokens_frac - b.measured.late_tokens_frac) for p, b in both]
    )
    return [
        Claim(
            f"burst on 1P1D: P95 TTFT of {POLICY} over that of {BASELINE}",
            _spread(ratios, lambda ratio: f"{ratio:.2f}"),
            f"<= {RATIO_MAX}",
            ratios.middle <= RATIO_MAX,
            "ratio",
        ),
        Claim(
            "the same burst: late tokens above",
            _spread(points, lambda value: f"{value:+.2f} points"),
            f"<= {LATE_POINTS_MAX} points",
            points.middle <= LATE_POINTS_MAX,
            "late",
        ),
    ]


def simulator_claims(found: Validation) -> list[Claim]:
    claims = []
    for policy in (BASELINE, POLICY):
        for metric in METRICS:
            off = spread([_off(one, metric) for one in found.bursts.of(policy)])
            claims.append(
                Claim(
                    f"simulator against that burst, {policy}: {metric.name}",
                    _spread(off, signed),
                    f"within {percent(SIMULATOR_FRAC_MAX)}",
                    abs(off.middle) <= SIMULATOR_FRAC_MAX,
                    "simulator",
                )
            )
    return claims


def fit_claims(law: Law) -> list[Claim]:
    whole, shapes = law.regions[-1], law.region(EACH_SHAPE)
    what = "step-time error of the fitted law, held out, processor time"
    measured = percent(whole.mean_frac)
    claims = [
        Claim(
            f"{what}, each shape of step once, by the median of its repeats",
            percent(shapes.mean_frac),
            f"<= {percent(FIT_FRAC_MAX)}",
            shapes.mean_frac <= FIT_FRAC_MAX,
            "fit",
        )
    ]
    if whole.noise_frac is not None:
        bound_frac = whole.noise_frac + FIT_ABOVE_NOISE_FRAC_MAX
        target = f"<= {percent(bound_frac)}: noise {percent(whole.noise_frac)} and 1 point"
        claims.append(
            Claim(
                f"{what}, each step, beside the noise",
                measured,
                target,
                whole.mean_frac <= bound_frac,
                "fit",
            )
        )
    return claims


def _off(one: BurstRun, metric: Metric) -> float:
    measured = metric.value(one.measured)
    return metric.value(one.simulated) / measured - 1 if measured else 0.0


# --- sections ------------------------------------------------------------------------------------


def _setup(found: Validation) -> str:
    setup = found.setup
    yardstick = spread(setup.yardstick_us)
    loads = ", ".join(f"{load:.1f}" for load in setup.load_averages)
    return "\n".join(
        [
            f"- Command: `{setup.command}`, {setup.duration_s / 60:.0f} minutes, {setup.date}.",
            f"- Machine: {setup.machine}. Load average before, between and after: {loads}. A "
            "fixed piece of Python took "
            f"{_spread(yardstick, lambda us: f'{us:.0f} µs')} of processor time.",
            f"- Versions: {setup.versions}.",
            f"- Model: {setup.model}.",
        ]
    )


def _gaps(gaps: Gaps) -> list[str]:
    rows = []
    for arm in streams.NODES:
        rounds = gaps.of(arm)
        prompts = [one.prompt_s for one in rounds if one.prompt_s is not None]
        rows.append(
            (
                arm,
                _spread(spread([one.p50_s for one in rounds]), milliseconds),
                _spread(spread([one.p99_s for one in rounds]), milliseconds),
                _spread(spread([one.max_s for one in rounds]), milliseconds),
                _spread(spread(prompts), seconds) if prompts else "–",
            )
        )
    return [
        "## Token gaps beside a deflected prompt",
        f"{streams.STREAMS} streams decode; {streams.LONG_TOKENS:,} tokens of prompt are sent to "
        "their engine. Gaps of all streams from then until the prompt's first token; "
        f"{len(gaps.of(streams.PLUGIN))} rounds, whose arms take turns. Target "
        f"{milliseconds(gaps.target_s)}, {TBT_STEPS:g} times a decode step of such a batch. Both "
        "engines are of one cluster, one with the plug-in and one without, each alone on its core "
        "where there are two.",
        _table(("arm", "gap p50", "gap p99", "largest gap", "prompt's first token"), rows),
    ]


def _bursts(found: Validation) -> list[str]:
    bursts = found.bursts
    rows = []
    for policy in (BASELINE, POLICY):
        runs = [one.measured for one in bursts.of(policy)]
        rows.append(
            (
                policy,
                *(_spread(spread([m.value(run) for run in runs]), m.text) for m in METRICS),
                _spread(spread([run.late_tokens_frac for run in runs]), percent),
                _spread(spread([run.deflected_frac for run in runs]), percent),
                _spread(spread([run.attainment.joint_99 for run in runs]), percent),
                str(sum(run.requests.arrived - run.requests.finished for run in runs)),
            )
        )
    late_ms = max(one.late_client_s for one in bursts.runs) * 1e3
    head = ("policy", *(m.name for m in METRICS), "late tokens", "deflected", "joint (99 %)")
    return [
        "## A burst on one prefill and one decode engine",
        f"With seed 1: {bursts.title}. The first target is {TTFT_PROMPTS:g} mean prompts' prefill. "
        f"{len(bursts.of(POLICY))} pairs, each on a seed of its own; the policies take turns at "
        "going first. The "
        f"client was late by at most {late_ms:.0f} ms (p99).",
        _table((*head, "unfinished"), rows),
    ]


def _simulator(found: Validation) -> list[str]:
    rows = []
    for policy in (BASELINE, POLICY):
        runs = found.bursts.of(policy)
        for metric in METRICS:
            measured, simulated = (
                spread([metric.value(run) for run in side])
                for side in ([o.measured for o in runs], [o.simulated for o in runs])
            )
            off = spread([_off(one, metric) for one in runs])
            rows.append(
                (
                    f"{policy}: {metric.name}",
                    _spread(measured, metric.text),
                    _spread(simulated, metric.text),
                    _spread(off, signed),
                )
            )
    handover = found.handover
    rate = handover.link_bytes_per_s / 1e6
    return [
        "## The simulator against that burst",
        "The same rows and targets, run by the same dispatcher on simulated engines with the law "
        f"below, its noise, {milliseconds(handover.order_s)} from an order to its engine, and a "
        f"link of {milliseconds(handover.link_base_s)} and {rate:,.0f} MB/s: all measured in this "
        "run, on idle engines. The difference is taken seed by seed.",
        _table(("", "measured", "simulated", "difference"), rows),
    ]


def _laws(found: Validation) -> list[str]:
    parts = [
        "## Step times: the fitted law on steps held out",
        "Whole step shapes are held out ([calibration.md](calibration.md)). Processor time is that "
        "of the engine's thread, which other processes disturb less than the wall clock. Noise: "
        "how far repeats of one and the same step lie apart. *Each shape once*: a shape of step "
        "counts once, by the median of its repeats, and most shapes come once or twice.",
    ]
    for law in found.laws:
        name = (
            "Processor time" if law.clock == "cpu" else "Wall clock, which the bursts were run by"
        )
        coefficients = ", ".join(
            f"{what} {value * 1e6:.4g} µs" for what, value in law.coefficients_s.items()
        )
        rows = [
            (
                one.name,
                str(one.steps),
                str(one.held_out),
                *(
                    [percent(one.mean_frac), percent(one.median_frac), percent(one.p95_frac)]
                    if one.held_out
                    else ["–"] * 3
                ),
                f"{one.bias_frac * 100:+.1f} %" if one.held_out else "–",
                "–" if one.noise_frac is None else percent(one.noise_frac),
            )
            for one in law.regions
        ]
        head = ("kind of step", "steps", "held out", "mean error", "median", "p95", "bias", "noise")
        parts += [f"{name}: {coefficients}.", _table(head, rows)]
    return parts


def _spread(one: Spread, text: Callable[[float], str]) -> str:
    return f"{text(one.middle)} ({text(one.low)} to {text(one.high)})"


def _verdict(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
