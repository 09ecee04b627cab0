"""Errors of strict decoding: the path, the fault and what is allowed, in one line."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from spillway.core.errors import ConfigError
from spillway.wire.codec import convert, did_you_mean, dotted, in_file, parse_json


class Colour(StrEnum):
    """Two members to choose from."""

    RED = "red"
    GREEN = "green"


class Inner(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A table inside a list, a mapping and an optional."""

    size: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    colour: Colour | None = None
    mode: Literal["fast", "slow"] = "fast"


class Outer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One field of each kind."""

    name: str
    rows: list[Inner] = []
    by_name: dict[str, Inner] = {}
    counts: dict[str, int] = {}
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "f: name: is missing and has no default"),
        ({"name": 1}, "f: name: expected text, got a whole number"),
        ({"name": "x", "rows": {}}, "f: rows: expected a list, got a table of keys"),
        ({"name": "x", "rows": [{}, {"size": 0}]}, "f: rows[1].size: is 0; it must be a number >"),
        ({"name": "x", "rows": [{"siz": 1}]}, "f: rows[0].siz: unknown key; did you mean 'size'?"),
        (
            {"name": "x", "by_name": {"a": {}, "b": {"colour": "gren"}}},
            "f: by_name.b.colour: is 'gren'; did you mean 'green'? allowed: red, green",
        ),
        ({"name": "x", "maybe": {"mode": "q"}}, "f: maybe.mode: is 'q'; allowed: fast, slow"),
        ({"name": "x", "maybe": {"nonsense": 1}}, "f: maybe.nonsense: unknown key; allowed: size,"),
        ({"name": "x", "maybe": 3}, "f: maybe: expected a table of keys or nothing, got a whole"),
        ({"name": "x", "counts": {"a": "1"}}, "f: counts: expected a whole number, got text"),
        ([], "f: expected a table of keys, got a list"),
        (None, "f: expected a table of keys, got nothing"),
    ],
)
def test_a_fault_is_named_with_its_path(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(raw, Outer, in_file("f"))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_is_right_is_converted() -> None:
    raw = {"name": "x", "rows": [{"size": 2, "colour": "red"}]}
    assert convert(raw, Outer, in_file("f")) == Outer(
        name="x", rows=[Inner(size=2.0, colour=Colour.RED)]
    )


def test_a_line_number_goes_between_file_and_key() -> None:
    assert in_file("a.yaml", lambda path: len(path))(("x", 0, "y")) == "a.yaml:3: x[0].y"
    assert in_file("a.yaml")(()) == "a.yaml"


def test_json_that_is_none_is_told_where() -> None:
    assert parse_json(b"[1]", "f.json") == [1]
    with pytest.raises(ConfigError, match=r"^f\.json: not valid JSON: .*byte 1"):
        parse_json(b"[x", "f.json")


def test_paths_and_suggestions() -> None:
    assert dotted(("nodes", "prefill", 0, "url")) == "nodes.prefill[0].url"
    assert (
        did_you_mean("colr", ["colour", "size"]) == "did you mean 'colour'? allowed: colour, size"
    )
    assert did_you_mean("zzz", ["colour", "size"]) == "allowed: colour, size"
