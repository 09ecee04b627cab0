"""The ledger: what a node said, plus exactly the work it cannot have known of."""

from __future__ import annotations

from math import inf

import pytest

from builders import A100_8B, make_request, make_spec, make_state
from spillway.core.chunks import drain_s
from spillway.core.errors import InvariantViolation
from spillway.core.latency import prefill_s, token_pairs
from spillway.core.ledger import (
    UNSEEN_MIN,
    Entry,
    Ledger,
    NodeLedger,
    decode_entry,
    frozen_copy,
    prefill_entry,
)
from spillway.core.types import RequestView, Role


def decode_ledger(**changes: object) -> NodeLedger:
    return NodeLedger(make_spec("d0", **changes), [])


def prefill_ledger() -> NodeLedger:
    return NodeLedger(make_spec("p0", Role.PREFILL), [])


def book_prompt(
    node: NodeLedger, dispatch_id: int, tokens: int = 1000, tbt_s: float = inf
) -> Entry:
    entry = prefill_entry(dispatch_id, make_request(prompt_tokens=tokens), "none", tbt_s)
    node.add_prefill(entry, 0.0, 0.1)
    return entry


def book_stream(node: NodeLedger, dispatch_id: int, tokens: int = 1000) -> Entry:
    entry = decode_entry(dispatch_id, make_request(prompt_tokens=tokens))
    node.add_decode(entry)
    return entry


def backlog(node: NodeLedger) -> tuple[int, int]:
    return node.view.backlog_prompts, node.view.backlog_tokens


# --- the own book: a node that reports nothing -----------------------------------------------


def test_without_reports_the_own_dispatches_are_the_view() -> None:
    node = decode_ledger()
    prompt = book_prompt(node, 1, 1000, 0.06)
    stream = book_stream(node, 2, 500)
    view = node.view
    assert backlog(node) == (1, 1000)
    assert view.backlog_token_pairs == token_pairs(1000, 0)
    assert (view.decode_seqs, view.kv_used_tokens, view.tbt_s_min) == (1, 1500, 0.06)
    node.first_token(prompt, 1.0)
    assert backlog(node) == (0, 0)
    assert (view.decode_seqs, view.kv_used_tokens) == (2, 1500)
    node.first_token(stream, 1.0)
    view = node.view
    assert (view.decode_seqs, view.kv_used_tokens) == (2, 1500)
    node.end(prompt, 2.0)
    node.end(stream, 2.0)
    view = node.view
    assert (view.decode_seqs, view.kv_used_tokens, view.tbt_s_min) == (0, 0, inf)
    assert (node.outstanding, view.reporting, view.heard_at_s) == (0, False, -inf)


def test_a_cached_prefix_is_no_backlog_but_takes_room() -> None:
    node = decode_ledger()
    request = make_request(prompt_tokens=3000, cached_tokens_by_node=(("d0", 2500),))
    node.add_prefill(prefill_entry(1, request, "d0", 0.06), 0.0, 0.1)
    assert backlog(node) == (1, 500)
    assert node.view.backlog_token_pairs == token_pairs(500, 2500)
    assert node.view.kv_used_tokens == 3000


def test_the_end_of_the_backlog_is_booked_ahead_and_corrected_when_a_prompt_ends() -> None:
    node = prefill_ledger()
    first, second = book_prompt(node, 1), book_prompt(node, 2)
    assert node.view.backlog_until_s == pytest.approx(0.2)
    node.end(first, 5.0)
    expected_s = prefill_s(A100_8B, 1000, token_pairs(1000, 0), 2048)
    assert node.view.backlog_until_s == pytest.approx(5.0 + expected_s)
    node.end(second, 6.0)
    assert node.view.backlog_until_s == 6.0


def test_a_deflected_backlog_drains_beside_the_batch() -> None:
    node = decode_ledger()
    for dispatch_id in range(1, 31):
        node.first_token(book_stream(node, dispatch_id), 1.0)
    gone, _ = book_prompt(node, 40, 1000, 0.06), book_prompt(node, 41, 3000, 0.06)
    node.end(gone, 2.0)
    # The book still held the prompt that ends here when it looked at the room.
    rest_s = drain_s(A100_8B, 30, 34_000, 3000, token_pairs(3000, 0), 0.054, 2048, 64)
    assert node.view.backlog_until_s == pytest.approx(2.0 + rest_s)


def test_the_strictest_target_counts_how_many_ask_for_it() -> None:
    node = decode_ledger()
    strict, also = book_prompt(node, 1, tbt_s=0.03), book_prompt(node, 2, tbt_s=0.03)
    loose = book_prompt(node, 3, tbt_s=0.2)
    assert node.view.tbt_s_min == 0.03
    node.end(strict, 1.0)
    assert node.view.tbt_s_min == 0.03
    node.end(also, 1.0)
    assert node.view.tbt_s_min == 0.2
    node.end(loose, 1.0)
    assert node.view.tbt_s_min == inf


def test_work_on_a_prefill_node_protects_nobody() -> None:
    node = prefill_ledger()
    book_prompt(node, 1)
    assert node.view.tbt_s_min == inf


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("book", [book_prompt, book_stream])
def test_an_entry_ends_once(book: object, decoding: bool) -> None:
    node = decode_ledger()
    entry = book_prompt(node, 1, tbt_s=0.06) if book is book_prompt else book_stream(node, 1)
    if decoding:
        node.first_token(entry, 1.0)
        node.first_token(entry, 1.0)  # the second is no further stream
        assert node.view.decode_seqs == 1
    node.end(entry, 2.0)
    after = (node.view.decode_seqs, node.view.kv_used_tokens, *backlog(node))
    assert after == (0, 0, 0, 0)
    with pytest.raises(InvariantViolation, match="dispatch 1 is not booked on d0"):
        node.end(entry, 2.0)
    assert (node.view.decode_seqs, node.view.kv_used_tokens, *backlog(node)) == after


def test_an_empty_prompt_is_booked_as_prefill_work() -> None:
    node = decode_ledger()
    entry = prefill_entry(1, make_request(prompt_tokens=0), "d0", 0.06)
    node.add_prefill(entry, 0.0, 0.01)
    node.end(entry, 1.0)
    assert (node.view.decode_seqs, node.view.kv_used_tokens, *backlog(node)) == (0, 0, 0, 0)


# --- reports ---------------------------------------------------------------------------------


def test_a_report_replaces_the_base_and_keeps_what_it_cannot_know() -> None:
    node = decode_ledger()
    for dispatch_id, tokens in ((1, 100), (2, 200), (3, 400)):
        book_prompt(node, dispatch_id, tokens, 0.06)
    node.report(
        make_state(
            taken_at_s=5.0,
            dispatch_seen=2,
            backlog_prompts=7,  # another dispatcher's work among it
            backlog_tokens=7000,
            backlog_token_pairs=1e6,
            decode_seqs=12,
            kv_used_tokens=30_000,
            kv_capacity_tokens=123_456,
            tbt_s_min=0.05,
        )
    )
    view = node.view
    assert backlog(node) == (8, 7400)
    assert view.backlog_token_pairs == pytest.approx(1e6 + token_pairs(400, 0))
    assert view.decode_seqs == 12
    assert view.kv_used_tokens == 30_000 + 7400
    assert view.kv_capacity_tokens == 123_456
    assert (view.tbt_s_min, view.heard_at_s, view.reporting) == (0.05, 5.0, True)
    rest_s = drain_s(A100_8B, 12, 37_400, 7400, view.backlog_token_pairs, 0.05 * 0.9, 2048, 64)
    assert view.backlog_until_s == pytest.approx(5.0 + rest_s)


def test_dispatches_after_a_report_come_on_top_of_it() -> None:
    node = prefill_ledger()
    node.report(make_state("p0", taken_at_s=1.0, backlog_prompts=1, backlog_tokens=500))
    until_s = node.view.backlog_until_s
    entry = book_prompt(node, 9, 300)
    assert backlog(node) == (2, 800)
    assert node.view.backlog_until_s == pytest.approx(until_s + 0.1)
    node.report(make_state("p0", taken_at_s=2.0, dispatch_seen=8, backlog_tokens=500))
    assert backlog(node) == (1, 800)
    node.report(make_state("p0", taken_at_s=3.0, dispatch_seen=9, backlog_tokens=700))
    assert backlog(node) == (0, 700)
    node.end(entry, 4.0)
    assert backlog(node) == (0, 700)


@pytest.mark.parametrize("first", [True, False])
def test_what_ended_before_a_report_saw_it_is_not_added_to_it(first: bool) -> None:
    node = prefill_ledger()
    node.report(make_state("p0", taken_at_s=1.0))
    entries = [book_prompt(node, 1, 100), book_prompt(node, 2, 200), book_prompt(node, 3, 400)]
    gone = entries[0 if first else 1]
    node.end(gone, 1.5)
    assert backlog(node) == (2, 700 - gone.tokens)
    node.report(make_state("p0", taken_at_s=2.0, dispatch_seen=2))
    assert backlog(node) == (1, 400)


def test_a_report_that_a_later_one_has_overtaken_changes_nothing() -> None:
    node = prefill_ledger()
    book_prompt(node, 1, 100)
    assert node.report(make_state("p0", taken_at_s=2.0, dispatch_seen=1, backlog_tokens=100))
    assert not node.report(make_state("p0", taken_at_s=1.9, over_budget=True, backlog_tokens=9))
    assert backlog(node) == (0, 100)
    assert (node.view.heard_at_s, node.view.over_budget) == (2.0, False)
    assert node.report(make_state("p0", taken_at_s=2.0, dispatch_seen=1, backlog_tokens=50))
    assert backlog(node) == (0, 50)


def test_a_pulled_stream_counts_beside_a_report_that_has_not_seen_it() -> None:
    node = decode_ledger()
    entry = book_stream(node, 1, 500)
    node.report(make_state(taken_at_s=1.0, dispatch_seen=0, decode_seqs=10, kv_used_tokens=9000))
    assert (node.view.decode_seqs, node.view.kv_used_tokens) == (11, 9500)
    node.report(make_state(taken_at_s=3.0, dispatch_seen=1, decode_seqs=11, kv_used_tokens=9600))
    assert (node.view.decode_seqs, node.view.kv_used_tokens) == (11, 9600)
    node.end(entry, 4.0)
    assert (node.view.decode_seqs, node.view.kv_used_tokens) == (11, 9600)


def test_the_own_book_is_a_floor_while_a_node_still_pulls_what_it_was_sent() -> None:
    node = decode_ledger()
    entry = book_stream(node, 1, 500)
    node.report(make_state(taken_at_s=1.0, dispatch_seen=1, decode_seqs=0, kv_used_tokens=0))
    assert (node.view.decode_seqs, node.view.kv_used_tokens) == (1, 500)
    node.end(entry, 2.0)
    assert (node.view.decode_seqs, node.view.kv_used_tokens) == (0, 0)


def test_what_ended_behind_one_long_stream_is_forgotten_without_any_report() -> None:
    node = decode_ledger()
    book_stream(node, 1, 500)
    for dispatch_id in range(2, 1002):
        node.end(book_stream(node, dispatch_id, 500), 1.0)
    assert len(node._unseen) < 100


def test_the_strictest_target_is_that_of_the_report_or_of_the_own_streams() -> None:
    node = decode_ledger()
    book_prompt(node, 1, tbt_s=0.06)
    node.report(make_state(tbt_s_min=0.1))
    assert node.view.tbt_s_min == 0.06
    node.report(make_state(tbt_s_min=0.02))
    assert node.view.tbt_s_min == 0.02


def test_a_report_without_a_capacity_leaves_the_configured_one() -> None:
    node = decode_ledger(kv_capacity_tokens=77_000)
    node.report(make_state(kv_capacity_tokens=0))
    assert node.view.kv_capacity_tokens == 77_000


def test_a_backlog_for_which_no_chunk_is_safe_has_no_end() -> None:
    node = decode_ledger()
    node.report(
        make_state(
            decode_seqs=60,
            kv_used_tokens=200_000,
            tbt_s_min=0.02,
            backlog_tokens=1000,
            backlog_token_pairs=5e5,
        )
    )
    assert node.view.backlog_until_s == inf


@pytest.mark.parametrize("one_stays", [True, False])
def test_a_silent_node_keeps_no_record_of_what_has_ended(one_stays: bool) -> None:
    """Else a node whose reports stop would make the book grow with every request."""
    node = decode_ledger()
    node.report(make_state())
    if one_stays:
        book_stream(node, 1)
    for dispatch_id in range(2, 400):
        book = book_prompt if dispatch_id % 2 else book_stream
        node.end(book(node, dispatch_id), 1.0)
    assert len(node._unseen) <= (UNSEEN_MIN + 3 if one_stays else 0)
    assert backlog(node) == (0, 0)
    assert node.view.decode_seqs == one_stays


def test_a_restarted_node_is_believed_empty_but_for_what_was_sent_and_has_not_ended() -> None:
    node = decode_ledger(kv_capacity_tokens=77_000)
    old = book_prompt(node, 1, 100, 0.06)
    node.report(make_state(dispatch_seen=1, backlog_tokens=9000, decode_seqs=9, over_budget=True))
    node.view.link_until_s = 99.0
    node.restarted()
    view = node.view
    assert backlog(node) == (1, 100)
    assert (view.decode_seqs, view.over_budget, view.reporting) == (0, False, False)
    assert (view.heard_at_s, view.link_until_s, view.backlog_until_s) == (-inf, -inf, -inf)
    assert view.kv_capacity_tokens == 77_000
    node.end(old, 1.0)
    assert backlog(node) == (0, 0)
    # The new process starts counting anew, at an earlier step and with nothing seen.
    assert node.report(make_state(taken_at_s=0.5, step=0, dispatch_seen=0))


# --- all nodes together ----------------------------------------------------------------------


def two_by_two() -> Ledger:
    specs = [make_spec("d1"), make_spec("p1", Role.PREFILL), make_spec("d0")]
    return Ledger([*specs, make_spec("p0", Role.PREFILL)], report_age_max_s=1.0)


def test_nodes_are_ordered_by_id_whatever_the_configuration_says() -> None:
    view = two_by_two().cluster(3.0, 4)
    assert [node.node_id for node in view.prefill] == ["p0", "p1"]
    assert [node.node_id for node in view.decode] == ["d0", "d1"]
    assert (view.now_s, view.decisions, view.report_age_max_s) == (3.0, 4, 1.0)


def test_excluded_nodes_are_missing_from_the_view_and_only_from_that_one() -> None:
    ledger = two_by_two()
    view = ledger.cluster(3.0, 4, frozenset({"p0", "d1"}))
    assert [node.node_id for node in (*view.prefill, *view.decode)] == ["p1", "d0"]
    assert view.now_s == 3.0
    assert len(ledger.cluster(5.0, 5).decode) == 2


def test_a_frozen_copy_does_not_follow_the_books() -> None:
    ledger = two_by_two()
    copied = frozen_copy(ledger.cluster(1.0, 0))
    ledger.nodes["d0"].report(make_state(decode_seqs=33))
    ledger.lengths.add("default", 12)
    assert ledger.cluster(2.0, 1).decode[0].decode_seqs == 33
    assert copied.decode[0].decode_seqs == 0
    assert (copied.now_s, copied.output_tokens_by_class) == (1.0, {})


def test_an_entry_is_made_of_the_request() -> None:
    request: RequestView = make_request(prompt_tokens=800, tbt_s=0.07)
    stream = decode_entry(5, request)
    assert (stream.dispatch_id, stream.tokens, stream.kv_tokens, stream.tbt_s) == (5, 0, 800, 0.07)
    prompt = prefill_entry(6, request, "d0", inf)
    assert (prompt.tokens, prompt.kv_tokens, prompt.tbt_s) == (800, 800, inf)
