"""The prompts that a node has still to compute, and how much of them each step takes.

First in, first out, with up to a step's worth of tokens shared by as many prompts as fit. How large
a step's share is depends on the node: a fixed token budget on a prefill node and on a stock decode
node; on a decode node with the plug-in whatever `core.chunks.next_chunk_tokens` finds safe for the
batch; or a literal schedule that came with the order, except on a stock node.
"""

from __future__ import annotations

from collections import deque
from math import inf

from spillway.core.chunks import next_chunk_tokens
from spillway.core.controller import Controller
from spillway.core.latency import token_pairs
from spillway.core.types import ChunkMode, NodeSpec, Role
from spillway.sim.batch import DecodeBatch
from spillway.sim.kv import KvPool
from spillway.sim.residents import PREFILLING, QUEUED, Resident

SKIPS_MAX = 8  # steps without a safe chunk after which the smallest one runs all the same
STEPS_UNLIMITED = 1 << 30


class Prompts:
    """The FIFO of prompts on one node.

    queued: not started. running: KV room booked, chunks under way, oldest first.
    chunks: (prompt, tokens) of the next step. chunk_tokens, pairs: their sum and their attention
    work. chunk_steps: how many steps in a row may take just these tokens. skipping: prompts wait,
    but no chunk is safe.
    backlog_*: what is left of queued and running ones.
    controller: what the node has learnt about its step times; a restart forgets it.
    """

    __slots__ = (
        "_batch",
        "_fixed_tokens",
        "_kv",
        "_skips",
        "_skips_max",
        "_spec",
        "backlog_pairs",
        "backlog_tokens",
        "chunk_steps",
        "chunk_tokens",
        "chunks",
        "controller",
        "pairs",
        "queued",
        "running",
        "skipping",
    )

    def __init__(
        self,
        spec: NodeSpec,
        batch: DecodeBatch,
        kv: KvPool,
        skips_max: int,
        learning: bool = True,
    ) -> None:
        self._spec = spec
        self.controller = Controller(spec.profile, learning=learning)
        self._batch = batch
        self._kv = kv
        self._skips_max = skips_max
        self._skips = 0
        sized = spec.role is Role.DECODE and spec.chunk_mode is ChunkMode.ENGINE
        per_step = spec.step_tokens_max if spec.role is Role.PREFILL else spec.chunk_tokens_max
        self._fixed_tokens = None if sized else per_step
        self.queued: deque[Resident] = deque()
        self.running: list[Resident] = []
        self.chunks: list[tuple[Resident, int]] = []
        self.chunk_tokens = 0
        self.pairs = 0.0
        self.chunk_steps = STEPS_UNLIMITED
        self.skipping = False
        self.backlog_tokens = 0
        self.backlog_pairs = 0.0

    def push(self, resident: Resident, *, first: bool = False) -> None:
        """Queue a prompt, at the head if `first`."""
        if resident.job.blocks:
            resident.computed_tokens = self._kv.cached_tokens(resident)
        if first:
            self.queued.appendleft(resident)
        else:
            self.queued.append(resident)
        self._count(resident, 1)

    def drop(self, resident: Resident) -> None:
        """Forget a prompt, wherever it stands. Its KV is the caller's to return."""
        self._count(resident, -1)
        if resident.phase is QUEUED:
            self.queued.remove(resident)
        else:
            self.running.remove(resident)

    def blocked(self) -> bool:
        """Say whether a preempted prompt waits for KV room, which nothing newer may take."""
        head = self.queued[0] if self.queued else None
        return head is not None and head.preemptions > 0 and not self._fits(head)

    def pick(self, at_s: float) -> None:
        """Choose the next step's chunks: sets `chunks`, `pairs`, `chunk_steps` and `skipping`."""
        self.chunks = []
        self.chunk_tokens = 0
        self.pairs = 0.0
        self.chunk_steps = STEPS_UNLIMITED
        self.skipping = False
        head = self.running[0] if self.running else self._start_next()
        if head is None:
            return
        literal = _literal_chunk(head) if self._follows_schedule(head) else None
        if literal is not None:
            self._pick_literal(head, *literal)
        elif self._fixed_tokens is not None:
            self._pick_fixed(head, self._fixed_tokens)
        elif self._batch.seqs:
            self._pick_safe(head)
        else:
            self._pick_fixed(head, self._spec.chunk_tokens_max)
        for resident, _ in self.chunks:
            if resident.started_s is None:
                resident.started_s = at_s

    def run(self, steps: int) -> list[Resident]:
        """Account for `steps` steps of the picked chunks; return the prompts that are complete."""
        self._skips = 0
        complete: list[Resident] = []
        for resident, chunk_tokens in self.chunks:
            if resident.doomed:
                continue
            done_tokens = chunk_tokens * steps
            self.backlog_tokens -= done_tokens
            self.backlog_pairs -= token_pairs(done_tokens, resident.computed_tokens)
            resident.computed_tokens += done_tokens
            resident.chunk_steps_done += steps
            if resident.computed_tokens >= resident.target_tokens:
                self.running.remove(resident)
                complete.append(resident)
        return complete

    def learn(self, step_s: float, steps: int) -> None:
        """Compare the `steps` steps that have just ended, the first of `step_s`, with the profile.

        Call it before `run` and before the batch moves on.
        """
        tokens = sum([tokens for _, tokens in self.chunks])
        batch, pairs = self._batch, self.pairs if tokens else 0.0
        self.controller.observe(batch.seqs, batch.context_tokens, tokens, pairs, step_s, steps)

    def skip(self, steps: int) -> None:
        """Account for `steps` steps in which no chunk was safe."""
        self._skips += steps

    # --- admission ---------------------------------------------------------------------------

    def _fits(self, resident: Resident) -> bool:
        """Say whether there is room for the prompt, its token, and a step of the batch beside."""
        kv = self._kv
        return kv.free_tokens > kv.needed_tokens(resident) + self._batch.seqs

    def _start_next(self) -> Resident | None:
        queued = self.queued
        if not queued or self._batch.seqs + len(self.running) >= self._spec.seqs_max:
            return None
        resident = queued[0]
        if not self._fits(resident):
            return None
        queued.popleft()
        cached_tokens = self._kv.enter(resident, resident.target_tokens + 1)
        if cached_tokens != resident.computed_tokens:  # it was another when the prompt was queued
            self._count(resident, -1)
            resident.computed_tokens = cached_tokens
            self._count(resident, 1)
        resident.phase = PREFILLING
        self.running.append(resident)
        return resident

    # --- chunk sizes -------------------------------------------------------------------------

    def _take(self, resident: Resident, chunk_tokens: int) -> None:
        self.chunks.append((resident, chunk_tokens))
        self.chunk_tokens += chunk_tokens
        done_tokens = resident.computed_tokens
        self.pairs += token_pairs(chunk_tokens, done_tokens)
        if resident.job.blocks and done_tokens + chunk_tokens >= resident.target_tokens:
            # As in vLLM, who comes later in this very step can already share what it computes.
            self._kv.publish(resident)

    def _pick_literal(self, head: Resident, chunk_tokens: int, steps: int) -> None:
        remaining = head.target_tokens - head.computed_tokens
        self._take(head, min(chunk_tokens, remaining))
        self.chunk_steps = min(steps, max(1, (remaining - 1) // chunk_tokens))

    def _pick_fixed(self, head: Resident, budget_tokens: int) -> None:
        if self._spec.role is Role.PREFILL:
            budget_tokens = max(1, budget_tokens - self._batch.seqs)
        remaining = head.target_tokens - head.computed_tokens
        if remaining > budget_tokens:
            # All steps but the last of this prompt are alike: nobody has room beside it.
            self.chunk_steps = (remaining - 1) // budget_tokens
            self._take(head, budget_tokens)
            return
        self.chunk_steps = 1
        self._take(head, remaining)
        left = budget_tokens - remaining
        while left and self._has_another():
            resident = self.running[len(self.chunks)]
            remaining = min(left, resident.target_tokens - resident.computed_tokens)
            self._take(resident, remaining)
            left -= remaining

    def _pick_safe(self, head: Resident) -> None:
        spec, batch = self._spec, self._batch
        profile, cap = spec.profile, spec.chunk_tokens_max
        seqs, kv_tokens = batch.seqs, batch.context_tokens
        target_s = spec.tbt_margin_frac * batch.tbt_s_min
        budget_s = self.controller.chunk_budget_s(seqs, kv_tokens, target_s)
        resident = head
        while True:
            remaining = resident.target_tokens - resident.computed_tokens
            chunk_tokens = next_chunk_tokens(
                profile,
                seqs,
                kv_tokens,
                resident.computed_tokens,
                remaining,
                budget_s - profile.token_pair_s * self.pairs if budget_s != inf else inf,
                cap,
                spec.chunk_tokens_multiple,
            )
            if not chunk_tokens:
                break
            self._take(resident, chunk_tokens)
            cap -= chunk_tokens
            if chunk_tokens < remaining or not cap or not self._has_another():
                break
            # The next prompt shares the step: it finds these tokens already scheduled.
            seqs += chunk_tokens
            resident = self.running[len(self.chunks)]
        if self.chunks:
            self.chunk_steps = 1
        elif self._skips >= self._skips_max:
            self._take(
                head, min(spec.chunk_tokens_multiple, head.target_tokens - head.computed_tokens)
            )
            self.chunk_steps = 1
        else:
            # Contexts only grow, so no chunk becomes safe before the batch changes.
            self.skipping = True
            self.chunk_steps = self._skips_max - self._skips

    def _has_another(self) -> bool:
        """Say whether there is one more prompt for the step, starting a queued one if need be.

        A prompt with a schedule of its own never shares a step.
        """
        at = len(self.chunks)
        if at == len(self.running) and self._start_next() is None:
            return False
        resident = self.running[at]
        return not self._follows_schedule(resident) or _literal_chunk(resident) is None

    def _follows_schedule(self, resident: Resident) -> bool:
        """Say whether the prompt came with a schedule that this engine heeds: a stock one none."""
        return bool(resident.job.chunks) and self._spec.chunk_mode is not ChunkMode.STATIC

    def _count(self, resident: Resident, sign: int) -> None:
        remaining = resident.target_tokens - resident.computed_tokens
        self.backlog_tokens += sign * remaining
        self.backlog_pairs += sign * token_pairs(remaining, resident.computed_tokens)


def _literal_chunk(resident: Resident) -> tuple[int, int] | None:
    """Return (chunk_tokens, steps left of it) of the prompt's own schedule, None when it has none.

    A schedule that is used up, as after a preemption, leaves the node to size the rest.
    """
    done = resident.chunk_steps_done
    for chunk_tokens, steps in resident.job.chunks:
        if done < steps:
            return chunk_tokens, steps - done
        done -= steps
    return None
