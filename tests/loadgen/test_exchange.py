"""The measuring of one request: TTFT, gaps, ends, and the check of every token."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import NodeError
from spillway.core.types import Slo
from spillway.loadgen.exchange import Exchange, TextCheck
from spillway.stats import GapHistogram
from spillway.wire.faketext import expected_token
from spillway.workload.row import Row

ROW = Row(1.5, 100, 3, "chat")


def exchange(check: TextCheck | None = None) -> tuple[Exchange, GapHistogram]:
    gaps = GapHistogram()
    made = Exchange("r1", ROW, Slo(1.0, 0.05), gaps, check)
    made.sent_s = 11.6
    return made, gaps


def event(*texts: str, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": text} for text in texts]} | more).encode()


def test_ttft_gaps_and_times_of_a_whole_answer():
    made, gaps = exchange()
    for text, now_s in ((" a", 12.0), (" b", 12.02), (" c d", 12.12), ("", 12.5)):
        made.take(event(text), now_s)
    made.take(event(usage={"completion_tokens": 4, "prompt_tokens": 100}), 12.5)
    made.take(b"[DONE]", 12.6)
    record = made.record(start_s=10.0)
    assert record.outcome == "finished"
    assert (record.arrival_s, record.finish_s) == (pytest.approx(1.6), pytest.approx(2.6))
    assert record.ttft_s == pytest.approx(0.4)
    assert (record.gaps, record.gaps_late, gaps.count) == (2, 1, 2)
    assert record.gap_mean_s == pytest.approx(0.06)
    assert record.gap_max_s == pytest.approx(0.1) == gaps.max_s
    assert record.output_tokens == 4  # the server's word, though only three events came
    assert (record.class_name, record.slo_ttft_s, record.slo_tbt_s) == ("chat", 1.0, 0.05)


def test_without_usage_the_events_are_counted():
    made, _ = exchange()
    made.take(event(" a"), 12.0)
    made.take(event(" b"), 12.0)
    made.take(b"[DONE]", 12.0)
    record = made.record(0.0)
    assert (record.output_tokens, record.gaps, record.gap_mean_s) == (2, 1, 0.0)


def test_an_answer_without_text_has_no_ttft():
    made, gaps = exchange()
    made.take(event(""), 12.0)
    made.take(b"[DONE]", 12.1)
    record = made.record(0.0)
    assert (record.outcome, record.ttft_s, record.gaps, gaps.count) == ("finished", None, 0, 0)


def test_only_the_first_end_counts_and_nothing_after_it():
    made, gaps = exchange()
    made.take(event(" a"), 12.0)
    made.end("failed", 12.5, "broken")
    made.take(event(" b"), 13.0)
    made.take(b"[DONE]", 13.0)
    record = made.record(0.0)
    assert (record.outcome, record.error, record.finish_s) == ("failed", "broken", 12.5)
    assert (record.gaps, gaps.count) == (0, 0)


def test_a_request_never_sent_arrived_when_it_was_due():
    made = Exchange("r1", ROW, Slo(1.0, 0.05), GapHistogram())
    made.end("failed", 12.0, "not sent")
    record = made.record(10.0)
    assert (record.arrival_s, record.ttft_s, record.outcome) == (1.5, None, "failed")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"error": {"message": "KV gone", "type": "x"}}', "error frame: KV gone"),
        (b'{"error": "plain"}', "error frame: plain"),
        (b'{"error": {}}', "without a message"),
        (b"{", "no completion chunk"),
        (b'{"choices": 5}', "no completion chunk"),
        (b'{"choices": [{"text": 5}]}', "no completion chunk"),
    ],
)
def test_error_frames_and_nonsense_are_raised(data: bytes, says: str):
    made, _ = exchange()
    with pytest.raises(NodeError, match=says):
        made.take(data, 12.0)


# --- every token -----------------------------------------------------------------------------

DIGEST = 0xC0FFEE


def tokens(*indices: int) -> str:
    return "".join(expected_token(DIGEST, index) for index in indices)


@given(st.integers(1, 40), st.lists(st.integers(0, 400), max_size=10))
def test_the_right_text_passes_however_it_is_cut(output_tokens: int, cuts: list[int]):
    text = tokens(*range(output_tokens))
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    check = TextCheck(DIGEST)
    for start, end in pairwise(edges):
        check.feed(text[start:end])
    check.finish(output_tokens)
    assert check.seen_tokens == output_tokens


@pytest.mark.parametrize("indices", [(0, 2), (1,), (0, 0), (0, 2, 1), (0, 1, 1, 2)], ids=str)
def test_a_lost_doubled_or_reordered_token_is_caught(indices: tuple[int, ...]):
    with pytest.raises(NodeError, match="should be"):
        TextCheck(DIGEST).feed(tokens(*indices))


def test_a_token_of_another_prompt_is_caught():
    with pytest.raises(NodeError, match="token 0 should be ' t00c0ffee-0'"):
        TextCheck(DIGEST).feed(expected_token(DIGEST + 1, 0))


@pytest.mark.parametrize("text", ["", tokens(0, 1), tokens(0, 1, 2)[:-1], tokens(0, 1, 2, 3)])
def test_too_few_too_many_or_half_a_token_is_caught_at_the_end(text: str):
    made, _ = exchange(TextCheck(DIGEST))
    made.take(event(text), 12.0)
    with pytest.raises(NodeError, match="where 3 were asked for"):
        made.take(b"[DONE]", 12.0)
