"""The true step law: the profile, bent."""

from __future__ import annotations

import pytest

from builders import make_profile
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s, token_pairs
from spillway.sim.world import World
from spillway.workload.seeds import stream

PROFILE = make_profile(decode_seq_s=50e-6)


@pytest.mark.parametrize("scheduled_tokens", [1, 64, 511, 512, 513, 4096])
def test_an_honest_world_is_the_profile(scheduled_tokens: int) -> None:
    world = World(PROFILE)
    seqs = min(scheduled_tokens, 8)
    chunk_tokens = scheduled_tokens - seqs
    expected_s = step_s(PROFILE, seqs, 9000, chunk_tokens, 300)
    pairs = token_pairs(chunk_tokens, 300)
    found_s = world.step_s(seqs, scheduled_tokens, 9000, pairs)
    assert found_s == pytest.approx(expected_s, rel=1e-12)


def test_a_bias_multiplies_every_step() -> None:
    honest, slow = World(PROFILE), World(PROFILE, bias_frac=1.15)
    for scheduled_tokens in (1, 100, 3000):
        expected_s = 1.15 * honest.step_s(1, scheduled_tokens, 5000, 70.0)
        assert slow.step_s(1, scheduled_tokens, 5000, 70.0) == pytest.approx(expected_s)


def test_noise_has_mean_one_and_the_asked_spread() -> None:
    world = World(PROFILE, noise_frac=0.3, rng=stream(1, "noise"))
    draws = [world.noise() for _ in range(20_000)]
    mean = sum(draws) / len(draws)
    spread = (sum((draw - mean) ** 2 for draw in draws) / len(draws)) ** 0.5
    assert mean == pytest.approx(1.0, abs=0.01)
    assert spread == pytest.approx(0.3, abs=0.02)
    assert min(draws) > 0


def test_the_same_stream_gives_the_same_noise() -> None:
    one = World(PROFILE, noise_frac=0.3, rng=stream(7, "noise"))
    two = World(PROFILE, noise_frac=0.3, rng=stream(7, "noise"))
    assert [one.noise() for _ in range(5)] == [two.noise() for _ in range(5)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bias_frac": 0.0}, "bias_frac is 0.0"),
        ({"bias_frac": float("nan")}, "bias_frac is nan"),
        ({"noise_frac": -0.1}, "noise_frac is -0.1"),
        ({"noise_frac": 0.1}, "seeded stream"),
    ],
)
def test_a_world_without_sense_is_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        World(PROFILE, **options)
