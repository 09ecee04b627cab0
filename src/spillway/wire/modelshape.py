"""What a model's configuration says of the work and the memory that a token costs.

The numbers are those of a Hugging Face `config.json`; their names there stand beside each field.
Everything else is arithmetic on them: parameters, KV bytes, floating-point operations.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class ModelShape(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A decoder: `layer_count` times attention and a gated MLP of three matrices.

    layer_count, hidden_width, mlp_width: num_hidden_layers, hidden_size, intermediate_size.
    head_count, kv_head_count, head_width: num_attention_heads, num_key_value_heads, head_dim.
    vocab_count: vocab_size; embedding and head are matrices of their own.
    Mixture of experts, all but the first `dense_layer_count` (first_k_dense_replace) layers:
    expert_count, expert_active_count, shared_expert_count, expert_width: n_routed_experts,
    num_experts_per_tok, n_shared_experts, moe_intermediate_size.
    Latent attention (MLA): kv_latent_width, rope_width: kv_lora_rank, qk_rope_head_dim; then
    head_width is qk_nope_head_dim, equal to v_head_dim.
    """

    layer_count: AtLeastOne
    hidden_width: AtLeastOne
    mlp_width: AtLeastOne
    head_count: AtLeastOne
    kv_head_count: AtLeastOne
    head_width: AtLeastOne
    vocab_count: AtLeastOne
    expert_count: Count = 0
    expert_active_count: Count = 0
    expert_width: Count = 0
    shared_expert_count: Count = 0
    dense_layer_count: Count = 0
    kv_latent_width: Count = 0
    rope_width: Count = 0


def kv_bytes_per_token(shape: ModelShape, value_bytes: int = 2) -> int:
    """Return the KV cache of one token over all layers.

    Formula: 2 (K and V) · layers · KV heads · head width · bytes; with latent attention one
    vector of latent + rope width per layer (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """
    if shape.kv_latent_width:
        return shape.layer_count * (shape.kv_latent_width + shape.rope_width) * value_bytes
    return 2 * shape.layer_count * shape.kv_head_count * shape.head_width * value_bytes


def token_params(shape: ModelShape) -> int:
    """Return the parameters that every token is multiplied by: no embedding, no head."""
    return _params(shape, shape.expert_active_count)


def total_params(shape: ModelShape) -> int:
    """Return all parameters but norms and biases, which are less than a thousandth."""
    return _params(shape, shape.expert_count) + 2 * shape.vocab_count * shape.hidden_width


def step_params(shape: ModelShape) -> int:
    """Return the parameters that a step reads at the very least: those of one token, and the head.

    A larger batch of a mixture of experts reads more, as many experts as its tokens choose.
    """
    return token_params(shape) + shape.vocab_count * shape.hidden_width


def pair_flops(shape: ModelShape) -> int:
    """Return the operations of one (token, attended token) pair over all layers.

    A multiplication and an addition per width of the query-key product, and of the value sum.
    """
    widths = 2 * shape.head_width + shape.rope_width
    return 2 * shape.head_count * widths * shape.layer_count


def _params(shape: ModelShape, routed_count: int) -> int:
    dense_layers = shape.dense_layer_count if shape.expert_count else shape.layer_count
    expert_layers = shape.layer_count - dense_layers
    gated = 3 * shape.hidden_width
    experts = gated * shape.expert_width * (routed_count + shape.shared_expert_count)
    router = shape.hidden_width * shape.expert_count
    return (
        shape.layer_count * _attention_params(shape)
        + dense_layers * gated * shape.mlp_width
        + expert_layers * (experts + router)
    )


def _attention_params(shape: ModelShape) -> int:
    hidden, heads, width = shape.hidden_width, shape.head_count, shape.head_width
    if not shape.kv_latent_width:
        return 2 * hidden * width * (heads + shape.kv_head_count)
    latent, rope = shape.kv_latent_width, shape.rope_width
    query = hidden * heads * (width + rope)
    keys_and_values = hidden * (latent + rope) + latent * heads * 2 * width
    return query + keys_and_values + heads * width * hidden
