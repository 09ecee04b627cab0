"""The engine behind the HTTP port: the paced node, held KV, the link, reports and records.

It knows requests (`Flight`) and engines to pull from, and nothing of status lines: what goes wrong
is raised as an error of the tree, which `server.py` turns into an answer.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import aiohttp
import msgspec

from spillway.clock import Clock
from spillway.core.errors import NodeError
from spillway.core.reservation import Ask as ReserveAsk
from spillway.core.reservation import Grants, Verdict
from spillway.core.types import Role
from spillway.fakeengine.answering import Envelope
from spillway.fakeengine.asking import Ask, AskLimits, Orders
from spillway.fakeengine.flight import Flight
from spillway.fakeengine.kvparams import HoldKv, PullKv, handover_params
from spillway.fakeengine.leases import Leases
from spillway.fakeengine.metrics import EngineMetrics
from spillway.fakeengine.pace import PacedNode
from spillway.fakeengine.records import EngineRecord, RecordFile
from spillway.fakeengine.reports import ReportPublisher
from spillway.fakeengine.settings import EngineSettings
from spillway.sim.link import Link
from spillway.sim.node import SimNode
from spillway.sim.residents import Job
from spillway.wire.kvparams import HeldKv
from spillway.wire.order import DispatchesSeen
from spillway.wire.report import NodeReport, StepTaken
from spillway.wire.reserve import load_of, with_grants

PULL_PATH = "/fake/kv_pull"
CONNECT_TIMEOUT_S = 5.0
PULL_TIMEOUT_S = 600.0
FINISHED_REASONS = {"cancelled": "abort", "failed": "error"}  # vLLM's words


class EngineFull(NodeError):
    """The engine has as many requests under way as it takes; nothing was started."""


class UnknownKv(NodeError):
    """The KV asked for is not here: never was, was pulled already, or its lease ended."""


class Backend:
    """One engine. Every method runs on the event loop it was made on."""

    def __init__(self, settings: EngineSettings, port: int, clock: Clock) -> None:
        self.settings = settings
        self.port = port
        self.node_id = settings.node_id or f"{settings.role}-{port}"
        # Another one after every start, so that KV of an earlier life is not mistaken for ours.
        self.engine_id = f"{self.node_id}-{clock.now_s():.6f}"
        # `created` in answers, which clients only copy: this clock's seconds, not the epoch's.
        self.created_s = int(clock.now_s())
        self.spec = settings.spec(self.node_id)
        self.metrics = EngineMetrics(settings.model)
        loop = asyncio.get_running_loop()
        self.reports = ReportPublisher(self._report, self.metrics.dropped, loop)
        self.node = SimNode(self.spec, settings.world(self.spec), per_token=True)
        self.pace = PacedNode(self.node, clock, self.metrics, self.reports.changed)
        self.leases = Leases(loop, settings.lease_s, self._lease_expired)
        self.link = Link(self.spec)
        self.records = RecordFile(settings.records)
        self.limits = AskLimits(
            model=settings.model,
            context_tokens_max=self._context_tokens_max(),
            natural_output_tokens=settings.natural_output_tokens,
        )
        self._clock = clock
        self._seen = DispatchesSeen(self.metrics.dropped)
        self._grants = Grants()
        self._requests = 0
        self._open = 0
        self._blocks = 0
        self._last_step: StepTaken | None = None
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
            timeout=aiohttp.ClientTimeout(total=PULL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
        )

    def stop(self) -> None:
        """Take no more time and fail what is under way; the handlers still have to hear of it."""
        self.reports.close()
        self.leases.close()
        self.pace.stop("the engine is shutting down")

    async def close(self) -> None:
        """Let go of sockets and write the records that wait; call when no handler runs any more."""
        await self._client.close()
        self.records.flush()

    # --- one request ---------------------------------------------------------------------------

    def open_flight(self, ask: Ask, orders: Orders) -> Flight:
        """Admit a request; `end_flight` must follow. Raises EngineFull."""
        if self._open >= self.settings.requests_max:
            self.metrics.dropped["engine_full"] += 1
            raise EngineFull(f"{self.node_id} has {self._open} requests under way; retry later")
        self._open += 1
        self._requests += 1
        base = orders.request_id or f"{self.node_id}-{self._requests}"
        answer_id = f"{'chatcmpl' if ask.chat else 'cmpl'}-{base}"
        return Flight(
            ask,
            orders,
            Envelope(
                chat=ask.chat,
                answer_id=answer_id,
                created_s=self.created_s,
                model=self.settings.model,
            ),
            self.metrics,
            request_id=base,
            node_request_id=f"{answer_id}-{self._requests:08x}",
            arrived_s=self.pace.now_s(),
        )

    async def start_flight(self, flight: Flight, kv: HoldKv | PullKv | None) -> None:
        """Hand the request to the node, after its KV was pulled if it is elsewhere.

        Raises NodeError when the KV cannot be had or the node could never hold the request.
        """
        ask, orders = flight.ask, flight.orders
        match kv:
            case HoldKv():
                flight.leg, submit = "prefill", self.node.submit_prefill
            case PullKv():
                flight.leg, submit = "decode", self.node.submit_pulled
                flight.cached_tokens = kv.cached_tokens
                flight.kv_bytes_moved = await self._pull(kv)
            case None:
                flight.leg, submit = "whole", self.node.submit_local
        job = Job(
            request_id=flight.node_request_id,
            prompt_tokens=ask.prompt_tokens,
            output_tokens=ask.output_tokens,
            slo_tbt_s=orders.slo_tbt_s,
            chunks=orders.chunks,
        )
        if orders.dispatch is not None:
            # In one breath with the submission: a report that claims a dispatch must include it.
            self._seen.note(*orders.dispatch)
            self._grants.arrived(*orders.dispatch)
        flight.submitted_s = self.pace.now_s()
        flight.resident = self.pace.submit(flight, job, submit)

    def hand_over(self, flight: Flight) -> dict[str, Any]:
        """Put a finished prefill leg's KV under a lease; return its `kv_transfer_params`."""
        kv_tokens = flight.ask.prompt_tokens
        expires_at_s = self.leases.hold(flight.node_request_id, kv_tokens)
        params = handover_params(
            engine_id=self.engine_id,
            request_id=flight.node_request_id,
            host=self.settings.host,
            port=self.port,
            kv_tokens=kv_tokens,
            cached_tokens=flight.cached_tokens,
            first_block=self._blocks,
            expires_at_s=expires_at_s,
        )
        self._blocks += len(params["remote_block_ids"])
        return params

    def end_flight(self, flight: Flight) -> None:
        """Close the books on a request, however it ended; one that still runs is stopped."""
        self._open -= 1
        outcome = flight.outcome()
        unclaimed = flight.leg == "prefill" and flight.node_request_id not in self.leases
        if outcome != "finished" or unclaimed:
            self.pace.abort(flight.node_request_id)
        self.metrics.finished[FINISHED_REASONS.get(outcome, flight.ask.finish_reason)] += 1
        self.records.add(self._record(flight, outcome))

    # --- KV between engines --------------------------------------------------------------------

    async def serve_pull(self, engine_id: str, request_id: str, kv_tokens: int) -> int:
        """Send held KV over the link; return its bytes when the last one has left.

        kv_tokens 0 only frees it, which is how an engine gives back KV it will not use. The KV is
        freed also when the puller gives up half-way. Raises UnknownKv.
        """
        held_tokens = self.leases.take(request_id) if engine_id == self.engine_id else None
        if held_tokens is None:
            self.metrics.dropped["unknown_kv"] += 1
            raise UnknownKv(f"{self.node_id} holds no KV of request {request_id}")
        try:
            if kv_tokens == 0:
                return 0
            kv_bytes = held_tokens * self.spec.profile.kv_bytes_per_token
            # Both ends are taken to be alike: the puller does not say how fast its own link is.
            _, end_s = self.link.take(self._clock.now_s(), kv_bytes, self.spec)
            await self._clock.sleep_until(end_s)
            return kv_bytes
        finally:
            self.pace.release_kv(request_id)

    def release(self, held: HeldKv) -> None:
        """Free held KV as the end of its lease would. Names that are unknown are only counted."""
        is_mine = held.engine_id == self.engine_id
        if is_mine and self.leases.take(held.request_id) is not None:
            self.metrics.dropped["kv_released"] += 1
            self.pace.release_kv(held.request_id)
        else:
            self.metrics.dropped["release_unknown"] += 1

    async def give_back(self, kv: PullKv) -> None:
        """Tell the prefill engine that its KV is not wanted, as vLLM does on a refused request."""
        try:
            await self._pull(kv, free_only=True)
        except NodeError:
            self.metrics.dropped["give_back_failed"] += 1

    async def _pull(self, kv: PullKv, *, free_only: bool = False) -> int:
        """Return the bytes moved. Raises NodeError when the KV did not come, whatever the cause."""
        order = {
            "remote_engine_id": kv.engine_id,
            "remote_request_id": kv.request_id,
            "kv_tokens": 0 if free_only else kv.kv_tokens,
        }
        url = f"http://{kv.host}:{kv.port}{PULL_PATH}"
        try:
            async with self._client.post(url, json=order) as answer:
                if answer.status == 200:
                    kv_bytes: int = (await answer.json())["kv_bytes"]
                    return kv_bytes
                failure = f"status {answer.status}: {await answer.text()}"
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            failure = repr(error)
        self.metrics.dropped["pull_failed"] += 1
        raise NodeError(f"KV of {kv.request_id} could not be pulled from {url}: {failure}")

    def _lease_expired(self, request_id: str) -> None:
        self.metrics.dropped["kv_expired"] += 1
        self.pace.release_kv(request_id)

    # --- what it says of itself ----------------------------------------------------------------

    def metrics_page(self) -> str:
        """Return the `/metrics` page as of now."""
        state = self.pace.state()
        prompts = self.node.prompts
        return self.metrics.page(
            running=state.decode_seqs + len(prompts.running),
            waiting=len(prompts.queued) + len(self.node.arrived),
            kv_used_tokens=state.kv_used_tokens,
            kv_capacity_tokens=state.kv_capacity_tokens,
        )

    def server_info(self) -> dict[str, Any]:
        """Return the part of vLLM's `/server_info` that says how it schedules and hands KV over."""
        spec = self.spec
        is_prefill = spec.role is Role.PREFILL
        scheduler = {
            "max_num_batched_tokens": spec.step_tokens_max if is_prefill else spec.chunk_tokens_max,
            "max_num_seqs": spec.seqs_max,
            "long_prefill_token_threshold": 0,
            "enable_chunked_prefill": True,
            "scheduler_cls": None if self.settings.stock else "spillway.engine.scheduler.make",
        }
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_producer" if is_prefill else "kv_consumer",
        }
        return {"vllm_config": {"scheduler_config": scheduler, "kv_transfer_config": transfer}}

    def _context_tokens_max(self) -> int:
        """Return the longest prompt plus output that the node can ever hold."""
        capacity_tokens = self.spec.kv_capacity_tokens
        limit_tokens = self.settings.context_tokens_max
        return min(limit_tokens, capacity_tokens - 1) if capacity_tokens else limit_tokens

    def reserve(self, ask: ReserveAsk) -> tuple[Verdict, NodeReport]:
        """Return whether a deflection may come, and how the node stands."""
        now_s = self._clock.now_s()
        verdict = self._grants.decide(ask, load_of(self._picture()), now_s)
        self.metrics.reservations[verdict.value] += 1
        if verdict is Verdict.GRANTED:
            self.reports.changed()
        return verdict, with_grants(self._picture(), self._grants, self.reports.routers)

    def _report(self, seq: int) -> NodeReport:
        recent_steps = tuple(self.node.recent_steps)
        self.node.recent_steps.clear()
        if recent_steps:
            self._last_step = recent_steps[-1]
        self._grants.expire(self._clock.now_s())
        report = with_grants(self._picture(), self._grants, self.reports.routers)
        return msgspec.structs.replace(report, seq=seq, recent_steps=recent_steps)

    def _picture(self) -> NodeReport:
        """Return how the node stands, without what it has granted."""
        state, spec, last = self.pace.state(), self.spec, self._last_step
        return NodeReport(
            node_id=self.node_id,
            role=spec.role,
            seq=0,
            step=state.step,
            backlog_prompts=state.backlog_prompts,
            backlog_tokens=state.backlog_tokens,
            backlog_token_pairs=state.backlog_token_pairs,
            decode_seqs=state.decode_seqs,
            kv_used_tokens=state.kv_used_tokens,
            kv_capacity_tokens=state.kv_capacity_tokens,
            dispatch_seen=self._seen.by_router(),
            tbt_s_min=None if state.tbt_s_min == inf else state.tbt_s_min,
            over_budget=state.over_budget,
            last_step_predicted_s=last.predicted_s if last else 0.0,
            last_step_actual_s=last.actual_s if last else 0.0,
            chunk_mode=spec.chunk_mode,
            chunk_tokens_max=spec.chunk_tokens_max,
            releases=spec.role is Role.PREFILL,
        )

    def _record(self, flight: Flight, outcome: str) -> EngineRecord:
        resident = flight.resident
        pulled_s = resident.kv_arrived_s if resident else None
        parts: dict[str, float | None] = {}
        if resident is not None:
            prefilled_s = resident.prefill_done_s
            parts = {
                "queued_s": _between(flight.submitted_s, resident.started_s),
                "execute_s": _between(resident.started_s, prefilled_s),
                "transfer_s": _between(flight.arrived_s, pulled_s),
                "admission_s": _between(pulled_s, resident.admitted_s),
                "first_step_s": _between(
                    resident.admitted_s if pulled_s else prefilled_s, resident.first_token_s
                ),
            }
        return EngineRecord(
            request_id=flight.request_id,
            node_id=self.node_id,
            role=self.spec.role,
            leg=flight.leg,
            outcome=outcome,
            prompt_tokens=flight.ask.prompt_tokens,
            output_tokens=flight.produced_tokens,
            kv_bytes_moved=flight.kv_bytes_moved,
            **parts,
        )


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s
