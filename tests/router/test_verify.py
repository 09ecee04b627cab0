"""Judging what nodes said: each thing that can be wrong is found, with its remedy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from builders import make_spec
from spillway.core.stock import ExpectedBatch, safe_chunk_tokens
from spillway.core.types import ChunkMode, Role
from spillway.router.dial import NodeAnswers
from spillway.router.verify import judge
from spillway.wire.checks import ChunkCheck, Finding, Level
from spillway.wire.config import Node
from spillway.wire.enginepages import CacheFacts, SchedulerFacts, ServerInfo, TransferFacts
from spillway.wire.report import NodeReport

BATCH = ExpectedBatch(32, 2000, 8000)
TBT_S = 0.06


def answers(node_id: str, **changes: Any) -> NodeAnswers:
    """A node without a fault; `spec` changes what is configured of it."""
    role = Role.PREFILL if node_id.startswith("p") else Role.DECODE
    spec = make_spec(node_id, role, **changes.pop("spec", {}))
    report_url = changes.pop("report_url", "")
    fields: dict[str, Any] = {
        "node": Node(spec, f"http://{node_id}:8000", report_url),
        "version": "0.32.0",
        "models": {"m": msgspec.Raw(b'{"id": "m", "max_model_len": 8192}')},
        "cache": CacheFacts(400_000, 16, False, True),
        "has_reports": False,
    }
    return NodeAnswers(**(fields | changes))


def static(tokens: int, **changes: Any) -> NodeAnswers:
    """A stock decode node whose chunk is configured."""
    spec = {"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": tokens, **changes.pop("spec", {})}
    return answers("d0", spec=spec, **changes)


def info(step_tokens: int = 512, threshold: int = 448, **changes: Any) -> ServerInfo:
    transfer = TransferFacts(kv_connector="NixlConnector", kv_role=changes.pop("kv_role", None))
    return ServerInfo(
        scheduler_config=SchedulerFacts(
            max_num_batched_tokens=step_tokens,
            max_num_seqs=64,
            long_prefill_token_threshold=threshold,
            **changes,
        ),
        kv_transfer_config=transfer,
    )


def report(node_id: str = "d0", role: Role = Role.DECODE, **changes: Any) -> NodeReport:
    counts = dict.fromkeys(
        ("seq", "step", "backlog_prompts", "backlog_tokens", "backlog_token_pairs"), 0
    )
    counts |= {"decode_seqs": 0, "kv_used_tokens": 0, "kv_capacity_tokens": 400_000}
    fields: dict[str, Any] = {"chunk_mode": ChunkMode.ENGINE, "chunk_tokens_max": 2048}
    return NodeReport(node_id=node_id, role=role, **(counts | fields | changes))


def found(
    *nodes: NodeAnswers, kv_block_tokens: int = 0, batch: ExpectedBatch = BATCH
) -> list[Finding]:
    return judge(nodes, batch, TBT_S, kv_block_tokens)[1]


def chunks(node: NodeAnswers) -> ChunkCheck:
    (check,), _ = judge([node], BATCH, TBT_S)
    assert check.chunks is not None
    return check.chunks


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_fitting_pair_has_no_findings() -> None:
    assert found(answers("p0"), static(512)) == []
    with_plugin = answers("d0", has_reports=True, report=report())
    assert found(answers("p0"), with_plugin) == []


WRONG: dict[str, tuple[NodeAnswers, str, str]] = {
    "unreachable": (answers("p0", fault="connection_refused"), "connection_refused", "engine up"),
    "a page is missing": (answers("p0", faults={"/metrics": "answers 401"}), "answers 401", "key"),
    "started for the other role": (
        answers("p0", info=info(kv_role="kv_consumer")),
        "is configured as a prefill node, but was started with kv_consumer",
        "kv_role",
    ),
    "reports as the other role": (
        answers("p0", has_reports=True, report=report("p0")),
        "reports as a decode node",
        "role",
    ),
    "no connector": (
        answers("p0", cache=CacheFacts(400_000, 16, False, False)),
        "no KV connector",
        "--kv-transfer-config",
    ),
    "no reports where they should be": (
        answers("p0", report_url="http://p0:8100"),
        "http://p0:8100 has no reports",
        "report_port",
    ),
    "more KV promised than there is": (
        answers("p0", cache=CacheFacts(100_000, 16, False, True)),
        "has room for 100,000 KV tokens; configured are 400,000",
        "kv_capacity_tokens: 100000",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(case: str) -> None:
    node, text, remedy = WRONG[case]
    finding = only(found(node))
    assert (finding.level, finding.node_id) == (Level.ERROR, "p0")
    assert text in finding.text
    assert remedy in finding.remedy


def test_a_reporting_node_knows_its_kv_room_itself() -> None:
    small = {"cache": CacheFacts(100_000, 16, False, True)}
    assert found(answers("d0", has_reports=True, report=report(), **small)) == []


def test_unused_kv_room_is_a_note_and_none_a_warning() -> None:
    note = only(found(static(512, spec={"kv_capacity_tokens": 100_000})))
    assert (note.level, note.remedy) == (Level.NOTE, "set kv_capacity_tokens: 400000")
    warning = only(found(static(512, spec={"kv_capacity_tokens": 0})))
    assert warning.level is Level.WARNING
    assert "forbids deflection" in warning.text


def test_kv_blocks_are_compared_with_the_configuration() -> None:
    assert found(answers("p0"), kv_block_tokens=16) == []
    finding = only(found(answers("p0"), kv_block_tokens=128))
    assert finding.remedy == "set router.kv_block_tokens: 16"


def test_versions_models_and_blocks_are_compared_between_nodes() -> None:
    other = answers("p1", version="0.31.0")
    assert "0.32.0; p1: 0.31.0" in only(found(answers("p0"), other)).text
    assert only(found(answers("p0"), other)).level is Level.ERROR
    models = {"m2": msgspec.Raw(b'{"id": "m2"}')}
    levels = [one.level for one in found(answers("p0"), answers("p1", models=models))]
    assert levels == [Level.ERROR, Level.ERROR]
    both = answers("p1", models=models | answers("p0").models)
    assert only(found(answers("p0"), both)).level is Level.WARNING
    blocks = answers("p1", cache=CacheFacts(400_000, 32, False, True))
    assert "p0: 16; p1: 32" in only(found(answers("p0"), blocks)).text


# --- chunks --------------------------------------------------------------------------------------


def test_who_says_how_chunks_are_sized() -> None:
    silent = answers("d0", has_reports=True)
    cases = [
        (static(256), (ChunkMode.STATIC, 256, "configuration")),
        (static(256, info=info(512)), (ChunkMode.STATIC, 512, "/server_info")),
        (answers("d0"), (ChunkMode.UNKNOWN, None, "nobody")),
        (silent, (ChunkMode.ENGINE, 2048, "its report stream")),
        (
            answers("d0", report=report(chunk_tokens_max=1024)),
            (ChunkMode.ENGINE, 1024, "its reports"),
        ),
        # A plug-in that only reports leaves the engine to itself, and says so.
        (
            answers("d0", report=report(chunk_mode=ChunkMode.STATIC)),
            (ChunkMode.STATIC, 2048, "its reports"),
        ),
    ]
    for node, wanted in cases:
        check = chunks(node)
        assert (check.mode, check.chunk_tokens, check.source) == wanted


def test_an_unsafe_chunk_is_an_error_that_names_the_safe_one() -> None:
    finding = only(found(static(2048)))
    assert finding.level is Level.ERROR
    assert "chunks of 2048" in finding.text
    spec = static(2048).node.spec
    chunk = safe_chunk_tokens(spec.profile, BATCH, 0.054, 64)
    assert 0 < chunk < 2048
    assert f"--max-num-batched-tokens {chunk} --long-prefill-token-threshold" in finding.remedy
    assert found(static(chunk)) == []


def test_the_configured_chunk_is_compared_with_the_nodes() -> None:
    finding = only(found(static(256, info=info(512))))
    assert finding.level is Level.WARNING
    assert finding.text.startswith("runs chunks of 512; configured are 256")
    assert found(static(512, info=info(512))) == []


def test_a_step_without_room_for_pulled_requests_is_a_warning() -> None:
    finding = only(found(static(512, info=info(512, threshold=0))))
    assert finding.level is Level.WARNING
    assert finding.remedy == "add --long-prefill-token-threshold 448"


def test_streams_that_fill_the_step_alone_leave_no_advice() -> None:
    many = BATCH._replace(decode_seqs=600)
    finding = only(found(static(64), batch=many))
    assert "600 streams alone" in finding.text
    (check,), _ = judge([static(64)], many, TBT_S)
    assert check.chunks is not None
    assert check.chunks.flags is None


def test_an_engine_that_sizes_its_steps_may_find_none_that_fits() -> None:
    node = answers("d0", report=report(), spec={"chunk_tokens_multiple": 512})
    assert found(node) == []
    busier = BATCH._replace(decode_seqs=40)
    assert "no chunk fits" in only(found(node, batch=busier)).text


def test_a_stock_node_that_tells_nothing_gets_both_ways_out() -> None:
    finding = only(found(answers("d0")))
    assert finding.level is Level.ERROR
    assert "chunk_mode: static" in finding.remedy
    assert "plug-in" in finding.remedy
    flags = chunks(answers("d0")).flags
    assert flags is not None
    assert flags.text() == (
        "--max-num-batched-tokens 512 --long-prefill-token-threshold 448 --max-num-seqs 256"
    )
