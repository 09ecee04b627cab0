"""What is read of the Kubernetes API: pods, lists of them, and the events of a watch.

Of each object only the fields that a router needs are decoded; the rest may change with the
server's version. Source: Kubernetes API reference, "Efficient detection of changes".
"""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import quote, urlencode

import msgspec

from spillway.core.errors import NodeError

GONE = 410  # the asked for resource version is no longer known: list again
PAGE_PODS = 500


class Kind(StrEnum):
    """What an event of a watch says."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """Of any object. Lists have `continue_token`, pods the rest."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    continue_token: str = msgspec.field(default="", name="continue")


class Condition(msgspec.Struct, frozen=True):
    """One condition of a pod; `Ready` is the one that counts."""

    type: str
    status: str


class ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """A declared port."""

    container_port: int
    name: str = ""


class Container(msgspec.Struct, frozen=True):
    """A container, as far as where it listens."""

    ports: list[ContainerPort] | None = None


class PodSpec(msgspec.Struct, frozen=True):
    """What was asked for."""

    containers: list[Container] = []


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What there is."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[Condition] | None = None


class Pod(msgspec.Struct, frozen=True):
    """A pod."""

    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_ready(self) -> bool:
        """Whether its readiness probe holds."""
        conditions = self.status.conditions or ()
        return any(one.type == "Ready" and one.status == "True" for one in conditions)

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end, or has."""
        ended = self.status.phase in ("Succeeded", "Failed")
        return ended or self.metadata.deletion_timestamp is not None


class PodList(msgspec.Struct, frozen=True):
    """One page of a list."""

    metadata: Meta
    items: list[Pod]


class Status(msgspec.Struct, frozen=True):
    """What the server says of a failure."""

    status: int = msgspec.field(default=0, name="code")
    reason: str = ""
    message: str = ""


class Event(msgspec.Struct, frozen=True):
    """One line of a watch."""

    type: Kind
    object: msgspec.Raw


_events = msgspec.json.Decoder(Event)
_pods = msgspec.json.Decoder(Pod)
_lists = msgspec.json.Decoder(PodList)
_statuses = msgspec.json.Decoder(Status)


def list_target(namespace: str, selector: str, continue_token: str = "") -> str:
    """Return the path that lists the pods of a label selector, page by page."""
    asked = {"labelSelector": selector, "limit": str(PAGE_PODS)}
    if continue_token:
        asked["continue"] = continue_token
    return _target(namespace, asked)


def watch_target(namespace: str, selector: str, version: str, timeout_s: int) -> str:
    """Return the path that watches them from a resource version on, for so long at most."""
    asked = {
        "labelSelector": selector,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(timeout_s),
    }
    return _target(namespace, asked)


def read_list(content: bytes) -> PodList:
    """Return a page of pods. Raises NodeError if it is none."""
    try:
        return _lists.decode(content)
    except msgspec.MsgspecError as error:
        raise NodeError(f"the Kubernetes API answered with no list of pods: {error}") from None


def read_event(line: bytes) -> tuple[Kind, Pod | Status]:
    """Return an event and its object: a Status with ERROR, else a Pod. Raises NodeError."""
    try:
        event = _events.decode(line)
        if event.type is Kind.ERROR:
            return event.type, _statuses.decode(event.object)
        return event.type, _pods.decode(event.object)
    except msgspec.MsgspecError as error:
        raise NodeError(f"the Kubernetes API sent no event of a watch: {error}") from None


def read_status(content: bytes) -> Status:
    """Return what a failed request was answered; an empty one if that cannot be read."""
    try:
        return _statuses.decode(content)
    except msgspec.MsgspecError:
        return Status()


def _target(namespace: str, asked: dict[str, str]) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods?{urlencode(asked)}"
