"""docs/policies.md says what the docstrings say, and every docstring says enough."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from spillway.core.errors import ConfigError
from spillway.core.policies import POLICY_NAMES

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = spec_from_file_location("policies_doc", ROOT / "scripts" / "policies_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert written == script().page(), "run: .venv/bin/python scripts/policies_doc.py"


def test_every_policy_has_a_section() -> None:
    lines = script().page().splitlines()
    assert all(f"## {name}" in lines for name in POLICY_NAMES)


@dataclass
class Good:
    """One line.

    Rule:    so
             and so.
    Inputs:  this.
    Source:  that.

    margin: how far.
        Very.
    """

    margin: float = 1.0
    name: str = "good"


def test_a_docstring_in_parts() -> None:
    entry = script().read("good", Good)
    assert entry.summary == "One line."
    assert entry.labelled == {"Rule": "so and so.", "Inputs": "this.", "Source": "that."}
    assert entry.options == {"margin": "how far. Very."}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    Inputs:  this.\n", "", "lacks Inputs"),
        ("margin: how", "marge: how", "marge, margin"),
        ("    margin: how far.\n        Very.\n", "", "differ: margin"),
        ("Source:  that", "Sauce:  that", "'Sauce:  that.'"),
        ("Rule:    so\n", "\n", "'and so.' continues nothing"),
    ],
)
def test_a_docstring_that_says_too_little_is_an_error(old: str, new: str, fault: str) -> None:
    doc = Good.__doc__
    assert doc is not None
    assert old in doc
    bad = type("Bad", (Good,), {"__doc__": doc.replace(old, new)})
    with pytest.raises(ConfigError, match=fault):
        script().read("bad", bad)
