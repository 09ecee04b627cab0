"""What a stock engine's own pages say of it: version, KV cache, connector, start-up settings.

`/version`, `/v1/models` and `/metrics` are always there. The scheduler's settings are only on
`/server_info`, which vLLM serves when it was started with VLLM_SERVER_DEV_MODE=1. Fields as in vLLM
0.32; whatever a release does not say is None.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

import msgspec

from spillway.core.errors import NodeError
from spillway.core.types import Role

VERSION_PATH = "/version"
METRICS_PATH = "/metrics"
SERVER_INFO_PATH = "/server_info?config_format=json"
PLUGIN_SCHEDULER = "spillway.engine."
ROLE_OF_KV_ROLE = {"kv_producer": Role.PREFILL, "kv_consumer": Role.DECODE}

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]

# Each in time linear in the page, whatever is on it.
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(?:^|,)\s*(\w++)="([^"]*)"')
_NIXL = re.compile(r"^vllm:nixl_\w", re.MULTILINE)


class CacheFacts(NamedTuple):
    """What `/metrics` tells of the KV cache. None: not told.

    has_nixl: whether NIXL's counters are there, so that its connector is loaded.
    """

    kv_capacity_tokens: int | None = None
    kv_block_tokens: int | None = None
    prefix_caching: bool | None = None
    has_nixl: bool = False


class SchedulerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Start-up settings of vLLM's scheduler, under its own names."""

    max_num_batched_tokens: AtLeastOne
    max_num_seqs: AtLeastOne
    max_num_scheduled_tokens: int | None = None
    long_prefill_token_threshold: Count = 0
    enable_chunked_prefill: bool = True
    scheduler_cls: Any = None

    @property
    def chunk_tokens_max(self) -> int:
        """Return the most prompt tokens of one step. The threshold binds one prompt only."""
        return self.max_num_scheduled_tokens or self.max_num_batched_tokens

    @property
    def has_plugin(self) -> bool:
        """Whether our scheduler is at work, which sizes chunks itself."""
        return str(self.scheduler_cls or "").startswith(PLUGIN_SCHEDULER)


class TransferFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How KV is handed over."""

    kv_connector: str | None = None
    kv_role: str | None = None
    kv_load_failure_policy: str | None = None

    @property
    def role(self) -> Role | None:
        """Return the pool that the engine was started for; None where it serves either."""
        return ROLE_OF_KV_ROLE.get(self.kv_role or "")


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `/server_info` that matters here."""

    scheduler_config: SchedulerFacts
    kv_transfer_config: TransferFacts | None = None


class _ServerInfoPage(msgspec.Struct):
    vllm_config: ServerInfo


class _VersionPage(msgspec.Struct):
    version: str


class _ModelEntry(msgspec.Struct):
    max_model_len: int | None = None


_VERSION = msgspec.json.Decoder(_VersionPage)
_INFO = msgspec.json.Decoder(_ServerInfoPage)
_ENTRY = msgspec.json.Decoder(_ModelEntry)
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_version(page: bytes) -> str:
    """Return the engine's version. Raises NodeError."""
    try:
        return _VERSION.decode(page).version
    except _FAULTS as error:
        raise NodeError(f"{VERSION_PATH} is not a version: {error}") from None


def read_context_tokens_max(model: bytes | msgspec.Raw) -> int | None:
    """Return the longest prompt plus answer of an entry of `/v1/models`."""
    try:
        return _ENTRY.decode(model).max_model_len
    except _FAULTS:
        return None


def read_metrics(page: str) -> CacheFacts:
    """Return what a `/metrics` page tells; of several engines behind it, the first one."""
    has_nixl = _NIXL.search(page) is not None
    found = _CACHE_INFO.search(page)
    if found is None:
        return CacheFacts(has_nixl=has_nixl)
    labels = dict(_LABEL.findall(found[1]))

    def count(name: str) -> int:
        value = labels.get(name, "")
        return int(value) if value.isdecimal() else 0

    block_tokens = count("block_size")
    by_blocks_tokens = count("num_gpu_blocks") * block_tokens
    caching = {"True": True, "False": False}.get(labels.get("enable_prefix_caching", ""))
    return CacheFacts(
        kv_capacity_tokens=count("kv_cache_size_tokens") or by_blocks_tokens or None,
        kv_block_tokens=block_tokens or None,
        prefix_caching=caching,
        has_nixl=has_nixl,
    )


def read_server_info(page: bytes) -> ServerInfo:
    """Return the start-up settings on a `/server_info` page. Raises NodeError."""
    try:
        return _INFO.decode(page).vllm_config
    except _FAULTS as error:
        raise NodeError(f"{SERVER_INFO_PATH} is not vLLM's: {error}") from None
