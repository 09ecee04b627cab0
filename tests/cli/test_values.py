"""A wrong value is named with its flag and a remedy, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_command import Command

POSITIVE = ("--rate", "--duration-s", "--speed-up", "--bias", "--slo-ttft-s", "--slo-tbt-s")
NOT_NEGATIVE = ("--noise", "--report-period-s", "--report-delay-s")


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        *((flag, value, "above 0") for flag in POSITIVE for value in ("0", "-3", "nan", "inf")),
        *((flag, value, "0 or more") for flag in NOT_NEGATIVE for value in ("-1", "nan", "inf")),
        *(("--report-loss", value, "from 0 to 1") for value in ("-0.1", "3", "nan")),
    ],
)
def test_an_impossible_number(spillway: Command, flag: str, value: str, remedy: str) -> None:
    done = spillway("simulate", flag, value)
    assert done.code == 2
    assert done.err.startswith(f"spillway: error: {flag} {float(value)}: it must be ")
    assert remedy in done.err
    assert done.out == ""


def test_targets_and_margins_of_the_router(spillway: Command) -> None:
    nodes = ("--prefill", "http://127.0.0.1:1", "--decode", "http://127.0.0.1:2")
    for flag, value in (("--tbt-margin", "7"), ("--tbt-margin", "0"), ("--slo-tbt-s", "0")):
        done = spillway("serve", *nodes, flag, value)
        assert (done.code, done.err.split(":")[2]) == (2, f" {flag} {float(value)}")


@pytest.mark.parametrize("command", [("simulate",), ("capacity",), ("trace", "describe")])
def test_a_file_that_cannot_be_written(
    spillway: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "taken").write_text("")
    for path, remedy in (
        (tmp_path, "that is a folder"),
        (tmp_path / "taken" / "a.json", "is a file and not a folder"),
    ):
        done = spillway(*command, "--json", path)
        assert done.code == 2
        assert f"--json {path}: " in done.err
        assert remedy in done.err


def test_a_folder_that_is_not_there_yet_is_made(spillway: Command, tmp_path: Path) -> None:
    path = tmp_path / "new" / "one" / "figures.json"
    assert spillway("trace", "describe", "--duration-s", "5", "--json", path).code == 0
    assert path.exists()


@pytest.mark.parametrize(
    ("command", "flag"), [(("simulate",), "--figure"), (("trace", "describe"), "--plot")]
)
def test_a_picture_of_no_known_kind(
    spillway: Command, tmp_path: Path, command: tuple[str, ...], flag: str
) -> None:
    done = spillway(*command, flag, tmp_path / "x.bmp")
    assert done.code == 2
    assert "end it with one of .svg, .png, .pdf" in done.err
    assert not list(tmp_path.iterdir())
