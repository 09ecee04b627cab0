"""The floors: what they are for a case worked out by hand, and what they catch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import A100_8B
from spillway.wire.gpus import GPUS
from spillway.wire.profile import load_profile_file
from spillway.wire.profilefloor import floor_faults, floor_of

A100 = GPUS["NVIDIA A100-SXM4-80GB"]


def test_the_floors_of_an_8b_model_on_one_a100() -> None:
    shape = load_profile_file("llama-3.1-8b-a100").model
    assert shape is not None
    floor = floor_of(shape, A100, 1)
    assert floor.token_s == pytest.approx(2 * 6.98e9 / 312e12, rel=1e-3)
    assert floor.step_s == pytest.approx(2 * 7.505e9 / 2.039e12, rel=1e-3)
    assert floor.kv_token_s == 131_072 / 2.039e12
    assert floor.token_pair_s == 524_288 / 312e12
    halves = (one / 2 for one in floor)
    assert tuple(floor_of(shape, A100, 2)) == pytest.approx(tuple(halves))


def test_latent_attention_is_read_whole_by_every_gpu() -> None:
    shape = load_profile_file("deepseek-v2-lite-a100-derived").model
    assert shape is not None
    assert floor_of(shape, A100, 4).kv_token_s == floor_of(shape, A100, 1).kv_token_s


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"token_pair_s": 1e-10}, ["token_pair_s is 1e-10 s"]),
        ({"kv_token_s": 6e-8}, ["kv_token_s is 6e-08 s"]),
        ({"token_s": (7.8e-6, 3e-5, 0.0)}, ["the last slope of token_s"]),
        ({"token_s": (1e-5, 0.0, 4e-5)}, ["a step of 768 tokens", "a step of 1024 tokens"]),
    ],
)
def test_what_is_faster_than_the_hardware_is_named(
    changes: dict[str, object], said: list[str]
) -> None:
    shape = load_profile_file("llama-3.1-8b-a100").model
    assert shape is not None
    faults = list(floor_faults(replace(A100_8B, **changes), floor_of(shape, A100, 1)))
    assert len(faults) >= len(said)
    for text in said:
        assert any(fault.startswith(text) for fault in faults), faults
    assert bool(faults) == bool(said)


def test_the_coefficients_that_were_published_too_fast_are_caught() -> None:
    """Public studies used 6.14 µs per prompt token for a 70B model on four H100."""
    profile = load_profile_file("llama-3.1-70b-tp4-h100")
    assert profile.model is not None
    floor = floor_of(profile.model, GPUS[profile.provenance.gpu], 4)
    assert floor.token_s > 30e-6
    fast = replace(profile.latency(), token_hinges=(0,), token_s=(6.14e-6,))
    assert any("last slope" in fault for fault in floor_faults(fast, floor))
