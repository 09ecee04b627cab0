"""What differs between vLLM releases, on stand-ins; the real ones are in test_contract.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fakescheduler import FakeRequest, FakeScheduler, Status, decode
from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.engine import compat
from spillway.wire.kvparams import HeldKv


def test_nothing_is_missing_from_a_scheduler_that_has_everything() -> None:
    assert compat.missing(FakeScheduler()) == []
    assert compat.missing_of_request(FakeRequest("a", 1)) == []


def test_what_is_missing_is_named_by_class() -> None:
    scheduler = FakeScheduler()
    del scheduler.scheduler_config.long_prefill_token_threshold
    del scheduler.kv_cache_manager
    assert compat.missing(scheduler) == [
        "Scheduler.kv_cache_manager",
        "SchedulerConfig.long_prefill_token_threshold",
        "KVCacheManager.usage",
    ]
    assert compat.kv_capacity_tokens(SimpleNamespace()) == 0


@pytest.mark.parametrize(
    ("kv_role", "configured", "role"),
    [
        ("kv_producer", None, Role.PREFILL),
        ("kv_consumer", None, Role.DECODE),
        ("kv_both", Role.DECODE, Role.DECODE),
        ("kv_consumer", Role.PREFILL, Role.PREFILL),
    ],
)
def test_the_role_is_configured_or_that_of_the_connector(
    kv_role: str, configured: Role | None, role: Role
) -> None:
    scheduler = FakeScheduler()
    scheduler.vllm_config.kv_transfer_config.kv_role = kv_role
    assert compat.role_of(scheduler, configured) is role


def test_without_a_connector_the_role_must_be_said() -> None:
    scheduler = FakeScheduler()
    scheduler.vllm_config.kv_transfer_config = None
    with pytest.raises(ConfigError, match="role is missing"):
        compat.role_of(scheduler, None)
    assert compat.role_of(scheduler, Role.DECODE) is Role.DECODE


def test_kv_room_is_shared_by_layers_of_different_kinds() -> None:
    scheduler = FakeScheduler(blocks=100)
    assert compat.kv_capacity_tokens(scheduler) == 1600
    scheduler.kv_cache_config.kv_cache_groups = ["full", "window"]
    assert compat.kv_capacity_tokens(scheduler) == 800


def test_models_with_state_in_blocks_need_whole_blocks() -> None:
    scheduler = FakeScheduler()
    assert compat.chunk_multiple_tokens(scheduler) == 1
    scheduler.need_mamba_block_aligned_split = True
    assert compat.chunk_multiple_tokens(scheduler) == 16


def test_the_routers_scalar_is_found_wherever_a_request_has_room_for_it() -> None:
    assert compat.extra_arg(FakeRequest("a", 1, order="r:1:60")) == "r:1:60"
    assert compat.extra_arg(FakeRequest("a", 1)) is None
    pooling = FakeRequest("a", 1)
    pooling.sampling_params = None
    assert compat.extra_arg(pooling) is None


def test_decodes_take_one_token_each_plus_their_drafts() -> None:
    drafting, waiting_for_results = decode("a", 100), decode("b", 100)
    drafting.num_tokens_with_spec += 3
    waiting_for_results.num_tokens_with_spec -= 1
    prompt = FakeRequest("p", 900, computed_tokens=100, status=Status.RUNNING)
    assert compat.pending_tokens([drafting, waiting_for_results, prompt]) == 4


class NixlPullConnectorScheduler:
    """Named as vLLM's, which is what it is known by."""

    def __init__(self) -> None:
        self.engine_id = "e"
        self._reqs_need_send: dict[str, float] = {}


def sending(holder: object) -> FakeScheduler:
    scheduler = FakeScheduler()
    scheduler.connector = SimpleNamespace(connector_scheduler=holder)  # type: ignore[attr-defined]
    return scheduler


def test_leases_are_ended_only_by_a_connector_that_is_known() -> None:
    holder = NixlPullConnectorScheduler()
    assert compat.lease_holder(sending(holder)) is holder
    assert compat.lease_holder(FakeScheduler()) is None
    assert compat.lease_holder(sending(None)) is None
    assert compat.lease_holder(sending(SimpleNamespace(engine_id="e", _reqs_need_send={}))) is None
    changed = NixlPullConnectorScheduler()
    changed._reqs_need_send = set()  # type: ignore[assignment]
    assert compat.lease_holder(sending(changed)) is None


def test_leases_are_left_alone_where_ranks_that_serve_no_kv_count_them() -> None:
    scheduler = sending(NixlPullConnectorScheduler())
    scheduler.parallel_config.prefill_context_parallel_size = 2
    assert compat.lease_holder(scheduler) is None


@pytest.mark.parametrize(
    ("status", "params", "engine_id", "ended"),
    [
        (Status.FINISHED, {"do_remote_decode": True}, "e", True),
        (Status.FINISHED, {"do_remote_decode": True}, "another", False),
        (Status.FINISHED, {"do_remote_prefill": True}, "e", False),
        (Status.FINISHED, None, "e", False),
        (Status.RUNNING, {"do_remote_decode": True}, "e", False),
    ],
)
def test_a_lease_is_ended_only_on_kv_that_is_held_for_others(
    status: Status, params: dict[str, object] | None, engine_id: str, ended: bool
) -> None:
    holder = NixlPullConnectorScheduler()
    scheduler = sending(holder)
    request = FakeRequest("r", 100, status=status)
    request.kv_transfer_params = params  # type: ignore[assignment]
    scheduler.requests["r"] = request
    assert compat.end_lease(scheduler, holder, HeldKv(engine_id, "r")) is ended
    assert list(holder._reqs_need_send) == ["r"] * ended
    assert not compat.end_lease(scheduler, holder, HeldKv("e", "unknown"))
