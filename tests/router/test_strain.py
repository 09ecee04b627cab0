"""Late gaps of relayed streams spare a node deflected prompts, for longer with each relapse."""

from __future__ import annotations

from math import inf

from spillway.clock import ManualClock
from spillway.router.heartbeat import BEAT_S, Heartbeat
from spillway.router.settings import RouterSettings
from spillway.router.strain import NodeGaps, StrainWatch, StreamGaps

SETTINGS = RouterSettings(
    strain_gaps_min=20, strain_late_frac=0.1, strain_rest_s=5.0, strain_rest_max_s=15.0
)


def count(watch: StrainWatch, gaps: int, late_gaps: int) -> None:
    node = watch.of("d0")
    node.gaps += gaps
    node.late_gaps += late_gaps


def test_a_stream_is_timed_read_by_read_and_passed_on() -> None:
    clock, node = ManualClock(), NodeGaps()
    written: list[bytes] = []
    stream = StreamGaps(written.append, clock, node, 0.06, Heartbeat(clock))
    for gap_s in (0.01, 0.07, 0.05, 0.5):
        clock.advance(gap_s)
        stream(b"t")
    assert (node.gaps, node.late_gaps) == (4, 2)
    assert written == [b"t"] * 4


def test_a_gap_that_the_client_made_is_not_the_nodes() -> None:
    clock, node = ManualClock(), NodeGaps()
    stream = StreamGaps(lambda data: None, clock, node, 0.06, Heartbeat(clock))
    clock.advance(30.0)
    stream.skip()
    stream(b"t")
    clock.advance(0.01)
    stream(b"t")
    assert (node.gaps, node.late_gaps) == (2, 0)


def test_a_gap_in_which_our_own_loop_stood_still_is_not_the_nodes() -> None:
    clock, node = ManualClock(), NodeGaps()
    heartbeat = Heartbeat(clock)
    stream = StreamGaps(lambda data: None, clock, node, 0.06, heartbeat)
    heartbeat.beat()
    clock.advance(4.0)
    stream(b"t")  # before the beat that says so
    heartbeat.beat()
    stream(b"t")
    assert (node.gaps, node.late_gaps) == (2, 0)
    for _ in range(2):
        clock.advance(BEAT_S)
        heartbeat.beat()
    stream(b"t")
    assert (node.gaps, node.late_gaps) == (3, 1)


def test_few_gaps_are_kept_until_there_are_enough() -> None:
    watch = StrainWatch(SETTINGS)
    count(watch, 19, 19)
    assert list(watch.sweep(0.0)) == []
    count(watch, 1, 0)
    assert list(watch.sweep(1.0)) == [("d0", True)]


def test_a_share_below_the_limit_is_no_strain() -> None:
    watch = StrainWatch(SETTINGS)
    count(watch, 100, 9)
    assert list(watch.sweep(0.0)) == []
    count(watch, 100, 10)
    assert list(watch.sweep(1.0)) == [("d0", True)]


def test_each_relapse_doubles_the_rest_up_to_its_limit() -> None:
    watch, now_s = StrainWatch(SETTINGS), 100.0
    for rest_s in (5.0, 10.0, 15.0, 15.0):
        count(watch, 20, 20)
        assert list(watch.sweep(now_s)) == [("d0", True)]
        count(watch, 1000, 1000)
        assert list(watch.sweep(now_s + rest_s - 0.01)) == []
        now_s += rest_s
        assert list(watch.sweep(now_s)) == [("d0", False)]
        assert list(watch.sweep(now_s)) == []  # what was counted meanwhile is forgotten


def test_a_node_that_was_well_for_long_starts_anew() -> None:
    watch = StrainWatch(SETTINGS)
    for at_s in (0.0, 6.0):
        count(watch, 20, 20)
        assert list(watch.sweep(at_s)) == [("d0", True)]
        watch.of("d0").rest_until_s = -inf
        assert list(watch.sweep(at_s)) == [("d0", False)]
    assert watch.of("d0").strains == 2
    assert list(watch.sweep(100.0)) == []
    assert watch.of("d0").strains == 0
