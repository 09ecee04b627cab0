"""The words of docs/reproduction.md around what `reproduce.py` measured.

Pure text: the same measurement gives the same page. The prose is in `reproduction.md.in`; tables,
figures and verdicts are computed here, and none is written down beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spillway.report.standings import Cell, axes_of, cells_of, mean

if TYPE_CHECKING:
    from reproduce import HourRun, Measured

SHARE_RANGE = (0.02, 0.23)  # of P95 TTFT, as the abstract has it
TTFT_REDUCTION_FRAC, ATTAINMENT_GAIN_FRAC = 0.81, 0.79  # "up to", the abstract
DECISION_US_MAX = 1000.0
KNEE_AT_512_S, KNEE_AT_2048_S = 0.030, 0.200
STATIC, PAPER, OURS = "least-loaded", "kairos-paper", "headroom"
CONGESTED_LOAD_FRAC = 0.9
OVERLOAD_P95_S, OVERLOAD_SHARE_FRAC, CALM_P95_S = 2.0, 0.10, 1.0
LISTED_MAX = 4
HEAD = ("Workload", "Cluster", "Load")
PROSE = Path(__file__).with_name("reproduction.md.in")
PROSE_OF_HOUR = Path(__file__).with_name("reproduction_hour.md.in")
NO_HOUR = "Not run: the Azure 2023 code trace was not at `../shared/traces`."


def page(measured: Measured) -> str:
    """Return the page."""
    cells = cells_of(measured.sweep.cells)
    congested = [cell for cell in cells if cell.name.load_frac >= CONGESTED_LOAD_FRAC]
    calm = [cell for cell in cells if cell.name.load_frac < CONGESTED_LOAD_FRAC]
    notes = measured.sweep.head.notes
    return PROSE.read_text(encoding="utf-8").format(
        static=STATIC,
        paper=PAPER,
        ours=OURS,
        setup_table=_setup(measured),
        summary_table=_summary(measured, cells, congested),
        share_table=_shares(cells),
        congested_load=f"{CONGESTED_LOAD_FRAC:g}",
        congested_shares=_range([share_frac(cell) for cell in congested]),
        calm_shares=_range([share_frac(cell) for cell in calm]),
        hour=_hour(measured) if measured.hour else NO_HOUR,
        knee_seqs=measured.knee_seqs,
        knee_table=_knees(measured),
        bends="; ".join(f"`{one.profile}` {bend(one.added_s):.2f}" for one in measured.knees),
        knee_said=_knee_said(measured),
        reduction_table=_reductions(cells),
        paper_reductions=_range([reduction_frac(cell, PAPER) for cell in cells]),
        ours_reductions=_range([reduction_frac(cell, OURS) for cell in cells]),
        paper_worse=_worse(cells, PAPER),
        ours_worse=_worse(cells, OURS),
        attainment_table=_attainments(cells),
        paper_gains=_range([gain_frac(cell, PAPER) for cell in cells]),
        ours_gains=_range([gain_frac(cell, OURS) for cell in cells]),
        behind=_counted([c for c in cells if c.score_frac(OURS) < c.score_frac(PAPER)], cells),
        tbt_ms=f"{measured.sweep.cells[0].slo_tbt_s * 1e3:g}",
        gap_table=_gaps(cells),
        cost_table=_costs(measured),
        deflection_table=_deflections(measured, cells),
        paper_light=f"{_light_frac(cells, PAPER):.0%}",
        ours_light=f"{_light_frac(cells, OURS):.0%}",
        left_out="".join(f"\n- {note}." for note in notes),
    )


# --- tables --------------------------------------------------------------------------------------


def _setup(measured: Measured) -> str:
    head, axes = measured.sweep.head, axes_of(measured.sweep.cells)
    first = measured.sweep.cells[0]
    rows = [
        (
            "runs",
            f"{len(measured.sweep.cells):,} of about {head.matrix.get('requests', 0):,} requests",
        ),
        ("workloads", ", ".join(axes.workloads)),
        ("loads", ", ".join(f"{load_frac:g}" for load_frac in axes.loads)),
        ("clusters", f"2P2D, profiles by name: {', '.join(axes.clusters)}"),
        ("targets", f"TTFT {first.slo_ttft_s:g} s, token gap {first.slo_tbt_s * 1e3:g} ms"),
        ("policies", ", ".join(axes.policies)),
        ("seeds", ", ".join(map(str, axes.seeds))),
        (
            "version",
            f"{head.spillway_version}, digest of matrix, traces and code `{head.digest[:16]}`",
        ),
    ]
    return _table(("What", "Which"), rows)


def _summary(measured: Measured, cells: Sequence[Cell], congested: Sequence[Cell]) -> str:
    shares = [share_frac(cell) for cell in congested]
    inside = sum(SHARE_RANGE[0] <= share <= SHARE_RANGE[1] for share in shares)
    reduced = max(reduction_frac(cell, PAPER) for cell in cells)
    gained = max(gain_frac(cell, PAPER) for cell in cells)
    fitted = [one for one in measured.knees if "derived" not in one.profile]
    bent = sum(bend(one.added_s) > 1 for one in fitted)
    costs = [one for one in measured.costs if one.policy in (PAPER, OURS)]
    late = max(mean(run.late_tokens_frac for run in cell.runs[PAPER]) for cell in cells)
    rows = [
        (
            "prefill execution is 2-23 % of P95 TTFT without deflection",
            f"{_range(shares)} at loads of {CONGESTED_LOAD_FRAC:g} and above; "
            f"{inside} of {len(shares)} cells within 2-23 %",
            verdict(inside == len(shares), inside > 0),
        ),
        (
            "beyond a knee a decode step grows faster than its chunk",
            f"{bent} of {len(fitted)} fitted profiles bend upwards; a derived one proves nothing",
            verdict(bent == len(fitted), bent > 0),
        ),
        (
            f"the rule reduces P95 TTFT by up to {TTFT_REDUCTION_FRAC:.0%}",
            f"by up to {reduced:.0%} in these cells",
            verdict(reduced >= TTFT_REDUCTION_FRAC, reduced > 0),
        ),
        (
            f"it raises SLO attainment by up to {ATTAINMENT_GAIN_FRAC:.0%}, relative",
            f"by up to {gained:.0%} in these cells",
            verdict(gained >= ATTAINMENT_GAIN_FRAC, gained > 0),
        ),
        (
            "it breaks no token-gap target",
            f"{late:.3%} of the tokens late in its worst cell",
            verdict(late == 0, late < 0.01),
        ),
        (
            "a decision costs less than a millisecond",
            "; ".join(f"{one.policy}: 99 % within {one.p99_us / 1e3:.2f} ms" for one in costs),
            verdict(
                all(one.p99_us < DECISION_US_MAX for one in costs),
                all(one.p50_us < DECISION_US_MAX for one in costs),
            ),
        ),
    ]
    return _table(("Claim", "Measured", "Verdict"), rows)


def _shares(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        runs = cell.runs[STATIC]
        total_s = mean(sum(run.parts_s.values()) for run in runs) or 1.0
        parts = [mean(run.parts_s[name] for run in runs) / total_s for name in runs[0].parts_s]
        rows.append(
            (*_name(cell), f"{p95_s(cell, STATIC):.2f}", *(f"{part:.0%}" for part in parts))
        )
    parts_head = ("queue", "execute", "transfer", "admission", "first step")
    return _table((*HEAD, "P95 TTFT s", *parts_head), rows)


def _hour(measured: Measured) -> str:
    real = _hour_of(measured.hour, "as recorded")
    poisson = _hour_of(measured.hour, "Poisson")
    shuffled = _hour_of(measured.hour, "dealt out anew")
    holds = (
        real.figures.ttft_s.p95 > OVERLOAD_P95_S
        and hour_share_frac(real) < OVERLOAD_SHARE_FRAC
        and poisson.figures.ttft_s.p95 < CALM_P95_S
    )
    rows = [
        (
            one.arrivals,
            one.policy,
            f"{one.figures.ttft_s.p50:.2f}",
            f"{one.figures.ttft_s.p95:.2f}",
            f"{hour_share_frac(one):.1%}",
            f"{one.figures.attainment.joint_99:.1%}",
            f"{one.figures.deflected_frac:.1%}",
        )
        for one in measured.hour
    ]
    head = ("Arrivals", "Policy", "P50 TTFT s", "P95 TTFT s", "execution", "both met", "deflected")
    slo_ttft_s, slo_tbt_s = measured.hour_targets_s
    deflecting = [_hour_of(measured.hour, "as recorded", policy) for policy in (PAPER, OURS)]
    reduced = [
        f"{_signed(one.figures.ttft_s.p95 / real.figures.ttft_s.p95 - 1)} under `{one.policy}`"
        for one in deflecting
    ]
    return (
        PROSE_OF_HOUR.read_text(encoding="utf-8")
        .strip()
        .format(
            profile=measured.hour_profile,
            prefill_rate=f"{measured.prefill_tokens_per_s:,.0f}",
            slo=f"{slo_ttft_s:g} s and {slo_tbt_s * 1e3:g} ms",
            requests=f"{real.figures.requests.arrived:,}",
            hour_table=_table(head, rows),
            static=STATIC,
            expected="As expected:" if holds else "Not as expected:",
            real_s=f"{real.figures.ttft_s.p95:.1f}",
            real_share=f"{hour_share_frac(real):.1%}",
            poisson_s=f"{poisson.figures.ttft_s.p95:.2f}",
            poisson_share=f"{hour_share_frac(poisson):.0%}",
            deflected=" and ".join(reduced),
            shuffled_s=f"{shuffled.figures.ttft_s.p95:.1f}",
        )
    )


def _knees(measured: Measured) -> str:
    sizes = tuple(measured.knees[0].added_s)
    rows = [
        (
            one.profile,
            f"{one.decode_step_s * 1e3:.1f}",
            *(f"{one.added_s[size] * 1e3:.1f}" for size in sizes),
        )
        for one in measured.knees
    ]
    return _table(("Profile", "bare step", *(f"{size:,}" for size in sizes)), rows)


def _knee_said(measured: Measured) -> str:
    derived = next((one for one in measured.knees if "derived" in one.profile), None)
    if derived is None:
        return ""
    low_s, high_s = derived.added_s[512], derived.added_s[2048]
    meets = low_s <= KNEE_AT_512_S and high_s >= KNEE_AT_2048_S
    return (
        "The paper's figure has at most 30 ms for 512 tokens and more than 200 ms for 2,048.\n"
        f"`{derived.profile}` {'has' if meets else 'does not have'} that ({low_s * 1e3:.0f} and "
        f"{high_s * 1e3:.0f} ms), which proves nothing: its slopes were taken from that figure."
    )


def _reductions(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        row = [*_name(cell), f"{p95_s(cell, STATIC):.2f}"]
        for policy in (PAPER, OURS):
            row += [f"{p95_s(cell, policy):.2f}", _signed(reduction_frac(cell, policy))]
        rows.append(row)
    return _table((*HEAD, f"{STATIC} s", f"{PAPER} s", "reduced", f"{OURS} s", "reduced"), rows)


def _attainments(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        row = [*_name(cell), f"{cell.score_frac(STATIC):.1%}"]
        for policy in (PAPER, OURS):
            row += [f"{cell.score_frac(policy):.1%}", _signed(gain_frac(cell, policy))]
        rows.append(row)
    return _table((*HEAD, STATIC, PAPER, "relative", OURS, "relative"), rows)


def _gaps(cells: Sequence[Cell]) -> str:
    rows = []
    for policy in (STATIC, PAPER, OURS):
        runs = [run for cell in cells for run in cell.runs[policy]]
        rows.append(
            (
                policy,
                f"{mean(run.late_tokens_frac for run in runs):.4%}",
                f"{max(run.late_tokens_frac for run in runs):.3%}",
                f"{max(run.tbt_p99_s for run in runs) * 1e3:.1f}",
                f"{max(run.tbt_max_s for run in runs) * 1e3:.1f}",
            )
        )
    head = ("Policy", "late tokens, mean", "worst run", "p99 gap ms, worst run", "longest gap ms")
    return _table(head, rows)


def _costs(measured: Measured) -> str:
    rows = [
        (one.policy, f"{one.decisions:,}", f"{one.p50_us:.0f}", f"{one.p99_us:.0f}")
        for one in measured.costs
    ]
    return _table(("Policy", "decisions", "p50 µs", "p99 µs"), rows)


def _deflections(measured: Measured, cells: Sequence[Cell]) -> str:
    axes = axes_of(measured.sweep.cells)
    rows = [
        (
            workload,
            policy,
            *(
                f"{mean(_deflected(cells, workload, load_frac, policy)):.1%}"
                for load_frac in axes.loads
            ),
        )
        for workload in axes.workloads
        for policy in (PAPER, OURS)
    ]
    return _table(
        ("Workload", "Policy", *(f"load {load_frac:g}" for load_frac in axes.loads)), rows
    )


# --- figures -------------------------------------------------------------------------------------


def share_frac(cell: Cell) -> float:
    """Return prefill execution's share of the P95 TTFT without deflection."""
    runs = cell.runs[STATIC]
    total_s = sum(sum(run.parts_s.values()) for run in runs)
    return sum(run.parts_s["execute"] for run in runs) / total_s if total_s else 0.0


def p95_s(cell: Cell, policy: str) -> float:
    """Return a policy's P95 TTFT, mean over seeds."""
    return mean(run.ttft_p95_s for run in cell.runs[policy])


def reduction_frac(cell: Cell, policy: str) -> float:
    """Return by how much a policy reduces the P95 TTFT; below 0 it raises it."""
    base_s = p95_s(cell, STATIC)
    return 1 - p95_s(cell, policy) / base_s if base_s else 0.0


def gain_frac(cell: Cell, policy: str) -> float:
    """Return by how much a policy raises attainment, relative to no deflection."""
    base_frac = cell.score_frac(STATIC)
    return cell.score_frac(policy) / base_frac - 1 if base_frac else 0.0


def hour_share_frac(one: HourRun) -> float:
    """Return prefill execution's share of the P95 TTFT of a run of the hour."""
    parts = one.figures.ttft_parts_p95_s
    return parts["execute"] / (sum(parts.values()) or 1.0)


def bend(added_s: dict[int, float]) -> float:
    """Return the cost per token of 1,024 to 2,048 over that of 256 to 512, 0 if that is none."""
    early_s, late_s = added_s[512] - added_s[256], added_s[2048] - added_s[1024]
    return (late_s / 1024) / (early_s / 256) if early_s > 0 else 0.0


def verdict(whole: bool, part: bool) -> str:
    """Return what to call a claim of which all, some or nothing was seen."""
    return "reproduced" if whole else "in part" if part else "not reproduced"


def _deflected(
    cells: Sequence[Cell], workload: str, load_frac: float, policy: str
) -> Iterable[float]:
    for cell in cells:
        if (cell.name.workload, cell.name.load_frac) == (workload, load_frac):
            yield from (run.deflected_frac for run in cell.runs[policy])


def _light_frac(cells: Sequence[Cell], policy: str) -> float:
    least_frac = min(cell.name.load_frac for cell in cells)
    light = [cell for cell in cells if cell.name.load_frac == least_frac]
    return mean(run.deflected_frac for cell in light for run in cell.runs[policy])


def _hour_of(hour: Sequence[HourRun], arrivals: str, policy: str = STATIC) -> HourRun:
    return next(one for one in hour if (one.arrivals, one.policy) == (arrivals, policy))


# --- words ---------------------------------------------------------------------------------------


def _worse(cells: Sequence[Cell], policy: str) -> str:
    worse = [cell for cell in cells if reduction_frac(cell, policy) < 0]
    return f"longer than without deflection in {_counted(worse, cells)}"


def _counted(some: Sequence[Cell], cells: Sequence[Cell]) -> str:
    names = [f"{c.name.workload} at {c.name.load_frac:g} on {c.name.cluster}" for c in some]
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    listed = f" ({', '.join(names[:LISTED_MAX])}{more})" if names else ""
    return f"{len(some)} of {len(cells)} cells{listed}"


def _name(cell: Cell) -> tuple[str, str, str]:
    return cell.name.workload, cell.name.cluster, f"{cell.name.load_frac:g}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.0%} to {max(values):.0%}" if values else "not measured"


def _signed(value_frac: float) -> str:
    """Return `+5%`, `-5%`, and `0%` for what rounds to it from either side."""
    text = f"{value_frac:+.0%}"
    return "0%" if text in ("+0%", "-0%") else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
