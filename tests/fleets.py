"""Nodes as the tests of policies want them: busy or idle prefill nodes, decode nodes in a state."""

from __future__ import annotations

import strategies as sp
from builders import make_node
from spillway.core.types import NodeView, Role


def prefill_node(node_id: str = "p0", backlog_tokens: int = 0, **changes: object) -> NodeView:
    """A prefill node with one prompt of `backlog_tokens` ahead, or idle."""
    node = make_node(node_id, Role.PREFILL, **changes)
    if backlog_tokens:
        sp.load_backlog(node, 1, backlog_tokens, 0.0)
    return node


def decode_node(node_id: str = "d0", seqs: int = 0, **changes: object) -> NodeView:
    """A decode node with `seqs` streams of 1,000 tokens and a target of 60 ms, or idle."""
    if seqs:
        changes = {"decode_seqs": seqs, "kv_used_tokens": 1000 * seqs, "tbt_s_min": 0.06} | changes
    return make_node(node_id, **changes)


def prefilling(node: NodeView, tokens: int, seconds: float = 0.5) -> NodeView:
    """The decode node with a deflected prompt of `tokens` ahead, done in `seconds`."""
    node.backlog_prompts = 1
    node.backlog_tokens = tokens
    node.backlog_token_pairs = tokens * (tokens + 1) / 2
    node.backlog_until_s = seconds
    node.kv_used_tokens += tokens
    node.tbt_s_min = min(node.tbt_s_min, 0.06)
    return node
