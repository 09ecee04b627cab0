"""The command line as a whole: what it lists, and what an error looks like."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli_command import Command
from spillway import __version__
from spillway.cli import explain as explain_command
from spillway.core.errors import NodeError

COMMANDS = (
    *("demo", "up", "serve", "engine", "simulate", "load", "explain", "profile", "fit", "tune"),
    *("policies", "profiles", "version"),
)


def test_help_lists_every_command_and_where_to_begin(spillway: Command) -> None:
    done = spillway("--help")
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)
    assert "New here?" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(spillway: Command, name: str) -> None:
    done = spillway(name, "-h")
    assert done.code == 0
    assert f"spillway {name}" in done.out


@pytest.mark.parametrize("name", COMMANDS[:-3])
def test_help_of_what_does_something_shows_an_example(spillway: Command, name: str) -> None:
    assert "Example" in spillway(name, "-h").out


def test_version(spillway: Command) -> None:
    assert spillway("--version").out == f"spillway {__version__}\n"
    assert spillway("version").out == f"spillway {__version__}\n"


def test_an_operators_error_is_one_line_and_exit_code_2(spillway: Command) -> None:
    done = spillway("simulate", "--policy", "bogus")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("spillway: error: policy 'bogus' is not known")
    assert done.err.count("\n") == 1


def test_an_unknown_option_is_exit_code_2(spillway: Command) -> None:
    assert spillway("simulate", "--no-such-option").code == 2


@pytest.mark.parametrize(
    ("raised", "code", "err"),
    [
        (
            NodeError("engine d0 ended\nby itself"),
            1,
            "spillway: error: engine d0 ended by itself\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_command_raises(
    spillway: Command,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    err: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(explain_command, "ask_router", fail)
    done = spillway("explain")
    assert (done.code, done.err) == (code, err)


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    # Work counted, not timed: these are what makes a start slow.
    heavy = "asyncio, aiohttp, uvloop, matplotlib, yaml, spillway.sim, spillway.router"
    code = (
        "import sys; import spillway.cli.main as m; m.build_app();"
        f"print([name for name in {heavy.split(', ')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
