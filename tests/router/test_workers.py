"""The supervisor's own rules: whose port it is, and how often a worker is started again."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from spillway.core.errors import ConfigError
from spillway.router import workers
from spillway.router.workers import (
    EXIT_CONFIG,
    EXIT_GIVEN_UP,
    RESTARTS_MAX,
    Supervisor,
    WorkerOrder,
    run_workers,
)
from spillway.wire.config import config_from_flags

CONFIG = config_from_flags(
    ["http://127.0.0.1:9001"], ["http://127.0.0.1:9002"], router={"port": 0, "admin_port": 0}
)


class Mortal:
    """Stands in for worker processes that end at once. was_ready: they listened before."""

    def __init__(self, code: int, *, was_ready: bool) -> None:
        self.code = code
        self.was_ready = was_ready
        self.orders: list[WorkerOrder] = []

    async def start(self, worker, order: WorkerOrder) -> None:
        self.orders.append(order)
        worker.admin_port = 1 if self.was_ready else 0

        async def wait() -> int:
            return self.code

        worker.process = SimpleNamespace(wait=wait, returncode=self.code, pid=0)


@pytest.fixture
def mortal(monkeypatch):
    def make(code: int, *, was_ready: bool) -> Mortal:
        made = Mortal(code, was_ready=was_ready)
        monkeypatch.setattr(
            workers._Worker, "start", lambda worker, order: made.start(worker, order)
        )
        monkeypatch.setattr(workers, "RESTART_S_FIRST", 0.0)
        return made

    return make


@pytest.mark.parametrize(("code", "status"), [(1, EXIT_GIVEN_UP), (-9, EXIT_GIVEN_UP), (70, 70)])
def test_workers_that_keep_dying_are_given_up(mortal, code: int, status: int) -> None:
    made = mortal(code, was_ready=True)
    assert run_workers(CONFIG, 1, path=None) == status
    assert len(made.orders) == RESTARTS_MAX + 1


def test_workers_that_refuse_the_configuration_are_not_started_again(mortal) -> None:
    made = mortal(EXIT_CONFIG, was_ready=False)
    assert run_workers(CONFIG, 1) == EXIT_CONFIG
    assert len(made.orders) == 1


def test_every_worker_gets_the_same_port_and_a_token_that_only_the_supervisor_knows(mortal) -> None:
    made = mortal(1, was_ready=True)
    run_workers(CONFIG, 2)
    own = [order.own for order in made.orders]
    assert len(own) >= 2
    assert all(one == own[0] for one in own)
    assert own[0]["port"] > 0
    assert (own[0]["admin_host"], own[0]["admin_port"]) == ("127.0.0.1", 0)
    assert len(own[0]["admin_token"]) >= 32
    assert made.orders[0].config == CONFIG


async def test_old_restarts_are_forgotten(monkeypatch) -> None:
    crew = Supervisor(CONFIG, None, 2)
    waits = [crew._restart_in() for _ in range(RESTARTS_MAX + 1)]
    assert waits[-1] is None
    assert waits[:3] == [0.2, 0.4, 0.8]
    monkeypatch.setattr(workers, "RESTARTS_WINDOW_S", 0.0)
    await asyncio.sleep(0.001)
    assert crew._restart_in() == 0.2
    assert crew.restarts == RESTARTS_MAX + 1


def test_a_port_that_somebody_listens_on_is_not_shared_by_mistake() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = config_from_flags(
            ["http://127.0.0.1:9001"],
            ["http://127.0.0.1:9002"],
            router={"port": other.getsockname()[1]},
        )
        with pytest.raises(ConfigError, match="cannot listen"):
            run_workers(taken, 2)


def test_the_supervisor_takes_no_connection_of_a_client() -> None:
    with workers._reserved("127.0.0.1", 0) as kept:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(kept.getsockname(), timeout=1)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(kept.getsockname())
            worker.listen()
            socket.create_connection(kept.getsockname(), timeout=1).close()
