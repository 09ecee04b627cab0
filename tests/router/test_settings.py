"""Limits are checked when they are set, and targets when they are read."""

from __future__ import annotations

from math import inf, nan

import pytest

from spillway.core.errors import ConfigError, RequestError
from spillway.core.types import Slo
from spillway.router.settings import Classes, RouterSettings

CLASSES = Classes({"default": Slo(1.0, 0.06), "batch": Slo(30.0, 0.5)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70_000),
        ("port", -1),
        ("requests_max", 0),
        ("connect_s", 0.0),
        ("health_interval_s", nan),
        ("client_idle_s", inf),
        ("body_bytes_max", -5),
    ],
)
def test_a_limit_that_is_none_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        RouterSettings(**{name: value})


def test_a_class_sets_both_targets_and_headers_override() -> None:
    assert CLASSES.resolve(None, None, None) == ("default", Slo(1.0, 0.06))
    assert CLASSES.resolve(b"batch", None, None) == ("batch", Slo(30.0, 0.5))
    assert CLASSES.resolve(b"batch", b"500", None) == ("batch", Slo(0.5, 0.5))
    assert CLASSES.resolve(None, None, b"25.5") == ("default", Slo(1.0, 0.0255))


@pytest.mark.parametrize("value", [b"", b"x", b"0", b"-3", b"nan", b"inf", b"1e999"])
def test_a_target_that_is_none_is_refused_by_its_header(value: bytes) -> None:
    with pytest.raises(RequestError, match="x-slo-tbt-ms"):
        CLASSES.resolve(None, None, value)


def test_an_unknown_class_is_told_the_known_ones() -> None:
    with pytest.raises(RequestError, match="batch, default"):
        CLASSES.resolve(b"gold", None, None)


def test_classes_must_make_sense() -> None:
    with pytest.raises(ConfigError, match="default"):
        Classes({"batch": Slo(1.0, 0.1)})
    with pytest.raises(ConfigError, match="batch"):
        Classes({"default": Slo(1.0, 0.1), "batch": Slo(0.0, 0.1)})
