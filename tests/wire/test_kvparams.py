"""Which handovers of KV are believed."""

from __future__ import annotations

import json

import pytest

from spillway.core.errors import NodeError
from spillway.wire.kvparams import HeldKv, check_handover, held_kv

GOOD = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[2, 1, 3, 4]],
    "remote_engine_id": "1cebdcd1",
    "remote_request_id": "cmpl-9e1f-0-888608de",
    "remote_host": "127.0.0.1",
    "remote_port": 58545,
    "tp_size": 1,
    "remote_num_tokens": 500,
    "transfer_mode": "pull",
}


def check(prompt_tokens: int = 500, kv_block_tokens: int = 128, **changes: object) -> None:
    params = {key: value for key, value in {**GOOD, **changes}.items() if value != "absent"}
    check_handover(json.dumps(params).encode(), prompt_tokens, kv_block_tokens)


def test_what_vllm_answers_passes() -> None:
    check()
    check(0, 0)  # the answer said no length, and nobody knows the block size
    check(remote_num_tokens="absent")
    check(remote_block_ids=[2, 1, 3, 4])  # one list, as older engines write it
    check(remote_block_ids=[[7], [2, 1, 3, 4]])  # a group of sliding-window layers


@pytest.mark.parametrize(
    "key",
    [
        "do_remote_prefill",
        "remote_block_ids",
        "remote_engine_id",
        "remote_request_id",
        "remote_host",
        "remote_port",
        "tp_size",
    ],
)
@pytest.mark.parametrize("value", ["absent", None])
def test_each_key_that_an_engine_dies_or_hangs_without_is_needed(key: str, value: object) -> None:
    with pytest.raises(NodeError, match=key):
        check(**{key: value})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"do_remote_prefill": False}, "do_remote_prefill is false"),
        ({"remote_block_ids": [[2, 1, 3]]}, "3 block ids, 4 are needed"),
        ({"remote_block_ids": [[]]}, "0 block ids"),
        ({"remote_block_ids": [[-1, 1, 3, 4]]}, "remote_block_ids"),
        ({"remote_port": 0}, "remote_port"),
        ({"remote_host": ""}, "remote_host"),
        ({"remote_num_tokens": 499}, "KV of 499 tokens for a prompt of 500"),
    ],
)
def test_a_handover_that_does_not_fit_the_prompt_is_a_node_error(changes: dict, told: str) -> None:
    with pytest.raises(NodeError, match=told):
        check(**changes)


def test_without_a_block_size_one_block_is_enough() -> None:
    check(500, 0, remote_block_ids=[[9]])
    with pytest.raises(NodeError, match="0 block ids"):
        check(500, 0, remote_block_ids=[])


def test_a_handover_names_the_kv_that_is_held() -> None:
    assert held_kv(json.dumps(GOOD).encode()) == HeldKv("1cebdcd1", "cmpl-9e1f-0-888608de")
