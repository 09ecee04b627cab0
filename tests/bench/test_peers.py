"""The peers' environments and command lines, without installing any."""

import re
import sys

import pytest

PEERS = ("vllm-router", "smg", "aisimulate", "vllm-sr-sim")


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_is_pinned_with_all_it_needs_by_version_and_hash(name):
    import peers

    text = peers.requirements(name).read_text(encoding="utf-8")
    pins = re.findall(r"^[a-z0-9][\w.-]*==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", text, re.M)) > 0
    assert peers.pinned_version(name)
    assert "index-url" not in text


def test_an_environment_that_is_as_pinned_is_left_alone(tmp_path, monkeypatch):
    import peers

    pins = tmp_path / "peers-x.txt"
    pins.write_text("x==1.0\n")
    folder = tmp_path / "environments" / "x"
    folder.mkdir(parents=True)
    (folder / ".installed").write_bytes(pins.read_bytes())
    monkeypatch.setattr(peers, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(peers, "_run", lambda *given: pytest.fail("installed anew"))
    assert peers.environment("x") == folder / "bin"


def test_a_peer_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    import peers
    from mocks import BenchError

    (tmp_path / "peers-x.txt").write_text("x==1.0\n")
    monkeypatch.setattr(peers, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(sys, "executable", sys.executable + "-missing")
    with pytest.raises(BenchError, match="x cannot be installed"):
        peers.environment("x")


def test_an_interpreter_that_is_not_there_is_named():
    import peers
    from mocks import BenchError

    with pytest.raises(BenchError, match=r"python9\.8 or python9\.9"):
        peers._interpreter(["python9.8", "python9.9"])


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("build", ["spillway", "vllm_router", "smg"])
def test_each_router_is_given_every_node_that_it_needs_once(monkeypatch, build, separate, tmp_path):
    import routers

    posted = []
    monkeypatch.setattr(routers, "environment", lambda name: tmp_path)
    monkeypatch.setattr(routers, "BUILD", tmp_path)
    monkeypatch.setattr(routers, "_post_json", lambda url, body: posted.append(body["url"]))
    pools = routers.Pools(("http://p0", "http://p1"), ("http://d0",), separate)
    router = getattr(routers, build)()
    words = router.command(1, 2, pools)
    router.introduce(1, pools)
    named = posted + [word for word in words if word.startswith("http://")]
    idle = [] if separate or build == "spillway" else list(pools.prefill_urls)
    assert idle + named == [*pools.prefill_urls, *pools.decode_urls]
