"""Takes up a client's request: checks it, measures its prompt, names it.

What is refused here, with a 4xx, no engine and no policy ever sees.
"""

from __future__ import annotations

from collections.abc import Container
from itertools import count
from math import inf, isfinite

from spillway.clock import Clock
from spillway.core.errors import RequestError
from spillway.core.prefixes import Chain
from spillway.core.types import NodeId, RequestId, RequestView
from spillway.router.http_server import ClientConnection, Request
from spillway.router.models import ModelBook
from spillway.router.prefixes import PromptMemory
from spillway.router.relay import Exchange, Owner
from spillway.router.settings import Classes, RouterSettings
from spillway.router.tokens import PromptRuler
from spillway.wire.openai import parse_body

REQUEST_ID_BYTES_MAX = 128
TIMEOUT_HEADER = "x-request-timeout-ms"


class Admission:
    """Makes an exchange of a client's request.

    live: the ids that are in use.  memory: of prompts sent before; None when nobody remembers.
    """

    def __init__(
        self,
        settings: RouterSettings,
        classes: Classes,
        clock: Clock,
        live: Container[RequestId],
        router_id: str,
        memory: PromptMemory | None = None,
    ) -> None:
        self.classes = classes
        self.models = ModelBook()
        self.ruler = PromptRuler()
        self._settings = settings
        self._clock = clock
        self._live = live
        self._router_id = router_id
        self._memory = memory
        self._numbers = count(1)

    def admit(
        self, owner: Owner, conn: ClientConnection, request: Request, *, is_chat: bool
    ) -> Exchange:
        """Return the exchange of a request, not yet begun. Raises RequestError (4xx)."""
        own = request.own
        if own.get(b"content-encoding", b"identity") != b"identity":
            raise RequestError("compressed bodies are not accepted", status=415)
        parsed = parse_body(request.body, is_chat=is_chat)
        if not self.models.may_exist(parsed.model):
            raise RequestError(
                f"the model {parsed.model[:128]!r} does not exist", status=404, param="model"
            )
        class_name, slo = self.classes.resolve(
            own.get(b"x-slo-class"), own.get(b"x-slo-ttft-ms"), own.get(b"x-slo-tbt-ms")
        )
        prompt_tokens, prompt_bytes = self.ruler.measure(parsed)
        request_id, id_line = self._name(own.get(b"x-request-id"))
        limit = parsed.output_tokens_max
        now_s = self._clock.now_s()
        chain: Chain = ()
        cached: tuple[tuple[NodeId, int], ...] = ()
        if self._memory is not None:
            chain, cached = self._memory.recall(parsed, prompt_tokens, prompt_bytes, now_s)
        timeout_ms, patience_s = own.get(b"x-request-timeout-ms"), self._settings.patience_s
        if timeout_ms is not None:
            patience_s = min(_timeout_s(timeout_ms), patience_s)
        view = RequestView(
            request_id,
            now_s,
            prompt_tokens,
            self._settings.output_tokens_default if limit is None else limit,
            slo,
            class_name,
            cached,
            now_s + patience_s,
        )
        return Exchange(owner, conn, request, parsed, prompt_bytes, view, id_line, chain)

    def _name(self, given: bytes | None) -> tuple[RequestId, bytes]:
        """Return the id that the request has here, and the header line with the client's own."""
        if given is None:
            request_id = self._unused(f"{self._router_id}-")
            return request_id, b"x-request-id: %b\r\n" % request_id.encode()
        if len(given) > REQUEST_ID_BYTES_MAX:
            raise RequestError(
                f"x-request-id is longer than {REQUEST_ID_BYTES_MAX} bytes", param="x-request-id"
            )
        request_id = given.decode("latin-1")
        if request_id in self._live:  # two clients may pick the same id; the core needs one each
            request_id = self._unused(f"{request_id}#")
        return request_id, b"x-request-id: %b\r\n" % given

    def _unused(self, start: str) -> RequestId:
        """Return an id that no live request has, though clients may choose any."""
        while (request_id := f"{start}{next(self._numbers)}") in self._live:
            pass
        return request_id


def _timeout_s(value: bytes) -> float:
    """Return for how long a client says that it waits for a first byte."""
    try:
        timeout_s = float(value) / 1000.0
    except ValueError:
        timeout_s = -inf
    if not (isfinite(timeout_s) and timeout_s > 0):
        shown = value[:64].decode("latin-1")
        raise RequestError(
            f"{TIMEOUT_HEADER} is {shown!r}; it must be a positive number of milliseconds",
            param=TIMEOUT_HEADER,
        )
    return timeout_s
