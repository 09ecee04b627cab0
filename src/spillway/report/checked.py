"""What `spillway check` found, as tables and sentences for a terminal."""

from __future__ import annotations

import textwrap
from typing import TextIO

from spillway.core.types import ChunkMode, Role
from spillway.report.grid import Cell, Grid, print_grid
from spillway.report.tables import NOTHING
from spillway.wire.checks import CheckResult, ChunkCheck, Finding, Level, NodeCheck

LINE_CHARS = 80
MODES = {
    ChunkMode.ENGINE: "sized step by step",
    ChunkMode.STATIC: "fixed",
    ChunkMode.UNKNOWN: "not known",
}
VERDICTS = {True: "safe", False: "too long", None: NOTHING}
NODE_HEAD = ("node", "role", "vLLM", "model", "KV connector", "reports", "KV tokens", "context")
CHUNK_HEAD = (
    *("node", "chunks", "says", "size"),
    *("streams\nalone ms", "worst\nstep ms", "limit\nms", "", "streams\nat most"),
)


def print_check(result: CheckResult, stream: TextIO) -> None:
    """Print what is known of the nodes, what their chunks come to, and what was found."""
    print_grid(node_grid(result), stream)
    load = result.load
    judged = [node for node in result.nodes if node.chunks is not None]
    if judged:
        about = (
            f"Beside {load.decode_seqs} streams of {load.context_tokens:,} tokens each, while a "
            f"prompt of {load.prompt_tokens:,} is deflected, for a target of "
            f"{load.tbt_s * 1e3:g} ms between tokens:"
        )
        print(f"\n{_wrapped(about)}\n", file=stream)
        print_grid(chunk_grid(judged), stream)
        _print_flags(judged, stream)
    print(file=stream)
    for finding in result.findings:
        print(_finding(finding), file=stream)
    print(_verdict(result), file=stream)


def node_grid(result: CheckResult) -> Grid:
    """Return one row per node: what it said."""
    return Grid(NODE_HEAD, tuple(_node_row(node) for node in result.nodes), left=6)


def chunk_grid(nodes: list[NodeCheck]) -> Grid:
    """Return one row per decode node: its chunks, and the steps they make."""
    rows = [_chunk_row(node.node_id, node.chunks) for node in nodes if node.chunks is not None]
    return Grid(CHUNK_HEAD, tuple(rows), left=3)


def _node_row(node: NodeCheck) -> tuple[Cell, ...]:
    texts = [node.node_id, str(node.role)]
    if node.reachable:
        texts += [node.version, ", ".join(node.models), node.kv_connector, node.reports]
        texts += [_count(node.kv_capacity_tokens), _count(node.context_tokens_max)]
    else:
        texts += ["no answer", "", "", "", "", ""]
    return tuple(Cell(text or NOTHING) for text in texts)


def _chunk_row(node_id: str, chunks: ChunkCheck) -> tuple[Cell, ...]:
    worst = NOTHING if chunks.worst_step_s is None else f"{chunks.worst_step_s * 1e3:.1f}"
    seqs = NOTHING if chunks.seqs_safe is None else str(max(0, chunks.seqs_safe))
    return (
        Cell(node_id),
        Cell(MODES[chunks.mode]),
        Cell(chunks.source),
        Cell(_count(chunks.chunk_tokens)),
        Cell(f"{chunks.decode_step_s * 1e3:.1f}"),
        Cell(worst),
        Cell(f"{chunks.budget_s * 1e3:.1f}"),
        Cell(VERDICTS[None if chunks.worst_step_s is None else chunks.is_safe]),
        Cell(seqs),
    )


def _print_flags(nodes: list[NodeCheck], stream: TextIO) -> None:
    """Print the flags to start stock decode nodes with, once for nodes that get the same."""
    by_flags: dict[str, list[str]] = {}
    for node in nodes:
        if node.chunks is not None and node.chunks.flags is not None:
            by_flags.setdefault(node.chunks.flags.text(), []).append(node.node_id)
    for flags, node_ids in by_flags.items():
        print(f"\nFlags for {', '.join(node_ids)} without the plug-in:\n  {flags}", file=stream)


def _finding(finding: Finding) -> str:
    where = f"{finding.node_id} " if finding.node_id else ""
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return _wrapped(f"{finding.level}: {where}{finding.text}{remedy}")


def _verdict(result: CheckResult) -> str:
    if result.is_fine:
        decode = [node for node in result.nodes if node.role is Role.DECODE]
        return f"Fine: {len(result.nodes)} nodes answer, {len(decode)} take deflected prompts."
    errors = sum(finding.level is Level.ERROR for finding in result.findings)
    return f"{errors} {'thing is' if errors == 1 else 'things are'} wrong."


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _wrapped(text: str) -> str:
    # Flags are to be copied, so nothing is broken at a hyphen.
    return textwrap.fill(
        text, LINE_CHARS, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
