"""What leaves a prefill engine is what a decode engine can follow."""

import pytest

from spillway.fakeengine.kvparams import (
    BLOCK_TOKENS,
    BadKvParams,
    HoldKv,
    PullKv,
    handover_params,
    read_params,
)

PROMPT_TOKENS = 100


def handover(**changes):
    params = handover_params(
        engine_id="e1",
        request_id="r1-0001",
        host="127.0.0.1",
        port=9000,
        kv_tokens=PROMPT_TOKENS,
        cached_tokens=16,
        first_block=40,
        expires_at_s=130.0,
    )
    return params | changes


def test_the_object_has_vllms_fourteen_keys():
    assert len(handover()) == 14
    assert len(handover()["remote_block_ids"]) == 7  # of 16 tokens each
    assert handover()["transfer_mode"] == "pull"


def test_a_handover_is_followed_as_it_is():
    assert read_params(handover(), PROMPT_TOKENS) == PullKv(
        engine_id="e1",
        request_id="r1-0001",
        host="127.0.0.1",
        port=9000,
        kv_tokens=PROMPT_TOKENS,
        cached_tokens=16,
    )


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": False}, {"other": 1}])
def test_no_flag_means_everything_runs_here(params):
    assert read_params(params, PROMPT_TOKENS) is None


def test_a_prefill_leg_needs_no_more_than_its_flag():
    six_keys = {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    assert read_params(six_keys, PROMPT_TOKENS) == HoldKv()
    assert read_params({"do_remote_decode": True}, PROMPT_TOKENS) == HoldKv()


@pytest.mark.parametrize(
    "changes",
    [
        {"do_remote_decode": True},
        {"do_remote_prefill": "yes"},
        {"remote_block_ids": None},
        {"remote_block_ids": [1] * (PROMPT_TOKENS // BLOCK_TOKENS)},
        {"remote_block_ids": [-1] * 7},
        {"remote_host": None},
        {"remote_port": 0},
        {"remote_port": "9000"},
        {"remote_request_id": 5},
    ],
)
def test_an_object_that_cannot_be_followed_is_refused(changes):
    with pytest.raises(BadKvParams, match="kv_transfer_params"):
        read_params(handover(**changes), PROMPT_TOKENS)


@pytest.mark.parametrize(
    "key", ["remote_engine_id", "remote_request_id", "remote_block_ids", "remote_host"]
)
def test_a_missing_key_is_named(key):
    params = handover()
    del params[key]
    with pytest.raises(BadKvParams, match=key):
        read_params(params, PROMPT_TOKENS)
