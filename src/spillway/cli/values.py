"""Checks of what a flag was given, before anything runs; a wrong value is named with its flag.

Each is the `callback` of an option: it returns the value, or raises ConfigError. None, for a flag
that was not given, passes.
"""

from __future__ import annotations

from math import isfinite
from os import W_OK, access
from pathlib import Path

import typer

from spillway.core.errors import ConfigError

PICTURES = (".svg", ".png", ".pdf")


def positive(flag: typer.CallbackParam, value: float | None) -> float | None:
    """Return a finite number above 0."""
    if value is not None and not (value > 0.0 and isfinite(value)):
        raise _fault(flag, value, "it must be a number above 0")
    return value


def not_negative(flag: typer.CallbackParam, value: float | None) -> float | None:
    """Return a finite number of 0 or more."""
    if value is not None and not (value >= 0.0 and isfinite(value)):
        raise _fault(flag, value, "it must be a number of 0 or more")
    return value


def fraction(flag: typer.CallbackParam, value: float | None) -> float | None:
    """Return a share above 0, at most 1."""
    if value is not None and not 0.0 < value <= 1.0:
        raise _fault(flag, value, "it must be a share above 0, at most 1; 0.9 is 90 %")
    return value


def share(flag: typer.CallbackParam, value: float | None) -> float | None:
    """Return a share from 0 to 1."""
    if value is not None and not 0.0 <= value <= 1.0:
        raise _fault(flag, value, "it must be a share from 0 to 1; 0.1 is 10 %")
    return value


def writable(flag: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return where a file can be written: found out now and not when the work is done."""
    if value is None:
        return None
    if value.is_dir():
        raise _fault(flag, value, "that is a folder; name a file in it")
    place = next(folder for folder in value.absolute().parents if folder.exists())
    if not place.is_dir():
        raise _fault(flag, value, f"{place} is a file and not a folder")
    if not access(value if value.exists() else place, W_OK):
        raise _fault(flag, value, "it may not be written; choose another place")
    return value


def picture(flag: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return where a picture can be written; its ending says which kind."""
    if value is not None and value.suffix.lower() not in PICTURES:
        raise _fault(flag, value, f"end it with one of {', '.join(PICTURES)}")
    return writable(flag, value)


def _fault(flag: typer.CallbackParam, value: object, remedy: str) -> ConfigError:
    return ConfigError(f"{flag.opts[0]} {value}: {remedy}")
