"""Named workloads: what they promise, and that their streams do not disturb each other."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.row import Row
from spillway.workload.synthetic import FAMILIES, family


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_keeps_its_rate_and_order(name: str):
    rows = family(name, 1, 200.0, 20.0)
    assert len(rows) == pytest.approx(4_000, rel=0.2)
    assert [row.arrival_s for row in rows] == sorted(row.arrival_s for row in rows)
    assert {row.class_name for row in rows} == {part.class_name for part in FAMILIES[name].parts}
    assert sum(part.share_frac for part in FAMILIES[name].parts) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "prompt_tokens", "output_tokens"),
    [("lpld", 800, 60), ("lphd", 800, 250), ("hpld", 4_000, 60), ("hphd", 4_000, 250)],
)
def test_the_grid_has_the_lengths_it_is_named_for(
    name: str, prompt_tokens: int, output_tokens: int
):
    rows = family(name, 2, 100.0, 50.0)
    assert fmean(row.prompt_tokens for row in rows) == pytest.approx(prompt_tokens, rel=0.05)
    assert fmean(row.output_tokens for row in rows) == pytest.approx(output_tokens, rel=0.05)


def test_burst_is_heavy_tailed_prompts_over_steady_chat():
    rows = family("burst", 3, 300.0, 20.0)
    bursts = [row for row in rows if row.class_name == "burst"]
    prompts = [row.prompt_tokens for row in bursts]
    assert len(bursts) / len(rows) == pytest.approx(0.65, abs=0.06)
    assert fmean(prompts) == pytest.approx(2_000, rel=0.08)
    assert pstdev(prompts) / fmean(prompts) == pytest.approx(1.2, rel=0.15)
    assert fmean(row.output_tokens for row in bursts) == pytest.approx(60, rel=0.05)


@pytest.mark.slow
def test_default_rates_load_two_prefill_nodes_to_about_a_half():
    """But for chat, which is there to leave them idle. Two nodes do 30,000 prompt tokens/s."""
    loads = {}
    for name in FAMILIES:
        rows = [row for seed in range(3) for row in family(name, seed, 300.0)]
        loads[name] = sum(row.prompt_tokens for row in rows) / 900 / 30_000
    assert loads.pop("chat") < 0.15
    assert all(0.35 < load < 0.65 for load in loads.values()), loads


def test_a_conversation_grows_turn_by_turn_on_the_same_prefix():
    rows = family("sessions", 4, 600.0)
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row.session_id, []).append(row)
    assert len(rows) / len(sessions) == pytest.approx(6.0, rel=0.25)  # some are cut at the ends
    for turns in sessions.values():
        for before, after in pairwise(turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.prefix_blocks[: len(before.prefix_blocks)] == before.prefix_blocks
            answered_s = before.arrival_s + before.output_tokens * 0.03
            assert after.arrival_s == pytest.approx(answered_s + after.think_s)
        assert len(turns[-1].prefix_blocks) == turns[-1].prompt_tokens // 16
    starts = {row.prefix_blocks[:64] for row in rows}
    assert len(starts) == 8  # the system prompts
    tails = [turns[-1].prefix_blocks[64:] for turns in sessions.values()]
    assert len({one for tail in tails for one in tail}) == sum(map(len, tails))


def test_conversations_are_under_way_at_time_0():
    rows = family("sessions", 4, 600.0)
    early = sum(row.arrival_s < 100.0 for row in rows)
    assert early / 100 == pytest.approx(len(rows) / 600, rel=0.25)
    assert any(row.think_s > 0 for row in rows[:20])


def test_the_same_seed_gives_the_same_rows_and_another_gives_others():
    assert family("burst", 5, 20.0) == family("burst", 5, 20.0)
    assert family("burst", 5, 20.0) != family("burst", 6, 20.0)


def test_a_part_draws_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch):
    whole = family("burst", 5, 30.0, 10.0)
    chat_alone = FAMILIES["burst"]._replace(parts=FAMILIES["burst"].parts[1:])
    monkeypatch.setattr("spillway.workload.synthetic.FAMILIES", {"burst": chat_alone})
    assert family("burst", 5, 30.0, 10.0) == [row for row in whole if row.class_name == "chat"]


def test_a_longer_run_begins_with_the_shorter_one():
    def lengths(rows: list[Row]) -> list[tuple[int, int]]:
        return [row[1:3] for row in rows]

    short, long = family("lpld", 1, 10.0, 20.0), family("lpld", 1, 40.0, 20.0)
    assert lengths(long)[: len(short)] == lengths(short)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'brust' is unknown; did you mean 'burst'\?.*hphd"):
        family("brust", 0, 10.0)
    with pytest.raises(ConfigError, match="rate"):
        family("burst", 0, 10.0, -1.0)
