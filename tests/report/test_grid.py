"""One table in three forms: the cells are the same in each."""

from __future__ import annotations

import io
import re

import pytest

from spillway.report.grid import Cell, Grid, html, plain, print_grid

GRID = Grid(
    ("policy", "TTFT\ns", "deflec-\nted"),
    (
        (Cell("least-loaded"), Cell("1.500"), Cell("0.0")),
        (Cell("a <b>"), Cell("0.250", marked=True), Cell("12.5")),
    ),
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_up_and_stars_what_is_marked() -> None:
    assert plain(GRID).split("\n") == [
        "               TTFT  deflec-",
        "policy            s      ted",
        "------------  -----  -------",
        "least-loaded  1.500      0.0",
        "a <b>         0.250*    12.5",
    ]


def test_plain_of_no_rows_is_the_head() -> None:
    assert plain(Grid(("a", "b"), ())).split("\n") == ["a  b", "-  -"]


def test_html_escapes_and_marks() -> None:
    text = html(GRID)
    assert "a &lt;b&gt;" in text
    assert re.findall(r'<td class="marked">(.*?)</td>', text) == ["0.250"]
    assert ">deflected</th>" in text
    assert ">TTFT<br>s</th>" in text
    assert text.count("<tr>") == 3


def test_a_file_gets_plain_text() -> None:
    stream = io.StringIO()
    print_grid(GRID, stream)
    assert stream.getvalue() == plain(GRID) + "\n"


@pytest.mark.parametrize(("columns", "cut"), [("120", False), ("20", True)])
def test_a_terminal_never_cuts_a_figure_short(
    monkeypatch: pytest.MonkeyPatch, columns: str, cut: bool
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    print_grid(GRID, stream)
    text = stream.getvalue()
    assert "…" not in text
    assert "least-loaded" in text
    assert "0.250" in text
    assert ("0.250*" in text) is cut
