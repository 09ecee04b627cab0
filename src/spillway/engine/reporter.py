"""Turns the view of a scheduler into the node's report, and says how often.

It runs on the engine's thread before a step, at most every 20 ms and once more when the engine is
about to fall idle; a picture that is like the last one is not told again, because the listener
repeats that one as a sign of life.
"""

from __future__ import annotations

import uuid
from collections import Counter
from math import inf
from typing import Any

import msgspec

from spillway.clock import Clock
from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode, Role
from spillway.engine import compat
from spillway.engine.listener import Listener
from spillway.engine.plan import Planner
from spillway.engine.settings import EngineSettings
from spillway.engine.view import StepView
from spillway.wire.order import DispatchesSeen
from spillway.wire.report import NodeReport, StepTaken


class Reporter:
    """Tells routers how the engine stands.

    whereabouts: where reports are read, for the start-up log.  listener: None when report_port is
    0, so nobody is told anything.  dropped: what was dropped on this side, by kind.
    """

    def __init__(self, scheduler: Any, settings: EngineSettings, role: Role, clock: Clock) -> None:
        """Open the report port. Raises ConfigError when it cannot be had."""
        self.dropped: Counter[str] = Counter()
        self.seen = DispatchesSeen(self.dropped)
        self.listener: Listener | None = None
        self._scheduler = scheduler
        self._role = role
        self._interval_s = settings.report_interval_s
        self._boot_id = uuid.uuid4().hex
        self._told_at_s = -inf
        self._told: NodeReport | None = None
        self._last_step: StepTaken | None = None
        self._releases = compat.lease_holder(scheduler) is not None
        self._kv_capacity_tokens = compat.kv_capacity_tokens(scheduler)
        self.whereabouts = "reports nothing, since report_port is 0"
        rank = compat.rank_of(scheduler)
        port = settings.report_port + rank
        name = settings.node_id or f"{role.value}-{port}"
        self._node_id = f"{name}.{rank}" if rank else name
        if settings.report_port:
            self._listen(settings, port, clock)

    def _listen(self, settings: EngineSettings, port: int, clock: Clock) -> None:
        try:
            self.listener = Listener(
                settings.report_host,
                port,
                clock=clock,
                interval_s=settings.report_interval_s,
                heartbeat_s=settings.heartbeat_s,
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"spillway: report_port {port} on {settings.report_host!r} cannot be had"
                f" ({error}); choose another one in --additional-config"
            ) from None
        host, port = self.listener.address
        self.whereabouts = f"reports on {host}:{port}"

    def arrived(self, router_id: str, dispatch_id: int) -> None:
        """Remember a dispatch that the next report will include."""
        self.seen.note(router_id, dispatch_id)
        if self.listener is not None:
            self.listener.note_arrived(router_id, dispatch_id)

    def note_step(self, step: StepTaken) -> None:
        """Remember a step that is over; the next reports bring it."""
        self._last_step = step
        if self.listener is not None:
            self.listener.note_step(step)

    def is_due(self, view: StepView, now_s: float) -> bool:
        """Say whether to make a report now. An engine that falls idle has no later chance."""
        if self.listener is None:
            return False
        return now_s >= self._told_at_s + self._interval_s or view.is_empty

    def tell(
        self,
        view: StepView,
        step: int,
        planner: Planner | None,
        fault: str,
        errors: int,
        now_s: float,
    ) -> None:
        """Make a report and hand it to the listener, unless it says what the last one said."""
        if self.listener is None:
            return
        self._told_at_s = now_s
        report = self.make(view, step, planner, fault, errors)
        if report != self._told:
            self._told = report
            self.listener.publish(report)

    def make(
        self, view: StepView, step: int, planner: Planner | None, fault: str, errors: int
    ) -> NodeReport:
        """Return the report of a view. Some µs, and a walk over the prompts."""
        scheduler = self._scheduler
        begun_tokens, backlog_tokens, pairs = view.backlog()
        capacity = self._kv_capacity_tokens
        last = self._last_step
        report = NodeReport(
            node_id=self._node_id,
            role=self._role,
            seq=0,
            step=step,
            dispatch_seen=self.seen.by_router(),
            backlog_prompts=len(view.begun) + len(view.queued),
            backlog_tokens=backlog_tokens,
            backlog_token_pairs=pairs,
            decode_seqs=view.decode_seqs,
            kv_used_tokens=round(scheduler.kv_cache_manager.usage * capacity),
            kv_capacity_tokens=capacity,
            tbt_s_min=None if view.tbt_s_min == inf else view.tbt_s_min,
            last_step_predicted_s=last.predicted_s if last else 0.0,
            last_step_actual_s=last.actual_s if last else 0.0,
            chunk_mode=ChunkMode.STATIC,
            chunk_tokens_max=scheduler.max_num_scheduled_tokens,
            releases=self._releases,
            boot_id=self._boot_id,
            backlog_tokens_running=begun_tokens,
            pulling_seqs=view.pulling_seqs + view.unadmitted_seqs + view.ready_seqs,
            errors=errors,
            fault=fault,
        )
        if planner is None:
            return report
        controller = planner.controller
        return msgspec.structs.replace(
            report,
            over_budget=planner.over_budget(view),
            chunk_mode=ChunkMode.ENGINE,
            chunk_tokens_max=planner.limits.chunk_tokens_max,
            chunk_tokens_now=planner.chunk_now_tokens(view),
            gain_decode=controller.gain_decode,
            gain_prefill=controller.gain_prefill,
            margin=controller.margin,
        )

    def close(self) -> None:
        """Close the report port."""
        if self.listener is not None:
            self.listener.close()
