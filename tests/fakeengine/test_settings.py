"""Settings are checked once, and become the node that the engine simulates."""

from math import inf, nan

import pytest

from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.types import ChunkMode, Role
from spillway.fakeengine.settings import EngineSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_scale", 0.0),
        ("time_scale", nan),
        ("lease_s", -1.0),
        ("slo_tbt_s", inf),
        ("requests_max", 0),
        ("body_bytes_max", 0),
        ("natural_output_tokens", 0),
        ("context_tokens_max", 1),
        ("port", 70_000),
        ("chunk_mode", ChunkMode.UNKNOWN),
    ],
)
def test_a_setting_without_sense_is_named(name, value):
    with pytest.raises(ConfigError, match=name):
        EngineSettings(role=Role.DECODE, **{name: value})


def test_an_unknown_profile_is_named():
    with pytest.raises(ConfigError, match="no-such"):
        EngineSettings(role=Role.DECODE, profile="no-such").spec("d0")


def test_time_scale_makes_steps_and_link_faster_and_nothing_else():
    plain = EngineSettings(role=Role.DECODE).spec("d0")
    fast = EngineSettings(role=Role.DECODE, time_scale=10.0).spec("d0")
    for shape in [(1, 100, 0, 0), (40, 50_000, 0, 0), (20, 30_000, 700, 3000)]:
        assert step_s(fast.profile, *shape) == pytest.approx(step_s(plain.profile, *shape) / 10)
    assert fast.link_bytes_per_s == 10 * plain.link_bytes_per_s
    assert fast.link_base_s == plain.link_base_s / 10
    assert fast.kv_capacity_tokens == plain.kv_capacity_tokens > 0


def test_a_stock_engine_has_static_chunks():
    assert EngineSettings(role=Role.DECODE, stock=True).spec("d0").chunk_mode is ChunkMode.STATIC
    assert EngineSettings(role=Role.DECODE).spec("d0").chunk_mode is ChunkMode.ENGINE


def test_the_world_is_not_what_the_engine_believes():
    settings = EngineSettings(role=Role.DECODE, bias_frac=1.5)
    spec = settings.spec("d0")
    truth_s = settings.world(spec).step_s(10, 10, 5000, 0.0)
    assert truth_s == pytest.approx(1.5 * step_s(spec.profile, 10, 5000))


def test_noise_is_drawn_from_the_nodes_own_stream():
    def draws(seed: int, node_id: str) -> list[float]:
        settings = EngineSettings(role=Role.DECODE, noise_frac=0.1, seed=seed)
        world = settings.world(settings.spec(node_id))
        return [world.noise() for _ in range(5)]

    assert draws(1, "d0") == draws(1, "d0")
    assert len({tuple(draws(*key)) for key in [(1, "d0"), (2, "d0"), (1, "d1")]}) == 3
