"""What commands write."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from report_samples import three_policies
from spillway import __version__
from spillway.cli.output import (
    announce,
    make_results,
    paragraph,
    progress,
    working,
    write_overview,
    write_records,
    write_results,
)
from spillway.core.errors import ConfigError
from spillway.wire.records import RequestRecord
from spillway.wire.results import Results


def test_results_say_what_is_needed_to_repeat_them(tmp_path: Path) -> None:
    sample = three_policies()
    path = tmp_path / "new folder" / "out.json"
    write_results(path, make_results(list(sample.results.runs), 7, {"command": "simulate"}))
    written = msgspec.json.decode(path.read_bytes(), type=Results)
    assert written.seed == 7
    assert written.spillway_version == __version__
    assert written.config == {"command": "simulate"}
    assert written.runs == sample.results.runs


def test_records_are_one_line_each(tmp_path: Path) -> None:
    records = three_policies().series[0].records
    write_records(tmp_path / "r.jsonl", records)
    lines = (tmp_path / "r.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=RequestRecord) for line in lines] == list(records)


@pytest.mark.slow
def test_the_overview_is_a_picture(tmp_path: Path) -> None:
    sample = three_policies()
    write_overview(tmp_path / "a" / "plot.svg", sample.results, sample.series)
    assert b"<svg" in (tmp_path / "a" / "plot.svg").read_bytes()


@pytest.mark.parametrize("name", ["taken/out.json", "folder"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=str(tmp_path / name.split("/")[0])):
        write_records(tmp_path / name, [])


def test_notes_go_to_stderr_in_lines_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    announce("a title " * 20, ["a note " * 20])
    out, err = capsys.readouterr()
    assert out == ""
    assert max(map(len, err.splitlines())) <= 80
    assert len(paragraph("word " * 40).splitlines()) > 1


def test_off_a_terminal_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("label", 10) as advance, working("starting"):
        advance(5, "half")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("sending", 10) as advance:
        advance(5, "5/10 answered")
    assert "sending" in capsys.readouterr().err
