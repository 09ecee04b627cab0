"""Makes a scheduler follow a plan for one call, and puts everything back whatever happens.

Only what the engine reads anew in each step is touched: its two token limits, the order of its
running list (decodes before chunks, which costs nothing and keeps a chunk from ever displacing a
decode), and which local prompts stand in its waiting queue. Nothing else looks at that queue while
`schedule` runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from spillway.engine.plan import StepPlan
from spillway.engine.view import Prompt

_ADAPTIVE = "adaptive_long_prefill_threshold"


class Steering:
    """One step's intervention: `apply` before the engine schedules, `restore` after it."""

    __slots__ = ("_adaptive", "_held", "_limits", "_scheduler")

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._limits = (
            scheduler.max_num_scheduled_tokens,
            scheduler.scheduler_config.long_prefill_token_threshold,
        )
        self._adaptive = getattr(scheduler, _ADAPTIVE, None)
        self._held: list[Any] = []

    def apply(self, plan: StepPlan, queued: Iterable[Prompt]) -> None:
        """Set the limits, order the running list, and leave only admitted prompts in the queue.

        queued: every local prompt of the waiting queue, in its order.
        """
        scheduler = self._scheduler
        scheduler.max_num_scheduled_tokens = plan.step_tokens
        scheduler.scheduler_config.long_prefill_token_threshold = plan.request_tokens_max
        if self._adaptive:
            setattr(scheduler, _ADAPTIVE, False)
        scheduler.running.sort(key=attrgetter("is_prefill_chunk"))  # stable
        waiting = scheduler.waiting
        local = [prompt.request for prompt in queued]
        if local:
            waiting.remove_requests(local)
            self._held = local
            # Behind the remote requests, which must be looked at first.
            for request in local[: plan.admitted_prompts]:
                waiting.add_request(request)
                self._held = self._held[1:]

    def restore(self) -> None:
        """Put everything back. What the engine did not take keeps its place in line."""
        scheduler = self._scheduler
        step_tokens, request_tokens_max = self._limits
        scheduler.max_num_scheduled_tokens = step_tokens
        scheduler.scheduler_config.long_prefill_token_threshold = request_tokens_max
        if self._adaptive is not None:
            setattr(scheduler, _ADAPTIVE, self._adaptive)
        held, self._held = self._held, []
        waiting = scheduler.waiting
        for request in held:
            waiting.add_request(request)
