"""Asks the Kubernetes API server: whole answers, and answers that go on line by line.

Each request has a connection of its own and reads certificates and token anew, because both are
replaced while a pod runs. Requests are few: one per watch, which lasts minutes.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httptools

from spillway.core.errors import ConfigError, NodeError
from spillway.router.fetch import Fetch, Unchunker
from spillway.router.http_client import Fault, Framing, ResponseHead, UpstreamConnection
from spillway.router.pool import NodePool
from spillway.router.settings import MIB, RouterSettings
from spillway.wire.kubeapi import read_status
from spillway.wire.kubeconfig import ApiAccess

LIST_BYTES_MAX = 64 * MIB
LINE_BYTES_MAX = 4 * MIB  # etcd takes no object above 1.5 MiB
ANSWER_S = 30.0
REMEDIES = {
    401: "its token is not accepted",
    403: "the service account may not get, list and watch pods; give it that role",
    404: "there is no such path; is this an API server?",
}


class ApiFault(NodeError):
    """A request to the API server that failed. kind: a word to count it by. status: 0 is none."""

    def __init__(self, kind: str, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status


class KubeClient:
    """Requests to one API server."""

    def __init__(self, access: ApiAccess, settings: RouterSettings) -> None:
        self._access = access
        self._settings = settings
        url = urlsplit(access.server)
        self._origin = f"{url.scheme}://{url.netloc}"
        self._prefix = url.path

    async def get(self, target: str) -> bytes:
        """Return the body of a whole answer. Raises ApiFault unless it is 200."""
        sink = _Whole(LIST_BYTES_MAX)
        return await self._ask(sink, target, ANSWER_S)

    async def follow(self, target: str, take: Callable[[bytes], None], limit_s: float) -> None:
        """Give each line of an answer to `take`, and return when it ends well.

        An answer that is still not over after `limit_s` counts as broken. Raises ApiFault, and
        whatever NodeError `take` raises, which ends the answer.
        """
        await self._ask(_Lines(take), target, limit_s)

    async def _ask(self, sink: _Whole | _Lines, target: str, limit_s: float) -> bytes:
        try:
            pool = NodePool("kubernetes", self._origin, self._settings, tls=self._tls())
            lines = b"accept: application/json\r\nuser-agent: spillway\r\n" + self._bearer()
        except (ConfigError, OSError) as error:
            raise ApiFault("credentials", str(error)) from None
        sink.leg = pool.get(sink, f"{self._prefix}{target}".encode(), lines)
        try:
            async with asyncio.timeout(limit_s):
                return await sink.ended
        except TimeoutError:
            raise ApiFault(Fault.SILENT.value, "the Kubernetes API server fell silent") from None
        finally:
            if sink.leg is not None:
                sink.leg.abort()
            pool.close()

    def _bearer(self) -> bytes:
        access = self._access
        token = access.token
        if access.token_file:
            token = Path(access.token_file).read_text(encoding="utf-8").strip()
        if not (token.isascii() and token.isprintable()):
            raise ConfigError(f"the token in {access.token_file or 'the kubeconfig'} is no text")
        return f"authorization: Bearer {token}\r\n".encode() if token else b""

    def _tls(self) -> ssl.SSLContext | None:
        access = self._access
        if not access.server.startswith("https"):
            return None
        context = ssl.create_default_context(
            cafile=access.ca_file or None, cadata=access.ca_pem or None
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if access.cert_pem:
            _load_pair(context, access.cert_pem + "\n" + access.key_pem)
        elif access.cert_file:
            context.load_cert_chain(access.cert_file, access.key_file or None)
        return context


class _Whole(Fetch):
    """An answer that is read to its end. ended: its body."""

    __slots__ = ("ended",)

    def __init__(self, bytes_max: int) -> None:
        super().__init__(bytes_max)
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(self, head: ResponseHead, content: bytes) -> None:
        self.leg = None
        if self.ended.done():
            return
        if head.status == 200:
            self.ended.set_result(content)
        else:
            self.ended.set_exception(_refusal(head.status, content))

    def failed(self, fault: Fault) -> None:
        self.leg = None
        if not self.ended.done():
            self.ended.set_exception(_broken(fault))


class _Lines:
    """An answer that is read line by line. It is an `AnswerSink`. ended: resolves to b""."""

    __slots__ = ("_partial", "_refused", "_take", "_unchunker", "ended", "leg")

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._partial = b""
        self._unchunker: Unchunker | None = None
        self._refused: _Whole | None = None
        self.leg: UpstreamConnection | None = None
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_head(self, head: ResponseHead) -> None:
        if head.status != 200:
            self._refused = _Whole(LINE_BYTES_MAX)
            self._refused.leg, self._refused.ended = self.leg, self.ended
            self._refused.on_head(head)
        elif head.framing is Framing.CHUNKED:
            self._unchunker = Unchunker()

    def on_body(self, data: bytes) -> None:
        if self._refused is not None:
            self._refused.on_body(data)
            return
        try:
            if self._unchunker is not None:
                data = self._unchunker.feed(data)
            lines = (self._partial + data).split(b"\n")
            self._partial = lines.pop()
            for line in lines:
                if line.strip():
                    self._take(line)
            if len(self._partial) > LINE_BYTES_MAX:
                raise ApiFault("too_long", "the Kubernetes API server sent a line without an end")
        except httptools.HttpParserError:
            self._stop(_broken(Fault.BAD_RESPONSE))
        except NodeError as error:
            self._stop(error)

    def on_end(self) -> None:
        self.leg = None
        if self._refused is not None:
            self._refused.on_end()
        elif not self.ended.done():
            self.ended.set_result(b"")

    def on_fault(self, fault: Fault) -> None:
        self.leg = None
        if not self.ended.done():
            self.ended.set_exception(_broken(fault))

    def _stop(self, error: NodeError) -> None:
        leg, self.leg = self.leg, None
        if leg is not None:
            leg.abort()
        if not self.ended.done():
            self.ended.set_exception(error)


def _refusal(status: int, content: bytes) -> ApiFault:
    said = read_status(content).message[:200]
    remedy = REMEDIES.get(status, "")
    text = f"the Kubernetes API server answered {status}"
    return ApiFault(f"http_{status}", ": ".join(one for one in (text, remedy, said) if one), status)


def _broken(fault: Fault) -> ApiFault:
    text = f"no answer of the Kubernetes API server: {fault.value}"
    if fault is Fault.UNREACHABLE:
        text += ", or its certificate is not of the authority that is trusted"
    return ApiFault(fault.value, text)


def _load_pair(context: ssl.SSLContext, pem: str) -> None:
    """Give a context the certificate and key of a text: it takes files alone."""
    handle, name = tempfile.mkstemp(prefix="spillway-")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(pem)
        context.load_cert_chain(name)
    finally:
        os.unlink(name)
