"""The order to free held KV, there and back."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from spillway.core.errors import RequestError
from spillway.wire.kvparams import HeldKv
from spillway.wire.release import NAME_CHARS_MAX, RELEASE_PATH, read_release, release_target


@pytest.mark.parametrize(
    "held",
    [
        HeldKv("1cebdcd1", "cmpl-9e1f-0-888608de"),
        HeldKv("e&request=x", "a b+c%20\r\nü/?#"),
        HeldKv("e" * NAME_CHARS_MAX, "\U0001f642" * NAME_CHARS_MAX),
    ],
)
def test_names_arrive_as_they_were(held: HeldKv) -> None:
    target = release_target(held)
    assert target is not None
    assert target.isascii()
    assert len(target) < 12_000
    url = urlsplit(target)
    assert url.path == RELEASE_PATH
    assert read_release(url.query) == held


def test_names_that_are_too_long_are_not_sent() -> None:
    assert release_target(HeldKv("e", "r" * (NAME_CHARS_MAX + 1))) is None
    assert release_target(HeldKv("e" * (NAME_CHARS_MAX + 1), "r")) is None


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "engine"),
        ("engine=e", "request"),
        ("engine=&request=r", "engine"),
        (f"engine=e&request={'r' * (NAME_CHARS_MAX + 1)}", "request"),
    ],
)
def test_what_is_missing_or_too_long_is_named(query: str, param: str) -> None:
    with pytest.raises(RequestError, match="must be a name") as caught:
        read_release(query)
    assert caught.value.param == param
