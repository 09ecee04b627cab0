"""The feedback that keeps predicted step times honest: two gains and a margin.

A profile is fitted once; the engine that runs it drifts: another clock, other processes on the
core, traffic beside the step. So the prediction of a step is split into what its decodes cost and
what its prompt chunks add, each with a gain that follows the measurements, and a margin stands for
the scatter that remains: it tracks a high percentile of actual/predicted, fast upwards and slowly
down. Recursive least squares on all coefficients diverges here, because decode-only traffic excites
two directions of five. Pure: knows no engine and no clock.
"""

from __future__ import annotations

from math import inf, isfinite

from spillway.core.latency import LatencyProfile, step_s, tokens_s

# Shares of a new observation. Decode steps come by the thousand and scatter most.
DECODE_RATE = 0.05
PREFILL_RATE = 0.1
# Below this share of the step, what the chunks add drowns in the scatter of the decodes.
PREFILL_SHARE_MIN = 0.3
GAIN_MIN, GAIN_MAX = 0.2, 5.0
# One observation may not claim more than this: a step that was interrupted says nothing.
RATIO_MAX = 2.0
MARGIN_PERCENTILE = 0.95
MARGIN_RATE = 0.03
MARGIN_MIN, MARGIN_MAX = 1.0, 1.6
ROUNDING = 1.0 + 1e-9  # two sums of the same terms are not a step that was late


class Controller:
    """Corrects one profile by what steps really took.

    gain_decode, gain_prefill: measured over predicted, smoothed; 1 is as the profile says.
    margin: by how much to divide a budget so that about 95 % of the steps stay inside it.
    learning: False freezes all three at 1, for tests and comparisons.
    """

    __slots__ = ("_chunks_seen", "gain_decode", "gain_prefill", "learning", "margin", "profile")

    def __init__(self, profile: LatencyProfile, *, learning: bool = True) -> None:
        self.profile = profile
        self.learning = learning
        self.gain_decode = 1.0
        self.gain_prefill = 1.0
        self.margin = 1.0
        self._chunks_seen = 0

    def decode_s(self, decode_seqs: int, kv_tokens: int) -> float:
        """Return the corrected time of a step of decodes alone, without margin."""
        return self.gain_decode * step_s(self.profile, decode_seqs, kv_tokens)

    def predict_s(
        self, decode_seqs: int, kv_tokens: int, prefill_tokens: int, pairs: float
    ) -> float:
        """Return the corrected time of a step, without margin. pairs: `latency.token_pairs`."""
        decode_s, prefill_s = self.parts_s(decode_seqs, kv_tokens, prefill_tokens, pairs)
        return self.gain_decode * decode_s + self.gain_prefill * prefill_s

    def parts_s(
        self, decode_seqs: int, kv_tokens: int, prefill_tokens: int, pairs: float
    ) -> tuple[float, float]:
        """Return what the profile says of the decodes, and of what the chunks add to them."""
        profile = self.profile
        decode_s = step_s(profile, decode_seqs, kv_tokens)
        if not prefill_tokens:
            return decode_s, 0.0
        tokens = tokens_s(profile, decode_seqs + prefill_tokens) - tokens_s(profile, decode_seqs)
        return decode_s, tokens + profile.token_pair_s * pairs

    def chunk_budget_s(self, decode_seqs: int, kv_tokens: int, target_s: float) -> float:
        """Return the budget to give the raw profile so that the corrected step meets `target_s`.

        gd·D + gp·P <= target/margin  is  D + P <= D + (target/margin - gd·D)/gp, so one formula,
        `core.chunks.next_chunk_tokens`, serves corrected and raw predictions alike.
        """
        if target_s == inf:
            return inf
        decode_s = step_s(self.profile, decode_seqs, kv_tokens)
        room_s = target_s / self.margin - self.gain_decode * decode_s
        return decode_s + room_s / self.gain_prefill

    def over_budget(self, decode_seqs: int, kv_tokens: int, target_s: float) -> bool:
        """Say whether the decodes alone, with the margin, already exceed `target_s`."""
        return self.decode_s(decode_seqs, kv_tokens) * self.margin > target_s

    def observe(
        self,
        decode_seqs: int,
        kv_tokens: int,
        prefill_tokens: int,
        pairs: float,
        actual_s: float,
        steps: int = 1,
    ) -> None:
        """Learn from one step that took `actual_s`; nonsense (zero, negative, NaN) is ignored.

        steps: how many such steps in a row it stands for, of decodes alone.
        """
        if not (self.learning and isfinite(actual_s) and actual_s > 0):
            return
        decode_s, prefill_s = self.parts_s(decode_seqs, kv_tokens, prefill_tokens, pairs)
        expected_s = self.gain_decode * decode_s + self.gain_prefill * prefill_s
        ratio = actual_s / expected_s
        believed_s = min(actual_s, RATIO_MAX * expected_s)
        if not prefill_s:
            rate_frac = DECODE_RATE if steps == 1 else 1.0 - (1.0 - DECODE_RATE) ** steps
            self.gain_decode = _toward(self.gain_decode, believed_s / decode_s, rate_frac)
            return
        if self.gain_prefill * prefill_s > PREFILL_SHARE_MIN * self.gain_decode * decode_s:
            measured_gain = (believed_s - self.gain_decode * decode_s) / prefill_s
            # Fast to tighten: the first chunks that prove slow are believed as a plain mean.
            self._chunks_seen += 1
            slower = measured_gain > self.gain_prefill
            rate_frac = max(PREFILL_RATE, 1.0 / self._chunks_seen) if slower else PREFILL_RATE
            self.gain_prefill = _toward(self.gain_prefill, measured_gain, rate_frac)
        # Stochastic quantile: it rests where a share of MARGIN_PERCENTILE lies below it.
        above = ratio > self.margin * ROUNDING
        change = MARGIN_PERCENTILE if above else MARGIN_PERCENTILE - 1.0
        self.margin = min(MARGIN_MAX, max(MARGIN_MIN, self.margin + MARGIN_RATE * change))


def _toward(gain: float, measured_gain: float, rate_frac: float) -> float:
    return min(GAIN_MAX, max(GAIN_MIN, gain + rate_frac * (measured_gain - gain)))
