"""One simulated engine: steps that decode a batch and prefill chunks beside it.

The scheduling follows vLLM v1. Every step gives each running decode one token and fills the rest of
its budget with prefill chunks, first in, first out. Whatever arrives takes effect at the next step
boundary. KV room is booked when a prompt starts and grows by a token per sequence and step; when it
runs out the latest arrival is preempted and later prefilled again.

The node has no clock. A driver calls `advance(now_s)` when `next_event_s()` is due: the simulator
on its virtual clock, the fake engine at wall-clock pace. Between two events lies one *segment*:
steps with the same membership, of which only the contexts grow, so its length and everything
counted in it have closed forms (`jumps.py`, `batch.py`). Noise or `per_token` make every segment
one step long; the outcome is otherwise the same.
"""

from __future__ import annotations

from collections import deque
from math import inf

from spillway.core.errors import InvariantViolation, NodeError
from spillway.core.events import NodeState
from spillway.core.types import NodeSpec, RequestId
from spillway.sim.batch import DecodeBatch
from spillway.sim.departures import bury, lose_all, make_room
from spillway.sim.jumps import Segment, ramp_s, steps_reaching
from spillway.sim.kv import KvPool
from spillway.sim.prefix_cache import CacheCounts, PrefixPool
from spillway.sim.prompts import SKIPS_MAX, STEPS_UNLIMITED, Prompts
from spillway.sim.pulls import admit
from spillway.sim.residents import (
    ARRIVED,
    DECODING,
    GONE,
    HELD,
    LANDED,
    PREFILLING,
    PULLING,
    QUEUED,
    Finished,
    FirstTokenAt,
    Job,
    Outcome,
    Phase,
    PrefillDone,
    Resident,
    Tokens,
)
from spillway.sim.snapshot import node_state, step_taken
from spillway.sim.world import World
from spillway.stats import GapHistogram
from spillway.wire.report import STEPS_MAX, StepTaken


class SimNode:
    """A prefill or decode engine on a driver's clock. See the module docstring.

    spec: what the node itself believes and is configured to do; its chunk sizes come from
        `spec.profile`. A `kv_capacity_tokens` of 0 means unlimited room.
    world: what its steps really cost. Default: exactly what the profile says.
    gaps: where token gaps are counted; several nodes may share one.
    per_token: one segment per step, and a `Tokens` outcome for every token.
    prefix_cache: whether KV of past prompts serves those that begin alike (`prefix_cache.py`).

    segments, steps, preemptions: work counts. recent_steps: the last ones, of a per-token node.
    """

    def __init__(
        self,
        spec: NodeSpec,
        world: World | None = None,
        *,
        gaps: GapHistogram | None = None,
        per_token: bool = False,
        skips_max: int = SKIPS_MAX,
        prefix_cache: bool = False,
        learning: bool = True,
    ) -> None:
        self.spec = spec
        self.node_id = spec.node_id
        self.world = world or World(spec.profile)
        self.gaps = gaps if gaps is not None else GapHistogram()
        self.per_token = per_token
        self._single = per_token or self.world.noisy
        self._learning = learning
        self.segments = 0
        self.preemptions = 0
        self.dispatch_seen = 0
        self._skips_max = skips_max
        self.cache_counts = CacheCounts() if prefix_cache else None
        self._orders = 0
        self._pending: list[Outcome] = []
        self.segment = Segment()
        self._clear()

    def _clear(self) -> None:
        self.segment.steps = 0
        self.segment.end_s = inf
        self.batch = DecodeBatch(self.gaps)
        capacity_tokens, counts = self.spec.kv_capacity_tokens, self.cache_counts
        self.kv = PrefixPool(capacity_tokens, counts) if counts else KvPool(capacity_tokens)
        self.prompts = Prompts(self.spec, self.batch, self.kv, self._skips_max, self._learning)
        self.arrived: deque[Resident] = deque()
        self.pulls = 0
        self.landed: deque[Resident] = deque()
        self.members: dict[RequestId, Resident] = {}
        self.doomed: list[Resident] = []
        self.recent_steps: deque[StepTaken] = deque(maxlen=STEPS_MAX)

    # --- orders ------------------------------------------------------------------------------

    def submit_prefill(self, job: Job, now_s: float) -> Resident:
        """Queue a prompt whose decode runs elsewhere; its KV is held until `release_kv`.

        Raises NodeError when the node could never hold it, InvariantViolation on an id in use.
        """
        resident = self._enter(job, job.prompt_tokens + 1, QUEUED, False, now_s)
        self.prompts.push(resident)
        self._wake(now_s, for_prompt=True)
        return resident

    def submit_local(self, job: Job, now_s: float) -> Resident:
        """Queue a request whose prompt and decode both run here. Raises as `submit_prefill`."""
        tokens = job.prompt_tokens + job.output_tokens
        resident = self._enter(job, tokens, QUEUED, True, now_s)
        self.prompts.push(resident)
        self._wake(now_s, for_prompt=True)
        return resident

    def submit_pull(self, job: Job, now_s: float) -> Resident:
        """Queue a request that was prefilled elsewhere; once there is room, `PullStarted` says so.

        The driver then sees to the transfer and calls `kv_arrived`. Raises as `submit_prefill`.
        """
        tokens = job.prompt_tokens + job.output_tokens
        resident = self._enter(job, tokens, ARRIVED, True, now_s)
        self.arrived.append(resident)
        self._wake(now_s)
        return resident

    def submit_pulled(self, job: Job, now_s: float) -> Resident:
        """Queue a request whose KV has come already. Raises as `submit_prefill`."""
        resident = self.submit_pull(job, now_s)
        resident.kv_arrived_s = now_s
        return resident

    def kv_arrived(self, request_id: RequestId, now_s: float) -> None:
        """The KV of a pull is here: it joins the batch at the next step boundary."""
        self._catch_up(now_s)
        resident = self.members[request_id]
        resident.phase = LANDED
        self.kv.publish(resident)
        resident.kv_arrived_s = now_s
        self.pulls -= 1
        self.landed.append(resident)
        self._wake(now_s)

    def release_kv(self, request_id: RequestId, now_s: float) -> None:
        """Free the KV of a prefilled request once it has been pulled. Unknown ids are ignored."""
        self._catch_up(now_s)
        resident = self.members.get(request_id)
        if resident is not None and resident.phase is HELD:
            del self.members[request_id]
            resident.phase = GONE
            self.kv.leave(resident, resident.prompt_tokens)
            if self.prompts.queued:
                self._wake(now_s, for_prompt=True)

    def abort(self, request_id: RequestId, now_s: float) -> bool:
        """Stop a request in whatever state; False when it is not here.

        A request in the step under way leaves at the step's end; it yields no further outcome.
        """
        self._catch_up(now_s)
        resident = self.members.pop(request_id, None)
        if resident is None:
            return False
        phase = resident.phase
        if phase in (PREFILLING, DECODING):
            resident.doomed = True
            self.doomed.append(resident)
            self._wake(now_s)
            return True
        if phase is QUEUED:
            self.prompts.drop(resident)
        elif phase is ARRIVED:
            self.arrived.remove(resident)
        else:
            if phase is PULLING:
                self.pulls -= 1
            elif phase is LANDED:
                self.landed.remove(resident)
            self.kv.leave(resident, resident.prompt_tokens)
        resident.phase = GONE
        if self.prompts.queued or self.arrived:
            self._wake(now_s)  # what waited behind it may now have its turn
        return True

    def fail(self, now_s: float) -> list[RequestId]:
        """Lose everything, as a crash does; return the ids of the requests that were here.

        Tokens emitted by steps that were complete before `now_s` count.
        """
        lost = list(self.members)
        lose_all(self, now_s)
        self._pending = []
        self._clear()
        return lost

    def rescale(self, scale_frac: float, now_s: float) -> None:
        """Make the node `scale_frac` times as slow as its profile from the next step on."""
        self._catch_up(now_s)
        self._wake(now_s)
        self.world.rescale(scale_frac)

    # --- time --------------------------------------------------------------------------------

    def next_event_s(self) -> float:
        """Return when `advance` next has something to do, inf when the node is idle."""
        return self.segment.end_s if not self._pending else -inf

    def advance(self, now_s: float) -> list[Outcome]:
        """Let time pass to `now_s`; return what came of it, in order of time."""
        # A fresh list every time: the one returned is filled below and is the caller's to keep.
        outcomes, self._pending = self._pending, []
        segment = self.segment
        while (at_s := segment.end_s) <= now_s:
            if segment.steps:
                self._close(at_s, outcomes)
            self._open(at_s, outcomes)
        return outcomes

    @property
    def idle(self) -> bool:
        """Say whether nothing will happen here before the next order."""
        return self.segment.end_s == inf and not self._pending

    @property
    def steps(self) -> int:
        """Engine steps taken, the running segment's not included."""
        return self.batch.step

    def state(self, now_s: float) -> NodeState:
        """Return the node's own word on itself at `now_s`: see `snapshot.node_state`."""
        return node_state(self, now_s)

    # --- segments ----------------------------------------------------------------------------

    def _open(self, at_s: float, outcomes: list[Outcome]) -> None:
        """Form the next segment, or go idle."""
        batch, prompts, kv = self.batch, self.prompts, self.kv
        if self.arrived or self.landed:
            admit(self, at_s, outcomes)
        if kv.free_tokens < batch.seqs:
            make_room(self, at_s, outcomes)
        if prompts.running or prompts.queued:
            prompts.pick(at_s)
            chunks, steps = prompts.chunks, prompts.chunk_steps
        else:
            prompts.chunks = chunks = []
            prompts.skipping = False
            steps = STEPS_UNLIMITED
        seqs, segment = batch.seqs, self.segment
        if not seqs and not chunks:
            segment.steps = 0
            segment.end_s = inf
            return
        world = self.world
        slope_s = world.kv_token_s * seqs
        if chunks:
            tokens = seqs + prompts.chunk_tokens
            first_s = world.step_s(seqs, tokens, batch.context_tokens, prompts.pairs)
            slope_s += world.token_pair_s * chunks[0][1] ** 2  # more than one step: one chunk
        else:
            first_s = world.step_s(seqs, seqs, batch.context_tokens, 0.0)
        if batch.fresh or self._single:
            steps = 1
            if world.noisy:
                first_s *= world.noise()
        elif steps > 1 and seqs:
            steps = min(steps, batch.steps_to_finish(), kv.free_tokens // seqs)
        segment.steps = steps
        segment.start_s = at_s
        segment.first_s = first_s
        segment.slope_s = slope_s
        segment.end_s = at_s + (first_s if steps == 1 else ramp_s(first_s, slope_s, steps))

    def _close(self, at_s: float, outcomes: list[Outcome]) -> None:
        """Account for the segment that ends now: tokens, finished prompts, departures."""
        batch, segment, prompts = self.batch, self.segment, self.prompts
        steps, seqs = segment.steps, batch.seqs
        self.segments += 1
        if self.per_token:
            self.recent_steps.append(step_taken(self))
        if self.world.inexact:
            prompts.learn(segment.first_s, steps)
        if seqs:
            self.kv.take(seqs * steps)
            batch.run(segment.first_s, segment.slope_s, steps)
            if self.per_token:
                self._name_tokens(at_s, outcomes)
            if batch.fresh:
                for resident in batch.fresh:
                    self._emit_first(resident, at_s, outcomes)
                batch.fresh.clear()
        else:
            batch.step += steps
        if prompts.chunks:
            for resident in prompts.run(steps):
                self._end_prefill(resident, at_s, outcomes)
        elif prompts.skipping:
            prompts.skip(steps)
        if self.doomed:
            bury(self, at_s)
        if batch.due and batch.due[0][0] <= batch.step:
            for resident in batch.take_finished():
                resident.phase = GONE
                resident.last_token_s = at_s
                del self.members[resident.request_id]
                self.kv.leave(resident, resident.prompt_tokens + resident.generated_tokens)
                outcomes.append(Finished(resident, at_s))

    def _wake(self, now_s: float, *, for_prompt: bool = False) -> None:
        """See to it that the node looks at its queues at the first step boundary from `now_s` on.

        for_prompt: only a queued prompt would profit, so a segment whose steps another prompt
        fills to the brim may run on.
        """
        segment = self.segment
        if not segment.steps:
            segment.end_s = now_s
        elif segment.steps > 1 and now_s < segment.end_s:
            if for_prompt and self.prompts.chunks:
                return
            first_s, slope_s = segment.first_s, segment.slope_s
            steps = steps_reaching(first_s, slope_s, now_s - segment.start_s)
            if steps < segment.steps:
                segment.steps = steps
                segment.end_s = segment.start_s + ramp_s(first_s, slope_s, steps)

    # --- membership --------------------------------------------------------------------------

    def _enter(self, job: Job, tokens: int, phase: Phase, local: bool, now_s: float) -> Resident:
        self._catch_up(now_s)
        if job.request_id in self.members:
            raise InvariantViolation(f"{self.node_id} already has request {job.request_id}")
        if job.prompt_tokens < 1 or job.output_tokens < 1:
            raise InvariantViolation(f"request {job.request_id} has no prompt or no output")
        if tokens > self.kv.capacity_tokens:
            raise NodeError(
                f"{self.node_id} cannot hold request {job.request_id}: {tokens} tokens of KV,"
                f" {self.kv.capacity_tokens} in all; use a node with more room"
            )
        self._orders += 1
        resident = Resident(job, self._orders, phase, local)
        self.members[job.request_id] = resident
        if job.dispatch_id > self.dispatch_seen:
            self.dispatch_seen = job.dispatch_id
        return resident

    def _catch_up(self, now_s: float) -> None:
        """A late driver: what it has not asked for yet happened before the order that it gives."""
        if self.segment.end_s < now_s:
            self._pending = self.advance(now_s)

    # --- tokens ------------------------------------------------------------------------------

    def _emit_first(self, resident: Resident, at_s: float, outcomes: list[Outcome]) -> None:
        """A sequence emits its first token here, or its next one after a preemption."""
        resident.generated_tokens += 1
        self.batch.follow(resident)
        if resident.last_token_s is not None:
            self.batch.note_stall(resident, at_s - resident.last_token_s)
        if resident.doomed:
            return
        if resident.first_token_s is None:
            resident.first_token_s = at_s
            outcomes.append(FirstTokenAt(resident, at_s))
        if self.per_token:
            outcomes.append(Tokens(resident, at_s, 1))

    def _end_prefill(self, resident: Resident, at_s: float, outcomes: list[Outcome]) -> None:
        if resident.prefill_done_s is None:
            resident.prefill_done_s = at_s
        if resident.local:
            # The slot booked for the token it yields now becomes that token's.
            self.batch.add(resident)
            self.batch.context_tokens += 1
            self._emit_first(resident, at_s, outcomes)
        else:
            resident.phase = HELD
            self.kv.give(1)
            outcomes.append(PrefillDone(resident, at_s))

    def _name_tokens(self, at_s: float, outcomes: list[Outcome]) -> None:
        fresh = self.batch.fresh
        outcomes.extend(
            Tokens(resident, at_s, 1)
            for resident in self.members.values()
            if resident.phase is DECODING and resident not in fresh
        )
