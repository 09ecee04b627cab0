"""What the documents claim about the code, where a program can check it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from typer.main import get_command

from spillway.cli.main import build_app
from spillway.core.policies import POLICY_NAMES
from spillway.wire.results import RESULTS_SCHEMA_VERSION, Results, RunResult

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def command_names() -> set[str]:
    return set(get_command(build_app()).commands)  # type: ignore[attr-defined]


def test_the_example_of_the_results_has_their_form() -> None:
    block = re.search(r"```json\n(.*?)```", text("docs/results.md"), flags=re.DOTALL)
    assert block is not None
    example = msgspec.json.decode(block[1], type=Results)
    assert example.schema_version == RESULTS_SCHEMA_VERSION
    assert [run.policy for run in example.runs] == ["headroom"]


def test_every_field_of_a_run_is_documented() -> None:
    documented = set(re.findall(r"^\| `([\w.]+)", text("docs/results.md"), flags=re.MULTILINE))
    tops = {name.partition(".")[0] for name in documented}
    assert {field.name for field in msgspec.structs.fields(RunResult)} <= tops


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"`?spillway ([a-z]+)\b", text("README.md")))
    assert named & command_names(), "the readme names commands"
    assert {name for name in named if f"`spillway {name}`" in text("README.md")} <= command_names()


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`?make ([a-z]+)\b", text(document))) <= targets


def test_every_file_in_the_table_of_places_exists() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+) \| ([^|]+) \|$", text("ARCHITECTURE.md"), flags=re.M)
    assert len(rows) > 20
    for files, tests in rows:
        for name in re.findall(r"`([\w/.]+)`", files):
            assert (ROOT / "src" / "spillway" / name).exists(), name
        for name in re.findall(r"`([\w/.]+)`", tests):
            assert (ROOT / name).exists(), name


def test_the_policies_of_the_readme_exist() -> None:
    for name in ("headroom", "kairos-paper", "least-loaded", "threshold"):
        assert f"`{name}`" in text("README.md")
        assert name in POLICY_NAMES
