"""The tables of `spillway check`: every figure is that of the result."""

from __future__ import annotations

import io

from spillway.core.types import ChunkMode, Role
from spillway.report.checked import chunk_grid, node_grid, print_check
from spillway.wire.checks import (
    AdvisedFlags,
    CheckResult,
    ChunkCheck,
    ExpectedLoad,
    Finding,
    Level,
    NodeCheck,
)

FLAGS = AdvisedFlags(max_num_batched_tokens=512, long_prefill_token_threshold=448, max_num_seqs=256)


def chunks(**changes: object) -> ChunkCheck:
    fields: dict[str, object] = {
        "mode": ChunkMode.STATIC,
        "source": "configuration",
        "chunk_tokens": 512,
        "budget_s": 0.054,
        "decode_step_s": 0.0174,
        "worst_step_s": 0.0533,
        "seqs_safe": 35,
        "flags": FLAGS,
    }
    return ChunkCheck(**(fields | changes))  # type: ignore[arg-type]


def decode_node(node_id: str, **changes: object) -> NodeCheck:
    return NodeCheck(
        node_id=node_id,
        role=Role.DECODE,
        url="http://d:1",
        reachable=True,
        version="0.32.0",
        models=("m",),
        kv_connector="NixlConnector",
        kv_capacity_tokens=426_784,
        chunks=chunks(**changes),
    )


def result(*nodes: NodeCheck, findings: tuple[Finding, ...] = ()) -> CheckResult:
    load = ExpectedLoad(decode_seqs=32, context_tokens=2000, prompt_tokens=8000, tbt_s=0.06)
    return CheckResult(spillway_version="0", load=load, nodes=list(nodes), findings=list(findings))


def text_of(shown: CheckResult) -> str:
    stream = io.StringIO()
    print_check(shown, stream)
    return stream.getvalue()


def test_a_node_that_does_not_answer_has_a_row() -> None:
    gone = NodeCheck(node_id="p0", role=Role.PREFILL, url="http://p:1", reachable=False)
    (row,) = node_grid(result(gone)).rows
    assert [cell.text for cell in row] == ["p0", "prefill", "no answer", *"–––––"]


def test_the_steps_and_what_they_mean() -> None:
    late = chunks(worst_step_s=0.0602, seqs_safe=-1)
    unknown = chunks(mode=ChunkMode.UNKNOWN, chunk_tokens=None, worst_step_s=None, seqs_safe=None)
    nodes = [decode_node("d0")]
    nodes += [
        NodeCheck(node_id=name, role=Role.DECODE, url="", reachable=True, chunks=one)
        for name, one in (("d1", late), ("d2", unknown))
    ]
    rows = [[cell.text for cell in row] for row in chunk_grid(nodes).rows]
    assert rows[0][3:] == ["512", "17.4", "53.3", "54.0", "safe", "35"]
    assert rows[1][3:] == ["512", "17.4", "60.2", "54.0", "too long", "0"]
    assert rows[2][3:] == ["–", "17.4", "–", "54.0", "–", "–"]


def test_flags_are_printed_once_and_whole() -> None:
    text = text_of(result(decode_node("d0"), decode_node("d1")))
    assert text.count(FLAGS.text()) == 1
    assert "Flags for d0, d1 without the plug-in:" in text
    assert "Fine: 2 nodes answer" in text


def test_findings_end_in_a_verdict() -> None:
    wrong = Finding(level=Level.ERROR, node_id="d0", text="is odd", remedy="mend it")
    note = Finding(level=Level.NOTE, node_id="", text="all is small")
    shown = result(decode_node("d0"), findings=(wrong, note))
    assert not shown.is_fine
    lines = text_of(shown).splitlines()
    assert lines[-3:] == ["error: d0 is odd -> mend it", "note: all is small", "1 thing is wrong."]
    assert result(decode_node("d0"), findings=(note,)).is_fine
