"""Requests to the API server: by whose word, over TLS, and what a failure is called."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakekube import FakeKube, pod
from spillway.router.kubeclient import LINE_BYTES_MAX, ApiFault, KubeClient
from spillway.router.settings import RouterSettings
from spillway.wire.kubeapi import list_target, read_list, watch_target
from spillway.wire.kubeconfig import ApiAccess

LIST = list_target("llm", "app=vllm")


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    kube = FakeKube()
    kube.put(pod("d0", "decode"))
    yield kube
    await kube.stop()


def client_of(kube: FakeKube, scheme: str = "http", **access: str) -> KubeClient:
    server = f"{scheme}://localhost:{kube.port}"
    return KubeClient(ApiAccess(server, "llm", **access), RouterSettings(connect_s=1.0))


def server_side(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def test_a_token_is_read_anew_for_each_request(
    kube: FakeKube, tmp_path: Path, certificate
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n", encoding="utf-8")
    kube.token = "first"
    await kube.start(server_side(certificate))
    client = client_of(kube, "https", ca_file=certificate[0], token_file=str(token))
    assert len(read_list(await client.get(LIST)).items) == 1
    kube.token = "second"
    with pytest.raises(ApiFault, match="its token is not accepted") as caught:
        await client.get(LIST)
    assert (caught.value.status, caught.value.kind) == (401, "http_401")
    token.write_text("second\n", encoding="utf-8")
    assert len(read_list(await client.get(LIST)).items) == 1
    assert kube.tokens_seen == ["first", "first", "second"]


async def test_a_server_of_another_authority_gets_no_token(kube: FakeKube, certificate) -> None:
    await kube.start(server_side(certificate))
    with pytest.raises(ApiFault, match="certificate is not of the authority"):
        await client_of(kube, "https", token="secret").get(LIST)
    assert kube.tokens_seen == []


async def test_a_new_authority_is_taken_up(kube: FakeKube, tmp_path: Path, certificate) -> None:
    await kube.start(server_side(certificate))
    ca = tmp_path / "ca.crt"
    client = client_of(kube, "https", ca_file=str(ca))
    with pytest.raises(ApiFault) as caught:
        await client.get(LIST)
    assert caught.value.kind == "credentials"
    ca.write_bytes(Path(certificate[0]).read_bytes())
    assert read_list(await client.get(LIST)).items


@pytest.mark.parametrize("in_files", [True, False])
async def test_the_router_can_show_a_certificate(
    kube: FakeKube, certificate, in_files: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    context = server_side(certificate)
    context.load_verify_locations(certificate[0])
    context.verify_mode = ssl.CERT_REQUIRED
    await kube.start(context)
    cert, key = (Path(name).read_text(encoding="ascii") for name in certificate)
    shown = (
        {"cert_file": certificate[0], "key_file": certificate[1]}
        if in_files
        else {"cert_pem": cert, "key_pem": key}
    )
    client = client_of(kube, "https", ca_pem=cert, **shown)
    assert read_list(await client.get(LIST)).items
    assert list(tmp_path.iterdir()) == [], "no key is left on the disk"
    with pytest.raises(ApiFault):
        await client_of(kube, "https", ca_pem=cert).get(LIST)


async def test_a_token_cannot_bring_a_header_along(kube: FakeKube) -> None:
    await kube.start()
    with pytest.raises(ApiFault, match="is no text") as caught:
        await client_of(kube, token="a\r\nx-evil: 1").get(LIST)
    assert caught.value.kind == "credentials"
    assert kube.asked == []


async def test_what_the_server_says_of_a_refusal_is_told(kube: FakeKube) -> None:
    await kube.start()
    client = client_of(kube)
    with pytest.raises(ApiFault, match=r"may not get, list and watch pods.*'other'"):
        await client.get(list_target("other", "app=vllm"))
    with pytest.raises(ApiFault, match="403"):
        await client.follow(watch_target("other", "x", "1", 5), lambda line: None, 5.0)


async def test_a_watch_that_does_not_end_is_given_up(kube: FakeKube) -> None:
    await kube.start()
    with pytest.raises(ApiFault) as caught:
        await client_of(kube).follow(watch_target("llm", "x=y", "1000", 60), print, 0.05)
    assert caught.value.kind == "silent"


async def test_a_line_without_an_end_is_given_up(kube: FakeKube, until) -> None:
    await kube.start()
    target = watch_target("llm", "x=y", "1001", 60)
    asking = asyncio.ensure_future(client_of(kube).follow(target, print, 30.0))
    await until(lambda: kube.watches == 1)
    kube.say(b"x" * (LINE_BYTES_MAX + 1))
    with pytest.raises(ApiFault) as caught:
        await asking
    assert caught.value.kind == "too_long"


async def test_lines_come_one_by_one_however_they_are_cut(kube: FakeKube, until) -> None:
    await kube.start()
    taken: list[bytes] = []
    target = watch_target("llm", "x=y", "1001", 60)
    asking = asyncio.ensure_future(client_of(kube).follow(target, taken.append, 30.0))
    await until(lambda: kube.watches == 1)
    for piece in (b"on", b"e\ntw", b"o\n\nthree\nfour"):
        kube.say(piece)
    await until(lambda: len(taken) == 3)
    kube.end_watches()
    await asking
    assert taken == [b"one", b"two", b"three"]


async def test_a_path_before_the_api_is_kept(kube: FakeKube) -> None:
    await kube.start()
    access = ApiAccess(f"http://127.0.0.1:{kube.port}/k8s/clusters/one", "llm")
    with pytest.raises(ApiFault, match="is this an API server"):
        await KubeClient(access, RouterSettings()).get(LIST)
