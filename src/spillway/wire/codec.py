"""Strict decoding of what an operator wrote; an error names the file, the key and the remedy.

msgspec finds the fault; this module says it in words a person can act on: the dotted path of the
key, what is allowed there, and the nearest known key when one was mistyped. It runs at start-up
only, so clarity wins over speed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as inspect

from spillway.core.errors import ConfigError

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
Where = Callable[[KeyPath], str]  # how an error names a key: a file and a path, or a flag

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\[\.\.\.\]|\[(?P<index>\d+)\]|\.(?P<key>[^.\[]+)")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>.*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<key>.*)`$")
_WRONG = re.compile(r"^Expected `(?P<wanted>[^`]*)`(?P<bound>[^,]*)(?:, got `(?P<got>[^`]*)`)?$")
_WORDS = {
    "object": "a table of keys",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def parse_json(data: bytes, file_name: str) -> Any:
    """Return `data` as plain objects. Raises ConfigError that starts with `file_name`."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file_name}: not valid JSON: {_one_line(str(error))}") from None


def convert(raw: object, kind: type[T], where: Where) -> T:
    """Return plain objects (dict, list, numbers) as a `kind`.

    Raises ConfigError, one line: where it is, what is wrong, what is allowed.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        path, text = _explain(str(error), raw, kind)
        raise ConfigError(f"{where(path)}: {text}") from None


def in_file(name: str, line_of: Callable[[KeyPath], int] | None = None) -> Where:
    """Return a `Where` that says `name:line: dotted.key`, without the line if it is not known."""

    def where(path: KeyPath) -> str:
        at = f"{name}:{line_of(path)}" if line_of else name
        return f"{at}: {dotted(path)}" if path else at

    return where


def dotted(path: KeyPath) -> str:
    """Return `nodes.prefill[0].url` for ("nodes", "prefill", 0, "url")."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `did you mean 'x'? allowed: a, b, x`, or only the second half if nothing is near."""
    allowed = f"allowed: {', '.join(known)}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}? {allowed}" if near else allowed


def _explain(message: str, raw: object, kind: type) -> tuple[KeyPath, str]:
    match = _AT.match(message)
    what, at = (match["what"], match["path"] or "") if match else (message, "")
    path, value, info = _locate(at, raw, inspect.type_info(kind))
    if unknown := _UNKNOWN.match(what):
        allowed = [field.name for field in info.fields] if _is_struct(info) else []
        return (*path, unknown["key"]), f"unknown key; {did_you_mean(unknown['key'], allowed)}"
    if missing := _MISSING.match(what):
        return (*path, missing["key"]), "is missing and has no default"
    if what.startswith("Invalid enum value"):
        return path, f"is {value!r}; {did_you_mean(str(value), _choices(info))}"
    if wrong := _WRONG.match(what):
        wanted = " or ".join(_WORDS.get(word, word) for word in wrong["wanted"].split(" | "))
        if wrong["bound"]:
            return path, f"is {value!r}; it must be {wanted}{wrong['bound']}"
        return path, f"expected {wanted}, got {_WORDS.get(wrong['got'], wrong['got'])}"
    return path, _one_line(what)


def _locate(at: str, raw: object, info: Any) -> tuple[KeyPath, object, Any]:
    """Follow msgspec's path through the data and the type together.

    msgspec writes `[...]` for the values of a mapping; the key at fault is found by trying them.
    """
    path: list[str | int] = []
    value: Any = raw
    for step in _STEP.finditer(at):
        info = _inside(info)
        if step["index"] is not None:
            path.append(int(step["index"]))
            value, info = value[path[-1]], getattr(info, "item_type", None)
        elif step["key"] is not None:
            path.append(step["key"])
            value = value[step["key"]]
            info = next((f.type for f in info.fields if f.encode_name == step["key"]), None)
        else:
            info = getattr(info, "value_type", None)
            key = _key_at_fault(value, info)
            if key is None:
                break
            path.append(key)
            value = value[key]
    return tuple(path), value, _inside(info)


def _key_at_fault(mapping: Any, info: Any) -> str | None:
    info = _inside(info)
    for key, value in mapping.items():
        if not _is_struct(info):
            return None
        try:
            msgspec.convert(value, info.cls)
        except msgspec.ValidationError:
            return str(key)
    return None


def _inside(info: Any) -> Any:
    """Return the one non-null alternative of an optional type."""
    if isinstance(info, inspect.UnionType):
        return next((t for t in info.types if not isinstance(t, inspect.NoneType)), info)
    return info


def _is_struct(info: Any) -> bool:
    return isinstance(info, inspect.StructType)


def _choices(info: Any) -> list[str]:
    if isinstance(info, inspect.EnumType):
        return [str(member.value) for member in info.cls]
    return [str(value) for value in getattr(info, "values", ())]


def _one_line(text: str) -> str:
    return " ".join(text.split())
