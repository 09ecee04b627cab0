"""The sizes of the models whose kernels are run, and what follows from them without running any.

Sources: the models' own `config.json` (meta-llama/Llama-3.1-8B, deepseek-ai/DeepSeek-V2-Lite).
Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of a dense MLP, in all layers but the first.

    routed, active: experts of a layer, and how many each token takes.  width: of each of them.
    shared: experts that every token takes.
    """

    routed: int
    active: int
    shared: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent attention (MLA): one compressed vector per token and layer is cached, for all heads.

    rank: of that vector; rope_width: the part of a key that carries the position, cached beside it.
    """

    rank: int
    rope_width: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model. width: of the hidden state; mlp_width: of a dense MLP; values of 2 bytes."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    context_tokens_max: int
    experts: Experts | None = None
    latent: Latent | None = None
    value_bytes: int = 2

    @property
    def key_width(self) -> int:
        """Return the values of a query or key head."""
        return self.head_width + (self.latent.rope_width if self.latent else 0)

    @property
    def kv_values_per_token(self) -> int:
        """Return the cached values of a token in one layer."""
        if self.latent:
            return self.latent.rank + self.latent.rope_width
        return 2 * self.kv_heads * self.head_width

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the cached bytes of a token in all layers."""
        return self.layers * self.kv_values_per_token * self.value_bytes

    @property
    def attention_weights(self) -> int:
        """Return the attention's weights in one layer."""
        out = self.heads * self.head_width * self.width
        query = self.width * self.heads * self.key_width
        if self.latent:
            down = self.width * (self.latent.rank + self.latent.rope_width)
            up = self.latent.rank * self.heads * 2 * self.head_width
            return query + down + up + out
        return query + self.width * 2 * self.kv_heads * self.head_width + out

    def mlp_weights(self, *, active: bool) -> int:
        """Return the MLP's weights in one layer: all, or those that a token passes through."""
        if self.experts is None:
            return 3 * self.width * self.mlp_width
        experts = self.experts
        taken = (experts.active if active else experts.routed) + experts.shared
        return 3 * self.width * experts.width * taken + self.width * experts.routed

    def weights(self, *, active: bool = False) -> int:
        """Return the model's weights, or those that a token passes through.

        The first layer of a mixture is counted like the others; norms and embedding are left out.
        """
        layer = self.attention_weights + self.mlp_weights(active=active)
        return self.layers * layer + self.width * self.vocabulary

    def flops(self, decode_seqs: int, kv_tokens: int, chunk_tokens: int, pairs: float) -> float:
        """Return the floating-point operations of a step: 2 per weight and token, plus attention.

        pairs: (token, attended token) pairs of the chunk, as `core.latency.token_pairs`. A pair
        costs 2 operations per query value and 2 per output value, in every head. A decode of latent
        attention works on the compressed vectors, whose width is the rank.
        """
        tokens = decode_seqs + chunk_tokens
        sampled = decode_seqs + (1 if chunk_tokens else 0)
        layer = self.attention_weights + self.mlp_weights(active=True)
        matrix = 2 * (self.layers * layer * tokens + self.width * self.vocabulary * sampled)
        per_pair = 2 * self.heads * (self.key_width + self.head_width)
        per_decode_pair = per_pair
        if self.latent:
            per_decode_pair = 2 * self.heads * (2 * self.latent.rank + self.latent.rope_width)
        return matrix + self.layers * (per_pair * pairs + per_decode_pair * kv_tokens)

    def expert_batch(self, tokens: int) -> tuple[int, int]:
        """Return (experts that get a token, tokens of each) when routing is perfectly even.

        Real routing is less even: some experts get more, and the step waits for them.
        """
        assert self.experts is not None
        visits = tokens * self.experts.active
        touched = min(self.experts.routed, visits)
        return touched, ceil(visits / touched)


SHAPES = {
    "llama-3.1-8b": Shape(
        name="llama-3.1-8b",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head_width=128,
        mlp_width=14336,
        vocabulary=128256,
        context_tokens_max=131072,
    ),
    "deepseek-v2-lite": Shape(
        name="deepseek-v2-lite",
        layers=27,
        width=2048,
        heads=16,
        kv_heads=16,
        head_width=128,
        mlp_width=10944,
        vocabulary=102400,
        context_tokens_max=32768,
        experts=Experts(routed=64, active=6, shared=2, width=1408),
        latent=Latent(rank=512, rope_width=64),
    ),
}


def small(shape: Shape) -> Shape:
    """Return the same architecture in a size that a processor runs in milliseconds."""
    experts, latent = shape.experts, shape.latent
    return replace(
        shape,
        name=f"{shape.name}-small",
        layers=2,
        width=256,
        heads=4,
        kv_heads=2 if latent is None else 4,
        head_width=64,
        mlp_width=768,
        vocabulary=4096,
        context_tokens_max=2048,
        experts=experts and replace(experts, routed=8, active=2, shared=1, width=128),
        latent=latent and replace(latent, rank=64, rope_width=16),
    )
