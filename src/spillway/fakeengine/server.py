"""The HTTP face: OpenAI's endpoints, vLLM's admin pages, our reports, and the KV side door."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import HttpVersion11, web

from spillway import __version__
from spillway.core.errors import NodeError, RequestError
from spillway.fakeengine.answering import encode_json, error_body
from spillway.fakeengine.asking import Ask, read_ask, read_orders, salvage_params
from spillway.fakeengine.backend import PULL_PATH, Backend, EngineFull, UnknownKv
from spillway.fakeengine.flight import Flight
from spillway.fakeengine.kvparams import BadKvParams, HoldKv, PullKv, read_params
from spillway.fakeengine.metrics import CONTENT_TYPE
from spillway.wire.release import RELEASE_PATH, STATUS_TAKEN, read_release
from spillway.wire.report import REPORTS_PATH
from spillway.wire.reserve import RESERVE_PATH, encode_answer
from spillway.wire.reserve import read_ask as read_reserve_ask

SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class _PullOrder(msgspec.Struct, forbid_unknown_fields=True):
    remote_engine_id: str
    remote_request_id: str
    kv_tokens: int


def make_app(backend: Backend) -> web.Application:
    """Return the application of one engine."""
    server = _Server(backend)
    app = web.Application(client_max_size=backend.settings.body_bytes_max)
    app.add_routes(
        [
            web.post("/v1/completions", server.completions),
            web.post("/v1/chat/completions", server.chat_completions),
            web.get("/v1/models", server.models),
            web.get("/health", server.health),
            web.get("/version", server.version),
            web.get("/metrics", server.metrics),
            web.post(PULL_PATH, server.kv_pull),
        ]
    )
    if not backend.settings.stock:
        app.add_routes(
            [
                web.get(REPORTS_PATH, server.reports),
                web.post(RESERVE_PATH, server.reserve),
                web.post(RELEASE_PATH, server.release),
            ]
        )
    if backend.settings.dev_mode:
        app.add_routes([web.get("/server_info", server.server_info)])
    return app


class _Server:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # --- OpenAI --------------------------------------------------------------------------------

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def _complete(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        """Answer one request. A client that leaves cancels this task, which aborts the work."""
        backend = self._backend
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            limit = backend.settings.body_bytes_max
            return _refuse(f"the body is longer than {limit} bytes", 413)
        try:
            ask = read_ask(raw, chat=chat, limits=backend.limits)
            orders = read_orders(request.headers, slo_tbt_s=backend.settings.slo_tbt_s)
            kv = read_params(ask.kv_transfer_params, ask.prompt_tokens)
            _check_leg(ask, kv)
            flight = backend.open_flight(ask, orders)
        except RequestError as error:
            backend.metrics.dropped["bad_request"] += 1
            await self._give_back(raw)
            return _refuse(str(error), error.status, error.param)
        except BadKvParams as error:
            backend.metrics.dropped["bad_kv_params"] += 1
            return _refuse(str(error), 500)
        except EngineFull as error:
            await self._give_back(raw)
            return _refuse(str(error), 503)
        try:
            return await self._answer(request, flight, kv)
        except NodeError as error:
            flight.fail(str(error))
            return _refuse(str(error), 500)
        finally:
            backend.end_flight(flight)

    async def _answer(
        self, request: web.Request, flight: Flight, kv: HoldKv | PullKv | None
    ) -> web.StreamResponse:
        await self._backend.start_flight(flight, kv)
        if flight.ask.stream:
            return await self._stream(request, flight)
        await flight.done
        params = self._backend.hand_over(flight) if isinstance(kv, HoldKv) else None
        return _json(flight.body(params))

    async def _stream(self, request: web.Request, flight: Flight) -> web.StreamResponse:
        """Send the head at the first token; from there the flight writes to the transport."""
        await flight.first
        response = web.StreamResponse(headers=SSE_HEADERS)
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left as its first token came")
        flight.open_stream(transport, chunked=request.version >= HttpVersion11)
        try:
            await asyncio.wait([flight.done])
        finally:
            flight.close_stream()
        await response.write_eof()
        return response

    async def _give_back(self, raw: bytes) -> None:
        """Free the prefilled KV that a refused request would have pulled."""
        try:
            kv = read_params(salvage_params(raw), prompt_tokens=0)
        except BadKvParams:
            return  # the request is refused for another fault already, which is counted
        if isinstance(kv, PullKv):
            await self._backend.give_back(kv)

    # --- pages ---------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.Response:
        backend = self._backend
        model = {
            "id": backend.settings.model,
            "object": "model",
            "created": backend.created_s,
            "owned_by": "spillway",
            "max_model_len": backend.limits.context_tokens_max,
        }
        return _json(encode_json({"object": "list", "data": [model]}))

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self._backend.pace.stopped else 200)

    async def version(self, request: web.Request) -> web.Response:
        return _json(encode_json({"version": f"{__version__}+fake"}))

    async def server_info(self, request: web.Request) -> web.Response:
        return _json(encode_json(self._backend.server_info()))

    async def metrics(self, request: web.Request) -> web.Response:
        page = self._backend.metrics_page()
        return web.Response(body=page.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def reports(self, request: web.Request) -> web.StreamResponse:
        """Send report lines until the reader leaves or the engine stops."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        router_id = request.query.get("router", "")
        with self._backend.reports.subscribe(router_id) as subscription:
            while lines := await subscription.next_lines():
                await response.write(lines)
        return response

    async def reserve(self, request: web.Request) -> web.Response:
        """Say whether a deflection may come: `wire.reserve`."""
        try:
            verdict, report = self._backend.reserve(read_reserve_ask(request.query_string))
        except RequestError as error:
            return _refuse(str(error), error.status, error.param)
        status, body = encode_answer(verdict, report)
        return web.Response(body=body, status=status, content_type="application/json")

    # --- KV ------------------------------------------------------------------------------------

    async def release(self, request: web.Request) -> web.Response:
        """Free KV that nobody will fetch: `wire.release`."""
        try:
            self._backend.release(read_release(request.query_string))
        except RequestError as error:
            return _refuse(str(error), error.status, error.param)
        return web.Response(body=b"{}", status=STATUS_TAKEN, content_type="application/json")

    async def kv_pull(self, request: web.Request) -> web.Response:
        """Another engine reads KV held here; the answer comes when the link has carried it."""
        try:
            order = msgspec.json.decode(await request.read(), type=_PullOrder)
        except msgspec.MsgspecError as error:
            return _refuse(f"not a pull order: {error}", 400)
        try:
            kv_bytes = await self._backend.serve_pull(
                order.remote_engine_id, order.remote_request_id, order.kv_tokens
            )
        except UnknownKv as error:
            return _refuse(str(error), 404)
        return _json(encode_json({"kv_bytes": kv_bytes}))


def _check_leg(ask: Ask, kv: HoldKv | PullKv | None) -> None:
    if isinstance(kv, HoldKv) and (ask.stream or ask.output_tokens != 1):
        raise RequestError(
            "a prefill leg (do_remote_decode) needs stream: false and max_tokens: 1",
            param="kv_transfer_params",
        )


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _refuse(message: str, status: int, param: str | None = None) -> web.Response:
    return web.Response(
        body=error_body(message, status, param), status=status, content_type="application/json"
    )
