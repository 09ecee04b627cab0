"""An OTLP/HTTP collector on loopback that keeps the spans it is sent."""

from __future__ import annotations

import asyncio
from typing import Any


class OtlpReceiver:
    """Takes what is posted to /v1/traces. status: what it answers.  spans: by name, in order."""

    def __init__(self) -> None:
        self.status = 200
        self.posts = 0
        self.spans: list[Any] = []
        self.resource: dict[str, str] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> OtlpReceiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/traces"

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = head.lower().split("\r\n")
                assert lines[0].startswith("post /v1/traces "), lines[0]
                assert "content-type: application/x-protobuf" in lines
                [length] = [x[15:] for x in lines if x.startswith("content-length:")]
                self._take(await reader.readexactly(int(length)))
                answer = f"HTTP/1.1 {self.status} X\r\ncontent-length: 0\r\n\r\n"
                writer.write(answer.encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        self.posts += 1
        if self.status != 200:
            return
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource |= attributes(one.resource)
            for scope in one.scope_spans:
                self.spans += scope.spans


def attributes(span: Any) -> dict[str, Any]:
    """Return the attributes of a span or resource as plain values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(one) for one in value.array_value.values]
        return getattr(value, kind)

    return {one.key: plain(one.value) for one in span.attributes}
