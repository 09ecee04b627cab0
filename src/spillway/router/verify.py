"""Judges what engines said of themselves: do they fit each other, the configuration, the targets?

Pure: `dial.py` asks, this compares. Each finding says what is wrong and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spillway.core.chunks import next_chunk_tokens
from spillway.core.stock import (
    ExpectedBatch,
    decode_step_s,
    recommended_flags,
    safe_chunk_tokens,
    safe_seqs,
    worst_step_s,
)
from spillway.core.types import ChunkMode, NodeSpec, Role
from spillway.router.dial import NodeAnswers
from spillway.wire.checks import AdvisedFlags, ChunkCheck, Finding, Level, NodeCheck
from spillway.wire.enginepages import read_context_tokens_max

NIXL = "NixlConnector"
KV_ROOM_MUCH_SMALLER_FRAC = 0.8


def judge(
    answers: Sequence[NodeAnswers], batch: ExpectedBatch, tbt_s: float, kv_block_tokens: int = 0
) -> tuple[list[NodeCheck], list[Finding]]:
    """Return what is known of each node, and what was found.

    tbt_s: the strictest target.  kv_block_tokens: as configured; 0 is not configured.
    """
    checks = [_node_check(one, batch, tbt_s) for one in answers]
    findings: list[Finding] = []
    for one, check in zip(answers, checks, strict=True):
        if not check.reachable:
            text = f"{check.url} cannot be used: {one.fault}"
            findings.append(_error(one, text, "is the engine up, and the URL right?"))
            continue
        findings += _unanswered(one)
        findings += _role_and_connector(one, check)
        findings += _kv_cache(one, check, kv_block_tokens)
        if check.chunks is not None:
            findings += _chunks(one, check.chunks, batch)
    findings += _pools([check for check in checks if check.reachable])
    return checks, findings


# --- what is known -------------------------------------------------------------------------------


def _node_check(answers: NodeAnswers, batch: ExpectedBatch, tbt_s: float) -> NodeCheck:
    spec, cache, report = answers.node.spec, answers.cache, answers.report
    if answers.fault:
        return NodeCheck(
            node_id=spec.node_id,
            role=spec.role,
            url=answers.node.url,
            reachable=False,
            reports="unreachable",
        )
    told = answers.info.kv_transfer_config if answers.info else None
    contexts = [read_context_tokens_max(entry) for entry in answers.models.values()]
    kv_tokens = report.kv_capacity_tokens if report else cache.kv_capacity_tokens
    return NodeCheck(
        node_id=spec.node_id,
        role=spec.role,
        url=answers.node.url,
        reachable=True,
        version=answers.version,
        models=tuple(answers.models),
        context_tokens_max=max((one for one in contexts if one), default=None),
        kv_connector=(told.kv_connector or "" if told else "") or (NIXL if cache.has_nixl else ""),
        kv_role=told.kv_role or "" if told else "",
        kv_capacity_tokens=kv_tokens or None,
        kv_block_tokens=cache.kv_block_tokens,
        reports=_reports(answers),
        chunks=_chunk_check(answers, batch, tbt_s) if spec.role is Role.DECODE else None,
    )


def _reports(answers: NodeAnswers) -> str:
    if answers.report is not None:
        return "plug-in"
    if answers.has_reports is None:
        return "unreachable"
    return "silent" if answers.has_reports else "none"


def chunking(answers: NodeAnswers) -> tuple[ChunkMode, int | None, str]:
    """Return how a decode node sizes chunks, their largest size, and who says so."""
    spec, report, info = answers.node.spec, answers.report, answers.info
    if report is not None and report.chunk_mode is not ChunkMode.UNKNOWN:
        return report.chunk_mode, report.chunk_tokens_max or spec.chunk_tokens_max, "its reports"
    if info is not None and not info.scheduler_config.has_plugin:
        return ChunkMode.STATIC, info.scheduler_config.chunk_tokens_max, "/server_info"
    if answers.has_reports:
        return ChunkMode.ENGINE, spec.chunk_tokens_max, "its report stream"
    if spec.chunk_mode is ChunkMode.STATIC:
        return ChunkMode.STATIC, spec.chunk_tokens_max, "configuration"
    return ChunkMode.UNKNOWN, None, "nobody"


def _chunk_check(answers: NodeAnswers, batch: ExpectedBatch, tbt_s: float) -> ChunkCheck:
    spec = answers.node.spec
    profile = spec.profile
    budget_s = tbt_s * spec.tbt_margin_frac
    mode, chunk_tokens, source = chunking(answers)
    alone_s = decode_step_s(profile, batch)
    worst_s: float | None = None
    seqs: int | None = None
    flags = None
    if mode is ChunkMode.ENGINE:
        worst_s, seqs = _own_steps(spec, batch, budget_s, alone_s), None
    elif chunk_tokens is not None:
        worst_s = worst_step_s(profile, batch, chunk_tokens)
        seqs = safe_seqs(profile, batch, budget_s, chunk_tokens)
    if mode is not ChunkMode.ENGINE:
        flags = _advice(answers, batch, budget_s)
    return ChunkCheck(
        mode=mode,
        source=source,
        chunk_tokens=chunk_tokens,
        budget_s=budget_s,
        decode_step_s=alone_s,
        worst_step_s=worst_s,
        seqs_safe=seqs,
        flags=flags,
    )


def _own_steps(spec: NodeSpec, batch: ExpectedBatch, budget_s: float, alone_s: float) -> float:
    """Return the longest step of an engine that sizes its chunks: the budget, if one fits at all.

    The prompt's last chunk has the most context, so it is the one that has to fit.
    """
    last = next_chunk_tokens(
        spec.profile,
        batch.decode_seqs,
        batch.kv_tokens,
        batch.prompt_tokens,
        batch.prompt_tokens,
        budget_s,
        spec.chunk_tokens_max,
        spec.chunk_tokens_multiple,
    )
    if last:
        return budget_s
    return max(alone_s, worst_step_s(spec.profile, batch, spec.chunk_tokens_multiple))


def _advice(answers: NodeAnswers, batch: ExpectedBatch, budget_s: float) -> AdvisedFlags | None:
    spec = answers.node.spec
    chunk = safe_chunk_tokens(spec.profile, batch, budget_s, spec.chunk_tokens_multiple)
    if not chunk:
        return None
    seqs_max = answers.info.scheduler_config.max_num_seqs if answers.info else spec.seqs_max
    return AdvisedFlags(**recommended_flags(chunk, batch.decode_seqs, seqs_max)._asdict())


# --- what was found ------------------------------------------------------------------------------


def _error(answers: NodeAnswers, text: str, remedy: str = "") -> Finding:
    return _finding(Level.ERROR, answers, text, remedy)


def _finding(level: Level, answers: NodeAnswers, text: str, remedy: str = "") -> Finding:
    return Finding(level=level, node_id=answers.node.spec.node_id, text=text, remedy=remedy)


def _unanswered(answers: NodeAnswers) -> Iterator[Finding]:
    for path, fault in answers.faults.items():
        yield _error(answers, f"{path}: {fault}", "is this a vLLM engine, and the key right?")
    if answers.has_reports is False and answers.node.report_url:
        url = answers.node.report_url
        yield _error(
            answers, f"{url} has no reports", "is report_url that of its plug-in (report_port)?"
        )


def _role_and_connector(answers: NodeAnswers, check: NodeCheck) -> Iterator[Finding]:
    role = answers.node.spec.role
    told = answers.info.kv_transfer_config if answers.info else None
    started_for = told.role if told else None
    if started_for not in (None, role):
        yield _error(
            answers,
            f"is configured as a {role} node, but was started with {check.kv_role}",
            "move it to the other pool, or correct kv_role in its --kv-transfer-config",
        )
    if answers.report is not None and answers.report.role is not role:
        yield _error(
            answers,
            f"is configured as a {role} node, but reports as a {answers.report.role} node",
            "move it to the other pool, or correct the plug-in's role",
        )
    if check.kv_connector != NIXL:
        yield _error(
            answers,
            f"has {check.kv_connector or 'no KV connector'}, so no KV can be handed over",
            f'start it with --kv-transfer-config \'{{"kv_connector": "{NIXL}", ...}}\'',
        )


def _kv_cache(answers: NodeAnswers, check: NodeCheck, kv_block_tokens: int) -> Iterator[Finding]:
    room_tokens, configured_tokens = check.kv_capacity_tokens, answers.node.spec.kv_capacity_tokens
    is_reported = answers.report is not None  # then the router takes the node's word
    if room_tokens and configured_tokens > room_tokens and not is_reported:
        yield _error(
            answers,
            f"has room for {room_tokens:,} KV tokens; configured are {configured_tokens:,}",
            f"set kv_capacity_tokens: {room_tokens}",
        )
    elif not configured_tokens and answers.node.spec.role is Role.DECODE and not is_reported:
        text = "its KV room is not configured, which forbids deflection"
        remedy = f"set kv_capacity_tokens: {room_tokens or 'N, from its start-up log'}"
        yield _finding(Level.WARNING, answers, text, remedy)
    elif (
        room_tokens
        and configured_tokens < KV_ROOM_MUCH_SMALLER_FRAC * room_tokens
        and not is_reported
    ):
        yield _finding(
            Level.NOTE,
            answers,
            f"has room for {room_tokens:,} KV tokens; only {configured_tokens:,} are configured",
            f"set kv_capacity_tokens: {room_tokens}",
        )
    if check.kv_block_tokens and kv_block_tokens not in (0, check.kv_block_tokens):
        yield _error(
            answers,
            f"has KV blocks of {check.kv_block_tokens} tokens; configured are {kv_block_tokens}",
            f"set router.kv_block_tokens: {check.kv_block_tokens}",
        )


def _chunks(answers: NodeAnswers, chunks: ChunkCheck, batch: ExpectedBatch) -> Iterator[Finding]:
    spec, told = answers.node.spec, chunks.chunk_tokens
    if chunks.mode is ChunkMode.UNKNOWN:
        yield _error(
            answers,
            "does not tell how it sizes prefill chunks, so nothing is deflected to it",
            "add the plug-in and its report_url; or set chunk_mode: static and chunk_tokens_max "
            "to its --max-num-batched-tokens",
        )
        return
    is_told = chunks.mode is ChunkMode.STATIC and chunks.source != "configuration"
    if is_told and spec.chunk_mode is ChunkMode.STATIC and told != spec.chunk_tokens_max:
        yield _finding(
            Level.WARNING,
            answers,
            f"runs chunks of {told}; configured are {spec.chunk_tokens_max}; the node's word holds",
            f"set chunk_tokens_max: {told}",
        )
    alone_ms, budget_ms = chunks.decode_step_s * 1e3, chunks.budget_s * 1e3
    if chunks.decode_step_s > chunks.budget_s:
        yield _error(
            answers,
            f"{batch.decode_seqs} streams alone take {alone_ms:.1f} ms a step, more than the "
            f"{budget_ms:.1f} ms that the strictest target leaves",
            "fewer streams (--max-num-seqs), a looser target, or more decode nodes",
        )
    elif not chunks.is_safe and chunks.worst_step_s is not None:
        worst_ms = chunks.worst_step_s * 1e3
        remedy = f"start it with {chunks.flags.text()}" if chunks.flags else "fewer streams"
        text = f"no chunk fits into {budget_ms:.1f} ms beside {batch.decode_seqs} streams"
        if chunks.mode is ChunkMode.STATIC:
            text = (
                f"chunks of {told} make steps of up to {worst_ms:.1f} ms beside "
                f"{batch.decode_seqs} streams, {budget_ms:.1f} ms are safe: nothing is deflected "
                "to it then"
            )
        yield _error(answers, text, remedy)
    if answers.info is not None and chunks.mode is ChunkMode.STATIC and chunks.is_safe:
        yield from _threshold(answers, batch)


def _threshold(answers: NodeAnswers, batch: ExpectedBatch) -> Iterator[Finding]:
    assert answers.info is not None
    scheduler = answers.info.scheduler_config
    step_tokens, set_tokens = scheduler.chunk_tokens_max, scheduler.long_prefill_token_threshold
    advised = recommended_flags(step_tokens, batch.decode_seqs, scheduler.max_num_seqs)
    if not set_tokens or set_tokens >= step_tokens:
        yield _finding(
            Level.WARNING,
            answers,
            "a deflected prompt takes whole steps: requests whose KV is to be pulled wait for it",
            f"add --long-prefill-token-threshold {advised.long_prefill_token_threshold}",
        )


def _pools(checks: Sequence[NodeCheck]) -> Iterator[Finding]:
    """Compare the nodes that answered with one another."""

    def differing(values: dict[str, list[str]]) -> str:
        return "; ".join(f"{', '.join(ids)}: {value}" for value, ids in values.items())

    versions: dict[str, list[str]] = {}
    blocks: dict[str, list[str]] = {}
    for check in checks:
        if check.version:
            versions.setdefault(check.version, []).append(check.node_id)
        if check.kv_block_tokens:
            blocks.setdefault(str(check.kv_block_tokens), []).append(check.node_id)
    if len(versions) > 1:
        text = f"the engines' versions differ ({differing(versions)}): NIXL refuses to pair them"
        yield Finding(
            level=Level.ERROR, node_id="", text=text, remedy="run one version on every node"
        )
    if len(blocks) > 1:
        text = f"the engines' KV block sizes differ ({differing(blocks)})"
        yield Finding(
            level=Level.WARNING, node_id="", text=text, remedy="give all the same --block-size"
        )
    yield from _models([check for check in checks if check.models])


def _models(checks: Sequence[NodeCheck]) -> Iterator[Finding]:
    served = {model for check in checks for model in check.models}
    common = served.intersection(*(check.models for check in checks))
    for model in sorted(served - common):
        without = ", ".join(check.node_id for check in checks if model not in check.models)
        yield Finding(
            level=Level.WARNING if common else Level.ERROR,
            node_id="",
            text=f"model {model} is not served by {without}",
            remedy="serve the same models, under the same names, on every node",
        )
