"""Opens what holds a trace in many files: a folder, or a tar archive, compressed or not."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from zlib import error as ZlibError

from spillway.core.errors import ConfigError

MEMBERS_MAX = 100_000
MEMBER_BYTES_MAX = 256 * 2**20
TOTAL_BYTES_MAX = 2 * 2**30
SUFFIXES = (".json", ".csv")


def has_members(path: Path) -> bool:
    """Return whether `path` is a folder or a tar archive. A pipe is neither, and stays unread."""
    return path.is_dir() or (path.is_file() and tarfile.is_tarfile(path))


def read_members(path: Path) -> dict[str, bytes]:
    """Return the .json and .csv files in a folder or tar archive, by name.

    Raises ConfigError, naming the file, on a broken archive or one beyond the limits above.
    """
    found: dict[str, bytes] = {}
    total = 0
    try:
        for name, content in _folder(path) if path.is_dir() else _archive(path):
            total += len(content)
            if len(found) >= MEMBERS_MAX or total > TOTAL_BYTES_MAX:
                raise ConfigError(f"trace {path}: more than {len(found)} files or {total} bytes")
            found[name] = content
    except (tarfile.TarError, EOFError, LZMAError, ZlibError) as error:
        raise ConfigError(f"trace {path}: a broken archive: {error}") from None
    return found


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        if file.suffix in SUFFIXES and file.is_file():
            _check_size(path, file.name, file.stat().st_size)
            yield str(file.relative_to(path)), file.read_bytes()


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith(SUFFIXES):
                _check_size(path, member.name, member.size)
                yield member.name, file.read()


def _check_size(path: Path, name: str, size_bytes: int) -> None:
    if size_bytes > MEMBER_BYTES_MAX:
        raise ConfigError(f"trace {path}: {name} has {size_bytes} bytes; too large to be read")
