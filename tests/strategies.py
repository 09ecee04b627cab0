"""Hypothesis strategies for the values of core: profiles, requests, nodes, clusters, reports.

Magnitudes are those of real engines, plus the corners: one slope, no attention term, a flat piece,
an idle node, a node that says nothing. Each float is drawn from a grid of round figures where a
tie is worth seeing, and from a range elsewhere.
"""

from __future__ import annotations

from math import inf

from hypothesis import strategies as st

from builders import A100_8B, make_profile, make_request
from spillway.core.events import NodeState
from spillway.core.latency import LatencyProfile, prefill_s
from spillway.core.types import (
    ChunkMode,
    ClusterView,
    NodeSpec,
    NodeView,
    RequestView,
    Role,
)

HINGES = (0, 64, 128, 256, 512, 768, 1024, 2048)
TBT_S = (0.02, 0.03, 0.05, 0.06, 0.1, 0.2)

prompt_tokens = st.one_of(st.integers(1, 600), st.integers(1, 40_000))
context_tokens = st.one_of(st.just(0), st.integers(0, 60_000))
decode_seqs = st.one_of(st.just(0), st.integers(0, 60), st.integers(0, 256))
kv_tokens = st.one_of(st.integers(0, 60_000), st.integers(0, 400_000))
budgets_s = st.one_of(st.sampled_from(TBT_S), st.floats(0.001, 0.5))
often = st.sampled_from((*(True,) * 7, False))
multiples = st.sampled_from((1, 16, 64, 128))
caps_tokens = st.sampled_from((256, 512, 2048, 8192))


@st.composite
def profiles(draw: st.DrawFn) -> LatencyProfile:
    """A step-time law: the default, an additive one, drawn hinges, or one that flattens first."""
    kind = draw(st.sampled_from(("default", "additive", "hinged", "hinged", "flattening")))
    if kind == "default":
        return A100_8B
    pair_s = draw(st.one_of(st.just(0.0), st.floats(1e-11, 5e-9)))
    kv_s = draw(st.one_of(st.just(0.0), st.floats(1e-9, 2e-7)))
    base_s = draw(st.floats(0.0005, 0.03))
    seq_s = draw(st.one_of(st.just(0.0), st.floats(1e-6, 5e-4)))
    hinges: tuple[int, ...] = (0,)
    if kind == "hinged":
        later = draw(st.lists(st.sampled_from(HINGES[1:]), unique=True, max_size=4))
        hinges = (0, *sorted(later))
    if kind == "flattening":  # a mixture of experts: steep while a batch meets new experts
        steep_s, flat_s = draw(st.floats(1e-4, 2e-3)), draw(_slopes())
        middle_s = (steep_s + flat_s) / 4
        slopes = (steep_s, middle_s - steep_s, min(flat_s, middle_s) - middle_s)
        return make_profile(
            name=kind,
            step_base_s=base_s,
            decode_seq_s=seq_s,
            token_hinges=(0, 8, 64),
            token_s=slopes,
            kv_token_s=kv_s,
            token_pair_s=pair_s,
        )
    first = draw(st.one_of(st.just(0.0) if len(hinges) > 1 else st.nothing(), _slopes()))
    slopes = (first, *(draw(_slopes()) for _ in hinges[1:]))
    return make_profile(
        name=kind,
        step_base_s=base_s,
        decode_seq_s=seq_s,
        token_hinges=hinges,
        token_s=slopes,
        kv_token_s=kv_s,
        token_pair_s=pair_s,
    )


def _slopes() -> st.SearchStrategy[float]:
    return st.floats(1e-6, 2e-4)


@st.composite
def requests(draw: st.DrawFn, node_ids: tuple[str, ...] = ()) -> RequestView:
    """A request, at times with cached prefixes on some of `node_ids`."""
    prompt = draw(prompt_tokens)
    cached = []
    if node_ids and draw(st.booleans()):
        cached = [
            (node_id, draw(st.integers(0, prompt)))
            for node_id in draw(st.lists(st.sampled_from(node_ids), unique=True, max_size=3))
        ]
    return make_request(
        prompt_tokens=prompt,
        output_tokens_max=draw(st.sampled_from((0, 1, 100, 2000))),
        ttft_s=draw(st.sampled_from((0.1, 0.5, 1.0, 5.0))),
        tbt_s=draw(st.sampled_from(TBT_S)),
        cached_tokens_by_node=tuple(cached),
    )


@st.composite
def prefill_nodes(draw: st.DrawFn, node_id: str = "p0", now_s: float = 10.0) -> NodeView:
    """A prefill node whose predicted end of backlog fits its backlog."""
    spec = NodeSpec(
        node_id=node_id,
        role=Role.PREFILL,
        profile=draw(profiles()),
        step_tokens_max=draw(st.sampled_from((512, 2048, 8192))),
        kv_capacity_tokens=400_000,
        link_bytes_per_s=draw(st.sampled_from((1.25e9, 25e9))),
    )
    view = NodeView(spec=spec, kv_capacity_tokens=400_000, heard_at_s=now_s, reporting=True)
    if draw(st.integers(0, 3)):
        load_backlog(view, draw(st.integers(1, 8)), draw(st.integers(1, 20_000)), now_s)
    view.link_until_s = now_s + draw(st.sampled_from((-1.0, 0.0, 0.3)))
    view.usable = draw(often)
    return view


def load_backlog(view: NodeView, prompts: int, tokens_each: int, now_s: float) -> None:
    """Give a prefill node `prompts` waiting prompts of `tokens_each`, and the time they take."""
    spec = view.spec
    view.backlog_prompts = prompts
    view.backlog_tokens = prompts * tokens_each
    view.backlog_token_pairs = prompts * tokens_each * (tokens_each + 1) / 2
    view.backlog_until_s = now_s + prefill_s(
        spec.profile, view.backlog_tokens, view.backlog_token_pairs, spec.step_tokens_max
    )


@st.composite
def decode_nodes(draw: st.DrawFn, node_id: str = "d0", now_s: float = 10.0) -> NodeView:
    """A decode node: idle or busy, reporting or not, with or without deflected work."""
    spec = NodeSpec(
        node_id=node_id,
        role=Role.DECODE,
        profile=draw(profiles()),
        chunk_mode=draw(st.sampled_from((*(ChunkMode.ENGINE,) * 5, *ChunkMode))),
        chunk_tokens_max=draw(st.sampled_from((256, 2048))),
        chunk_tokens_multiple=draw(st.sampled_from((16, 64))),
        kv_capacity_tokens=draw(st.sampled_from((0, 50_000, *(400_000,) * 4))),
    )
    seqs = draw(decode_seqs)
    prompts = draw(st.sampled_from((0, 0, 1, 2, 16)))
    reporting = draw(often)
    view = NodeView(
        spec=spec,
        decode_seqs=seqs,
        kv_used_tokens=draw(kv_tokens) if seqs or prompts else 0,
        kv_capacity_tokens=spec.kv_capacity_tokens,
        tbt_s_min=draw(st.sampled_from(TBT_S)) if seqs or prompts else inf,
        heard_at_s=now_s - draw(st.sampled_from((0.0, 0.0, 0.1, 0.5, 1.0, 1.5)))
        if reporting
        else -inf,
        reporting=reporting,
        usable=draw(often),
        over_budget=not draw(often),
    )
    if prompts:
        view.backlog_prompts = prompts
        view.backlog_tokens = prompts * draw(st.integers(1, 8_000))
        view.backlog_token_pairs = view.backlog_tokens * draw(st.floats(0, 8_000))
        view.backlog_until_s = now_s + draw(st.sampled_from((-0.1, 0.0, 0.2, 2.0, inf)))
    return view


@st.composite
def clusters(
    draw: st.DrawFn, *, prefill_max: int = 3, decode_max: int = 4, now_s: float = 10.0
) -> ClusterView:
    """A fleet, at times with a pool of which no node is usable."""
    prefill = draw(st.integers(1, prefill_max))
    decode = draw(st.integers(1, decode_max))
    return ClusterView(
        now_s=now_s,
        prefill=tuple(draw(prefill_nodes(f"p{at}", now_s)) for at in range(prefill)),
        decode=tuple(draw(decode_nodes(f"d{at}", now_s)) for at in range(decode)),
        decisions=draw(st.integers(0, 7)),
        output_tokens_by_class=draw(st.sampled_from(({}, {"default": 30}, {"default": 4000}))),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[RequestView, ClusterView]:
    """A request together with the fleet it finds."""
    cluster = draw(clusters())
    ids = tuple(node.spec.node_id for node in (*cluster.prefill, *cluster.decode))
    return draw(requests(ids)), cluster


@st.composite
def node_states(draw: st.DrawFn, node_id: str, taken_at_s: float, dispatches: int) -> NodeState:
    """A report that may be true or not; `dispatches` is the highest id given so far."""
    prompts = draw(st.sampled_from((0, 1, 3)))
    tokens = prompts * draw(st.sampled_from((1, 700, 5000)))
    seqs = draw(st.sampled_from((0, 1, 40)))
    return NodeState(
        node_id=node_id,
        taken_at_s=taken_at_s,
        step=draw(st.integers(0, 1000)),
        dispatch_seen=draw(st.integers(0, dispatches)),
        backlog_prompts=prompts,
        backlog_tokens=tokens,
        backlog_token_pairs=tokens * 350.5,
        decode_seqs=seqs,
        kv_used_tokens=seqs * 1500 + tokens,
        kv_capacity_tokens=draw(st.sampled_from((0, 400_000))),
        tbt_s_min=draw(st.sampled_from(TBT_S)) if seqs or prompts else inf,
        over_budget=not draw(often),
    )
