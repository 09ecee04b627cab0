"""Options mean the same in every command, and say what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_command import Command
from spillway.cli.options import COMPARED_POLICIES
from spillway.core.policies import POLICY_NAMES
from spillway.wire.links import LINKS
from spillway.workload.operations import OPERATIONS
from spillway.workload.synthetic import FAMILIES
from spillway.workload.traces import BUNDLES, FORMATS

COMMON = ("--slo-ttft-s", "--slo-tbt-s", "--speed-up", "--from-s", "--to-s", "--profile", "--seed")


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_the_comparisons_share_their_options(spillway: Command, command: str) -> None:
    text = spillway(command, "--help").out
    assert [flag for flag in (*COMMON, "--json", "--trace") if flag not in text] == []


@pytest.mark.parametrize("command", ["demo", "simulate", "load"])
def test_whatever_measures_writes_json(spillway: Command, command: str) -> None:
    assert "--json" in spillway(command, "--help").out


def test_help_names_every_family(spillway: Command) -> None:
    words = spillway("simulate", "--help").out.replace(",", " ").split()
    assert set(FAMILIES) <= set(words)


def test_help_names_every_operation_and_every_link(spillway: Command) -> None:
    text = spillway("simulate", "--help").out
    assert [f"{name}=" for name in OPERATIONS if f"{name}=" not in text] == []
    assert [name for name in LINKS if name not in text] == []


def test_the_page_on_workloads_names_everything_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")
    names = (*FORMATS, *BUNDLES, *FAMILIES, *LINKS, *(f"{name}=" for name in OPERATIONS))
    assert [name for name in names if f"`{name}" not in page] == []


def test_the_compared_policies_exist() -> None:
    assert set(COMPARED_POLICIES) <= set(POLICY_NAMES)
