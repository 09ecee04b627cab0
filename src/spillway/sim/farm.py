"""Where the runs of a sweep are computed: in this process, in local ones, or on a Ray cluster.

A task is a value that can be called without arguments and holds all it needs. What a farm yields
may come in any order; the tasks' results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from spillway.core.errors import ConfigError

IN_FLIGHT_PER_WORKER = 2  # so that a worker never waits, and tasks are made as they are needed
RAY_LOCAL = "local"

T = TypeVar("T")


class Farm(Protocol):
    """Computes tasks."""

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results as they come. Raises what a task raises."""
        ...


class OneProcess:
    """Computes here, one after another."""

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results in order."""
        for task in tasks:
            yield task()


class Processes:
    """Computes in `count` processes of this machine."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"{count} processes cannot compute anything; give at least 1")
        self.count = count

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results as they come. The processes are started anew and end with this."""
        pool = ProcessPoolExecutor(self.count, mp_context=get_context("spawn"))
        try:
            left = iter(tasks)
            ahead = self.count * IN_FLIGHT_PER_WORKER
            pending: set[Future[T]] = {pool.submit(_call, task) for task in islice(left, ahead)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(_call, task) for task in islice(left, len(done))}
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class RayCluster:
    """Computes on Ray: a cluster at `address`, or one started on this machine (`local`).

    The workers need the same version of spillway and of Python.
    """

    def __init__(self, address: str) -> None:
        """Connect. Raises ConfigError when ray is not installed or cannot be reached."""
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError(
                "--ray needs ray, which is not installed: pip install 'spillway[ray]'"
            ) from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        try:
            if address == RAY_LOCAL:
                ray.init(address="local", **quiet)
            else:
                ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"Ray at {address}: {error}") from None

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results as they come. Leaves a cluster that it started itself at the end."""
        ray = self._ray
        remote = ray.remote(_call)
        ahead = int(ray.cluster_resources().get("CPU", 1)) * IN_FLIGHT_PER_WORKER
        left = iter(tasks)
        pending = [remote.remote(task) for task in islice(left, ahead)]
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            pending += [remote.remote(task) for task in islice(left, len(done))]
            for reference in done:
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause or error) from None

    def close(self) -> None:
        """Leave the cluster, if this has joined it."""
        if self._ours:
            self._ray.shutdown()


def _call(task: Callable[[], T]) -> T:
    return task()
