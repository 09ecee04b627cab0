"""Makes a copy of the package whose core and simulator run as machine code: `make compiled`.

    PYTHONPATH=build/compiled .venv/bin/spillway simulate ...

mypyc translates the annotated modules below to C as they stand, so the copy decides and simulates
to the last bit what the sources do (`make test-compiled`), about three times as fast. Nothing else
changes: what is not listed runs as Python, and the package itself needs no compiler.

Not listed is what compiled code may not be: the parent of a class that runs as Python, and the
protocols and policies that tests and users derive from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "spillway"
FOLDER = ROOT / "build" / "compiled"
STAMP = ".made-of"

CORE = (
    "calibration chunks controller dispatcher events fleet headroom holding latency ledger lengths"
    " lifecycle placement prefixes reservation retries ttft types"
)
SIM = (
    "batch checks cluster departures flights jumps kernel kv link node port prefix_cache prompts"
    " pulls reports residents routers run snapshot timeline transfers world"
)
MODULES = (
    *(f"core/{name}.py" for name in CORE.split()),
    *(f"sim/{name}.py" for name in SIM.split()),
    "stats.py",
    "wire/tally.py",
)

# Runs in the copy: setuptools wants the modules below its working directory.
BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup

configuration, python, *modules = sys.argv[1:]
sys.argv[1:] = ["-q", "build_ext", "--inplace"]
flags = [f"--config-file={configuration}", f"--python-executable={python}"]
setup(name="spillway-compiled", ext_modules=mypycify([*flags, *modules], opt_level="2"))
"""


def digest(sources: Path = SOURCES) -> str:
    """Return what the copy depends on, in short: every source file and this interpreter."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(sources.rglob("*.py")):
        found.update(str(path.relative_to(sources)).encode())
        found.update(path.read_bytes())
    found.update(" ".join(MODULES).encode())
    return found.hexdigest()


def is_current(folder: Path = FOLDER, sources: Path = SOURCES) -> bool:
    """Say whether the copy is that of the present sources."""
    stamp = folder / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == digest(sources)


def environment(folder: Path = FOLDER) -> dict[str, str]:
    """Return this process's environment with the copy before the package."""
    return {**os.environ, "PYTHONPATH": str(folder)}


def build(folder: Path = FOLDER, modules: Sequence[str] = MODULES) -> None:
    """Make the copy: a minute or two of processor time. Raises CalledProcessError, with the reason
    on stderr, where there is no C compiler or a module is one that cannot be compiled."""
    made_of = digest()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder / "spillway", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", BUILD, str(ROOT / "pyproject.toml"), sys.executable]
    names = [f"spillway/{module}" for module in modules]
    subprocess.run([*command, *names], cwd=folder, check=True)
    shutil.rmtree(folder / "build", ignore_errors=True)
    (folder / STAMP).write_text(made_of, encoding="utf-8")


def missing(folder: Path = FOLDER) -> Iterator[str]:
    """Yield the modules that the copy has not compiled."""
    for module in MODULES:
        source = folder / "spillway" / module
        if not list(source.parent.glob(f"{source.stem}.*.so")):
            yield module


def main() -> None:
    if is_current():
        print(f"{FOLDER.relative_to(ROOT)} is current")
        return
    build()
    lacking = ", ".join(missing())
    if lacking:
        raise SystemExit(f"not compiled: {lacking}")
    print(f"made {FOLDER.relative_to(ROOT)}; use it with PYTHONPATH={FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
