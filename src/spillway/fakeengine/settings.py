"""What one fake engine is told at start-up, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile
from spillway.core.types import ChunkMode, NodeSpec, Role
from spillway.fakeengine.leases import LEASE_S
from spillway.sim.world import World
from spillway.wire.profile import DEFAULT_PROFILE, load_profile_file
from spillway.workload.seeds import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One engine; every default gives a plausible Llama-3.1-8B node.

    role: prefill or decode. It sets how steps are filled; either role serves every request.
    port: 0 takes a free one.               node_id: None makes it <role>-<port>.
    profile: a built-in name or a JSON file; what the engine believes its steps cost.
    bias_frac, noise_frac: what they really cost (`sim.world.World`).
    seed: of the noise.                     kv_capacity_tokens: None takes the profile's.
    link_bytes_per_s, link_base_s: the egress link, over which other engines pull KV.
    chunk_mode: engine sizes each step to the residents' targets, static takes chunk_tokens_max.
    tbt_margin_frac: the share of the strictest target that a step with prefill may fill.
    slo_tbt_s: the target of a request that names none.
    time_scale: how many times faster than the profile the node and its link run. Targets, leases
        and reports keep wall-clock time.
    lease_s: how long prefilled KV waits to be pulled.
    stock: behave as vLLM without the plug-in: no reports, static chunks.
    dev_mode: show the start-up settings on /server_info, as VLLM_SERVER_DEV_MODE=1 does.
    records: file for one JSON line per request; None writes none.
    natural_output_tokens: where the fake model stops when the client sets no limit.
    requests_max: under way at once; further ones are answered 503.
    """

    role: Role
    host: str = "127.0.0.1"
    port: int = 0
    node_id: str | None = None
    profile: str = DEFAULT_PROFILE
    model: str = "fake-llama"
    bias_frac: float = 1.0
    noise_frac: float = 0.0
    seed: int = 1
    kv_capacity_tokens: int | None = None
    link_bytes_per_s: float = 25e9
    link_base_s: float = 0.002
    step_tokens_max: int = 2048
    chunk_mode: ChunkMode = ChunkMode.ENGINE
    chunk_tokens_max: int = 2048
    chunk_tokens_multiple: int = 64
    seqs_max: int = 256
    tbt_margin_frac: float = 0.9
    slo_tbt_s: float = 0.06
    time_scale: float = 1.0
    lease_s: float = LEASE_S
    stock: bool = False
    dev_mode: bool = False
    records: str | None = None
    context_tokens_max: int = 131_072
    natural_output_tokens: int = 128
    requests_max: int = 4096
    body_bytes_max: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("slo_tbt_s", "time_scale", "lease_s"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"engine: {name} is {value}; it must be positive and finite")
        for name in ("natural_output_tokens", "requests_max", "body_bytes_max"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine: {name} must be at least 1")
        if self.context_tokens_max < 2:
            raise ConfigError("engine: context_tokens_max must be at least 2")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"engine: port is {self.port}; it must be from 0 to 65535")
        if self.chunk_mode is ChunkMode.UNKNOWN:
            raise ConfigError("engine: chunk_mode must be engine or static")

    def spec(self, node_id: str) -> NodeSpec:
        """Return the node as it knows itself. Raises ConfigError on a value that makes no sense."""
        profile_file = load_profile_file(self.profile)
        kv_capacity_tokens = self.kv_capacity_tokens
        if kv_capacity_tokens is None:
            kv_capacity_tokens = profile_file.kv_capacity_tokens
        return NodeSpec(
            node_id=node_id,
            role=self.role,
            profile=_faster(profile_file.latency(), self.time_scale),
            step_tokens_max=self.step_tokens_max,
            chunk_mode=ChunkMode.STATIC if self.stock else self.chunk_mode,
            chunk_tokens_max=self.chunk_tokens_max,
            chunk_tokens_multiple=self.chunk_tokens_multiple,
            seqs_max=self.seqs_max,
            tbt_margin_frac=self.tbt_margin_frac,
            kv_capacity_tokens=kv_capacity_tokens,
            link_bytes_per_s=self.link_bytes_per_s * self.time_scale,
            link_base_s=self.link_base_s / self.time_scale,
        )

    def world(self, spec: NodeSpec) -> World:
        """Return what the node's steps really cost."""
        return World(
            spec.profile,
            bias_frac=self.bias_frac,
            noise_frac=self.noise_frac,
            rng=stream(self.seed, f"{spec.node_id}/noise"),
        )


def _faster(profile: LatencyProfile, time_scale: float) -> LatencyProfile:
    """Return the profile of a machine `time_scale` times as fast."""
    if time_scale == 1.0:
        return profile
    return replace(
        profile,
        step_base_s=profile.step_base_s / time_scale,
        token_s=tuple(slope_s / time_scale for slope_s in profile.token_s),
        decode_seq_s=profile.decode_seq_s / time_scale,
        kv_token_s=profile.kv_token_s / time_scale,
        token_pair_s=profile.token_pair_s / time_scale,
    )
