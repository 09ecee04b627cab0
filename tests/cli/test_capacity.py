"""`spillway capacity`, from its flags to its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_command import Command

SMALL = ("--synthetic", "burst", "--duration-s", "6", "--nodes-max", "3")


@pytest.mark.slow
def test_it_sizes_a_cluster_with_and_without_deflection(spillway: Command, tmp_path: Path) -> None:
    done = spillway("capacity", *SMALL, "--json", tmp_path / "c.json")
    assert done.code == 0
    assert "least-loaded: " in done.out
    assert "headroom: " in done.out
    told = json.loads((tmp_path / "c.json").read_text())
    assert told["config"]["attainment_frac"] == 0.95
    assert [run["policy"] for run in told["runs"]] == ["least-loaded", "headroom"]
    for run in told["runs"]:
        assert all(one["attained_frac"] >= 0.95 for one in run["clusters"])
        counts = [one["node_count"] for one in run["clusters"]]
        assert run["fewest"]["node_count"] == min(counts)


@pytest.mark.slow
def test_too_few_nodes_are_said_and_no_error(spillway: Command, tmp_path: Path) -> None:
    hard = ("--rate", "80", "--nodes-max", "1", "--policy", "least-loaded")
    done = spillway("capacity", *SMALL[:4], *hard, "--json", tmp_path / "c.json")
    assert done.code == 0
    assert "1 nodes of each kind are not enough" in done.out
    assert "p95" not in done.out, "a table without rows is not shown"
    assert json.loads((tmp_path / "c.json").read_text())["runs"][0]["fewest"] is None


def test_a_mistake_takes_one_line(spillway: Command) -> None:
    done = spillway("capacity", *SMALL, "--policy", "hedroom")
    assert done.code == 2
    assert "did you mean 'headroom'" in done.err
