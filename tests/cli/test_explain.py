"""`spillway explain`, from a log and from a router that answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from cli_command import Command
from report_samples import make_decision
from spillway.router.decision_log import LoggedDecision
from spillway.wire.decisions import DecisionRecord


def about(request_id: str) -> DecisionRecord:
    record = make_decision()
    return replace(record, request=replace(record.request, request_id=request_id))


class FakeRouter(BaseHTTPRequestHandler):
    """Keeps the decisions about r1 and r2, like /debug/decisions."""

    def do_GET(self) -> None:
        status, found = 200, [about("r2"), about("r1")]
        if "id=" in self.path:
            found = [one for one in found if self.path.endswith(f"id={one.request.request_id}")]
            status = 200 if found else 404
        body = msgspec.json.encode({"decisions": found})
        if self.path.startswith("/strange/"):
            body = b"<html>"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakeRouter)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    lines = [LoggedDecision(logged=about(name)) for name in ("r1", "r10", "r1", "r2")]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def test_a_routers_decision_is_explained(spillway: Command, url: str) -> None:
    done = spillway("explain", "r1", "--url", url)
    assert done.code == 0
    assert "Request r1 was deflected to d1 by headroom" in done.out


def test_without_an_id_the_last_decisions_are_listed(spillway: Command, url: str) -> None:
    done = spillway("explain", "--url", f"{url}/")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[3:]] == ["r2", "r1"]


def test_a_log_is_read_for_exactly_that_request(spillway: Command, log: Path) -> None:
    assert spillway("explain", "r1", "--log", log).out.count("Request r1 was") == 2
    assert spillway("explain", "r10", "--log", log).out.count("Request r10 was") == 1


def test_a_log_is_listed_newest_first(spillway: Command, log: Path) -> None:
    lines = spillway("explain", "--log", log).out.splitlines()[3:]
    assert [line.split()[0] for line in lines] == ["r2", "r1", "r10", "r1"]


def test_an_unknown_request_is_an_error_with_a_way_on(
    spillway: Command, url: str, log: Path
) -> None:
    for where in (("--url", url), ("--log", log)):
        done = spillway("explain", "r99", *where)
        assert done.code == 2
        assert "no decision about request 'r99'" in done.err


def test_a_line_that_is_no_decision_is_named(spillway: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"something": "else"}\n')
    done = spillway("explain", "--log", path)
    assert done.code == 2
    assert f"{path}, line 1: no decision" in done.err
    assert spillway("explain", "--log", tmp_path / "missing").code == 2


def test_what_is_no_router_is_told(spillway: Command, url: str) -> None:
    assert "is it a router?" in spillway("explain", "--url", f"{url}/strange").err
    refused = spillway("explain", "--url", "http://127.0.0.1:9")
    assert refused.code == 2
    assert "cannot be reached" in refused.err
