"""The compiled copy (`make compiled`): what it is made of, and that it gives the same results."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    spec = spec_from_file_location("compiled", ROOT / "scripts" / "compiled.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classes(path: Path) -> list[ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_what_is_compiled_exists_and_is_listed_once(compiled: ModuleType) -> None:
    modules = compiled.MODULES
    assert [name for name in modules if not (compiled.SOURCES / name).is_file()] == []
    assert len(set(modules)) == len(modules)


def test_nothing_that_runs_as_python_derives_from_what_is_compiled(compiled: ModuleType) -> None:
    listed = [compiled.SOURCES / name for name in compiled.MODULES]
    native = {
        one.name
        for path in listed
        for one in classes(path)
        if not any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in one.bases)
    }
    assert {"Dispatcher", "SimNode", "Simulation"} <= native
    derived = [
        f"{path.relative_to(compiled.SOURCES)}: {one.name} of {base.id}"
        for path in compiled.SOURCES.rglob("*.py")
        if path not in listed
        for one in classes(path)
        for base in one.bases
        if isinstance(base, ast.Name) and base.id in native
    ]
    assert derived == []


def test_a_copy_is_current_only_for_the_sources_that_it_was_made_of(
    compiled: ModuleType, tmp_path: Path
) -> None:
    sources, folder = tmp_path / "sources", tmp_path / "copy"
    sources.mkdir()
    folder.mkdir()
    (sources / "one.py").write_text("ONE = 1")
    assert not compiled.is_current(folder, sources)
    (folder / compiled.STAMP).write_text(compiled.digest(sources))
    assert compiled.is_current(folder, sources)
    (sources / "one.py").write_text("ONE = 2")
    assert not compiled.is_current(folder, sources)


@pytest.mark.slow
def test_the_copy_gives_the_same_records_decisions_and_counts(compiled: ModuleType) -> None:
    if not compiled.is_current():
        pytest.skip("there is no current compiled copy; make one: make compiled")
    command = [sys.executable, str(ROOT / "tests" / "sim" / "digests.py")]
    texts = [
        subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
        for env in (compiled.environment(), compiled.environment(ROOT / "src"))
    ]
    copy, sources = (text.splitlines() for text in texts)
    assert copy[0] == "dispatcher: extension"
    assert sources[0] == "dispatcher: source"
    assert copy[1:] == sources[1:]
    assert len(sources) > 20
