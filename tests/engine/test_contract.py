"""Everything of vLLM that the plug-in touches, looked up in the sources of several releases.

No vLLM is imported: the files are parsed, so that releases that do not install here are covered and
a change upstream fails in this one named place. The sources are those of `make vllm-env`; a
release that is not there is skipped, visibly.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from spillway.engine.compat import NEWEST_TESTED, OLDEST_TESTED, TOUCHED, Touched

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-vllm"
RELEASES = ("0.26.0", "0.30.0", "0.32.0")  # the last one is installed
SCHEDULER = "v1/core/sched/scheduler.py"
NIXL = "distributed/kv_transfer/kv_connector/v1/nixl"

# What the plug-in believes of vLLM's code beyond names: (file, function, what stands there, why).
FACTS = (
    (SCHEDULER, "schedule", r"token_budget = self\.max_num_scheduled_tokens", "read anew per call"),
    (SCHEDULER, "schedule", r"scheduler_config\.long_prefill_token_threshold", "read per call"),
    (SCHEDULER, "schedule", r"while req_index < len\(self\.running\)", "running ones come first"),
    (SCHEDULER, "schedule", r"token_budget > 0", "waiting ones are looked at while tokens remain"),
    (SCHEDULER, "schedule", r"<= self\.max_num_scheduled_tokens", "so restore it after the call"),
    (SCHEDULER, "schedule", r"preempted_req = self\.running\.pop\(\)", "the last one goes first"),
    (SCHEDULER, "schedule", r"if load_kv_async:(.*\n){3,4}\s+num_new_tokens = 0", "a pull is free"),
    (SCHEDULER, "_update_after_schedule", r"num_computed_tokens \+= num_sched", "advanced at once"),
    (SCHEDULER, "_update_after_schedule", r"request\.is_prefill_chunk = ", "tells decodes apart"),
    ("v1/core/kv_cache_manager.py", "usage", r"get_usage\(\)", "a share from 0 to 1"),
    ("v1/engine/core.py", "step", r"scheduler\.schedule\(", "every step begins there"),
    ("v1/engine/core.py", "step", r"update_from_output\(\s+scheduler_output", "and ends there"),
    ("v1/engine/core.py", "step_with_batch_queue", r"update_from_output\(\s+sched", "async too"),
    ("v1/engine/core.py", "__init__", r"Scheduler\(\s+vllm_config=", "`make` reads this keyword"),
    ("v1/engine/core.py", "shutdown", r"self\.scheduler\.shutdown\(\)", "closes the report port"),
    ("config/scheduler.py", "get_scheduler_cls", r"resolve_obj_by_qualname", "may be a function"),
    # Ending a lease early.
    (SCHEDULER, "_update_from_kv_xfer_finished", r"assert req_id in self\.requests", "no shortcut"),
    (SCHEDULER, "has_finished_requests", r"len\(self\.requests\) > ", "steps while KV is held"),
    (f"{NIXL}/pull_scheduler.py", "request_finished", r"time\.perf_counter\(\) \+", "its clock"),
    (f"{NIXL}/pull_scheduler.py", "request_finished", r'"do_remote_decode"', "tells held KV"),
    (
        f"{NIXL}/base_scheduler.py",
        "build_connector_meta",
        r"meta\.reqs_to_send = self\._reqs_need_send",
        "goes to the workers with the next step",
    ),
    (
        f"{NIXL}/pull_worker.py",
        "start_load_kv",
        r"in metadata\.reqs_to_send\.items\(\):\s+if req_id in self\._reqs_to_process:",
        "set anew for KV that nobody has fetched",
    ),
    (
        f"{NIXL}/pull_worker.py",
        "_get_new_notifs",
        r"_reqs_to_process\.remove",
        "fetched is fetched",
    ),
)


def package(release: str) -> Path:
    """Return the vllm package of a release; skips the test when it is not there."""
    candidates = [ENVIRONMENT / "sources" / release / "vllm"]
    if release == RELEASES[-1]:
        candidates = sorted(ENVIRONMENT.glob("lib/python3*/site-packages/vllm"))
    for path in candidates:
        if (path / SCHEDULER).is_file():
            return path
    pytest.skip(f"the sources of vLLM {release} are not here; make vllm-env fetches them")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def class_named(path: Path, name: str) -> ast.ClassDef:
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise AssertionError(f"{path}: there is no class {name} any more")


def names_of(node: ast.ClassDef) -> set[str]:
    """Return what a class defines: methods, fields, members, and what its methods set on self."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            if isinstance(part.value, ast.Name) and part.value.id == "self":
                found.add(part.attr)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
    return found


def source_of(path: Path, function: str) -> str:
    """Return the text of every function of that name in a file."""
    text = path.read_text(encoding="utf-8")
    parts = [
        ast.get_source_segment(text, node) or ""
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    ]
    assert parts, f"{path}: there is no function {function} any more"
    return "\n".join(parts)


@pytest.mark.slow  # the first of them parses vLLM's largest files
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("touched", TOUCHED, ids=lambda one: f"{one.class_name}.{one.names[:1]}")
def test_every_attribute_that_is_touched_exists(release: str, touched: Touched) -> None:
    names = names_of(class_named(package(release) / touched.file, touched.class_name))
    assert [name for name in touched.names if name not in names] == []


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("fact", FACTS, ids=lambda one: f"{one[1]}: {one[3]}")
def test_what_the_plug_in_relies_on_still_stands_there(
    release: str, fact: tuple[str, str, str, str]
) -> None:
    file, function, pattern, why = fact
    text = source_of(package(release) / file, function)
    assert re.search(pattern, text), f"vLLM {release} {file} {function}: not found, but {why}"


@pytest.mark.parametrize("release", RELEASES)
def test_the_order_rides_where_the_plug_in_looks_for_it(release: str) -> None:
    for endpoint in ("completion", "chat_completion"):
        protocol = package(release) / "entrypoints" / "openai" / endpoint / "protocol.py"
        text = protocol.read_text(encoding="utf-8")
        assert "extra_args: dict[str, Any] = self.vllm_xargs if self.vllm_xargs else {}" in text
        assert "extra_args=extra_args" in text


@pytest.mark.parametrize("release", RELEASES)
def test_a_pull_that_has_begun_no_longer_asks_for_one(release: str) -> None:
    """Else a request whose pull failed would be taken for one that is still to be pulled."""
    connectors = package(release) / "distributed" / "kv_transfer" / "kv_connector" / "v1"
    texts = [path.read_text(encoding="utf-8") for path in connectors.glob("nixl/*.py")]
    assert any('params["do_remote_prefill"] = False' in text for text in texts)


def test_the_range_that_is_claimed_is_the_range_that_is_read() -> None:
    assert (RELEASES[0], RELEASES[-1]) == (OLDEST_TESTED, NEWEST_TESTED)
