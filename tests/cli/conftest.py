"""Running `spillway` in this process, as a person would type it."""

from __future__ import annotations

import sys

import pytest

from cli_command import Command, Done
from spillway.cli.main import run


@pytest.fixture
def spillway(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `spillway` with its arguments."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["spillway", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run()
        code = ended.value.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return Done(code, out, err)

    return call
