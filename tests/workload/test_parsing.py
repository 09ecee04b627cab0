"""What the trace formats share: line numbers, usable counts, the account of dropped rows."""

from __future__ import annotations

import msgspec
import pytest

from spillway.workload.parsing import (
    EXAMPLES_MAX,
    TOKENS_MAX,
    BadRow,
    Drops,
    checked_time,
    checked_tokens,
    decode_line,
    numbered,
    parse_each,
    token_count,
)


def test_blank_lines_are_no_rows_but_count_as_lines():
    assert list(numbered(["a\r\n", "\n", "  \n", " b"])) == [(1, "a"), (4, "b")]


def test_rows_that_cannot_be_parsed_are_counted_by_reason_with_examples():
    drops = Drops()
    lines = numbered(["1", "x", "0", "2", "y", "z", "w"])
    assert parse_each(lines, lambda line: token_count(line, "n"), drops) == [1, 2]
    assert drops.counts == {"n is not a whole number": 4, "n is below 1": 1}
    assert drops.places == {"n is not a whole number": ["2", "5", "6"], "n is below 1": ["3"]}
    assert len(drops.places["n is not a whole number"]) == EXAMPLES_MAX


@pytest.mark.parametrize("tokens", [1, TOKENS_MAX])
def test_counts_within_bounds_pass(tokens: int):
    assert checked_tokens(tokens, "n") == tokens == token_count(f" {tokens} ", "n")


@pytest.mark.parametrize("text", ["0", "-5", str(TOKENS_MAX + 1), "1.5", "", "nan", "9" * 5000])
def test_other_counts_do_not(text: str):
    with pytest.raises(BadRow, match="n is"):
        token_count(text, "n")


@pytest.mark.parametrize("time_s", [-1e-9, float("nan"), float("inf")])
def test_impossible_times_are_refused(time_s: float):
    with pytest.raises(BadRow, match="arrival_s"):
        checked_time(time_s, "arrival_s")


def test_json_reasons_do_not_depend_on_the_row():
    decoder = msgspec.json.Decoder(dict[str, int])
    reasons = set()
    for line in ("{", '{"a":', "nonsense", '{"a": 1}}'):
        with pytest.raises(BadRow) as caught:
            decode_line(decoder, line)
        reasons.add(str(caught.value))
    assert reasons == {"not valid JSON"}
    with pytest.raises(BadRow, match="Expected `int`"):
        decode_line(decoder, '{"a": "1"}')
