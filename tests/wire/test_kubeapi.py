"""Lists and events of the Kubernetes API: what is read of them, and what is refused."""

from __future__ import annotations

import json

import pytest

import fakekube
from spillway.core.errors import NodeError
from spillway.wire.kubeapi import (
    Kind,
    Status,
    list_target,
    read_event,
    read_list,
    read_status,
    watch_target,
)


def listed(*pods: dict, **meta: str) -> bytes:
    return json.dumps({"kind": "PodList", "metadata": meta, "items": pods}).encode()


def test_a_page_of_pods_is_read_for_what_a_router_needs() -> None:
    annotated = fakekube.pod("a", "decode", "10.0.0.1", annotations={"spillway/port": "9"})
    page = read_list(listed(annotated, resourceVersion="12", **{"continue": "next"}))
    assert (page.metadata.resource_version, page.metadata.continue_token) == ("12", "next")
    [pod] = page.items
    assert (pod.metadata.name, pod.metadata.uid, pod.status.pod_ip) == ("a", "uid-a", "10.0.0.1")
    assert pod.metadata.annotations == {"spillway/port": "9"}
    assert [port.container_port for port in pod.spec.containers[0].ports or ()] == [8000]
    assert pod.is_ready
    assert not pod.is_ending


@pytest.mark.parametrize(
    ("changes", "is_ready", "is_ending"),
    [
        ({"status": {"phase": "Pending"}}, False, False),
        ({"status": {"phase": "Failed", "conditions": None}}, False, True),
        ({"status": {"phase": "Succeeded"}}, False, True),
        (
            {
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "Unknown"}],
                }
            },
            False,
            False,
        ),
        ({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, True, True),
    ],
)
def test_readiness_and_the_end_of_a_pod(changes: dict, is_ready: bool, is_ending: bool) -> None:
    [pod] = read_list(listed(fakekube.pod("a", "decode") | changes)).items
    assert (pod.is_ready, pod.is_ending) == (is_ready, is_ending)


def test_events_bring_pods_bookmarks_and_faults() -> None:
    line = json.dumps({"type": "ADDED", "object": fakekube.pod("a", "decode")}).encode()
    kind, pod = read_event(line)
    assert kind is Kind.ADDED
    assert not isinstance(pod, Status)
    assert pod.metadata.name == "a"
    mark = b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"77"}}}'
    kind, pod = read_event(mark)
    assert not isinstance(pod, Status)
    assert (kind, pod.metadata.resource_version) == (Kind.BOOKMARK, "77")
    fault = {"type": "ERROR", "object": fakekube.status(410, "Expired", "too old")}
    assert read_event(json.dumps(fault).encode()) == (
        Kind.ERROR,
        Status(410, "Expired", "too old"),
    )


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"type":"NEW","object":{}}', b'{"type":"ADDED","object":{}}', b"\xff"]
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(NodeError, match="event"):
        read_event(line)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"metadata":{},"items":[{}]}', b"<html>"])
def test_what_is_no_list_is_refused(content: bytes) -> None:
    with pytest.raises(NodeError, match="list of pods"):
        read_list(content)
    assert read_status(content).status == 0


def test_targets_carry_everything_escaped() -> None:
    selector = "app=vllm,role in (a,b)"
    assert list_target("llm", selector) == (
        "/api/v1/namespaces/llm/pods?labelSelector=app%3Dvllm%2Crole+in+%28a%2Cb%29&limit=500"
    )
    assert list_target("a/b", "x", "t&k").startswith("/api/v1/namespaces/a%2Fb/pods?")
    assert list_target("a/b", "x", "t&k").endswith("&continue=t%26k")
    watch = watch_target("llm", "x=y", "41", 120)
    for part in (
        "watch=true",
        "allowWatchBookmarks=true",
        "resourceVersion=41",
        "timeoutSeconds=120",
    ):
        assert part in watch
