"""Makes spans of requests that ended, and posts them by OTLP over HTTP: the extra `otel`.

A request is one span, with a span below it for each part of its time to first token and for its
stream. Everything here runs in a thread, a batch at a time; a collector that is slow or away costs
spans, which are counted, and no request any time. Names are those of OpenTelemetry's conventions
for HTTP and generative AI where they have one, and begin with `spillway.` elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from spillway.clock import Clock
from spillway.core.decide import Decision
from spillway.core.errors import ConfigError
from spillway.router.request_log import RequestLog
from spillway.router.tracing import Leg, Traced, Tracer
from spillway.wire.tracingconfig import TracingConfig

# The thread shares its interpreter with the loop, so a batch is no more than a few milliseconds.
BATCH_REQUESTS = 16
EVERY_S = 1.0
FAILED = "export_failed"
NS_PER_S = 1_000_000_000

Attributes = dict[str, Any]


class SpanExport:
    """Sends what a tracer has to send. names: of the router and of its policy.

    Raises ConfigError where the extra is not installed.
    """

    def __init__(
        self,
        tracer: Tracer,
        config: TracingConfig,
        names: tuple[str, str],
        clock: Clock,
        log: RequestLog,
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise ConfigError(
                "tracing: OpenTelemetry is not installed; pip install 'spillway[otel]'"
            ) from None
        # Its own words would go to stderr with every batch; ours say it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        self._tracer = tracer
        self._clock = clock
        self._log = log
        self._is_failing = False
        self._exporter = OTLPSpanExporter(endpoint=config.endpoint, timeout=config.timeout_s)
        router_id, self._policy = names
        self._resource = Resource.create(
            {"service.name": config.service_name, "service.instance.id": router_id}
        )
        self._scope = InstrumentationScope("spillway.router")

    async def run(self) -> None:
        """Send what has ended, once a second, until cancelled."""
        while True:
            await self._clock.sleep_until(self._clock.now_s() + EVERY_S)
            await self.flush()

    async def flush(self, *, gives_up: bool = False) -> None:
        """Send what has ended so far; what cannot be sent is dropped and counted.

        gives_up: whether the first failure is taken to be that of the rest.
        """
        ended = self._tracer.ended
        for _ in range(len(ended) // BATCH_REQUESTS + 1):
            batch = [ended.popleft() for _ in range(min(len(ended), BATCH_REQUESTS))]
            if not batch:
                return
            is_sent = await asyncio.to_thread(self._send, batch)
            if is_sent:
                self._tracer.sent += len(batch)
            else:
                self._tracer.dropped[FAILED] += len(batch)
            if gives_up and not is_sent:
                self._tracer.dropped[FAILED] += len(ended)
                ended.clear()
            if is_sent is self._is_failing:
                self._is_failing = not is_sent
                event = "traces_lost" if self._is_failing else "traces_sent_again"
                self._log.note("error" if self._is_failing else "info", event)

    async def finish(self) -> None:
        """Send what is left, and nothing more. A collector that is away is waited for once."""
        await self.flush(gives_up=True)
        self._exporter.shutdown()

    def _send(self, batch: list[Traced]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = [span for traced in batch for span in self.spans(traced)]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def spans(self, traced: Traced) -> Iterator[Any]:
        """Return the spans of a request, its own first."""
        from opentelemetry.trace import SpanKind

        trace = traced.trace
        start_s, end_s = traced.arrival_s, traced.ended_s
        method = f"POST {traced.path}"
        fault = "" if traced.outcome in ("finished", "client_error", "cancelled") else _why(traced)
        own = (trace.span_id, trace.parent_id)
        attributes = _of_request(traced) | {"spillway.policy": self._policy}
        yield self._span(traced, method, own, start_s, end_s, attributes, SpanKind.SERVER, fault)
        before_s = start_s
        name = "spillway.queue"  # what the router does before the first leg, then between legs
        for leg in trace.legs:
            yield self._span(
                traced,
                name,
                (_below(leg.span_id, 1), trace.span_id),
                before_s,
                max(before_s, leg.since_s),
                {"spillway.held": trace.held} if name == "spillway.queue" else {},
            )
            until_s = leg.until_s or end_s
            yield self._span(
                traced,
                f"spillway.{leg.kind}",
                (leg.span_id, trace.span_id),
                leg.since_s,
                until_s,
                _of_leg(leg, trace.decision),
                SpanKind.CLIENT,
                leg.fault,
            )
            before_s = until_s
            name = (
                "spillway.handover" if leg.kind == "prefill" and not leg.fault else "spillway.retry"
            )
        if not trace.legs:
            own = (_below(trace.span_id, 1), trace.span_id)
            yield self._span(traced, name, own, start_s, end_s, {"spillway.held": trace.held})
        elif traced.first_byte_s:
            yield from self._of_answer(traced, trace.legs[-1])

    def _of_answer(self, traced: Traced, leg: Leg) -> Iterator[Any]:
        """Return the two parts of the leg that answered: until its first byte, and from then on."""
        first_s = min(max(traced.first_byte_s, leg.since_s), leg.until_s or traced.ended_s)
        end_s = leg.until_s or traced.ended_s
        one, two = (_below(leg.span_id, number) for number in (2, 3))
        yield self._span(
            traced,
            "spillway.first_token",
            (one, leg.span_id),
            leg.since_s,
            first_s,
            _of_prediction(traced.trace.decision, leg),
        )
        tokens = (
            {"gen_ai.usage.output_tokens": traced.output_tokens} if traced.output_tokens else {}
        )
        yield self._span(traced, "spillway.stream", (two, leg.span_id), first_s, end_s, tokens)

    def _span(
        self,
        traced: Traced,
        name: str,
        ids: tuple[str, str],
        start_s: float,
        end_s: float,
        attributes: Attributes,
        kind: Any = None,
        fault: str = "",
    ) -> Any:
        """Return one span. ids: its own, and its parent's or ""."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace.span import TraceState

        state = TraceState.from_header([traced.trace.state]) if traced.trace.state else None
        trace_id = int(traced.trace.trace_id, 16)
        flags = TraceFlags(TraceFlags.SAMPLED)
        own, parent = ids
        is_remote = own == traced.trace.span_id
        return ReadableSpan(
            name,
            SpanContext(trace_id, int(own, 16), False, flags, state),
            SpanContext(trace_id, int(parent, 16), is_remote, flags, state) if parent else None,
            self._resource,
            attributes | ({"error.type": fault} if fault else {}),
            kind=kind or SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, fault) if fault else Status(StatusCode.UNSET),
            start_time=_ns(traced, start_s),
            end_time=_ns(traced, end_s),
            instrumentation_scope=self._scope,
        )


def _of_request(traced: Traced) -> Attributes:
    trace, decision = traced.trace, traced.trace.decision
    found: Attributes = {
        "http.request.method": "POST",
        "http.route": traced.path,
        "url.path": traced.path,
        "gen_ai.operation.name": "chat" if traced.is_chat else "text_completion",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": traced.model,
        "gen_ai.request.max_tokens": traced.output_tokens_max,
        "gen_ai.usage.input_tokens": traced.prompt_tokens,
        "spillway.request.id": traced.request_id,
        "spillway.request.class": traced.class_name,
        "spillway.outcome": traced.outcome,
    }
    if traced.status:
        found["http.response.status_code"] = traced.status
    if traced.output_tokens:
        found["gen_ai.usage.output_tokens"] = traced.output_tokens
    if traced.first_byte_s:
        found["gen_ai.response.time_to_first_chunk"] = traced.first_byte_s - traced.arrival_s
    if traced.predicted_s:
        found["spillway.predicted_ttft"] = traced.predicted_s
    if trace.legs:
        found["spillway.nodes"] = [leg.node_id for leg in trace.legs]
    if decision is not None:
        found["spillway.verdict"] = decision.route.value
        found["spillway.reason"] = decision.reason.value
        found["spillway.decided_after"] = trace.decided_s - traced.arrival_s
        if decision.plan is not None:
            found["spillway.chunk_plan"] = ",".join(f"{c}*{n}" for c, n in decision.plan.chunks)
            found["spillway.chunk_plan.step_max"] = decision.plan.step_s_max
    return found


def _of_leg(leg: Leg, decision: Decision | None) -> Attributes:
    found: Attributes = {"spillway.node": leg.node_id}
    if decision is not None and leg.kind == "prefill":
        found["spillway.predicted.queue"] = decision.estimate.queue_s
        found["spillway.predicted.execute"] = decision.estimate.execute_s
    return found


def _of_prediction(decision: Decision | None, leg: Leg) -> Attributes:
    """Return what was predicted for what an engine does before its first token, in seconds."""
    if decision is None:
        return {}
    estimate = decision.estimate
    found: Attributes = {
        "spillway.predicted.admission": estimate.admission_s,
        "spillway.predicted.first_step": estimate.first_step_s,
    }
    if leg.kind == "decode":
        found["spillway.predicted.transfer"] = estimate.transfer_s
    else:
        found["spillway.predicted.queue"] = estimate.queue_s
        found["spillway.predicted.execute"] = estimate.execute_s
    return found


def _why(traced: Traced) -> str:
    faults = [leg.fault for leg in traced.trace.legs if leg.fault]
    return faults[-1] if faults else traced.outcome


def _below(span_id: str, number: int) -> str:
    """Return the id of a part of a span: as unlikely as its own to be there twice."""
    return f"{int(span_id, 16) ^ number:016x}"


def _ns(traced: Traced, at_s: float) -> int:
    return int((at_s + traced.unix_offset_s) * NS_PER_S)
