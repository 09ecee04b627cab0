"""Listens to the nodes' reports: one endless response per node, one JSON line per report.

A line that is no report, comes out of order or from a node of the other role is dropped and
counted; the node then looks silent, and silence vetoes deflection. A stream that breaks or falls
silent is opened again with a bounded backoff. A node without reports (404) is left to the ledger
and to what its own settings say (`stock.py`), and asked again now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import httptools

from spillway.core.errors import NodeError
from spillway.core.events import ChunkingLearned, NodeReported
from spillway.core.types import ChunkMode, NodeId, NodeSpec, Role
from spillway.router.fetch import Unchunker
from spillway.router.http_client import Fault, Framing, ResponseHead, UpstreamConnection
from spillway.router.pool import NodePool
from spillway.router.shell import Shell
from spillway.router.stock import StockSettings
from spillway.wire.report import REPORTS_PATH, NodeReport, decode, to_state


class ReportStream:
    """The reports of one node. It is an `AnswerSink`.

    report_url: the port of a plug-in inside the engine, which also takes orders; "" when the node
    itself reports.  on_absent: called when the node says that it has no reports.
    """

    __slots__ = (
        "_expect_line_by_s",
        "_failures",
        "_has_port",
        "_leg",
        "_lines",
        "_loop",
        "_on_absent",
        "_partial",
        "_pool",
        "_seq",
        "_shell",
        "_spec",
        "_timer",
        "_unchunker",
    )

    def __init__(
        self,
        shell: Shell,
        spec: NodeSpec,
        report_url: str = "",
        on_absent: Callable[[NodeId], None] = lambda node_id: None,
    ) -> None:
        self._shell = shell
        self._spec = spec
        self._has_port = bool(report_url)
        self._on_absent = on_absent
        self._pool = (
            NodePool(spec.node_id, report_url, shell.settings, clock=shell.clock)
            if report_url
            else shell.pools[spec.node_id]
        )
        shell.reserving.pools[spec.node_id] = self._pool
        key = shell.settings.engine_api_key
        self._lines = b"authorization: Bearer %b\r\n" % key.encode() if key else b""
        self._loop = asyncio.get_running_loop()
        self._leg: UpstreamConnection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._reset()

    def _reset(self) -> None:
        self._unchunker: Unchunker | None = None
        self._partial = b""
        self._seq = -1
        self._expect_line_by_s = self._shell.clock.now_s() + self._shell.settings.report_silence_s

    def open(self) -> None:
        """Ask the node for its reports, now; nothing happens while a stream is open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leg is None:
            self._reset()
            target = f"{REPORTS_PATH}?router={self._shell.router_id}".encode()
            self._leg = self._pool.get(self, target, self._lines)

    def close(self) -> None:
        """Stop listening for good."""
        if self._timer is not None:
            self._timer.cancel()
        if self._leg is not None:
            self._leg.abort()
        self._shell.reserving.pools.pop(self._spec.node_id, None)
        if self._has_port:
            self._pool.close()

    def excuse(self, lost_s: float, now_s: float) -> None:
        """Take off what our own loop stood still from the node's silence."""
        latest_s = now_s + self._shell.settings.report_silence_s
        self._expect_line_by_s = min(self._expect_line_by_s + lost_s, latest_s)

    def sweep(self, now_s: float) -> None:
        """Open a stream again that has been silent for too long."""
        if self._has_port:
            self._pool.sweep(now_s)
        if self._leg is not None and now_s > self._expect_line_by_s:
            self._leg.fail(Fault.SILENT)

    # --- AnswerSink ---------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        if head.status == 200:
            self._unchunker = Unchunker() if head.framing is Framing.CHUNKED else None
            return
        self._drop_leg()
        if head.status == 404:
            self._on_absent(self._spec.node_id)
            self._again_in(self._shell.settings.report_absent_retry_s)
        else:
            self._count_dropped(f"http_{head.status}")
            self._back_off()

    def on_body(self, data: bytes) -> None:
        if self._unchunker is not None:
            try:
                data = self._unchunker.feed(data)
            except httptools.HttpParserError:
                self._give_up("bad_framing")
                return
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if line.strip():
                self._take(line)
        if len(self._partial) > self._shell.settings.report_line_bytes_max:
            self._give_up("too_long")

    def on_end(self) -> None:
        self._leg = None
        self._back_off()

    def on_fault(self, fault: Fault) -> None:
        self._leg = None
        if fault is Fault.REFUSED and not self._has_port:
            # A node that just died is noticed here first. A plug-in may fall silent by itself.
            self._shell.on_refused(self._spec.node_id)
        else:
            self._count_dropped(fault.value)
        self._back_off()

    # --- inside -------------------------------------------------------------------------------

    def _take(self, line: bytes) -> None:
        now_s = self._shell.clock.now_s()
        self._expect_line_by_s = now_s + self._shell.settings.report_silence_s
        try:
            report = decode(line)
        except NodeError:
            self._count_dropped("malformed")
            return
        if report.seq <= self._seq:
            self._count_dropped("out_of_order")
            return
        self._seq = report.seq
        if report.role is not self._spec.role:
            self._count_dropped("wrong_role")
            return
        self._failures = 0
        self._shell.metrics.reports[self._spec.node_id] += 1
        if self._has_port:
            self._shell.takes_orders.add(self._spec.node_id)
        state = to_state(report, now_s, self._shell.router_id)
        node_id = self._spec.node_id
        self._shell.last_reports[node_id] = report
        if state.node_id != node_id:  # its name is ours to give, whatever the engine calls itself
            state = state._replace(node_id=node_id)
        node = self._shell.dispatcher.ledger.nodes[node_id]
        self._learn_chunking(report, node.spec)
        believed_tokens = node.view.backlog_tokens
        self._shell.tell(NodeReported(state))
        drift_tokens = node.view.backlog_tokens - believed_tokens
        metrics = self._shell.metrics
        metrics.drift_tokens[node_id] = drift_tokens
        metrics.drift_tokens_total[node_id] += abs(drift_tokens)

    def _learn_chunking(self, report: NodeReport, spec: NodeSpec) -> None:
        """A plug-in may have left the engine to itself, and knows its largest chunk anyway."""
        mode, tokens = report.chunk_mode, report.chunk_tokens_max or spec.chunk_tokens_max
        is_news = (mode, tokens) != (spec.chunk_mode, spec.chunk_tokens_max)
        if is_news and spec.role is Role.DECODE and mode is not ChunkMode.UNKNOWN:
            self._shell.tell(ChunkingLearned(spec.node_id, mode, tokens))

    def _count_dropped(self, kind: str) -> None:
        self._shell.metrics.reports_dropped[self._spec.node_id, kind] += 1

    def _give_up(self, kind: str) -> None:
        self._count_dropped(kind)
        self._drop_leg()
        self._back_off()

    def _drop_leg(self) -> None:
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.abort()

    def _back_off(self) -> None:
        self._shell.takes_orders.discard(self._spec.node_id)
        settings = self._shell.settings
        wait_s = settings.report_retry_first_s * 2.0 ** min(self._failures, 16)
        self._failures += 1
        self._again_in(min(wait_s, settings.report_retry_max_s))

    def _again_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self.open)


class Intake:
    """Every node's report stream."""

    def __init__(
        self,
        shell: Shell,
        specs: Iterable[NodeSpec],
        report_urls: Mapping[NodeId, str] = MappingProxyType({}),
    ) -> None:
        self._shell = shell
        self._stock = StockSettings(shell)
        self.streams: dict[NodeId, ReportStream] = {
            spec.node_id: ReportStream(
                shell, spec, report_urls.get(spec.node_id, ""), self._stock.ask
            )
            for spec in specs
        }

    def add(self, spec: NodeSpec, report_url: str) -> None:
        """Listen to one more node, once it is back; see `reopen`."""
        self.streams[spec.node_id] = ReportStream(self._shell, spec, report_url, self._stock.ask)

    def remove(self, node_id: NodeId) -> None:
        """Listen to a node no more."""
        self.streams.pop(node_id).close()

    def open(self) -> None:
        for stream in self.streams.values():
            stream.open()

    def reopen(self, node_id: NodeId) -> None:
        """A lost node is back: do not wait for the backoff."""
        self._stock.forget(node_id)
        self.streams[node_id].open()

    def excuse(self, lost_s: float, now_s: float) -> None:
        for stream in self.streams.values():
            stream.excuse(lost_s, now_s)

    def sweep(self, now_s: float) -> None:
        for stream in self.streams.values():
            stream.sweep(now_s)

    def close(self) -> None:
        self._stock.close()
        for stream in self.streams.values():
            stream.close()
