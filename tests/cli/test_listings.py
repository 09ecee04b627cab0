"""What this installation says it has."""

from __future__ import annotations

from cli_command import Command
from spillway.core.policies import POLICY_NAMES
from spillway.wire.profile import DEFAULT_PROFILE, builtin_names


def test_every_policy_is_listed_with_its_options(spillway: Command) -> None:
    out = spillway("policies").out
    assert all(f"{name}\n" in out for name in POLICY_NAMES)
    assert "alpha=1.3" in out


def test_every_profile_is_listed_and_the_default_marked(spillway: Command) -> None:
    out = spillway("profiles").out
    assert all(name in out for name in builtin_names())
    assert f"{DEFAULT_PROFILE}  (default)" in out
    assert out.count("(default)") == 1
