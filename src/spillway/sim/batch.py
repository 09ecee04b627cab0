"""The decode batch of a node, without a loop over its sequences.

A step touches every sequence alike: one more token, one more KV token, one gap as long as the step.
So the batch keeps sums (sequences, context tokens, steps taken) and each sequence only remembers
the step at which it joined. What a sequence needs to know when it leaves is a difference or a range
query: tokens = steps since it joined; late gaps = late steps of its target, now minus at joining;
longest gap = the maximum over the steps since it joined, read off a stack of falling maxima.
Joining and leaving cost O(log batch); m steps cost the same as one.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from math import inf

from spillway.sim.residents import DECODING, Resident, Target
from spillway.stats import GapHistogram, ramp_above

LATE_TOLERANCE_S = 1e-9  # a gap is late when it exceeds its target by more than rounding can
PEAKS_MAX = 4096  # falling maxima kept before those older than the batch are dropped


class DecodeBatch:
    """The sequences that decode on a node.

    seqs: how many, fresh ones included. context_tokens: their prompt and generated tokens, which
    is the KV that the next step reads. step: steps taken so far. fresh: pulled sequences that have
    not emitted a token yet. tbt_s_min: strictest target in the batch, inf when it is empty.
    due: heap of (finish step, order, sequence); entries of sequences that left early are stale.
    """

    __slots__ = (
        "_gaps",
        "_peak_s",
        "_peak_steps",
        "_targets",
        "context_tokens",
        "due",
        "fresh",
        "seqs",
        "step",
        "tbt_s_min",
    )

    def __init__(self, gaps: GapHistogram) -> None:
        self.seqs = 0
        self.context_tokens = 0
        self.step = 0
        self.fresh: list[Resident] = []
        self.tbt_s_min = inf
        self._gaps = gaps
        self.due: list[tuple[int, int, Resident]] = []
        self._targets: dict[float, Target] = {}
        # Steps and lengths of the steps that no later one has exceeded: lengths fall.
        self._peak_steps: list[int] = []
        self._peak_s: list[float] = []

    def add(self, resident: Resident) -> None:
        """Count a sequence in: from the next step on it gets a token per step."""
        self.seqs += 1
        self.context_tokens += resident.prompt_tokens + resident.generated_tokens
        tbt_s = resident.job.slo_tbt_s
        target = self._targets.get(tbt_s)
        if target is None:
            target = self._targets[tbt_s] = Target(tbt_s)
            self.tbt_s_min = min(self.tbt_s_min, tbt_s)
        target.seqs += 1
        resident.target = target
        resident.phase = DECODING

    def follow(self, resident: Resident) -> None:
        """Watch the gaps of a sequence that has just emitted a token, until its last one."""
        target = resident.target
        assert target is not None
        step = self.step
        resident.join_step = step
        resident.late_before = target.late_steps
        finish_step = step + resident.output_tokens - resident.generated_tokens
        resident.finish_step = finish_step
        heappush(self.due, (finish_step, resident.order, resident))

    def steps_to_finish(self) -> int:
        """Return the steps until the next sequence emits its last token."""
        due = self.due
        while due:
            finish_step, _, resident = due[0]
            # A sequence that left early, or left and came back, has no part in its old entry.
            if resident.finish_step == finish_step and resident.phase is DECODING:
                return finish_step - self.step
            heappop(due)
        return 1 << 30

    def run(self, first_s: float, slope_s: float, steps: int) -> None:
        """Take `steps` steps of a batch that is not empty, step i lasting first_s + slope_s·i."""
        self.step += steps
        seqs = self.seqs
        self.context_tokens += seqs * steps
        watched = seqs - len(self.fresh)
        if not watched:
            return
        last_s = first_s
        if steps == 1:
            self._gaps.add(first_s, watched)
        else:
            last_s += slope_s * (steps - 1)
            self._gaps.add_ramp(first_s, slope_s, steps, watched)
        if last_s > self.tbt_s_min + LATE_TOLERANCE_S:
            for target in self._targets.values():
                limit_s = target.tbt_s + LATE_TOLERANCE_S
                target.late_steps += ramp_above(first_s, slope_s, steps, limit_s)
        peaks_s, peak_steps = self._peak_s, self._peak_steps
        while peaks_s and peaks_s[-1] <= last_s:
            peaks_s.pop()
            peak_steps.pop()
        peaks_s.append(last_s)
        peak_steps.append(self.step)
        if len(peaks_s) > PEAKS_MAX:
            self._forget_peaks()

    def take_finished(self) -> list[Resident]:
        """Remove and return the sequences that have just emitted their last token."""
        finished: list[Resident] = []
        due, step = self.due, self.step
        while due and due[0][0] <= step:
            finish_step, _, resident = heappop(due)
            if resident.finish_step != finish_step or resident.phase is not DECODING:
                continue
            self.remove(resident)
            finished.append(resident)
        return finished

    def remove(self, resident: Resident) -> None:
        """Take a followed sequence out; its token count and gap figures become current."""
        target = resident.target
        assert target is not None
        resident.generated_tokens += self.step - resident.join_step
        resident.gaps_late += target.late_steps - resident.late_before
        at = bisect_right(self._peak_steps, resident.join_step)
        if at < len(self._peak_s) and self._peak_s[at] > resident.gap_max_s:
            resident.gap_max_s = self._peak_s[at]
        resident.finish_step = -1
        resident.target = None
        self.seqs -= 1
        self.context_tokens -= resident.prompt_tokens + resident.generated_tokens
        target.seqs -= 1
        if not target.seqs:
            del self._targets[target.tbt_s]
            self.tbt_s_min = min(self._targets, default=inf)
        if not self.seqs:
            self._peak_s.clear()
            self._peak_steps.clear()

    def note_stall(self, resident: Resident, gap_s: float) -> None:
        """Count the gap of a sequence that emitted nothing while it was prefilled again."""
        self._gaps.add(gap_s)
        if gap_s > resident.job.slo_tbt_s + LATE_TOLERANCE_S:
            resident.gaps_late += 1
        resident.gap_max_s = max(resident.gap_max_s, gap_s)

    def _forget_peaks(self) -> None:
        """Drop the maxima of steps before any present sequence joined."""
        joined = (r.join_step for finish_step, _, r in self.due if r.finish_step == finish_step)
        oldest = min(joined, default=self.step)
        at = bisect_right(self._peak_steps, oldest)
        del self._peak_s[:at], self._peak_steps[:at]
