"""How many prompt tokens the next step takes, and from which prompts: the same rule as in `sim`.

The engine is steered by two numbers only, the tokens of the step and the most that one request may
take of them, plus which waiting prompts it gets to see. So a plan is made such that these say it
exactly: prompts that already run share the chunk evenly, queued ones join in order of arrival while
they fit whole, and only the last may be cut. What remote requests need comes on top: a local prompt
can neither take the token with which an arrived request joins, nor keep the engine from looking
at those that still have to fetch their KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from spillway.core.chunks import next_chunk_tokens
from spillway.core.controller import Controller
from spillway.core.latency import token_pairs
from spillway.engine.settings import EngineSettings
from spillway.engine.view import Prompt, StepView


class Limits(NamedTuple):
    """Sizes in tokens.

    step_tokens_max: the engine's own limit of one step.
    decode_tokens_max: what one decode may take, drafts included.
    """

    step_tokens_max: int
    decode_tokens_max: int
    chunk_tokens_max: int
    chunk_tokens_multiple: int
    chunk_tokens_min: int


class StepPlan(NamedTuple):
    """What the engine is told.

    shares: (prompt, tokens) of the step, begun ones first.
    admitted_prompts: how many of them were queued.
    step_tokens: of the whole step.      request_tokens_max: the most that one request may take.
    budget_s: what the chunks were sized to fill, in the raw profile's terms; 0 when decodes do
        not limit them.
    forced: no chunk is safe, but prompts have waited long enough.
    """

    shares: tuple[tuple[Prompt, int], ...]
    admitted_prompts: int
    step_tokens: int
    request_tokens_max: int
    budget_s: float
    forced: bool


def limits_of(
    settings: EngineSettings,
    step_tokens_max: int,
    decode_tokens_max: int = 1,
    chunk_tokens_multiple: int = 1,
) -> Limits:
    """Return the sizes that hold on an engine. chunk_tokens_multiple: what its model needs."""
    multiple = settings.chunk_tokens_multiple
    if chunk_tokens_multiple > 1:
        multiple = -(-multiple // chunk_tokens_multiple) * chunk_tokens_multiple
    return Limits(
        step_tokens_max=step_tokens_max,
        decode_tokens_max=decode_tokens_max,
        chunk_tokens_max=min(settings.chunk_tokens_max or step_tokens_max, step_tokens_max),
        chunk_tokens_multiple=multiple,
        chunk_tokens_min=settings.chunk_tokens_min or multiple,
    )


class Planner:
    """Plans step after step.

    hits_possible: queued prompts may find a prefix in the cache, which nobody knows before they
    are admitted. Their chunk is then sized as if behind their whole prompt: a little too small
    once, where a chunk sized for an empty context would be too slow.
    skipped_steps: how many steps in a row had no safe chunk.  forced_steps: how often one was
    forced.
    """

    def __init__(
        self,
        controller: Controller,
        settings: EngineSettings,
        limits: Limits,
        *,
        hits_possible: bool,
    ) -> None:
        self.limits = limits
        self.skipped_steps = 0
        self.forced_steps = 0
        self.controller = controller
        self._margin_frac = settings.tbt_margin_frac
        self._skipped_steps_max = settings.skipped_steps_max
        self._hits_possible = hits_possible

    def chunk_now_tokens(self, view: StepView) -> int:
        """Return the chunk that a fresh, endless prompt would get beside the present batch."""
        limits = self.limits
        seqs = view.decode_seqs + view.ready_seqs
        kv_tokens = view.kv_tokens + view.ready_kv_tokens
        return next_chunk_tokens(
            self.controller.profile,
            seqs,
            kv_tokens,
            0,
            1 << 30,
            self._budget_s(view, seqs, kv_tokens, 0.0),
            max(0, min(limits.chunk_tokens_max, limits.step_tokens_max - seqs)),
            limits.chunk_tokens_multiple,
        )

    def over_budget(self, view: StepView) -> bool:
        """Say whether the decodes alone exceed the strictest target's share."""
        if not view.decode_seqs:
            return False
        target_s = self._margin_frac * view.tbt_s_min
        return self.controller.over_budget(view.decode_seqs, view.kv_tokens, target_s)

    def plan(
        self,
        view: StepView,
        begun: Sequence[Prompt],
        queued: Sequence[Prompt],
        decode_tokens: int,
        late_s: float,
    ) -> StepPlan | None:
        """Return the plan of the next step, None to leave it to the engine.

        begun, queued: the view's prompts, `queued` in the order in which the engine admits.
        decode_tokens: what the running decodes take.  late_s: how late the step starts.
        It is left to the engine unless prompts and something that they could hurt meet.
        """
        if not (begun or queued):
            self.skipped_steps = 0
            return None
        remote = view.ready_seqs or view.unadmitted_seqs
        if not (view.decode_seqs or remote):
            self.skipped_steps = 0
            return None
        seqs = decode_tokens + view.ready_seqs
        kv_tokens = view.kv_tokens + view.ready_kv_tokens
        budget_s = self._budget_s(view, seqs, kv_tokens, late_s)
        looking_tokens = 1 if view.unadmitted_seqs else 0
        limits = self.limits
        room_tokens = limits.step_tokens_max - seqs - looking_tokens
        cap_tokens = max(0, min(limits.chunk_tokens_max, room_tokens))
        shares = self._shares(begun, queued, seqs, kv_tokens, budget_s, cap_tokens)
        forced = False
        if shares:
            self.skipped_steps = 0
        elif self.skipped_steps >= self._skipped_steps_max and cap_tokens:
            shares = _forced(begun, queued, min(limits.chunk_tokens_min, cap_tokens))
            forced = True
            self.skipped_steps = 0
            self.forced_steps += 1
        else:
            self.skipped_steps += 1
        if not shares and remote:
            # A running prompt takes whatever is left, and would take what is meant for the remote
            # requests. It can only be kept from that by giving it the least there is.
            least = limits.decode_tokens_max
            shares = [(one, min(least, one.remaining_tokens)) for one in begun]
        return self._told(len(begun), shares, seqs, looking_tokens, budget_s, forced)

    def _budget_s(self, view: StepView, seqs: int, kv_tokens: int, late_s: float) -> float:
        if not view.decode_seqs:
            return inf
        target_s = self._margin_frac * view.tbt_s_min - late_s
        return self.controller.chunk_budget_s(seqs, kv_tokens, target_s)

    def _shares(
        self,
        begun: Sequence[Prompt],
        queued: Sequence[Prompt],
        seqs: int,
        kv_tokens: int,
        budget_s: float,
        cap_tokens: int,
    ) -> list[tuple[Prompt, int]]:
        """Return what each prompt gets; empty when no chunk is safe."""
        profile = self.controller.profile
        multiple = self.limits.chunk_tokens_multiple
        shares: list[tuple[Prompt, int]] = []
        if begun:
            context = max(prompt.context_tokens for prompt in begun)
            rest = sum(prompt.remaining_tokens for prompt in begun)
            chunk = next_chunk_tokens(
                profile, seqs, kv_tokens, context, rest, budget_s, cap_tokens, multiple
            )
            each = chunk if len(begun) == 1 else chunk // len(begun)
            if not each:
                return []
            shares = [(prompt, min(each, prompt.remaining_tokens)) for prompt in begun]
            if any(tokens < prompt.remaining_tokens for prompt, tokens in shares):
                return shares
        taken = sum(tokens for _, tokens in shares)
        pairs = sum(token_pairs(tokens, prompt.context_tokens) for prompt, tokens in shares)
        for prompt in queued:
            rest = prompt.remaining_tokens
            chunk = next_chunk_tokens(
                profile,
                seqs + taken,
                kv_tokens,
                rest if self._hits_possible else prompt.context_tokens,
                rest,
                budget_s if budget_s == inf else budget_s - profile.token_pair_s * pairs,
                cap_tokens - taken,
                multiple,
            )
            if not chunk:
                break
            shares.append((prompt, chunk))
            if chunk < rest:
                break
            taken += chunk
            pairs += token_pairs(chunk, prompt.context_tokens)
        return shares

    def _told(
        self,
        begun_prompts: int,
        shares: list[tuple[Prompt, int]],
        seqs: int,
        looking_tokens: int,
        budget_s: float,
        forced: bool,
    ) -> StepPlan:
        admitted_prompts = max(0, len(shares) - begun_prompts)
        tokens = sum([tokens for _, tokens in shares])
        # Queued prompts stand behind the remote requests, so their tokens suffice to look at those.
        spare = 0 if admitted_prompts else looking_tokens
        limits = self.limits
        return StepPlan(
            shares=tuple(shares),
            admitted_prompts=admitted_prompts,
            step_tokens=min(seqs + tokens + spare, limits.step_tokens_max),
            request_tokens_max=max([limits.decode_tokens_max, *[share for _, share in shares]]),
            budget_s=0.0 if budget_s == inf else max(0.0, budget_s),
            forced=forced,
        )


def _forced(
    begun: Sequence[Prompt], queued: Sequence[Prompt], chunk_tokens: int
) -> list[tuple[Prompt, int]]:
    """Return the smallest chunk for the oldest prompt; running ones all get it, as they must."""
    if begun:
        return [(one, min(chunk_tokens, one.remaining_tokens)) for one in begun]
    return [(queued[0], min(chunk_tokens, queued[0].remaining_tokens))]
