"""The true step law of a simulated node: what its steps really cost.

A router believes a `LatencyProfile`; the world has its own law, built from a profile and then bent
by a bias and by noise. If the two were one object every estimate would be exact and every result
would flatter the policy. Without noise the law is linear in the resident KV and in the attention
work, which is what lets a node jump over identical steps in closed form (`jumps.py`).
"""

from __future__ import annotations

from math import exp, isfinite, log, sqrt
from random import Random

from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile, tokens_s

TABLE_TOKENS_MAX = 512  # scheduled tokens below which f(n) is looked up instead of searched


class World:
    """Step times of one simulated node.

    bias_frac: multiplier on every step; 1.15 makes the node 15 % slower than its profile says.
    noise_frac: standard deviation of a log-normal factor per step whose mean is 1; 0 is none.
    rng: the named stream the factor is drawn from; required when there is noise.
    scale_frac, drift_frac: what steps cost now is `pace_frac`, the product of both.
    inexact: whether steps ever cost something else than the profile says.

    Raises ConfigError on a bias that is not positive, a negative noise, or noise without a stream.
    """

    __slots__ = (
        "_mean_log",
        "_profile",
        "_rng",
        "_sigma_log",
        "_table_s",
        "base_s",
        "decode_seq_s",
        "drift_frac",
        "inexact",
        "kv_token_s",
        "noisy",
        "pace_frac",
        "scale_frac",
        "token_pair_s",
    )

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        bias_frac: float = 1.0,
        noise_frac: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        if not (isfinite(noise_frac) and noise_frac >= 0):
            raise ConfigError(f"world: noise_frac is {noise_frac}; it must be finite and >= 0")
        if noise_frac > 0 and rng is None:
            raise ConfigError("world: noise_frac > 0 needs a seeded stream to draw from")
        variance_log = log(1 + noise_frac * noise_frac)
        self._profile = profile
        self._rng = rng or Random(0)  # noqa: S311 - never drawn from without noise
        self._sigma_log = sqrt(variance_log)
        self._mean_log = -variance_log / 2
        self.noisy = self.inexact = noise_frac > 0
        self.drift_frac = 1.0
        self.rescale(bias_frac)

    def rescale(self, scale_frac: float) -> None:
        """Make every later step cost `scale_frac` times the profile's, drift aside."""
        if not (isfinite(scale_frac) and scale_frac > 0):
            raise ConfigError(f"world: bias_frac is {scale_frac}; it must be positive and finite")
        profile = self._profile
        self.scale_frac = scale_frac
        self.pace_frac = pace_frac = scale_frac * self.drift_frac
        self.inexact = self.inexact or pace_frac != 1.0
        self.base_s = pace_frac * profile.step_base_s
        self.decode_seq_s = pace_frac * profile.decode_seq_s
        self.kv_token_s = pace_frac * profile.kv_token_s
        self.token_pair_s = pace_frac * profile.token_pair_s
        self._table_s = [
            self.base_s + pace_frac * tokens_s(profile, n) for n in range(TABLE_TOKENS_MAX)
        ]

    def step_s(self, seqs: int, scheduled_tokens: int, kv_tokens: int, pairs: float) -> float:
        """Return the seconds of one step before noise.

        seqs: in decode; a token of each is scheduled.
        pairs: attention work of its prefill chunks (`core.latency.token_pairs`, summed).
        """
        if scheduled_tokens < TABLE_TOKENS_MAX:
            fixed_s = self._table_s[scheduled_tokens]
        else:
            fixed_s = self.base_s + self.pace_frac * tokens_s(self._profile, scheduled_tokens)
        fixed_s += self.decode_seq_s * seqs
        return fixed_s + self.kv_token_s * kv_tokens + self.token_pair_s * pairs

    def noise(self) -> float:
        """Draw the next factor: log-normal with mean 1."""
        return exp(self._rng.gauss(self._mean_log, self._sigma_log))
