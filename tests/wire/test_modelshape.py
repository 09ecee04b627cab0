"""A model's arithmetic, against what its makers publish."""

from __future__ import annotations

import pytest

from spillway.wire.modelshape import (
    ModelShape,
    kv_bytes_per_token,
    pair_flops,
    step_params,
    token_params,
    total_params,
)
from spillway.wire.profile import load_profile_file

# Parameters in billions from the model cards: all of them, and those active per token with the
# embedding counted as the cards do.
PUBLISHED = {
    "llama-3.1-8b-a100": (8.03, 8.03),
    "llama-3.1-70b-tp4-a100": (70.55, 70.55),
    "qwen3-8b-a100": (8.19, 8.19),
    "qwen3-32b-tp2-a100": (32.76, 32.76),
    "qwen3-30b-a3b-a100": (30.53, 3.35),
    "deepseek-v2-lite-a100-derived": (15.7, 2.66),
}
KV_BYTES = {  # layers x 2 x KV heads x head size x 2, and layers x (512 + 64) x 2
    "llama-3.1-8b-a100": 131_072,
    "llama-3.1-70b-tp4-a100": 327_680,
    "qwen3-8b-a100": 147_456,
    "qwen3-32b-tp2-a100": 262_144,
    "qwen3-30b-a3b-a100": 98_304,
    "deepseek-v2-lite-a100-derived": 31_104,
}


def shape_of(name: str) -> ModelShape:
    shape = load_profile_file(name).model
    assert shape is not None
    return shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    shape = shape_of(name)
    total, active = PUBLISHED[name]
    embedding = shape.vocab_count * shape.hidden_width
    assert total_params(shape) / 1e9 == pytest.approx(total, rel=0.005)
    assert (token_params(shape) + 2 * embedding) / 1e9 == pytest.approx(active, rel=0.01)
    assert step_params(shape) == token_params(shape) + embedding


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_size_follows_from_the_configuration(name: str) -> None:
    assert kv_bytes_per_token(shape_of(name)) == KV_BYTES[name]
    assert kv_bytes_per_token(shape_of(name), value_bytes=1) * 2 == KV_BYTES[name]


def test_a_pair_costs_two_products_of_every_head() -> None:
    assert pair_flops(shape_of("llama-3.1-8b-a100")) == 4 * 32 * 128 * 32
    assert pair_flops(shape_of("deepseek-v2-lite-a100-derived")) == 2 * 16 * (192 + 128) * 27
