"""docs/failures.md names a test for each row, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
NAMED = re.compile(r"`(test_\w+)`")


def test_every_row_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    rows = [row for row in ROW.findall(page) if "---" not in row and not row.endswith("Test |")]
    assert len(rows) > 40
    tests = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("router", "e2e")
        for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))
    )
    known = set(re.findall(r"^(?:async )?def (test_\w+)\(", tests, re.MULTILINE))
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"no test for: {row}"
        assert set(named) <= known, f"no such test: {row}"
