"""Everything that ties the plug-in to vLLM's insides, and every difference between its releases.

`TOUCHED` lists each attribute that is read or written. It is checked twice: against the sources of
several releases in tests/engine/test_contract.py, where a new release fails first, and against the
live scheduler at start-up, where a miss leaves the plug-in to report only. The rest of the
package goes through the functions below and imports no vLLM itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.engine.view import Statuses
from spillway.wire.kvparams import HeldKv
from spillway.wire.order import XARGS_KEY

# The releases that the tests cover; others may well work, since what is touched is checked.
OLDEST_TESTED, NEWEST_TESTED = "0.26.0", "0.32.0"


class Touched(NamedTuple):
    """Attributes of one class. file: inside the vllm package.

    reach: the way from the scheduler to an object of it; "" for objects that come and go.
    optional: what only some releases have; the plug-in does without.
    """

    file: str
    class_name: str
    reach: str
    names: tuple[str, ...]
    optional: tuple[str, ...] = ()


_SCHEDULER = "v1/core/sched/scheduler.py"
_NIXL = "distributed/kv_transfer/kv_connector/v1/nixl"
_LEASE_HOLDER = "NixlPullConnectorScheduler"
TOUCHED = (
    Touched(
        _SCHEDULER,
        "Scheduler",
        "self",
        (
            *("schedule", "update_from_output", "add_request", "shutdown"),  # overridden
            *("max_num_scheduled_tokens",),  # set for one call and put back
            *("requests", "running", "waiting", "finished_recving_kv_req_ids"),
            *("block_size", "cache_config", "kv_cache_config", "kv_cache_manager"),
            *("num_spec_tokens", "parallel_config", "scheduler_config", "vllm_config"),
        ),
        # The first, where it is set, lifts the cap on one request that steps rely on.
        ("adaptive_long_prefill_threshold", "need_mamba_block_aligned_split"),
    ),
    Touched("v1/core/sched/async_scheduler.py", "AsyncScheduler", "", ()),
    Touched(
        "config/scheduler.py",
        "SchedulerConfig",
        "self.scheduler_config",
        ("long_prefill_token_threshold", "async_scheduling"),
    ),
    Touched("config/vllm.py", "VllmConfig", "self.vllm_config", ("additional_config",)),
    Touched("config/vllm.py", "VllmConfig", "self.vllm_config", ("kv_transfer_config",)),
    Touched("config/kv_transfer.py", "KVTransferConfig", "", ("kv_role",)),
    Touched(
        "config/parallel.py", "ParallelConfig", "self.parallel_config", ("data_parallel_rank",)
    ),
    Touched("config/cache.py", "CacheConfig", "self.cache_config", ("enable_prefix_caching",)),
    Touched(
        "v1/kv_cache_interface.py",
        "KVCacheConfig",
        "self.kv_cache_config",
        ("num_blocks", "kv_cache_groups"),
    ),
    Touched("v1/core/kv_cache_manager.py", "KVCacheManager", "self.kv_cache_manager", ("usage",)),
    Touched(
        "v1/core/sched/request_queue.py",
        "RequestQueue",
        "self.waiting",
        ("add_request", "remove_requests", "__iter__"),
    ),
    Touched(
        "v1/request.py",
        "Request",
        "",
        (
            *("request_id", "status", "sampling_params", "kv_transfer_params"),
            *("num_tokens", "num_tokens_with_spec", "num_computed_tokens"),
            *("num_output_placeholders", "is_prefill_chunk"),
        ),
    ),
    Touched(
        "v1/request.py",
        "RequestStatus",
        "",
        (
            *("RUNNING", "WAITING", "PREEMPTED", "WAITING_FOR_REMOTE_KVS"),
            *("WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR",),
        ),
    ),
    Touched("sampling_params.py", "SamplingParams", "", ("extra_args",)),
    Touched(
        "v1/core/sched/output.py",
        "SchedulerOutput",
        "",
        ("num_scheduled_tokens", "total_num_scheduled_tokens"),
    ),
    # What ends a lease early; without it leases end by themselves.
    Touched(_SCHEDULER, "Scheduler", "", ("connector",)),
    Touched("v1/request.py", "Request", "", ("is_finished",)),
    Touched("config/parallel.py", "ParallelConfig", "", ("prefill_context_parallel_size",)),
    Touched(f"{_NIXL}/connector.py", "NixlBaseConnector", "", ("connector_scheduler",)),
    Touched(f"{_NIXL}/pull_scheduler.py", _LEASE_HOLDER, "", ("request_finished",)),
    Touched(
        f"{_NIXL}/base_scheduler.py",
        "NixlBaseConnectorScheduler",
        "",
        ("engine_id", "_reqs_need_send"),
    ),
)


def missing(scheduler: Any) -> list[str]:
    """Return what this vLLM lacks of what the plug-in touches, as far as a scheduler shows it."""
    found = []
    for touched in TOUCHED:
        if touched.reach:
            owner = _reach(scheduler, touched.reach)
            found += [
                f"{touched.class_name}.{name}" for name in touched.names if not hasattr(owner, name)
            ]
    return found


def missing_of_request(request: Any) -> list[str]:
    """Return what a request lacks of what the plug-in reads."""
    names = next(one.names for one in TOUCHED if one.class_name == "Request")
    return [f"Request.{name}" for name in names if not hasattr(request, name)]


def _reach(scheduler: Any, path: str) -> Any:
    owner = scheduler
    for name in path.split(".")[1:]:
        owner = getattr(owner, name, None)
    return owner


def statuses_of(request_status: Any) -> Statuses:
    """Return the members of vLLM's RequestStatus that the view tells apart."""
    return Statuses(
        running=request_status.RUNNING,
        waiting=request_status.WAITING,
        preempted=request_status.PREEMPTED,
        remote_kvs=request_status.WAITING_FOR_REMOTE_KVS,
        grammar=request_status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
    )


def role_of(scheduler: Any, configured: Role | None) -> Role:
    """Return the node's role: as configured, else what its KV connector is for.

    Raises ConfigError when neither says.
    """
    if configured is not None:
        return configured
    kv_transfer = getattr(scheduler.vllm_config, "kv_transfer_config", None)
    kv_role = kv_transfer.kv_role if kv_transfer is not None else None
    if kv_role == "kv_producer":
        return Role.PREFILL
    if kv_role == "kv_consumer":
        return Role.DECODE
    raise ConfigError(
        f"spillway: role is missing and kv_role is {kv_role!r}, which does not tell it;"
        ' set "role" to "prefill" or "decode" in --additional-config'
    )


def rank_of(scheduler: Any) -> int:
    """Return the data-parallel rank: each rank has a scheduler of its own."""
    return int(getattr(scheduler.parallel_config, "data_parallel_rank", 0))


def kv_capacity_tokens(scheduler: Any) -> int:
    """Return the tokens whose KV has room, 0 when that cannot be told.

    Layers of different kinds share the blocks.
    """
    try:
        config = scheduler.kv_cache_config
        blocks: int = config.num_blocks // max(1, len(config.kv_cache_groups))
        return blocks * int(scheduler.block_size)
    except AttributeError:  # `missing` has found it too, and the plug-in only reports
        return 0


def chunk_multiple_tokens(scheduler: Any) -> int:
    """Return what chunks must be multiples of: 1, but for models whose state sits in blocks."""
    aligned = getattr(scheduler, "need_mamba_block_aligned_split", False)
    return int(scheduler.block_size) if aligned else 1


def extra_arg(request: Any) -> object:
    """Return the router's scalar that came with a request, None when there is none."""
    params = request.sampling_params  # None for pooling requests
    extra = params.extra_args if params is not None else None
    return extra.get(XARGS_KEY) if extra else None


def pending_tokens(requests: Iterable[Any]) -> int:
    """Return the tokens that running decodes take in the next step, drafts included."""
    tokens = 0
    for request in requests:
        pending = (
            request.num_tokens_with_spec
            + request.num_output_placeholders
            - request.num_computed_tokens
        )
        if pending > 0 and not request.is_prefill_chunk:
            tokens += pending
    return tokens


def lease_holder(scheduler: Any) -> Any | None:
    """Return the part of a KV connector that sets leases on prefilled KV; None without a known one.

    With prefill context parallelism the ranks that serve no KV count every lease that is set, so
    setting one twice would make them report it twice.
    """
    holder = getattr(getattr(scheduler, "connector", None), "connector_scheduler", None)
    if type(holder).__name__ != _LEASE_HOLDER or not hasattr(holder, "engine_id"):
        return None
    if not isinstance(getattr(holder, "_reqs_need_send", None), dict):
        return None
    ranks = getattr(scheduler.parallel_config, "prefill_context_parallel_size", 1)
    return holder if ranks == 1 else None


def end_lease(scheduler: Any, holder: Any, held: HeldKv) -> bool:
    """Let the lease on held KV end now; return False when no such KV is held here.

    The scheduler frees nothing itself: its workers hold leases of their own, and it asserts that it
    still knows what they report as sent. So the lease is set anew, to this moment, on the way by
    which it was first set. The workers take that only for KV that nobody has fetched, and then
    report it as any lease that ran out. O(1).
    """
    request = scheduler.requests.get(held.request_id)
    if held.engine_id != holder.engine_id or request is None or not request.is_finished():
        return False
    if not (request.kv_transfer_params or {}).get("do_remote_decode"):
        return False
    holder._reqs_need_send[held.request_id] = time.perf_counter()  # the clock of vLLM's leases
    return True
