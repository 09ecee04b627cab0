"""`spillway fit`: fits a latency profile to samples, and says whether it can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli.options import DEFAULT_SEED
from spillway.cli.values import picture, writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spillway.calib.fit import Errors, FitResult
    from spillway.calib.quality import RegionErrors, Verdict
    from spillway.calib.samples import SampleFile
    from spillway.report.grid import Grid

NOTHING = "–"
LEGEND = """\
mean, median, p95: size of predicted / measured - 1 on the steps held out; bias:
its median, above 0 where the law says too much; repeats: how far repeats of one
and the same step lie apart, which no law can be expected to beat."""
TIME_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9), ("ps", 1e12))

SampleFileName = Annotated[
    Path, typer.Argument(metavar="FILE", help="What spillway profile wrote.", show_default=False)
]
Out = Annotated[
    Path, typer.Option(metavar="FILE", callback=writable, help="Where the profile goes.")
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=picture,
        help="Where the plot goes: .png, .svg or .pdf. Default: beside the profile.",
    ),
]
Name = Annotated[str | None, typer.Option(help="The profile's name. Default: that of its file.")]
ErrorLimit = Annotated[
    float,
    typer.Option(
        metavar="FRAC",
        min=0.001,
        max=1.0,
        help="Refuse a mean error above this on held-out steps; 0.1 is 10 %.",
    ),
]
HoldOut = Annotated[
    float, typer.Option(metavar="FRAC", help="Share of the step shapes that is held out.")
]
ClockName = Annotated[
    str,
    typer.Option(
        "--clock",
        metavar="wall|cpu",
        help="Fit wall-clock or processor time; the latter is steadier where cores are shared.",
    ),
]
KvBytes = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Bytes of KV per token. Default: as profiled."),
]
Seed = Annotated[int, typer.Option(help="Seed of what is held out.")]
Notes = Annotated[str, typer.Option(help="A remark to keep in the profile.")]


def fit(
    file: SampleFileName,
    out: Out = Path("profile.json"),
    plot: Plot = None,
    name: Name = None,
    error_limit: ErrorLimit = 0.10,
    holdout: HoldOut = 0.3,
    clock: ClockName = "wall",
    kv_bytes_per_token: KvBytes = None,
    notes: Notes = "",
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Fit a latency profile to measured steps, and judge it.

    Some of the step shapes are held out, and the law is judged by its error on
    them. Above the limit no profile is written, and the exit status is 1.

    [bold]Examples[/bold]
      spillway fit samples.jsonl --out h100.json
      spillway serve --profile h100.json ...
    """
    from spillway.calib.quality import judge
    from spillway.calib.samples import read_samples
    from spillway.cli.output import note

    samples = read_samples(file)
    kv_bytes = kv_bytes_per_token or samples.head.kv_bytes_per_token
    fitted = _fitted(samples, file, name or out.stem, kv_bytes, holdout, seed, clock)
    verdict = judge(fitted, samples.head.limits, error_limit)
    picture = plot or out.with_suffix(".png")
    _draw(picture, samples, fitted, error_limit)
    _show(samples, fitted, verdict)
    print(f"\nPlot: {picture}")
    if not verdict.accepted:
        note(f"spillway: error: refused, so {out} was not written")
        raise typer.Exit(1)
    _write(out, samples, fitted, notes)
    print(f"Profile: {out}\nUse it: spillway serve --profile {out}")


def _fitted(
    samples: SampleFile,
    file: Path,
    name: str,
    kv_bytes: int,
    holdout_frac: float,
    seed: int,
    clock: str,
) -> FitResult:
    from spillway.calib.fit import fit_steps
    from spillway.cli.output import working
    from spillway.core.errors import ConfigError

    if clock not in ("wall", "cpu"):
        raise ConfigError(f"--clock {clock!r}: choose wall or cpu")
    if not kv_bytes:
        raise ConfigError(
            f"{file} does not say how large the KV is: add --kv-bytes-per-token N (2 x layers x "
            "KV heads x head size x bytes of a number)"
        )
    with working("fitting"):
        return fit_steps(
            samples.samples,
            name=name,
            kv_bytes_per_token=kv_bytes,
            holdout_frac=holdout_frac,
            seed=seed,
            clock="cpu" if clock == "cpu" else "wall",
        )


def _write(out: Path, samples: SampleFile, fitted: FitResult, notes: str) -> None:
    from spillway.calib.quality import profile_file
    from spillway.cli.output import make_folder
    from spillway.core.errors import ConfigError
    from spillway.wire.profile import write_profile_file

    make_folder(out)
    try:
        write_profile_file(out, profile_file(fitted, samples.head, notes))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from None


def _draw(path: Path, samples: SampleFile, fitted: FitResult, limit_frac: float) -> None:
    from spillway.calib.quality import percent
    from spillway.calib.regimes import Regime, regime
    from spillway.cli.output import make_folder
    from spillway.report.fitplot import FitPoint, ShownFit, fit_figure
    from spillway.report.plots import write_figure

    points = [
        FitPoint(
            str(regime(sample)),
            float(measured_s),
            float(predicted_s),
            sample.decode_seqs + sample.prefill_tokens,
            bool(held_out),
        )
        for sample, measured_s, predicted_s, held_out in zip(
            fitted.samples, fitted.measured_s, fitted.predicted_s, fitted.held_out, strict=True
        )
    ]
    head = samples.head
    title = (
        f"{head.model} on {head.engine} {head.engine_version}: mean error "
        f"{percent(fitted.holdout.mean_frac)} on {fitted.holdout.steps} steps held out"
    )
    make_folder(path)
    write_figure(path, fit_figure, ShownFit(title, [*Regime], points, limit_frac))


def _show(samples: SampleFile, fitted: FitResult, verdict: Verdict) -> None:
    import sys

    from spillway.calib.quality import by_context, by_regime
    from spillway.cli.output import paragraph
    from spillway.report.grid import print_grid

    head = samples.head
    print(
        paragraph(
            f"{len(fitted.samples):,} steps of {len(set(fitted.shapes))} shapes, by {head.how}: "
            f"{head.model} on {head.engine} {head.engine_version}, {head.date}, {head.machine}"
        )
    )
    print()
    print_grid(_law_table(fitted), sys.stdout)
    print()
    print_grid(_error_table(fitted, [*by_regime(fitted), *by_context(fitted)]), sys.stdout)
    print(f"{LEGEND}\n")
    print(paragraph(verdict.summary))
    for line in verdict.remarks:
        print(paragraph(f"- {line}"))


def _law_table(fitted: FitResult) -> Grid:
    from spillway.report.grid import Cell, Grid

    rows = []
    for one in fitted.coefficients:
        unit, per_s = next(
            ((unit, per_s) for unit, per_s in TIME_UNITS if one.high_s * per_s >= 1),
            TIME_UNITS[-1],
        )
        texts = (f"{one.value_s * per_s:.4g}", unit)
        spread = f"{one.low_s * per_s:.4g} to {one.high_s * per_s:.4g}"
        rows.append((Cell(one.name), *(Cell(text) for text in texts), Cell(spread)))
    return Grid(("time of a step", "", "", "90 % of\nrefits"), tuple(rows))


def _error_table(fitted: FitResult, regions: Sequence[RegionErrors]) -> Grid:
    from spillway.report.grid import Cell, Grid

    def row(name: str, steps: int, errors: Errors | None, noise: Errors | None) -> tuple[Cell, ...]:
        figures = [NOTHING] * 5
        if errors is not None:
            shares = (errors.mean_frac, errors.median_frac, errors.p95_frac)
            figures = [f"{errors.steps:,}", *(f"{share * 100:.1f}" for share in shares)]
            figures.append(f"{errors.bias_frac * 100:+.1f}")
        apart = NOTHING if noise is None else f"{noise.mean_frac * 100:.1f}"
        return tuple(Cell(text) for text in (name, f"{steps:,}", *figures, apart))

    rows = [row(one.name, one.steps, one.held_out, one.noise) for one in regions]
    everything = len(fitted.samples)
    rows.append(row("each shape once", len(set(fitted.shapes)), fitted.holdout_shapes, None))
    rows.append(row("all", everything, fitted.holdout, fitted.noise))
    rows.append(row("all that were fitted to", everything, fitted.train, None))
    head = ("kind of step", "steps", "held\nout", "mean\n%", "median\n%", "p95\n%", "bias\n%")
    return Grid((*head, "repeats\n%"), tuple(rows))
