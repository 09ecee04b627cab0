"""Keeps to the pods that a label selector means, by listing them once and watching them then.

A watch goes on where the last one ended, by resource version; bookmarks move that on while nothing
happens. When the server has forgotten that version (410) the pods are listed again, and whatever
went in the meantime is missed there. While the server says nothing, what is known stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from spillway.clock import Clock
from spillway.core.errors import NodeError
from spillway.router.kubeclient import ApiFault, KubeClient
from spillway.wire.kubeapi import (
    GONE,
    Kind,
    Pod,
    Status,
    list_target,
    read_event,
    read_list,
    watch_target,
)

WATCH_S = 120  # short, so that a connection that died unseen is not waited on for long
SLACK_S = 15.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 30.0
PAGES_MAX = 200


class PodWatch:
    """The pods of a selector, by name.

    on_change: called after every change, and once after the first list.
    on_fault: called with the text of a fault that is not the one before.
    is_listed: whether the pods have been listed once.  heard_s: when the server last said anything.
    failures: requests that failed, by kind.  fault: what the last one was, "" since one went well.
    """

    def __init__(self, client: KubeClient, namespace: str, selector: str, clock: Clock) -> None:
        self._client = client
        self._namespace = namespace
        self._selector = selector
        self._clock = clock
        self._version = ""
        self._has_progress = False
        self.pods: dict[str, Pod] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_fault: Callable[[ApiFault], None] = lambda fault: None
        self.is_listed = False
        self.heard_s = clock.now_s()
        self.failures: Counter[str] = Counter()
        self.fault = ""

    async def run(self) -> None:
        """Follow the pods until cancelled. Each failure in a row doubles the wait, to a bound."""
        failed = 0
        while True:
            self._has_progress = False
            try:
                if not self._version:
                    await self._list()
                started_s = self._clock.now_s()
                await self._watch()
                if not self._has_progress and self._clock.now_s() - started_s < 1.0:
                    raise ApiFault("short_watch", "the Kubernetes API server ends each watch")
                failed = 0
            except NodeError as error:
                fault = error if isinstance(error, ApiFault) else ApiFault("malformed", str(error))
                self._note(fault)
                failed = 0 if self._has_progress else failed + 1
                if fault.status == GONE:
                    self._version = ""
                if fault.status != GONE or failed > 1:
                    wait_s = BACKOFF_FIRST_S * 2.0 ** min(max(failed - 1, 0), 16)
                    await self._clock.sleep_until(self._clock.now_s() + min(wait_s, BACKOFF_MAX_S))

    async def _list(self) -> None:
        """List all pods; what is not among them is gone. Raises NodeError."""
        pods: dict[str, Pod] = {}
        token = ""
        for _ in range(PAGES_MAX):
            target = list_target(self._namespace, self._selector, token)
            page = read_list(await self._client.get(target))
            self._heard()
            pods.update({pod.metadata.name: pod for pod in page.items})
            token = page.metadata.continue_token
            if not token:
                break
        else:
            raise ApiFault("too_long", "the list of pods does not end; narrow the selector")
        self._version = page.metadata.resource_version
        self.pods = pods
        self.is_listed = True
        self.on_change()

    async def _watch(self) -> None:
        target = watch_target(self._namespace, self._selector, self._version, WATCH_S)
        await self._client.follow(target, self._take, WATCH_S + SLACK_S)
        self._heard()

    def _take(self, line: bytes) -> None:
        """Take one event. Raises NodeError."""
        kind, found = read_event(line)
        if isinstance(found, Status):
            text = (
                f"the Kubernetes API server ended the watch: {found.status} {found.message[:200]}"
            )
            raise ApiFault(f"http_{found.status}", text, found.status)
        self._heard()
        self._has_progress = True
        meta = found.metadata
        self._version = meta.resource_version or self._version
        if kind is Kind.BOOKMARK:
            return
        if kind is Kind.DELETED:
            known = self.pods.get(meta.name)
            if known is None or known.metadata.uid != meta.uid:
                return  # another one has its name by now
            del self.pods[meta.name]
        else:
            self.pods[meta.name] = found
        self.on_change()

    def _heard(self) -> None:
        self.heard_s = self._clock.now_s()
        self.fault = ""

    def _note(self, fault: ApiFault) -> None:
        self.failures[fault.kind] += 1
        if fault.status != GONE and str(fault) != self.fault:
            self.on_fault(fault)
        self.fault = str(fault)
