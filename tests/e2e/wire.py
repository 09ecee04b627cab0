"""A bare connection to the router, for clients that no library would be."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

PATIENCE_S = 5.0  # for what must come true; a test that waits in vain fails


class Wire:
    """A bare connection: sends what it is given, reads when it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, port: int, receive_bytes: int) -> Wire:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def post(self, body: dict[str, Any] | bytes, *lines: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = ["POST /v1/completions HTTP/1.1", "host: router", f"content-length: {len(data)}"]
        await self.send("\r\n".join([*head, *lines, "", ""]).encode() + data)

    async def read_until(self, mark: bytes, limit_s: float = PATIENCE_S) -> bytes:
        """Return what comes, up to the first read that ends with `mark` or the end."""
        got = b""
        async with asyncio.timeout(limit_s):
            while not (mark and got.endswith(mark)):
                data = await self._loop.sock_recv(self._sock, 65536)
                if not data:
                    break
                got += data
        return got

    def close(self) -> None:
        self._sock.close()
