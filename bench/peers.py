"""The environments of the other programs of the field that are measured beside this one.

requirements/peers-NAME.txt pins what goes into .venv-peers/NAME, by version and hash. It is made
the first time that it is asked for; one that cannot be made is a reason to print, not to stop.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mocks import BenchError

CHECKOUT = Path(__file__).resolve().parents[1]
REQUIREMENTS = CHECKOUT / "requirements"
ENVIRONMENTS = CHECKOUT / ".venv-peers"
INSTALL_S_MAX = 1200.0


def environment(name: str, python: Sequence[str] = (), s_max: float = INSTALL_S_MAX) -> Path:
    """Return the folder of a peer's programs, installed now if it is not yet. Raises BenchError.

    python: interpreters to try when this one does not suit, by name; the first that runs is taken.
    s_max: how long the package manager may take.
    """
    wanted, folder = requirements(name), ENVIRONMENTS / name
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes():
        return folder / "bin"
    print(f"  installing what requirements/{wanted.name} pins ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([_interpreter(python), "-m", "venv", str(folder)], name, s_max)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    install += ["--no-deps", "--require-hashes"]  # the file pins everything: nothing to work out
    _run([str(folder / "bin" / "python"), *install, "-r", str(wanted)], name, s_max)
    stamp.write_bytes(wanted.read_bytes())
    return folder / "bin"


def requirements(name: str) -> Path:
    """Return the file that pins a peer's environment."""
    return REQUIREMENTS / f"peers-{name}.txt"


def pinned_version(name: str, package: str | None = None) -> str:
    """Return the version of a package that a peer's requirements pin. Raises BenchError."""
    text = requirements(name).read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package or name)}==(\S+)", text, re.MULTILINE)
    if found is None:
        raise BenchError(f"requirements/{requirements(name).name} pins no {package or name}")
    return found.group(1)


def _interpreter(names: Sequence[str]) -> str:
    for name in names:
        path = shutil.which(name)
        if (
            path
            and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return path
    if names:
        raise BenchError(f"no interpreter answers to {' or '.join(names)}; put one on the PATH")
    return sys.executable


def _run(command: list[str], name: str, s_max: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=s_max)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{name} cannot be installed: {error}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise BenchError(f"{name} cannot be installed: {lines[-1].strip()[-300:]}")
