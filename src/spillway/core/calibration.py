"""What a node's own measurements do to the router's picture of it.

An engine with the plug-in compares every step with its profile (`controller.py`) and reports the
result: a gain on what decodes cost, a gain on what prompt chunks add, and a margin for the scatter.
The router then predicts that node by a profile scaled so (means, for TTFT) and a target divided by
the margin (an upper quantile, for feasibility). A node that is too far off, or scatters too much,
is red: no profile describes it, so nothing is deflected to it until it has been calm for a while.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from spillway.core.controller import GAIN_MAX, GAIN_MIN, MARGIN_MAX, MARGIN_MIN
from spillway.core.events import NodeState
from spillway.core.latency import LatencyProfile
from spillway.core.types import ChunkMode, NodeSpec

# A change smaller than this is not worth a new profile: it is within what the margin covers.
CHANGE_FRAC = 0.02
# Bounds beyond which a node is red, and the narrower ones within which it may turn green again.
# What can be corrected is corrected: red is where the controller's range (5 and 1.6) nearly ends.
GAIN_RED, GAIN_GREEN = 4.0, 3.2
MARGIN_RED, MARGIN_GREEN = 1.55, 1.45
# It must have been within the narrow bounds for this long: fast to tighten, slow to loosen.
GREEN_AFTER_S = 5.0


class Calibration:
    """One node's profile as corrected by its own reports.

    spec: the configured one, or the corrected one that holds now.
    red: whether the node is too far off to be predicted.
    alarms: how often it has turned red.
    """

    __slots__ = ("_believed", "_calm_since_s", "_configured", "_heard", "alarms", "red", "spec")

    def __init__(self, spec: NodeSpec) -> None:
        self._configured = self.spec = spec
        self._heard = self._believed = (1.0, 1.0, 1.0)
        self._calm_since_s = inf
        self.red = False
        self.alarms = 0

    def hear(self, state: NodeState) -> None:
        """Take a report into account. O(1), and O(hinges) when the profile changes."""
        heard = (state.gain_decode, state.gain_prefill, state.margin)
        if heard == self._heard and not self.red:
            return
        self._heard = heard
        said = (
            _within(state.gain_decode, GAIN_MIN, GAIN_MAX),
            _within(state.gain_prefill, GAIN_MIN, GAIN_MAX),
            _within(state.margin, MARGIN_MIN, MARGIN_MAX),
        )
        self._watch(*said, state.taken_at_s)
        if any(
            abs(new - old) > CHANGE_FRAC * old
            for new, old in zip(said, self._believed, strict=True)
        ):
            self._believed = said
            self.spec = corrected(self._configured, *said)

    def learn_chunking(self, mode: ChunkMode, chunk_tokens_max: int) -> None:
        """The node sizes chunks in another way than was configured."""
        self._configured, self.spec = (
            replace(spec, chunk_mode=mode, chunk_tokens_max=chunk_tokens_max)
            for spec in (self._configured, self.spec)
        )

    def _watch(self, gain_decode: float, gain_prefill: float, margin: float, now_s: float) -> None:
        worst = max(gain_decode, gain_prefill, 1 / gain_decode, 1 / gain_prefill)
        if worst > GAIN_RED or margin > MARGIN_RED:
            self._calm_since_s = inf
            if not self.red:
                self.red = True
                self.alarms += 1
        elif worst > GAIN_GREEN or margin > MARGIN_GREEN:
            self._calm_since_s = inf
        elif self.red:
            self._calm_since_s = min(self._calm_since_s, now_s)
            if now_s - self._calm_since_s >= GREEN_AFTER_S:
                self.red = False


def corrected(spec: NodeSpec, gain_decode: float, gain_prefill: float, margin: float) -> NodeSpec:
    """Return the node with its profile scaled and its share of the target cut by the margin.

    Formula: a0, a_seq and a_kv by the gain of the decodes; the slopes of f and a_attn, which prompt
    chunks dominate, by the gain of the chunks. On a prefill node chunks are all there is.
    """
    profile = spec.profile
    return replace(
        spec,
        profile=LatencyProfile(
            name=profile.name,
            step_base_s=profile.step_base_s * gain_decode,
            decode_seq_s=profile.decode_seq_s * gain_decode,
            token_hinges=profile.token_hinges,
            token_s=tuple(slope * gain_prefill for slope in profile.token_s),
            kv_token_s=profile.kv_token_s * gain_decode,
            token_pair_s=profile.token_pair_s * gain_prefill,
            kv_bytes_per_token=profile.kv_bytes_per_token,
        ),
        tbt_margin_frac=min(1.0, spec.tbt_margin_frac / margin),
    )


def _within(said_frac: float, least_frac: float, most_frac: float) -> float:
    """Return the value, or the nearer bound: what no controller can have said means nothing."""
    return min(most_frac, max(least_frac, said_frac))
