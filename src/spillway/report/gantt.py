"""What every node did around a burst, policy beside policy: the Gantt view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spillway.report.plots import INK, MUTED, POLICY_STYLES, new_figure
from spillway.wire.timeline import Span, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFILL, DEFLECTED, DECODE = "#56B4E9", "#D55E00", "#BDBDBD"
LANE = 0.86  # of the distance between two lanes
SEAM_S = 0.004  # a lighter seam this wide tells two prompts, or two chunks, apart


def gantt(timelines: Sequence[Timeline]) -> Figure:
    """The prompts that wait, and below them one panel per policy with a lane per node.

    In a lane of a prefill node a block is a prompt being prefilled. In a decode node's lane the
    grey area is the number of streams and an orange block a step with a deflected chunk. All
    timelines are of the same requests and the same stretch of time.
    """
    lanes = max((len(one.node_ids) for one in timelines), default=1)
    figure = new_figure(2.4 + len(timelines) * (0.5 + 0.42 * lanes))
    heights = [1.7, *[0.5 + 0.42 * lanes] * len(timelines)]
    panels = figure.subplots(
        len(timelines) + 1, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    ).flatten()
    _draw_waiting(panels[0], timelines)
    seqs_max = max((span.decode_seqs for one in timelines for span in one.spans), default=1)
    for panel, one in zip(panels[1:], timelines, strict=True):
        _draw_lanes(panel, one, max(seqs_max, 1))
    if timelines:
        panels[-1].set_xlim(timelines[0].from_s, timelines[0].to_s)
    panels[-1].set_xlabel("time of the workload, s")
    figure.align_ylabels()
    _legend(figure, seqs_max)
    return figure


def _draw_waiting(axes: Axes, timelines: Sequence[Timeline]) -> None:
    for one in timelines:
        changes = sorted(
            [(wait.from_s, wait.prompt_tokens) for wait in one.waiting]
            + [(wait.to_s, -wait.prompt_tokens) for wait in one.waiting]
        )
        times_s, tokens = [one.from_s], [0.0]
        for at_s, change in changes:
            times_s.append(max(at_s, one.from_s))
            tokens.append(tokens[-1] + change / 1e3)
        colour, dashes = POLICY_STYLES.get(one.policy, ("#009E73", "-"))
        axes.plot(
            times_s,
            tokens,
            drawstyle="steps-post",
            color=colour,
            linestyle=dashes,
            label=one.policy,
            lw=1.5,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ktokens")
    axes.set_title("prompt tokens that wait for their first chunk", color=MUTED)
    axes.legend(loc="upper right", fontsize=9)


def _draw_lanes(axes: Axes, one: Timeline, seqs_max: int) -> None:
    """Lane 0 is at the top."""
    for at, node_id in enumerate(one.node_ids):
        spans = [span for span in one.spans if span.node_id == node_id]
        _draw_streams(axes, spans, at, seqs_max)
        for colour, chosen in (
            (PREFILL, [span for span in spans if span.prefill_tokens]),
            (DEFLECTED, [span for span in spans if span.deflected_tokens]),
        ):
            blocks = [block for span in chosen for block in _blocks(span)]
            axes.broken_barh(blocks, (at - LANE / 2, LANE), color=colour, lw=0, alpha=0.9)
    axes.set_ylim(-0.5, len(one.node_ids) - 0.5)
    axes.invert_yaxis()
    axes.set_yticks(range(len(one.node_ids)), one.node_ids)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    colour = POLICY_STYLES.get(one.policy, ("#009E73", "-"))[0]
    deflected = sum(span.deflected_tokens * span.steps for span in one.spans)
    prefilled = sum(span.prefill_tokens * span.steps for span in one.spans)
    share = deflected / max(1, deflected + prefilled) * 100
    said = f"{one.policy}: {share:.0f} % of the prompt tokens in this stretch deflected"
    axes.set_title(said, color=colour, weight="bold")


def _draw_streams(axes: Axes, spans: Sequence[Span], at: int, seqs_max: int) -> None:
    """Draw the number of streams as an area on the lane's floor; the axis points down."""
    floor, times_s, tops = at + LANE / 2, [], []
    for span in spans:
        times_s += [span.start_s, span.end_s]
        tops += [floor - LANE * span.decode_seqs / seqs_max] * 2
    axes.fill_between(times_s, tops, floor, color=DECODE, lw=0)


def _blocks(span: Span) -> list[tuple[float, float]]:
    """Return (start, width) of each step, so that chunks can be counted."""
    step_s = (span.end_s - span.start_s) / max(1, span.steps)
    seam_s = min(SEAM_S, step_s / 4)
    return [(span.start_s + which * step_s, step_s - seam_s) for which in range(span.steps)]


def _legend(figure: Figure, seqs_max: int) -> None:
    from matplotlib.patches import Patch

    kinds: tuple[tuple[str, str], ...] = (
        (PREFILL, "prefill step"),
        (DEFLECTED, "step with a deflected chunk"),
        (DECODE, f"streams (full height: {seqs_max})"),
    )
    handles: list[Any] = [Patch(color=colour, label=label) for colour, label in kinds]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.2)
