"""The port for operators: the pages of `admin.py`, and changes to the fleet.

Reading needs the token if there is one; changing anything always needs one. The page of the
dashboard itself holds nothing and is open, so that it can ask for the token.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spillway.core.errors import ConfigError, RequestError
from spillway.core.types import Role
from spillway.router.admin import Admin, Page
from spillway.router.credentials import CHALLENGE, check_token, read_token
from spillway.router.fleet import Fleet
from spillway.router.http_server import ClientConnection, Request
from spillway.router.reload import Reloader
from spillway.router.shell import Shell

NODES_PATH, RELOAD_PATH = "/admin/nodes", "/admin/reload"
OPEN_PAGES = ("/dashboard", "/health")


class NewNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request to add a node: its role, and the keys of a configured node."""

    role: Role
    node: dict[str, Any]


class AdminPort:
    """Answers on the port for operators. It is the `Front` of its connections.

    port: where it listens.   reloader: knows the configuration; None without one.
    """

    def __init__(self, shell: Shell, admin: Admin, fleet: Fleet) -> None:
        self.settings = shell.settings
        self.connections: set[ClientConnection] = set()
        self.now_s = shell.clock.now_s()
        self._shell = shell
        self._admin = admin
        self._fleet = fleet
        self.port = 0
        self.reloader: Reloader | None = None
        self._token = read_token(shell.settings)

    def on_request(self, conn: ClientConnection, request: Request) -> None:
        path, _, query = request.target.partition(b"?")
        try:
            page = self._answer(request, path.decode("latin-1"), query.decode("latin-1"))
        except ConfigError as error:
            conn.refuse(request, RequestError(str(error), status=409))
        except RequestError as error:
            conn.refuse(request, error, CHALLENGE if error.status == 401 else b"")
        else:
            conn.respond(request, page.status, page.body, page.lines)

    def on_bad_request(self, status: int) -> None:
        self._shell.metrics.bad_requests[status] += 1

    def _answer(self, request: Request, path: str, query: str) -> Page:
        method = request.method
        if method == b"GET" and path in OPEN_PAGES:
            return self._admin.answer(path, query)
        if self._token:
            check_token(request, self._token)
        if method == b"GET" and path == NODES_PATH:
            return self._nodes()
        if method == b"GET" and path in self._admin.paths:
            return self._admin.answer(path, query)
        if path in self._admin.paths:
            raise RequestError("this path takes GET", status=405)
        if not self._token:
            raise RequestError("changes need a token: set router.admin_token", status=403)
        return self._change(method, path, request.body)

    def _change(self, method: bytes, path: str, body: bytes) -> Page:
        if (method, path) == (b"POST", RELOAD_PATH):
            return Page(200, msgspec.json.encode(self._configured().reload()))
        if (method, path) == (b"POST", NODES_PATH):
            try:
                asked = msgspec.json.decode(body, type=NewNode)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise RequestError(
                    f'the body is not like {{"role": "decode", "node": {{"url": ...}}}}: {error}'
                ) from None
            self._fleet.add(self._configured().build(asked.node, asked.role))
            return self._nodes(201)
        name, _, verb = path.removeprefix(f"{NODES_PATH}/").partition("/")
        if path.startswith(f"{NODES_PATH}/"):
            match (method, verb):
                case (b"POST", "drain"):
                    self._fleet.drain(name)
                    return self._nodes()
                case (b"POST", "resume"):
                    self._fleet.resume(name)
                    return self._nodes()
                case (b"DELETE", ""):
                    self._fleet.remove(name)
                    return self._nodes()
        raise RequestError("there is no such path or method", status=404)

    def _configured(self) -> Reloader:
        if self.reloader is None:
            raise ConfigError("this router was not started from a configuration")
        return self.reloader

    def _nodes(self, status: int = 200) -> Page:
        """Return every node, those on their way out included. Here addresses may be seen."""
        fleet, shell = self._fleet, self._shell
        rows = []
        for name, ledger in shell.dispatcher.ledger.nodes.items():
            health = self._health_of(name)
            node = fleet.nodes.get(name)
            rows.append(
                {
                    "name": name,
                    "role": ledger.spec.role.value,
                    "url": node.url if node else None,
                    "state": "leaving" if name in fleet.leaving else health,
                    "outstanding": ledger.outstanding,
                }
            )
        return Page(status, msgspec.json.encode({"nodes": rows}))

    def _health_of(self, name: str) -> str:
        node = self._fleet.health.nodes[name]
        if node.is_draining:
            return (
                "drained"
                if not self._shell.dispatcher.ledger.nodes[name].outstanding
                else "draining"
            )
        return "lost" if node.is_lost else "up" if node.is_up else "unknown"
