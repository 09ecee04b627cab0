"""Reading vLLM's pages; the samples are cut from those of vLLM 0.32."""

from __future__ import annotations

import json

import pytest

from spillway.core.errors import NodeError
from spillway.core.types import Role
from spillway.wire.enginepages import (
    CacheFacts,
    read_context_tokens_max,
    read_metrics,
    read_server_info,
    read_version,
)

METRICS = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
vllm:nixl_num_kv_expired_reqs_total{engine="0",model_name="tiny-llama"} 0.0
vllm:cache_config_info{block_size="128",cache_dtype="auto",enable_prefix_caching="True",\
engine="0",kv_cache_size_tokens="131072",num_gpu_blocks="1024",sliding_window="None"} 1.0
"""


def info(**scheduler: object) -> bytes:
    config = {
        "scheduler_config": {"max_num_batched_tokens": 512, "max_num_seqs": 64, **scheduler},
        "kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"},
    }
    return json.dumps({"vllm_config": config, "vllm_env": {}}).encode()


def test_metrics_tell_of_the_kv_cache_and_of_nixl() -> None:
    assert read_metrics(METRICS) == CacheFacts(131_072, 128, True, True)


def test_kv_room_is_blocks_of_a_size_in_older_releases() -> None:
    page = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
    assert read_metrics(page) == CacheFacts(1600, 16, None, False)


@pytest.mark.parametrize("page", ["", "# vllm:nixl_x\n", "up 1\n"])
def test_another_page_tells_nothing(page: str) -> None:
    assert read_metrics(page) == CacheFacts()


@pytest.mark.parametrize("inside", ["a" * 1_000_000, ",a=" * 300_000])
def test_a_page_of_any_size_is_read_in_one_go(inside: str) -> None:
    """Backtracking over one of these would take hours."""
    page = "vllm:cache_config_info{" + inside + ',block_size="16"} 1\n'
    assert read_metrics(page).kv_block_tokens == 16


def test_server_info_says_how_chunks_are_sized() -> None:
    stock = read_server_info(info(long_prefill_token_threshold=448)).scheduler_config
    assert (stock.chunk_tokens_max, stock.long_prefill_token_threshold) == (512, 448)
    assert not stock.has_plugin
    cut = read_server_info(info(max_num_scheduled_tokens=384)).scheduler_config
    assert cut.chunk_tokens_max == 384
    ours = read_server_info(info(scheduler_cls="spillway.engine.scheduler.make"))
    assert ours.scheduler_config.has_plugin
    assert ours.kv_transfer_config is not None
    assert ours.kv_transfer_config.role is Role.DECODE


def test_a_node_of_both_roles_has_none() -> None:
    page = info().replace(b"kv_consumer", b"kv_both")
    told = read_server_info(page).kv_transfer_config
    assert told is not None
    assert told.role is None


@pytest.mark.parametrize("page", [b"", b"[]", b"{}", b'{"vllm_config": "text"}', b"\xff"])
def test_what_is_not_vllms_is_an_error(page: bytes) -> None:
    with pytest.raises(NodeError, match="/server_info"):
        read_server_info(page)
    with pytest.raises(NodeError, match="/version"):
        read_version(page)
    assert read_context_tokens_max(page) is None


def test_version_and_context() -> None:
    assert read_version(b'{"version": "0.32.0"}') == "0.32.0"
    assert read_context_tokens_max(b'{"id": "m", "max_model_len": 8192}') == 8192
