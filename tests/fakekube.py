"""The part of a Kubernetes API server that lists and watches pods, over real sockets.

It follows the protocol as kube-apiserver speaks it: one rising resource version for all changes,
pages with a continue token, label selectors applied to what an object was and is, a watch as
chunked JSON lines that starts after a version, bookmarks, and 410 for a version that has been
compacted. It also does what a server that restarts or a network that fails does: cuts a connection
in mid-line.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import ssl
from typing import Any
from urllib.parse import parse_qs, urlsplit

IN_SET = re.compile(r"^([\w./-]+) in \(([^)]*)\)$")
LIST_PATH = re.compile(r"^/api/v1/namespaces/([^/]+)/pods$")
Labels = dict[str, str]


def pod(
    name: str,
    role: str,
    ip: str = "127.0.0.1",
    *,
    port: int | None = 8000,
    is_ready: bool = True,
    uid: str = "",
    annotations: Labels | None = None,
    labels: Labels | None = None,
    ports: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return a pod as the API server shows it, with fields that a router has no use for."""
    if ports is None:
        ports = [] if port is None else [{"name": "http", "containerPort": port}]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": uid or f"uid-{name}",
            "labels": {"app": "vllm", "spillway/role": role, **(labels or {})},
            "annotations": annotations,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubelet", "operation": "Update"}],
        },
        "spec": {"containers": [{"name": "vllm", "image": "vllm", "ports": ports}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True" if is_ready else "False"},
            ],
        },
    }


def matches(selector: str, labels: Labels) -> bool:
    """Return whether a label selector of equalities and sets holds."""
    for part in filter(None, re.split(r",(?![^(]*\))", selector)):
        found = IN_SET.match(part.strip())
        key, allowed = (found[1], found[2].split(",")) if found else part.strip().split("=", 1)
        values = allowed if isinstance(allowed, list) else [allowed.lstrip("=")]
        if labels.get(key) not in values:
            return False
    return True


class FakeKube:
    """One API server.

    token: what it demands; "" takes anybody.  page_pods: pods on one page of a list.
    gone_by_status: whether an old version is refused by HTTP 410 or by an event in the watch.
    refusals: statuses to answer next instead.  asked: the parameters of each request so far.
    """

    def __init__(self, token: str = "", namespace: str = "llm") -> None:
        self.token = token
        self.namespace = namespace
        self.page_pods = 500
        self.gone_by_status = False
        self.refusals: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.tokens_seen: list[str] = []
        self.version = 1000
        self.compacted_version = 0
        self.port = 0
        self._pods: dict[str, dict[str, Any]] = {}
        self._log: list[tuple[int, str, dict[str, Any], Labels]] = []
        self._watches: list[tuple[asyncio.StreamWriter, str, asyncio.Event]] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> FakeKube:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Go away, connections and all; `start` comes back on the same port."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._watches.clear()
        await asyncio.sleep(0)

    # --- what happens in the cluster ------------------------------------------------------------

    def put(self, obj: dict[str, Any]) -> None:
        """Add a pod, or change it."""
        name = obj["metadata"]["name"]
        before = self._pods.get(name)
        self._change("ADDED" if before is None else "MODIFIED", copy.deepcopy(obj), before)

    def ready(self, name: str, is_ready: bool) -> None:
        obj = copy.deepcopy(self._pods[name])
        obj["status"]["conditions"][1]["status"] = "True" if is_ready else "False"
        self._change("MODIFIED", obj, self._pods[name])

    def end(self, name: str) -> None:
        """Tell a pod to end: it goes on until `delete`."""
        obj = copy.deepcopy(self._pods[name])
        obj["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        self._change("MODIFIED", obj, self._pods[name])

    def delete(self, name: str) -> None:
        self._change("DELETED", copy.deepcopy(self._pods[name]), self._pods[name])

    def compact(self) -> None:
        """Forget all versions before the present one."""
        self.compacted_version = self.version

    def bookmark(self) -> None:
        """Tell every watch how far it is, as the server does once a minute."""
        self.version += 1
        meta = {"resourceVersion": str(self.version), "creationTimestamp": None}
        mark = {"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": meta}}
        for writer, _, _ in self._watches:
            write_line(writer, mark)

    def end_watches(self) -> None:
        """Let the time of every watch be over."""
        for _, _, over in self._watches:
            over.set()

    def cut_watches(self) -> None:
        """Break every watch off, in the middle of a line."""
        for writer, _, _ in self._watches:
            writer.write(b'1f\r\n{"type":"MODIFIED","object":{"m\r\n')
            writer.close()

    def say(self, line: bytes) -> None:
        """Send every watch a line of its own."""
        for writer, _, _ in self._watches:
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))

    @property
    def watches(self) -> int:
        return len(self._watches)

    def _change(self, kind: str, obj: dict[str, Any], before: dict[str, Any] | None) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        old_labels = before["metadata"]["labels"] if before else {}
        if kind == "DELETED":
            del self._pods[obj["metadata"]["name"]]
        else:
            self._pods[obj["metadata"]["name"]] = obj
        self._log.append((self.version, kind, obj, old_labels))
        for writer, selector, _ in self._watches:
            tell(writer, selector, self._log[-1])

    # --- what is asked of it --------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                if not await self._answer(head, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; return whether the connection can take another."""
        request, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines) if k}
        method, target, _ = request.split(" ")
        url = urlsplit(target)
        asked = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.asked.append(asked)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        self.tokens_seen.append(bearer)
        found = LIST_PATH.match(url.path)
        if self.refusals:
            return refuse(writer, self.refusals.pop(0), "as the test wants")
        if self.token and bearer != self.token:
            return refuse(writer, 401, "Unauthorized")
        if method != "GET" or found is None:
            return refuse(writer, 404, "the server could not find the requested resource")
        if found[1] != self.namespace:
            return refuse(writer, 403, f"pods is forbidden in the namespace {found[1]!r}")
        if asked.get("watch") == "true":
            return await self._watch(asked, reader, writer)
        return self._list(asked, writer)

    def _list(self, asked: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        selector = asked.get("labelSelector", "")
        items = [one for one in self._pods.values() if matches(selector, one["metadata"]["labels"])]
        start = int(asked.get("continue", "0"))
        size = min(int(asked.get("limit", "500")), self.page_pods)
        meta = {"resourceVersion": str(self.version)}
        if start + size < len(items):
            meta |= {"continue": str(start + size)}
        # As the server does, without the kind and version that items have elsewhere.
        shown = [{k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in items]
        page = {"kind": "PodList", "apiVersion": "v1", "metadata": meta}
        respond(writer, 200, page | {"items": shown[start : start + size]})
        return True

    async def _watch(
        self, asked: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        selector, version = asked.get("labelSelector", ""), int(asked["resourceVersion"])
        is_gone = version < self.compacted_version
        if is_gone and self.gone_by_status:
            return refuse(writer, 410, f"too old resource version: {version}")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        if is_gone:
            text = f"too old resource version: {version} ({self.version})"
            write_line(writer, {"type": "ERROR", "object": status(410, "Expired", text)})
        else:
            over = asyncio.Event()
            watch = (writer, selector, over)
            self._watches.append(watch)
            for entry in self._log:
                if entry[0] > version:
                    tell(writer, selector, entry)
            gone = asyncio.ensure_future(reader.read(1))
            ended = asyncio.ensure_future(over.wait())
            timeout_s = float(asked["timeoutSeconds"])
            await asyncio.wait(
                (gone, ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            if watch in self._watches:
                self._watches.remove(watch)
            if gone.done():
                return False
            gone.cancel()
            await asyncio.sleep(0)  # the reader is free for the next request
        writer.write(b"0\r\n\r\n")
        return True


def tell(
    writer: asyncio.StreamWriter, selector: str, entry: tuple[int, str, dict[str, Any], Labels]
) -> None:
    """Send a change to a watch, as what it is for the objects that the watch is about."""
    _, kind, obj, old_labels = entry
    was = kind != "ADDED" and matches(selector, old_labels)
    now = kind != "DELETED" and matches(selector, obj["metadata"]["labels"])
    if was or now:
        seen_as = "MODIFIED" if was and now else "ADDED" if now else "DELETED"
        write_line(writer, {"type": seen_as, "object": obj})


def write_line(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def respond(writer: asyncio.StreamWriter, code: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode() + b"\n"
    head = f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)


def refuse(writer: asyncio.StreamWriter, code: int, message: str) -> bool:
    respond(writer, code, status(code, "X", message))
    return True
