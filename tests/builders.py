"""Values for tests, every field defaulted: `make_request(prompt_tokens=5000)`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spillway.core.events import NodeState
from spillway.core.latency import LatencyProfile
from spillway.core.types import ClusterView, NodeSpec, NodeView, RequestView, Role, Slo
from spillway.wire.report import NodeReport

# Llama-3.1-8B on A100 (the default built-in profile), as a plain value so that core tests do not
# depend on the profile files.
A100_8B = LatencyProfile(
    name="a100-8b",
    step_base_s=11.81e-3,
    token_hinges=(0, 64, 768),
    token_s=(7.77e-6, 44.92e-6, 3.45e-6),
    kv_token_s=83.4e-9,
    token_pair_s=2714e-12,
    kv_bytes_per_token=131_072,
)


def make_profile(**changes: Any) -> LatencyProfile:
    return replace(A100_8B, **changes) if changes else A100_8B


def make_request(request_id: str = "r1", **changes: Any) -> RequestView:
    ttft_s, tbt_s = changes.pop("ttft_s", 1.0), changes.pop("tbt_s", 0.06)
    fields: dict[str, Any] = {
        "request_id": request_id,
        "arrival_s": 0.0,
        "prompt_tokens": 2000,
        "output_tokens_max": 100,
        "slo": Slo(ttft_s, tbt_s),
    }
    return RequestView(**(fields | changes))


def make_spec(node_id: str = "d0", role: Role = Role.DECODE, **changes: Any) -> NodeSpec:
    fields: dict[str, Any] = {
        "node_id": node_id,
        "role": role,
        "profile": A100_8B,
        "kv_capacity_tokens": 400_000,
    }
    return NodeSpec(**(fields | changes))


def make_node(node_id: str = "d0", role: Role = Role.DECODE, **changes: Any) -> NodeView:
    """A node that reported at time 0; unknown keywords go to its spec."""
    view_fields = set(NodeView.__dataclass_fields__) - {"spec"}
    spec = make_spec(node_id, role, **{k: v for k, v in changes.items() if k not in view_fields})
    fields: dict[str, Any] = {
        "kv_capacity_tokens": spec.kv_capacity_tokens,
        "heard_at_s": 0.0,
        "reporting": True,
    }
    return NodeView(spec=spec, **(fields | {k: v for k, v in changes.items() if k in view_fields}))


def make_cluster(*nodes: NodeView, now_s: float = 0.0, **changes: Any) -> ClusterView:
    return ClusterView(
        now_s=now_s,
        prefill=tuple(n for n in nodes if n.spec.role is Role.PREFILL),
        decode=tuple(n for n in nodes if n.spec.role is Role.DECODE),
        **changes,
    )


def make_state(node_id: str = "d0", **changes: Any) -> NodeState:
    fields: dict[str, Any] = {
        "node_id": node_id,
        "taken_at_s": 0.0,
        "step": 0,
        "dispatch_seen": 0,
        "backlog_prompts": 0,
        "backlog_tokens": 0,
        "backlog_token_pairs": 0.0,
        "decode_seqs": 0,
        "kv_used_tokens": 0,
        "kv_capacity_tokens": 400_000,
        "tbt_s_min": float("inf"),
    }
    return NodeState(**(fields | changes))


def make_report(node_id: str = "d0", role: Role = Role.DECODE, **changes: Any) -> NodeReport:
    fields: dict[str, Any] = {
        "seq": 1,
        "step": 1,
        "backlog_prompts": 0,
        "backlog_tokens": 0,
        "backlog_token_pairs": 0.0,
        "decode_seqs": 0,
        "kv_used_tokens": 0,
        "kv_capacity_tokens": 50_000,
    }
    return NodeReport(node_id=node_id, role=role, **(fields | changes))
