"""The plug-in of one scheduler: looks, plans, steers, measures, reports, and never fails aloud.

It holds everything that `scheduler.py` adds to a vLLM scheduler, so that the subclass there is a
few lines and all of this can be driven with a stand-in. An exception inside `schedule` would kill
the engine and every stream on it. So each entry is guarded: after the first failure the plug-in
only reports, after a few more it falls silent, and silence vetoes deflection at the router.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple, TypeVar

from spillway.clock import Clock, MonotonicClock
from spillway.core.controller import Controller
from spillway.core.errors import RequestError
from spillway.core.latency import token_pairs
from spillway.core.types import Role
from spillway.engine import compat
from spillway.engine.plan import Planner, StepPlan, limits_of
from spillway.engine.reporter import Reporter
from spillway.engine.settings import EngineSettings
from spillway.engine.steer import Steering
from spillway.engine.view import Prompt, Statuses, StepView, look
from spillway.wire.kvparams import HeldKv
from spillway.wire.order import decode_order
from spillway.wire.profile import load_profile
from spillway.wire.report import StepTaken

ERRORS_MAX = 8  # failures after which even reporting is given up
IN_FLIGHT_MAX = 16  # steps whose results are awaited; engines keep one or two
TARGETS_SLACK = 256  # remembered targets beyond twice the requests present, before they are pruned
BETWEEN_RATE = 0.1

T = TypeVar("T")


class InFlight(NamedTuple):
    """A step under way: its number, when it began, and what it computes."""

    step: int
    start_s: float
    start_cpu_s: float
    decode_seqs: int
    kv_tokens: int
    prefill_tokens: int
    pairs: float
    predicted_s: float
    budget_s: float


class Plugin:
    """Everything the subclass in `scheduler.py` adds.

    acting: whether steps are steered; `fault` says why not.
    errors: exceptions caught.        plan: the last step's, None when it was left to the engine.
    """

    def __init__(
        self,
        scheduler: Any,
        settings: EngineSettings,
        statuses: Statuses,
        *,
        engine_version: str = "unknown",
        clock: Clock | None = None,
        cpu_now_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Raises ConfigError on settings that make no sense on this engine."""
        self.settings = settings
        self.role = compat.role_of(scheduler, settings.role)
        self.errors = 0
        self.fault = ""
        self.plan: StepPlan | None = None
        self.controller: Controller | None = None
        self.planner: Planner | None = None
        self._scheduler = scheduler
        self._statuses = statuses
        self._clock = clock or MonotonicClock()
        self._cpu_now_s = cpu_now_s
        self._log = logging.getLogger("vllm.spillway")
        self._silent = False
        self._view = StepView()
        self._tbt_s_by_id: dict[str, float] = {}
        self._in_flight: dict[int, InFlight] = {}
        self._step = 0
        self._start_s = self._start_cpu_s = 0.0  # of the step being scheduled
        self._end_s = self._end_cpu_s = -inf  # of the last step that computed anything
        self._busy = False  # streams were waiting for the next step when the last one ended
        self._between_s = 0.0  # what usually passes between two steps
        self._requests_checked = False
        lacking = compat.missing(scheduler)
        if lacking:
            self.fault = f"this vLLM lacks {', '.join(lacking)}"
        else:
            self._prepare(settings)
        self.reporter = Reporter(scheduler, settings, self.role, self._clock)
        self._lease_holder = compat.lease_holder(scheduler)
        self._announce(engine_version)

    @property
    def acting(self) -> bool:
        return self.planner is not None and not self.fault

    def _prepare(self, settings: EngineSettings) -> None:
        if not settings.profile:
            self.fault = "no profile" if self.role is Role.DECODE else ""
            return
        self.controller = Controller(load_profile(settings.profile), learning=settings.learning)
        if self.role is Role.DECODE:
            scheduler = self._scheduler
            limits = limits_of(
                settings,
                scheduler.max_num_scheduled_tokens,
                1 + scheduler.num_spec_tokens,
                compat.chunk_multiple_tokens(scheduler),
            )
            self.planner = Planner(
                self.controller,
                settings,
                limits,
                hits_possible=bool(scheduler.cache_config.enable_prefix_caching),
            )

    def _announce(self, engine_version: str) -> None:
        if self.acting:
            what = f"sizes chunks by profile {self.settings.profile!r}"
        elif self.fault:
            what = f"ONLY REPORTS: {self.fault}"
        else:
            what = "only reports, as a prefill node should"
        self._log.info(
            "spillway: %s node on vLLM %s (tested: %s to %s) %s; %s",
            *(self.role, engine_version, compat.OLDEST_TESTED, compat.NEWEST_TESTED),
            *(what, self.reporter.whereabouts),
        )

    # --- what the subclass calls ----------------------------------------------------------------

    def added(self, request: Any) -> None:
        """A request has come in: remember its dispatch and its target."""
        self._guard(self._added, request)

    def before_schedule(self) -> Steering | None:
        """Look, report, and steer the step that is about to be scheduled, if there is need."""
        return self._guard(self._before_schedule)

    def restore(self, steering: Steering | None) -> None:
        """Undo what `before_schedule` did."""
        if steering is None:
            return
        try:
            steering.restore()
        except Exception as error:  # noqa: BLE001 - as in `_guard`, but silence is no excuse here
            self._failed(error)

    def after_schedule(self, output: Any) -> None:
        """Note what the step computes."""
        self._guard(self._after_schedule, output)

    def after_update(self, output: Any) -> None:
        """A step's results are in: measure and learn."""
        self._guard(self._after_update, output)

    def close(self) -> None:
        """Stop reporting."""
        self._guard(self.reporter.close)

    def _guard(self, call: Callable[..., T], *args: Any) -> T | None:
        if self._silent:
            return None
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001 - it would kill the engine and all its streams
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        self.plan = None
        if not self.fault:
            self.fault = f"{type(error).__name__}: {error}"[:200]
            self._log.error("spillway: only reports from now on", exc_info=error)
        if self.errors >= ERRORS_MAX:
            self._silent = True
            self._log.error("spillway: silent from now on, after %d errors", self.errors)
            self.reporter.close()

    # --- inside the guard -----------------------------------------------------------------------

    def _added(self, request: Any) -> None:
        if not self._requests_checked:
            self._requests_checked = True
            lacking = compat.missing_of_request(request)
            if lacking:
                raise AttributeError(f"this vLLM lacks {', '.join(lacking)}")
        scalar = compat.extra_arg(request)
        if scalar is None:
            return
        try:
            order = decode_order(scalar)
        except RequestError:
            self.reporter.dropped["order"] += 1
            return
        self.reporter.arrived(order.router_id, order.dispatch_id)
        if order.tbt_s is not None:
            targets = self._tbt_s_by_id
            targets[request.request_id] = order.tbt_s
            present = self._scheduler.requests
            if len(targets) > 2 * len(present) + TARGETS_SLACK:
                self._tbt_s_by_id = {key: targets[key] for key in targets if key in present}

    def _before_schedule(self) -> Steering | None:
        scheduler = self._scheduler
        self.plan = None
        now_s = self._start_s = self._clock.now_s()
        self._start_cpu_s = self._cpu_now_s()
        view = look(scheduler, self._statuses, self._tbt_s_by_id, self.settings.tbt_s)
        self._view = view
        if self.reporter.is_due(view, now_s):
            self._tell(view, now_s)
        if self.reporter.listener is not None and self.reporter.listener.orphans:
            self._end_leases(self.reporter.listener.orphans)
        late_s = self._late_s(now_s)
        if not self.acting or self.planner is None:
            return None
        if not (view.begun or view.queued):
            self.planner.skipped_steps = 0
            return None
        begun, queued = _in_order(view, scheduler.waiting)
        decode_tokens = view.decode_seqs  # drafts aside, each takes one
        if scheduler.num_spec_tokens:
            decode_tokens = compat.pending_tokens(scheduler.running)
        plan = self.planner.plan(view, begun, queued, decode_tokens, late_s)
        if plan is None:
            return None
        steering = Steering(scheduler)
        try:
            steering.apply(plan, queued)
        except BaseException:
            steering.restore()
            raise
        self.plan = plan
        return steering

    def _end_leases(self, orphans: deque[HeldKv]) -> None:
        """Let go of KV that routers say nobody will fetch; names that are not known are none."""
        for _ in range(len(orphans)):
            held = orphans.popleft()
            if self._lease_holder is not None:
                compat.end_lease(self._scheduler, self._lease_holder, held)

    def _late_s(self, now_s: float) -> float:
        """Return by how much more than usual has passed since the streams got their last token."""
        if not self._busy or self._in_flight:
            return 0.0
        between_s = now_s - self._end_s
        late_s = max(0.0, between_s - self._between_s)
        self._between_s += BETWEEN_RATE * (
            min(between_s, 2 * self._between_s + 1e-3) - self._between_s
        )
        return late_s

    def _after_schedule(self, output: Any) -> None:
        tokens = output.total_num_scheduled_tokens
        if not tokens:
            return
        self._step += 1
        view, scheduled = self._view, output.num_scheduled_tokens
        prefill_tokens = 0
        pairs = 0.0
        for prompts in (view.begun, view.queued):
            for prompt in prompts:
                chunk = scheduled.get(prompt.request.request_id)
                if chunk:
                    prefill_tokens += chunk
                    # By now the engine counts them as computed.
                    pairs += token_pairs(chunk, prompt.request.num_computed_tokens - chunk)
        seqs = tokens - prefill_tokens
        kv_tokens = view.kv_tokens + view.ready_kv_tokens
        predicted_s = 0.0
        if self.controller is not None:
            predicted_s = self.controller.predict_s(seqs, kv_tokens, prefill_tokens, pairs)
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            del self._in_flight[next(iter(self._in_flight))]
            self.reporter.dropped["step"] += 1
        self._in_flight[id(output)] = InFlight(
            step=self._step,
            start_s=self._start_s,
            start_cpu_s=self._start_cpu_s,
            decode_seqs=seqs,
            kv_tokens=kv_tokens,
            prefill_tokens=prefill_tokens,
            pairs=pairs,
            predicted_s=predicted_s,
            budget_s=self.plan.budget_s if self.plan is not None else 0.0,
        )

    def _tell(self, view: StepView, now_s: float) -> None:
        planner = self.planner if self.acting else None
        self.reporter.tell(view, self._step, planner, self.fault, self.errors, now_s)

    def _after_update(self, output: Any) -> None:
        if not self._scheduler.requests:
            # An idle engine schedules nothing, so this is the last chance to say what was freed:
            # KV that a decode node fetched, or whose lease ran out.
            self._tell(StepView(), self._clock.now_s())
        done = self._in_flight.pop(id(output), None)
        if done is None:
            return
        now_s, cpu_s = self._clock.now_s(), self._cpu_now_s()
        # Streams wait from their last token on; a step that nobody waited for begins with itself.
        began_s = self._end_s if self._busy else max(self._end_s, done.start_s)
        actual_s = now_s - began_s
        cpu_spent_s = cpu_s - max(self._end_cpu_s, done.start_cpu_s)
        self._end_s, self._end_cpu_s = now_s, cpu_s
        self._busy = bool(self._scheduler.running)
        features = (done.decode_seqs, done.kv_tokens, done.prefill_tokens, done.pairs)
        if self.controller is not None:
            self.controller.observe(*features, actual_s)
        self.reporter.note_step(
            StepTaken(
                done.step,
                *features,
                actual_s=max(0.0, actual_s),
                predicted_s=done.predicted_s,
                cpu_s=max(0.0, cpu_spent_s),
                budget_s=done.budget_s,
            )
        )


def _in_order(view: StepView, waiting: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts that will be served anyhow, and those that can be held back, in order.

    A prompt that stands in another queue than the waiting one has been admitted before.
    """
    by_id = {prompt.request.request_id: prompt for prompt in view.queued}
    queued = []
    for request in waiting if by_id else ():
        prompt = by_id.pop(request.request_id, None)
        if prompt is not None:
            queued.append(prompt)
    return [*view.begun, *by_id.values()], queued
