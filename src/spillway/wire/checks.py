"""What `spillway check` found: its JSON, and what its tables are made of.

Documented for users in docs/results.md; a change here bumps CHECK_SCHEMA_VERSION and goes into
CHANGELOG.md.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from spillway.core.types import ChunkMode, Role

CHECK_SCHEMA_VERSION = 1


class Level(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # the cluster does not work, or breaks targets, as configured
    WARNING = "warning"  # it works, but worse than it could
    NOTE = "note"  # for information


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found. node_id: "" for the cluster as a whole."""

    level: Level
    node_id: str
    text: str
    remedy: str = ""


class AdvisedFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Settings by which a stock decode engine can take deflected prompts; vLLM's names.

    long_prefill_token_threshold: 0 leaves it unset.
    """

    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    max_num_seqs: int

    def text(self) -> str:
        """Return them as a command line."""
        flags = [f"--max-num-batched-tokens {self.max_num_batched_tokens}"]
        if self.long_prefill_token_threshold:
            flags.append(f"--long-prefill-token-threshold {self.long_prefill_token_threshold}")
        return " ".join([*flags, f"--max-num-seqs {self.max_num_seqs}"])


class ChunkCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How a decode node sizes prefill chunks, and what that does to the expected batch.

    source: who says so.  chunk_tokens: the fixed size, or the largest; None: not known.
    decode_step_s: a step of the streams alone.  worst_step_s: with the chunk; None: not known.
    seqs_safe: beside how many streams of that context the chunk is safe; None: not known.
    flags: for a stock engine; None where no chunk is safe, or none is needed.
    """

    mode: ChunkMode
    source: str
    chunk_tokens: int | None
    budget_s: float
    decode_step_s: float
    worst_step_s: float | None
    seqs_safe: int | None
    flags: AdvisedFlags | None

    @property
    def is_safe(self) -> bool:
        """Whether a prompt may be deflected beside the expected batch."""
        return self.worst_step_s is not None and self.worst_step_s <= self.budget_s


class NodeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one node. Empty or None: not told.

    reports: "plug-in", "silent" (a stream without a line yet), "none", or "unreachable".
    """

    node_id: str
    role: Role
    url: str
    reachable: bool
    version: str = ""
    models: tuple[str, ...] = ()
    context_tokens_max: int | None = None
    kv_connector: str = ""
    kv_role: str = ""
    kv_capacity_tokens: int | None = None
    kv_block_tokens: int | None = None
    reports: str = "none"
    chunks: ChunkCheck | None = None


class ExpectedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The batch that settings were judged by. tbt_s: the strictest target of the configuration."""

    decode_seqs: int
    context_tokens: int
    prompt_tokens: int
    tbt_s: float


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `spillway check` found."""

    spillway_version: str
    load: ExpectedLoad
    nodes: list[NodeCheck]
    findings: list[Finding]
    schema_version: int = CHECK_SCHEMA_VERSION

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.level is Level.ERROR for finding in self.findings)
