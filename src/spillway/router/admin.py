"""The pages that are not traffic: health, models, metrics, and why each request went its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from spillway.core.errors import RequestError
from spillway.core.placement import state_veto
from spillway.core.types import NodeView
from spillway.router.dashboard import figures, read_page
from spillway.router.discovery import Discovery
from spillway.router.gauges import of_discovery, of_nodes, of_pools, of_shell
from spillway.router.health import HealthWatch
from spillway.router.metrics import render
from spillway.router.shell import Shell
from spillway.wire.openai import MODELS_PATH

DECISIONS_SHOWN = 50
JSON_LINE = b"content-type: application/json\r\n"
FRESH_LINE = b"cache-control: no-store\r\n"
# The page holds no figures and may load nothing but its own.
PAGE_LINES = (
    b"content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\n"
    b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'; "
    b"script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n"
)
METRICS_LINE = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Page(NamedTuple):
    """An answer: its status, body and header lines."""

    status: int
    body: bytes
    lines: bytes = JSON_LINE


class Admin:
    """Answers GET requests by path. Each page is made when it is asked for."""

    def __init__(self, shell: Shell, health: HealthWatch, count_conns: Callable[[], int]) -> None:
        self._shell = shell
        self._health = health
        self._count_conns = count_conns
        self.discovery: Discovery | None = None
        self._pages: dict[str, Callable[[str], Page]] = {
            MODELS_PATH: self._models,
            "/health": self._health_page,
            "/metrics": self._metrics,
            "/debug/decisions": self._decisions,
            "/dashboard": self._dashboard,
            "/dashboard/data": self._figures,
        }

    @property
    def paths(self) -> Iterable[str]:
        return self._pages.keys()

    def answer(self, path: str, query: str) -> Page:
        """Return the page at `path`, which must be one of `paths`. Raises RequestError."""
        return self._pages[path](query)

    def _models(self, query: str) -> Page:
        return Page(200, self._shell.models.body())

    def _health_page(self, query: str) -> Page:
        """200 while a request can be served: by both pools, or by deflection alone."""
        cluster = self._shell.dispatcher.ledger.cluster(
            self._shell.clock.now_s(), self._shell.dispatcher.arrived
        )
        prefill = [node for node in cluster.prefill if self._is_up(node)]
        decode = [node for node in cluster.decode if self._is_up(node)]
        deflectable = [node for node in decode if state_veto(node, cluster) is None]
        healthy = bool(decode and (prefill or deflectable))
        body = {
            "status": "ok" if healthy else "unavailable",
            "prefill_nodes_usable": len(prefill),
            "decode_nodes_usable": len(decode),
            "decode_nodes_deflectable": len(deflectable),
        }
        return Page(200 if healthy else 503, msgspec.json.encode(body))

    def _is_up(self, node: NodeView) -> bool:
        return node.usable and self._health.nodes[node.node_id].is_up

    def _decisions(self, query: str) -> Page:
        """`?id=REQUEST` for one request, else the last `?n=COUNT`, the newest first."""
        asked = parse_qs(query)
        log = self._shell.decisions
        if "id" in asked:
            found = log.find(asked["id"][-1])
            if not found:
                raise RequestError("no kept decision is about that request", status=404, param="id")
        else:
            found = log.recent(_count(asked.get("n", [str(DECISIONS_SHOWN)])[-1]))
        return Page(200, msgspec.json.encode({"decisions": found}))

    def _dashboard(self, query: str) -> Page:
        return Page(200, read_page(), PAGE_LINES)

    def _figures(self, query: str) -> Page:
        return Page(200, figures(self._shell, self._count_conns()), JSON_LINE + FRESH_LINE)

    def _metrics(self, query: str) -> Page:
        shell = self._shell
        samples = {
            **shell.metrics.counted(),
            **of_pools(shell.pools),
            **of_nodes(shell),
            **of_shell(shell, self._count_conns()),
            **({} if self.discovery is None else of_discovery(self.discovery, shell.clock.now_s())),
        }
        return Page(200, render(samples, shell.metrics.histograms()).encode(), METRICS_LINE)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) == 0:
        raise RequestError(f"n is {text[:32]!r}; it must be a whole number above 0", param="n")
    return int(text[:9])
