"""The kernels of one engine step, in PyTorch with random weights: matrices, attention, experts.

Every tensor has a size that is known before the step, so that a CUDA graph can hold it. Tokens of
decode and of the chunk go through the matrices together, as in an engine, and through attention
apart. What an engine does beside that (rotary positions, paging of the KV, sampling, scheduling) is
not in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from gpu_steps.shapes import Shape
from gpu_steps.sweep import Cell


class Layer:
    """One layer: its weights, and KV of as many tokens as the largest step needs."""

    def __init__(self, shape: Shape, kv_tokens_max: int, make: Make) -> None:
        self.shape = shape
        query = shape.heads * shape.key_width
        if shape.latent:
            self.fused = make.weight(shape.width, query + shape.kv_values_per_token)
            self.key_up = make.weight(shape.heads, shape.latent.rank, shape.head_width)
            self.value_up = make.weight(shape.heads, shape.latent.rank, shape.head_width)
        else:
            self.fused = make.weight(shape.width, query + shape.kv_values_per_token)
        self.out = make.weight(shape.heads * shape.head_width, shape.width)
        if shape.experts is None:
            self.gate_up = make.weight(shape.width, 2 * shape.mlp_width)
            self.down = make.weight(shape.mlp_width, shape.width)
        else:
            one = shape.experts
            self.router = make.weight(shape.width, one.routed)
            self.gate_ups = make.weight(one.routed, shape.width, 2 * one.width)
            self.downs = make.weight(one.routed, one.width, shape.width)
            self.gate_up = make.weight(shape.width, 2 * one.shared * one.width)
            self.down = make.weight(one.shared * one.width, shape.width)
        self.kv = make.weight(kv_tokens_max, shape.kv_values_per_token)

    def __call__(self, hidden: Tensor, cell: Cell) -> Tensor:
        normed = rms_norm(hidden, hidden.shape[-1:])
        hidden = hidden + self._attention(normed, cell) @ self.out
        normed = rms_norm(hidden, hidden.shape[-1:])
        return hidden + self._mlp(normed)

    # --- attention -----------------------------------------------------------------------------

    def _attention(self, normed: Tensor, cell: Cell) -> Tensor:
        shape = self.shape
        query, new = (normed @ self.fused).split(
            (shape.heads * shape.key_width, shape.kv_values_per_token), dim=-1
        )
        query = query.view(-1, shape.heads, shape.key_width)
        seqs = cell.decode_seqs
        parts = []
        if seqs:
            decode_kv = self.kv[: cell.kv_tokens].view(seqs, cell.context_tokens, -1)
            decode_kv[:, -1] = new[:seqs]
            attend = self._latent_decode if shape.latent else self._decode
            parts.append(attend(query[:seqs], decode_kv))
        if cell.chunk_tokens:
            length = cell.chunk_context_tokens + cell.chunk_tokens
            chunk_kv = self.kv[cell.kv_tokens : cell.kv_tokens + length]
            chunk_kv[-cell.chunk_tokens :] = new[seqs:]
            expand = self._latent_keys_values if shape.latent else self._keys_values
            parts.append(self._chunk(query[seqs:], *expand(chunk_kv)))
        return torch.cat(parts).flatten(1)

    def _keys_values(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values as (KV heads, tokens, width)."""
        both = kv.view(-1, 2, self.shape.kv_heads, self.shape.head_width)
        return both[:, 0].transpose(0, 1), both[:, 1].transpose(0, 1)

    def _latent_keys_values(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of every head, expanded from the cached vectors."""
        assert self.shape.latent is not None
        rank, rope = self.shape.latent.rank, self.shape.latent.rope_width
        vector, position = kv.split((rank, rope), dim=-1)
        keys = torch.matmul(vector, self.key_up)
        values = torch.matmul(vector, self.value_up)
        return torch.cat((keys, position.expand(self.shape.heads, -1, -1)), dim=-1), values

    def _decode(self, query: Tensor, kv: Tensor) -> Tensor:
        seqs, context, _ = kv.shape
        both = kv.view(seqs, context, 2, self.shape.kv_heads, self.shape.head_width)
        keys, values = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
        found = scaled_dot_product_attention(query.unsqueeze(2), keys, values, enable_gqa=True)
        return found.squeeze(2)

    def _latent_decode(self, query: Tensor, kv: Tensor) -> Tensor:
        """Attend to the compressed vectors themselves: queries are brought to their space."""
        assert self.shape.latent is not None
        rank, rope = self.shape.latent.rank, self.shape.latent.rope_width
        plain, position = query.split((self.shape.head_width, rope), dim=-1)
        lowered = torch.einsum("bhd,hrd->bhr", plain, self.key_up)
        whole = torch.cat((lowered, position), dim=-1)
        scores = torch.einsum("bhk,bck->bhc", whole, kv) * self.shape.key_width**-0.5
        found = torch.einsum("bhc,bcr->bhr", scores.softmax(-1), kv[..., :rank])
        return torch.einsum("bhr,hrd->bhd", found, self.value_up)

    def _chunk(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend causally: the chunk's tokens are the last of the keys."""
        from torch.nn.attention.bias import causal_lower_right

        chunk, length = query.shape[0], keys.shape[1]
        if self.shape.latent and values.shape[-1] != keys.shape[-1]:
            wider = keys.shape[-1] - values.shape[-1]  # one width, as the fast kernels want
            values = torch.nn.functional.pad(values, (0, wider))
        grouped = keys.shape[0] != self.shape.heads
        found = scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            self._every_head(keys, grouped),
            self._every_head(values, grouped),
            attn_mask=causal_lower_right(chunk, length),
        )
        return found[0].transpose(0, 1)[..., : self.shape.head_width]

    def _every_head(self, heads: Tensor, grouped: bool) -> Tensor:
        if grouped:
            heads = heads.repeat_interleave(self.shape.heads // heads.shape[0], dim=0)
        return heads.unsqueeze(0)

    # --- MLP -----------------------------------------------------------------------------------

    def _mlp(self, normed: Tensor) -> Tensor:
        dense = _gated(normed @ self.gate_up) @ self.down
        return dense if self.shape.experts is None else dense + self._experts(normed)

    def _experts(self, normed: Tensor) -> Tensor:
        """Run every expert that gets a token on its share of them, routed evenly."""
        assert self.shape.experts is not None
        tokens, active = normed.shape[0], self.shape.experts.active
        weights = (normed @ self.router).softmax(-1).topk(active).values
        touched, each = self.shape.expert_batch(tokens)
        visits = normed.repeat_interleave(active, dim=0)
        padded = torch.nn.functional.pad(visits, (0, 0, 0, touched * each - visits.shape[0]))
        batch = padded.view(touched, each, -1)
        found = torch.bmm(_gated(torch.bmm(batch, self.gate_ups[:touched])), self.downs[:touched])
        back = found.view(touched * each, -1)[: tokens * active].view(tokens, active, -1)
        return (back * weights.unsqueeze(-1)).sum(1)


class Model:
    """Some layers of a model, and its head. `body` and `head` each run once per step."""

    def __init__(
        self, shape: Shape, layers: int, kv_tokens_max: int, device: str, seed: int
    ) -> None:
        make = Make(device, seed)
        self.layers = [Layer(shape, kv_tokens_max, make) for _ in range(layers)]
        self.head_weight = make.weight(shape.width, shape.vocabulary)
        self._make = make
        self._width = shape.width

    def inputs(self, cell: Cell) -> Tensor:
        """Return the hidden states of a step's tokens."""
        return self._make.weight(cell.decode_seqs + cell.chunk_tokens, self._width)

    def body(self, hidden: Tensor, cell: Cell) -> Tensor:
        """Run the layers."""
        for layer in self.layers:
            hidden = layer(hidden, cell)
        return hidden

    def head(self, hidden: Tensor, cell: Cell) -> Tensor:
        """Return the next token of every stream, and of the chunk's prompt."""
        rows = cell.decode_seqs + (1 if cell.chunk_tokens else 0)
        last = rms_norm(hidden[:rows], hidden.shape[-1:])
        return (last @ self.head_weight).argmax(-1)


class Make:
    """Makes random tensors on a device."""

    def __init__(self, device: str, seed: int) -> None:
        self._device = device
        self._random = torch.Generator(device).manual_seed(seed)

    def weight(self, *sizes: int) -> Tensor:
        """Return values of about the size that keeps activations near 1."""
        values = torch.empty(sizes, dtype=torch.bfloat16, device=self._device)
        return values.normal_(0.0, max(1, sizes[-2]) ** -0.5, generator=self._random)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up
