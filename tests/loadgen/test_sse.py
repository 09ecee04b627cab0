"""Server-sent events, cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import NodeError
from spillway.loadgen.sse import EVENT_BYTES_MAX, EventReader

STREAM = (
    b': a comment\n\ndata: {"a": 1}\n\nevent: x\ndata:two\ndata: lines\n\n'
    b"id: 5\n\ndata: crlf\r\n\r\ndata:\n\ndata: [DONE]\n\n"
)
EXPECTED = [b'{"a": 1}', b"two\nlines", b"crlf", b"", b"[DONE]"]


def test_data_of_each_event():
    assert EventReader().feed(STREAM) == EXPECTED


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_where_the_reads_are_cut_makes_no_difference(cuts: list[int]):
    reader, events = EventReader(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        events += reader.feed(STREAM[start:end])
    assert events == EXPECTED


def test_an_unfinished_event_waits():
    reader = EventReader()
    assert reader.feed(b"data: half") == []
    assert reader.feed(b" whole\n") == []
    assert reader.feed(b"\n") == [b"half whole"]


def test_an_endless_event_is_an_error():
    reader = EventReader()
    assert reader.feed(b"x" * EVENT_BYTES_MAX) == []
    with pytest.raises(NodeError, match="longer than"):
        reader.feed(b"x")
