"""`spillway up`: what it tells the person who started it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from spillway.cli.cluster import ClusterPlan, LocalCluster
from spillway.cli.up import up, welcome
from spillway.cli.up_vllm import make_plan
from spillway.core.errors import ConfigError


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> str:
    plan = ClusterPlan(
        folder=Path("unused"),
        prefill_count=1,
        decode_count=1,
        policy="headroom",
        profile="llama-3.1-8b-a100",
        slo_ttft_s=1.0,
        slo_tbt_s=0.06,
    )
    cluster = LocalCluster(plan)
    cluster.url = "http://127.0.0.1:8000"
    cluster.engine_urls = {"p0": "http://127.0.0.1:1", "d0": "http://127.0.0.1:2"}
    monkeypatch.setattr(cluster, "pids", lambda: {"p0": 11, "d0": 12})
    return welcome(cluster)


def test_the_curl_line_can_be_pasted(text: str) -> None:
    (line,) = [line for line in text.splitlines() if "curl" in line]
    words = shlex.split(line)
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:8000/v1/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "fake-llama"
    assert body["stream"] is True


def test_every_engine_is_listed_with_its_process(text: str) -> None:
    assert "p0  http://127.0.0.1:1   pid 11" in text
    assert "d0  http://127.0.0.1:2   pid 12" in text


def test_real_engines_want_their_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make vllm-env"):
        make_plan(tmp_path / "python", 1, 1, 0.06, stock=False)
    assert make_plan(Path(sys.executable), 1, 1, 0.05, stock=False).plugin == {"tbt_s": 0.05}
    assert make_plan(Path(sys.executable), 1, 1, 0.05, stock=True).plugin is None


def test_a_burst_of_real_engines_wants_real_engines() -> None:
    with pytest.raises(ConfigError, match="spillway demo"):
        up(burst=True)


def test_only_known_kinds_of_engine_are_started() -> None:
    with pytest.raises(ConfigError, match="--engine 'triton': choose fake or vllm"):
        up(engine="triton")
