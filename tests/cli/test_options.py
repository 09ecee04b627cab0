"""Options mean the same in every command, and say what exists."""

from __future__ import annotations

import pytest

from cli_command import Command
from spillway.cli.options import COMPARED_POLICIES
from spillway.core.policies import POLICY_NAMES
from spillway.workload.synthetic import FAMILIES

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


def test_the_compared_policies_exist() -> None:
    assert set(COMPARED_POLICIES) <= set(POLICY_NAMES)
