"""The same as against the fake, against a real kube-apiserver, where there is one.

It holds the fake to the truth: what the two do differently shows here first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakekube import pod
from realkube import NAMESPACE, RealKube, binaries
from spillway.clock import MonotonicClock
from spillway.router.kubeclient import ApiFault, KubeClient
from spillway.router.kubewatch import PodWatch
from spillway.router.settings import RouterSettings
from spillway.wire.kubeapi import list_target, read_list
from spillway.wire.kubeconfig import ApiAccess

SELECTOR = "app=vllm,spillway/role in (prefill,decode)"
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
NOT_READY = {"conditions": [{"type": "Ready", "status": "False"}]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binaries() is None, reason="no kube-apiserver and etcd here"),
]


@pytest.fixture
async def kube(tmp_path: Path, certificate) -> AsyncIterator[RealKube]:
    kube = RealKube(tmp_path, certificate)
    try:
        await kube.start()
        yield kube
    finally:
        await kube.stop()


@pytest.fixture
async def client(kube: RealKube, tmp_path: Path, certificate) -> KubeClient:
    token = tmp_path / "token"
    token.write_text(await kube.token(), encoding="utf-8")
    access = ApiAccess(kube.url, NAMESPACE, ca_file=certificate[0], token_file=str(token))
    return KubeClient(access, RouterSettings())


async def settled(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_pods_are_followed_through_all_that_becomes_of_them(
    kube: RealKube, client: KubeClient
) -> None:
    await kube.put(pod("d0", "decode", "10.0.0.1"))
    await kube.put(pod("other", "none"))
    watch = PodWatch(client, NAMESPACE, SELECTOR, MonotonicClock())
    following = asyncio.ensure_future(watch.run())
    try:
        await settled(lambda: set(watch.pods) == {"d0"})
        assert watch.pods["d0"].is_ready
        assert watch.pods["d0"].status.pod_ip == "10.0.0.1"
        await kube.put(pod("d1", "decode", annotations={"spillway/port": "9"}))
        await settled(lambda: "d1" in watch.pods and watch.pods["d1"].is_ready)
        await kube.set_status("d0", NOT_READY)
        await settled(lambda: not watch.pods["d0"].is_ready)
        await kube.set_status("d0", READY)
        await settled(lambda: watch.pods["d0"].is_ready)
        await kube.change("d1", {"labels": {"spillway/role": "none"}})
        await settled(lambda: set(watch.pods) == {"d0"})
        await kube.change("d1", {"labels": {"spillway/role": "prefill"}})
        await settled(lambda: set(watch.pods) == {"d0", "d1"})
        await kube.delete("d0")
        await settled(lambda: set(watch.pods) == {"d1"})
        assert watch.failures == {}

        # A server that was started anew has forgotten all versions that it told before.
        await kube.stop_server()
        await settled(lambda: watch.fault)
        await kube.start_server()
        await kube.delete("d1")
        await kube.put(pod("d2", "decode"))
        await settled(lambda: set(watch.pods) == {"d2"})
        await kube.delete("d2")
        await settled(lambda: not watch.pods)
        assert watch.fault == ""
    finally:
        following.cancel()


async def test_lists_come_in_pages_and_rights_end_where_the_role_does(
    kube: RealKube, client: KubeClient, monkeypatch
) -> None:
    monkeypatch.setattr("spillway.wire.kubeapi.PAGE_PODS", 2)
    for number in range(5):
        await kube.put(pod(f"d{number}", "decode"))
    page = read_list(await client.get(list_target(NAMESPACE, SELECTOR)))
    assert (len(page.items), bool(page.metadata.continue_token)) == (2, True)
    watch = PodWatch(client, NAMESPACE, SELECTOR, MonotonicClock())
    following = asyncio.ensure_future(watch.run())
    await settled(lambda: len(watch.pods) == 5)
    following.cancel()
    with pytest.raises(ApiFault, match="may not get, list and watch pods") as caught:
        await client.get(list_target("default", SELECTOR))
    assert caught.value.status == 403
