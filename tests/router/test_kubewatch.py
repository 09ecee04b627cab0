"""List and watch against an API server over sockets: nothing missed, nothing asked in haste."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fakekube import FakeKube, pod
from spillway.router.kubeclient import ApiFault, KubeClient
from spillway.router.kubewatch import BACKOFF_MAX_S, PodWatch
from spillway.router.settings import RouterSettings
from spillway.wire.kubeconfig import ApiAccess

SELECTOR = "app=vllm,spillway/role in (prefill,decode)"


class QuickClock:
    """A clock on which every wait is over at once, and written down."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._now_s = 0.0

    def now_s(self) -> float:
        self._now_s += 0.0001
        return self._now_s

    async def sleep_until(self, due_s: float) -> None:
        self.waits.append(due_s - self._now_s)
        self._now_s = due_s
        await asyncio.sleep(0)


class Rig:
    """An API server and one who watches it."""

    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.clock = QuickClock()
        access = ApiAccess(f"http://127.0.0.1:{kube.port}", "llm")
        client = KubeClient(access, RouterSettings(connect_s=1.0))
        self.watch = PodWatch(client, "llm", SELECTOR, self.clock)
        self.changes = 0
        self.faults: list[str] = []
        self.watch.on_change = self._changed
        self.watch.on_fault = lambda fault: self.faults.append(str(fault))
        self._task: asyncio.Task[None] | None = None

    def _changed(self) -> None:
        self.changes += 1

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self.watch.run())

    def close(self) -> None:
        if self._task is not None:
            assert not self._task.done(), self._task.exception()
            self._task.cancel()

    @property
    def names(self) -> set[str]:
        return set(self.watch.pods)

    @property
    def lists(self) -> int:
        return sum("watch" not in one for one in self.kube.asked)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    kube = await FakeKube().start()
    kube.put(pod("d0", "decode"))
    kube.put(pod("p0", "prefill"))
    kube.put(pod("other", "none"))
    rig = Rig(kube)
    yield rig
    rig.close()
    await kube.stop()


async def started(rig: Rig, until) -> None:
    rig.start()
    await until(lambda: rig.kube.watches == 1)


async def test_pods_are_listed_and_then_followed(rig: Rig, until) -> None:
    await started(rig, until)
    assert rig.names == {"d0", "p0"}
    rig.kube.put(pod("d1", "decode"))
    await until(lambda: "d1" in rig.names)
    rig.kube.ready("d1", False)
    await until(lambda: not rig.watch.pods["d1"].is_ready)
    rig.kube.delete("d0")
    await until(lambda: rig.names == {"p0", "d1"})
    assert rig.lists == 1
    assert rig.kube.asked[1]["labelSelector"] == SELECTOR
    assert rig.clock.waits == []


async def test_a_pod_that_loses_its_label_is_gone_for_us(rig: Rig, until) -> None:
    await started(rig, until)
    rig.kube.put(pod("d0", "retired"))
    await until(lambda: rig.names == {"p0"})
    rig.kube.put(pod("other", "decode"))
    await until(lambda: rig.names == {"p0", "other"})


async def test_a_long_list_comes_in_pages(rig: Rig, until) -> None:
    rig.kube.page_pods = 2
    for number in range(1, 6):
        rig.kube.put(pod(f"d{number}", "decode"))
    await started(rig, until)
    assert len(rig.names) == 7
    assert rig.lists == 4
    assert rig.changes == 1, "not before the whole list is known"


async def test_a_watch_whose_time_is_over_goes_on_where_it_was(rig: Rig, until) -> None:
    await started(rig, until)
    rig.kube.ready("d0", False)
    await until(lambda: not rig.watch.pods["d0"].is_ready)
    version = rig.kube.version
    rig.kube.end_watches()
    await until(lambda: len(rig.kube.asked) == 3)
    assert rig.kube.asked[2]["resourceVersion"] == str(version)
    assert (rig.lists, rig.clock.waits) == (1, [])


async def test_what_happens_while_nobody_watches_is_told_after(rig: Rig, until) -> None:
    await started(rig, until)
    rig.kube.cut_watches()
    rig.kube.delete("d0")
    rig.kube.put(pod("d1", "decode"))
    await until(lambda: rig.names == {"p0", "d1"})
    assert rig.lists == 1
    assert rig.watch.failures == {"broken_off": 1}
    assert rig.watch.fault == "", "all is well again"


async def test_bookmarks_move_the_version_on(rig: Rig, until) -> None:
    await started(rig, until)
    changes = rig.changes
    rig.kube.bookmark()
    rig.kube.compact()
    version = rig.kube.version
    heard_s = rig.watch.heard_s
    await until(lambda: rig.watch.heard_s > heard_s)
    rig.kube.cut_watches()
    await until(lambda: rig.kube.asked[-1].get("resourceVersion") == str(version))
    await until(lambda: rig.kube.watches == 1)
    assert (rig.lists, rig.changes) == (1, changes)


@pytest.mark.parametrize("gone_by_status", [True, False])
async def test_a_version_that_is_gone_is_listed_anew(rig: Rig, until, gone_by_status: bool) -> None:
    await started(rig, until)
    rig.kube.gone_by_status = gone_by_status
    await rig.kube.stop()
    rig.kube.delete("d0")
    rig.kube.put(pod("d1", "decode"))
    rig.kube.compact()
    await rig.kube.start()
    await until(lambda: rig.names == {"p0", "d1"})
    await until(lambda: rig.kube.watches == 1)
    assert rig.lists == 2
    assert rig.watch.failures["http_410"] == 1
    assert not any("410" in fault for fault in rig.faults), "that is no fault of anybody"


async def test_a_server_that_is_away_is_asked_ever_less_often(rig: Rig, until) -> None:
    await started(rig, until)
    await rig.kube.stop()
    await until(lambda: len(rig.clock.waits) >= 12)
    waits = rig.clock.waits[1:12]
    assert waits[:4] == pytest.approx([0.4, 0.8, 1.6, 3.2], rel=0.01)
    assert max(waits) <= BACKOFF_MAX_S + 0.01
    assert rig.names == {"d0", "p0"}, "what is known stays"
    assert len(rig.faults) <= 3, "the same fault is told once"
    await rig.kube.start()
    rig.kube.put(pod("d1", "decode"))
    await until(lambda: "d1" in rig.names)


async def test_a_version_that_is_always_gone_is_not_asked_for_in_haste(rig: Rig, until) -> None:
    await started(rig, until)
    rig.kube.compacted_version = 10**9
    rig.kube.cut_watches()
    await until(lambda: len(rig.clock.waits) >= 6)
    assert rig.clock.waits[-1] > rig.clock.waits[1]
    assert rig.lists <= len(rig.clock.waits) + 2


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_refusals_are_counted_and_waited_out(rig: Rig, until, status: int) -> None:
    rig.kube.refusals = [status, status]
    await started(rig, until)
    assert rig.watch.failures == {f"http_{status}": 2}
    assert len(rig.clock.waits) == 2
    assert rig.names == {"d0", "p0"}
    [fault] = rig.faults
    assert str(status) in fault


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"type":"ADDED","object":{"x":1}}\n'])
async def test_a_line_that_is_no_event_breaks_the_watch_off(rig: Rig, until, line: bytes) -> None:
    await started(rig, until)
    rig.kube.say(line)
    await until(lambda: rig.watch.failures["malformed"] == 1)
    await until(lambda: len(rig.kube.asked) == 3)
    assert rig.names == {"d0", "p0"}


async def test_watches_that_end_at_once_are_not_begun_in_haste(rig: Rig, until) -> None:
    await started(rig, until)
    for number in range(2, 5):
        rig.kube.end_watches()
        await until(lambda number=number: len(rig.kube.asked) == number + 1)
        await until(lambda: rig.kube.watches == 1)
    assert rig.watch.failures == {"short_watch": 3}
    assert rig.clock.waits == pytest.approx([0.2, 0.4, 0.8], rel=0.01)


async def test_a_pod_of_the_same_name_outlives_the_news_of_the_first_ones_end(
    rig: Rig, until
) -> None:
    await started(rig, until)
    rig.kube.put(pod("d0", "decode", "127.0.0.9", uid="uid-again"))
    await until(lambda: rig.watch.pods["d0"].metadata.uid == "uid-again")
    late = b'{"type":"DELETED","object":{"metadata":{"name":"d0","uid":"uid-d0"}}}\n'
    rig.kube.say(late)
    rig.kube.put(pod("d1", "decode"))
    await until(lambda: "d1" in rig.names)
    assert "d0" in rig.names


def test_a_fault_carries_its_kind() -> None:
    assert (ApiFault("http_403", "no", 403).kind, ApiFault("x", "y").status) == ("http_403", 0)
