"""`spillway simulate`, from its flags to its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_command import Command
from spillway.cli.options import COMPARED_POLICIES

SMALL = ("--synthetic", "burst", "--duration-s", "8")


def results(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.mark.slow
def test_it_compares_the_usual_policies(spillway: Command, tmp_path: Path) -> None:
    done = spillway("simulate", *SMALL, "--json", tmp_path / "out.json")
    assert done.code == 0
    assert all(name in done.out for name in COMPARED_POLICIES)
    assert "requests in 8 s" in done.err
    written = results(tmp_path / "out.json")
    assert [run["policy"] for run in written["runs"]] == list(COMPARED_POLICIES)
    arrived = {run["requests"]["arrived"] for run in written["runs"]}
    assert len(arrived) == 1, "every policy gets the same requests"
    assert all(run["requests"]["finished"] == run["requests"]["arrived"] for run in written["runs"])


@pytest.mark.slow
def test_the_json_has_the_documented_fields(spillway: Command, tmp_path: Path) -> None:
    spillway("simulate", *SMALL, "--policy", "headroom", "--json", tmp_path / "out.json")
    written = results(tmp_path / "out.json")
    assert set(written) == {"runs", "schema_version", "seed", "spillway_version", "config"}
    (run,) = written["runs"]
    assert set(run) == {
        *("policy", "requests", "ttft_s", "tbt_s", "late_tokens_frac", "attainment"),
        *("deflected_frac", "kv_bytes_moved", "ttft_parts_p95_s", "wall_s", "reasons"),
    }
    assert set(run["requests"]) == {"arrived", "finished", "failed", "rejected", "cancelled"}
    assert set(run["ttft_s"]) == {"mean", "p50", "p95", "p99"}
    assert set(run["tbt_s"]) == {"p50", "p99", "max"}
    names = {"ttft", "tbt_mean", "tbt_99", "joint_mean", "joint_99"}
    assert set(run["attainment"]) == names
    parts = {"queue", "execute", "transfer", "admission", "first_step"}
    assert set(run["ttft_parts_p95_s"]) == parts


@pytest.mark.slow
def test_same_seed_same_figures_and_another_seed_others(spillway: Command, tmp_path: Path) -> None:
    def figures(seed: int, name: str) -> dict[str, Any]:
        path = tmp_path / name
        one_policy = ("--policy", "headroom", "--seed", seed, "--json", path)
        assert spillway("simulate", *SMALL, *one_policy).code == 0
        run: dict[str, Any] = results(path)["runs"][0]
        return {key: value for key, value in run.items() if key != "wall_s"}

    assert figures(3, "a.json") == figures(3, "b.json")
    assert figures(3, "a.json") != figures(4, "c.json")


@pytest.mark.slow
def test_every_option_that_shapes_the_figures_is_echoed(spillway: Command, tmp_path: Path) -> None:
    flags = ("--cluster", "1p2d", "--bias", "1.2", "--noise", "0.1", "--report-period-s", "0")
    flags += ("--decode-chunk-tokens", "256", "--slo-ttft-s", "2", "--slo-tbt-s", "0.1")
    flags += ("--speed-up", "2", "--profile", "qwen3-8b-h100", "--policy", "headroom")
    flags += ("--link", "100gbps", "--apply", "thin=0.9", "--drift", "0.2")
    flags += ("--report-delay-s", "0.05", "--report-loss", "0.1", "--node", "d1=bias:1.5")
    assert spillway("simulate", *SMALL, *flags, "--json", tmp_path / "o.json").code == 0
    assert results(tmp_path / "o.json")["config"] == {
        "command": "simulate",
        "synthetic": "burst",
        "rate_per_s": 12.0,
        "duration_s": 8.0,
        "from_s": 0.0,
        "to_s": None,
        "speed_up": 2.0,
        "cluster": "1p2d",
        "operations": ["thin=0.9"],
        "profile": "qwen3-8b-h100",
        "link_bytes_per_s": 10e9,
        "link_base_s": 0.001,
        "closed_loop": False,
        "slo_ttft_s": 2.0,
        "slo_tbt_s": 0.1,
        "bias": 1.2,
        "noise": 0.1,
        "drift": 0.2,
        "nodes": {"d1": {"bias_frac": 1.5}},
        "report_period_s": 0.0,
        "report_delay_s": 0.05,
        "report_loss": 0.1,
        "routers": 1,
        "chunk_mode": "static",
        "chunk_tokens_max": 256,
    }


def test_a_derived_profile_says_so_in_every_report(spillway: Command, tmp_path: Path) -> None:
    name, page = "deepseek-v2-lite-h100-derived", tmp_path / "page.html"
    ran = spillway("simulate", *SMALL, "--profile", name, "--html", page, "--json", tmp_path / "o")
    assert "derived from first principles (±40%), not measured" in " ".join(ran.err.split())
    assert "derived from first principles" in page.read_text()
    assert results(tmp_path / "o")["config"]["profile"] == name


@pytest.mark.slow
def test_decisions_can_be_explained_later(spillway: Command, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    policies = ("--policy", "least-loaded", "--policy", "headroom")
    out = tmp_path / "out.json"
    spillway("simulate", *SMALL, *policies, "--decisions", log, "--check", "--json", out)
    arrived = results(out)["runs"][1]["requests"]["arrived"]
    assert len(log.read_text().splitlines()) == arrived
    explained = spillway("explain", "r7", "--log", log)
    assert explained.code == 0
    assert "Request r7" in explained.out
    assert "by headroom" in explained.out, "the log holds the last policy's decisions"


@pytest.mark.slow
def test_the_page_explains_a_deflection(spillway: Command, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "sim.html"
    plot = tmp_path / "plot.png"
    done = spillway("simulate", *SMALL, "--html", page, "--figure", plot)
    assert f"report: {page}" in done.err
    text = page.read_text()
    assert "was deflected to" in text
    assert "by headroom" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cluster", "2x2"), "2x2"),
        (("--profile", "nope"), "profile 'nope'"),
        (("--policy", "headroom", "--policy", "nope"), "policy 'nope'"),
        (("--noise", "-1"), "noise"),
        (("--trace", "missing.csv"), "missing.csv"),
    ],
)
def test_a_bad_flag_is_told_before_anything_is_written(
    spillway: Command, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "out.json"
    done = spillway("simulate", "--duration-s", "2", *flags, "--json", path)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert not path.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--node", "d1=profil:x"), "did you mean 'profile'"),
        (("--node", "d7=bias:2"), "no node 'd7'"),
        (("--node", "d1=bias:2", "--node", "d1=seqs_max:4"), "names one node twice"),
        (("--drift", "-2"), "drift_frac is -2.0"),
        (("--report-loss", "2"), "--report-loss 2.0"),
    ],
)
def test_a_difference_without_sense_is_one_line(
    spillway: Command, flags: tuple[str, ...], said: str
) -> None:
    done = spillway("simulate", *SMALL, *flags)
    assert done.code == 2
    assert said in done.err


def test_a_shadow_is_reported_and_changes_no_figure(spillway: Command, tmp_path: Path) -> None:
    alone, watched = tmp_path / "alone.json", tmp_path / "watched.json"
    log, records = tmp_path / "decisions.jsonl", tmp_path / "records.jsonl"
    one_policy = (*SMALL, "--policy", "least-loaded")
    assert spillway("simulate", *one_policy, "--json", alone).code == 0
    kept = ("--json", watched, "--decisions", log, "--records", records)
    done = spillway("simulate", *one_policy, "--shadow", "headroom", *kept)
    assert done.code == 0
    assert "In the shadow of least-loaded: headroom" in done.out
    runs = [results(path)["runs"][0] | {"wall_s": 0} for path in (alone, watched)]
    assert runs[0] == runs[1]
    again = spillway("replay", log, "--shadow", "--happened", records)
    assert again.code == 0
    assert again.out in done.out


@pytest.mark.slow
def test_several_routers_can_share_the_nodes(spillway: Command, tmp_path: Path) -> None:
    sharing = ("--policy", "headroom", "--routers", "3", "--check")
    done = spillway("simulate", *SMALL, *sharing, "--json", tmp_path / "out.json")
    assert done.code == 0
    written = results(tmp_path / "out.json")
    assert written["config"]["routers"] == 3
    (run,) = written["runs"]
    assert run["requests"]["finished"] == run["requests"]["arrived"]


def test_turns_can_wait_for_one_another(spillway: Command, tmp_path: Path) -> None:
    one_policy = ("--policy", "headroom", "--closed-loop", "--json", tmp_path / "out.json")
    done = spillway("simulate", "--synthetic", "sessions", "--duration-s", "8", *one_policy)
    assert done.code == 0
    assert "wait for the turn before them" in " ".join(done.err.split())
    assert results(tmp_path / "out.json")["config"]["closed_loop"] is True
    done = spillway("simulate", *SMALL, "--closed-loop")
    assert (done.code, "needs sessions of several turns" in done.err) == (2, True)
