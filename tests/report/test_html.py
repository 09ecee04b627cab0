"""The page: complete in one file, the numbers those of the runs, doubts said aloud."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_samples import Sample, make_decision, make_sample, make_series, three_policies
from spillway.core.errors import ConfigError
from spillway.report.html import findings, page, write_html
from spillway.report.tables import COLUMNS, comparison

pytestmark = pytest.mark.slow  # it draws with matplotlib
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects tags, cells and texts, and whether every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "srcset"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def text() -> str:
    sample = three_policies()
    return page(sample.results, sample.series, make_decision(), ["A note on <this>."])


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    return parser


def test_the_page_is_well_formed(outline: Outline) -> None:
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))


def test_the_page_loads_nothing(text: str, outline: Outline) -> None:
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert all(one.startswith(("#", "data:image/png;base64,")) for one in outline.references)
    assert {"script", "link", "img", "iframe"}.isdisjoint(outline.tags)


def test_the_table_is_the_terminals(outline: Outline, sample: Sample) -> None:
    expected = [[cell.text for cell in row] for row in comparison(sample.runs).rows]
    cells = [row for row in outline.rows if row and row[0] in ("least-loaded", "headroom")]
    assert cells == [expected[0], expected[2]]


def test_the_page_says_what_was_run_and_what_the_words_mean(text: str) -> None:
    for said in (
        "<dt>seed</dt><dd>7</dd>",
        "<dt>version</dt><dd>0.0.1</dd>",
        "<dt>trace</dt><dd>burst &lt;1&gt;.csv</dd>",
        "A note on &lt;this&gt;.",
    ):
        assert said in text
    for column in COLUMNS:
        assert column.name in text


def test_four_figures_and_the_explanation(text: str, outline: Outline) -> None:
    assert outline.tags.count("svg") == 4
    assert "Request r4 was deflected to d1 by headroom" in text
    assert "What happened: first token after 0.251 s (predicted: 0.47 s)" in text


def test_without_a_doubt_there_is_no_warning(text: str) -> None:
    assert 'class="warning"' not in text


def test_failed_requests_and_a_late_client_are_warned_of() -> None:
    sample = make_sample(make_series("b", 0.5, failed=40))
    text = page(sample.results, sample.series, warnings=["The client was late."])
    warning = re.search(r'<div class="warning".*?</div>', text, re.DOTALL)
    assert warning is not None
    assert "b: of 40 requests 40 failed." in warning[0]
    assert "The client was late." in warning[0]


def test_a_page_about_nothing_is_still_a_page() -> None:
    sample = make_sample()
    text = page(sample.results, sample.series)
    assert "Nothing was run" in text
    assert "<svg" not in text
    one = make_sample(make_series("headroom", 1.0, failed=40))
    assert "headroom: one run" in page(one.results, one.series)


def test_findings_compare_with_the_baseline(sample: Sample) -> None:
    base, other = sample.runs[0], sample.runs[2]
    said = findings([other, base])
    assert len(said) == 1
    ratio = other.ttft_s.p95 / base.ttft_s.p95
    assert said[0].startswith(f"headroom: p95 TTFT {other.ttft_s.p95:.3f} s, {ratio:.2f} times ")
    assert "late tokens 0.0 % against 0.0 %; 25.0 % deflected." in said[0]
    assert findings([base]) == []
    assert findings([]) == []


def test_the_page_is_written_whole_or_the_file_is_named(tmp_path: Path) -> None:
    nothing = make_sample(make_series("headroom", 1.0, failed=40))
    path = tmp_path / "report.html"
    write_html(path, nothing.results, nothing.series)
    assert path.read_text(encoding="utf-8") == page(nothing.results, nothing.series)
    with pytest.raises(ConfigError, match=r"gone/report\.html: cannot write the report: No such"):
        write_html(tmp_path / "gone" / "report.html", nothing.results, nothing.series)


def test_nothing_heavy_is_imported_before_a_figure_is_drawn() -> None:
    code = (
        "import sys, spillway.report.html, spillway.wire.config\n"
        "assert not {'matplotlib', 'numpy', 'rich', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
