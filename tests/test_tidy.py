"""The mechanical part of STYLE.md, so that it fails in the editor and not in review.

Each rule is a function from a file to its faults; a fault says where, what, and what to do instead.
A limit is changed here only by a commit that says why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A name that holds one of these words says its unit.
UNITS = words("s ms us ns tokens bytes frac seqs blocks prompts pairs percent mib kib inches")
# Counts, indices, identities and pure numbers: what has no unit. Extend it rather than a bad name.
COUNT_WORDS = words("""
    alpha arrived at beta block choices column connections conns constant copies correlation
    count cv decisions declined deflections depth digest dispersion done end ended errors events
    every factor failed failures flight gain gaps id index jobs left length line linear lines
    margin max multiple number order overflowed part peak pid planned plans port position
    preemptions priority probes rank ratio reports requests restarts retries right routers rows
    running runs scale seed seen segments sent seq sessions shape sign sizes skips square start
    status step steps stop tick ticks total transfers turns unsent value version waiting weight
    whole width worker workers
    """)
# Figures whose unit stands in the key above them: `ttft_s: {mean, p50}`, `attainment: {ttft}`.
UNIT_IN_PARENT_KEY = words(
    "LengthFigures RequestCounts TtftSummary TbtSummary Attainment TtftParts TtftPartsSummary"
)
# Fields of foreign formats, which are named as their authors name them.
FOREIGN_NAMES = words(
    "timestamp input_length output_length time_since_start long_prefill_token_threshold"
)

CODE_FOLDERS = ("src", "tests", "bench", "examples")
TEXT_SUFFIXES = words(".py .md .toml .yaml .yml .json .txt .in .c .h .sh .csv .html")
HIDDEN_BUT_OURS = words(".ci .gitignore")  # anything else with a dot is a tool's or a person's own
GENERATED_FOLDERS = words("build __pycache__")
GRAB_BAGS = words("utils util helpers common misc tools base shared")
ENTRY_POINTS = frozenset(
    words("""
        spillway.cli.main spillway.__main__ spillway.sim.sweep spillway.engine.scheduler
        spillway.vllmcluster.parent
        """)
)
MUTATORS = words("append add update extend insert setdefault pop popitem remove discard clear sort")
# Written in pieces, so that this file does not break its own rule.
MACHINE_PATHS = re.compile(r"(?<![\w.:/~}-])/(" + "root|home|work|opt|Users|mnt|data" + r")/[\w.]")
REGISTRY_HOSTS = re.compile(r"(pypi|pythonhosted|npmjs|crates|anaconda)" + r"\.(org|com|io)")
LEFTOVERS = re.compile(r"\b(FIX" + "ME|TO" + "DO|XX" + r"X)\b")


class Module(NamedTuple):
    """A parsed Python file. name: dotted, for files under src."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        parts = self.path.relative_to(ROOT / "src").with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def text_files() -> tuple[Path, ...]:
    """Return every file of the project that people write."""
    found: list[Path] = []
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS:
                continue
            if path.is_dir() and path.name not in GENERATED_FOLDERS:
                folders.append(path)
            elif path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run", ".gitignore"):
                found.append(path)
    return tuple(found)


@cache
def modules() -> tuple[Module, ...]:
    """Return every Python file of the project, parsed."""
    found = []
    for path in text_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in CODE_FOLDERS:
            text = path.read_text(encoding="utf-8")
            found.append(Module(path, text, ast.parse(text)))
    return tuple(found)


def source_modules() -> list[Module]:
    return [one for one in modules() if one.path.is_relative_to(ROOT / "src")]


# --- rules for Python files ------------------------------------------------------------------


def long_functions(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{module.at(node)}: {node.name} has {lines} lines; split it by what it does"


def missing_module_docstring(module: Module) -> Iterator[str]:
    if ast.get_docstring(module.tree) is None:
        yield f"{module.at(module.tree)}: say in a docstring what the file is for"


def grab_bag_name(module: Module) -> Iterator[str]:
    if module.path.stem in GRAB_BAGS:
        yield f"{module.at(module.tree)}: name the file by the one idea it holds"


def is_number(annotation: ast.expr | None) -> bool:
    types = ast.unparse(annotation).split(" | ") if annotation else []
    return "int" in types or "float" in types


def has_unit(name: str) -> bool:
    parts = set(name.lower().strip("_").split("_"))
    return not parts.isdisjoint(UNITS | COUNT_WORDS) or name in FOREIGN_NAMES


def numbers_without_unit(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.arg) and is_number(node.annotation):
            names = [node.arg]
        elif isinstance(node, ast.ClassDef) and node.name not in UNIT_IN_PARENT_KEY:
            names = [
                line.target.id
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                if is_number(line.annotation)
            ]
        else:
            continue
        for name in names:
            if not has_unit(name):
                yield f"{module.at(node)}: {name} is a number without a unit (_s, _tokens, ...)"


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        made = ast.unparse(value.func).split(".")[-1]
        return made in ("list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter")
    return isinstance(
        value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    )


def mutable_names(module: Module) -> dict[str, ast.stmt]:
    """Return the names that a module binds to something mutable, with the statement."""
    names: dict[str, ast.stmt] = {}
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id: node for one in targets if isinstance(one, ast.Name)}
    return names


def module_state(module: Module) -> Iterator[str]:
    """A table in capitals is a constant as long as nothing in its file changes it."""
    names = mutable_names(module)
    for name, node in names.items():
        if name != name.upper() and name != "__all__":
            yield f"{module.at(node)}: {name} is mutable state of a module; put it into an object"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.at(node)}: global {', '.join(node.names)}; pass the object instead"
        changed: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = node.func.value if node.func.attr in MUTATORS else None
        if isinstance(changed, ast.Name) and changed.id in names:
            yield f"{module.at(node)}: {changed.id} is a constant table and must not be changed"


def work_at_import(module: Module) -> Iterator[str]:
    for node in module.tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node)[:40]
            yield f"{module.at(node)}: {call} runs at import; move it into a function"
        if isinstance(node, ast.For | ast.While | ast.With | ast.Try):
            yield f"{module.at(node)}: a module only defines; move this into a function"


EVERYWHERE = (long_functions, missing_module_docstring, grab_bag_name)
IN_SOURCE = (numbers_without_unit, module_state, work_at_import)


@pytest.mark.slow  # the first of them parses every file
@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_python_files(rule: Callable[[Module], Iterator[str]]) -> None:
    assert [fault for module in modules() for fault in rule(module)] == []


@pytest.mark.parametrize("rule", IN_SOURCE, ids=lambda rule: rule.__name__)
def test_source_files(rule: Callable[[Module], Iterator[str]]) -> None:
    assert [fault for module in source_modules() for fault in rule(module)] == []


# --- rules for the tree ----------------------------------------------------------------------


def imported_names(module: Module) -> Iterator[str]:
    """Return the dotted names a file imports, wherever in it the import stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_source_file_is_imported_by_another_one_or_is_an_entry_point() -> None:
    wanted = {
        name
        for module in source_modules()
        for name in imported_names(module)
        if name != module.name
    }
    dead = [
        str(module.path.relative_to(ROOT))
        for module in source_modules()
        if module.path.stem != "__init__" and module.name not in wanted | ENTRY_POINTS
    ]
    assert dead == [], "nothing imports these: use them or delete them"


def test_no_file_is_too_long() -> None:
    long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for path in text_files()
        if path.suffix in (".py", ".c", ".h")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    ]
    assert long == [], f"at most {FILE_LINES_MAX}: split by idea"


def faults_of_lines(pattern: re.Pattern[str], files: tuple[Path, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := pattern.search(line))
    ]


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRY_HOSTS, LEFTOVERS])
def test_nothing_of_one_machine_and_nothing_left_over(pattern: re.Pattern[str]) -> None:
    assert faults_of_lines(pattern, text_files()) == []


# --- rules for Markdown ----------------------------------------------------------------------


def markdown_files() -> list[Path]:
    return [path for path in text_files() if path.suffix == ".md"]


def prose(path: Path) -> str:
    """Return a Markdown file without its fenced code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a file's headings, by the rule that code hosts follow."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


def test_each_markdown_file_starts_with_its_only_title() -> None:
    faults = []
    for path in markdown_files():
        titles = re.findall(r"^# .+$", prose(path), flags=re.M)
        if len(titles) != 1 or not path.read_text(encoding="utf-8").startswith("# "):
            faults.append(f"{path.relative_to(ROOT)}: {len(titles)} titles")
    assert faults == []


def test_relative_links_in_markdown_lead_somewhere() -> None:
    broken = []
    for path in markdown_files():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
            file, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            linked = (path.parent / file).resolve() if file else path
            ok = linked.exists() and (not anchor or anchor in anchors(linked))
            if not ok:
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


# --- the rules themselves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text", "fault"),
    [
        (numbers_without_unit, "def f(delay: float): ...", "delay is a number without a unit"),
        (numbers_without_unit, "class A:\n    wait: int | None = None", "wait is a number"),
        (module_state, "cache = {}", "cache is mutable state"),
        (module_state, "T = {}\ndef f():\n    T['a'] = 1", "T is a constant table"),
        (module_state, "def f():\n    global x\n    x = 1", "global x"),
        (work_at_import, "print('hello')", "runs at import"),
        (missing_module_docstring, "x = 1", "docstring"),
        (long_functions, "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, "f has 61 lines"),
    ],
)
def test_a_rule_finds_its_fault(
    rule: Callable[[Module], Iterator[str]], text: str, fault: str
) -> None:
    found = list(rule(Module(ROOT / "src" / "spillway" / "x.py", text, ast.parse(text))))
    assert len(found) == 1
    assert fault in found[0]


def test_rules_leave_good_code_alone() -> None:
    text = '"""Doc."""\nTABLE = {1: 2}\ndef f(wait_s: float, tokens: int) -> int: return TABLE[1]\n'
    module = Module(ROOT / "src" / "spillway" / "x.py", text, ast.parse(text))
    assert [fault for rule in (*EVERYWHERE, *IN_SOURCE) for fault in rule(module)] == []
