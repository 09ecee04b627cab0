"""The verdict on a setting: what it gains, how sure that is, and what to paste."""

from __future__ import annotations

import io

import pytest
import yaml
from msgspec.structs import replace

from spillway.report.tuned import print_tuned, said, snippet, tuned_grid
from spillway.wire.tuned import Gain, Tried, Tuned, WindowFigures


def windows(joint_frac: float) -> tuple[WindowFigures, ...]:
    return tuple(
        WindowFigures(joint_frac=joint_frac + at, ttft_p95_s=0.5, late_frac=0.0, deflected_frac=0.3)
        for at in (0.0, 0.02)
    )


@pytest.fixture
def found() -> Tuned:
    chosen = {"objective": "tail-ttft", "margin_max": 1.6, "hold": False}
    return Tuned(
        policy="headroom",
        goal="joint",
        tried=(
            Tried(options=chosen, windows=windows(0.9)),
            *(
                Tried(options={"feed_steps": float(at)}, windows=windows(0.85))
                for at in range(2, 9)
            ),
            Tried(options={}, windows=windows(0.8)),
        ),
        chosen=chosen,
        default_held_out=windows(0.8),
        chosen_held_out=windows(0.9),
        gain=Gain(mean_frac=0.1, least_frac=0.08, most_frac=0.12, error_frac=0.02),
        worth_it=True,
        run_count=22,
    )


def test_a_gain_is_told_with_its_spread_and_a_piece_to_paste(found: Tuned) -> None:
    stream = io.StringIO()
    print_tuned(found, stream)
    text = stream.getvalue()
    one_line = " ".join(text.split())
    assert "gains +10.00 percentage points of requests that meet both targets" in one_line
    assert "plus or minus 2.00 (95 % confidence), from +8.00 to +12.00" in one_line
    assert "worth setting" in text
    assert "A: objective=tail-ttft,margin_max=1.6,hold=off" in text
    assert max(map(len, text.splitlines())) <= 80
    pasted = yaml.safe_load(text[text.index("policy:") :])
    assert pasted == {"policy": {"name": "headroom", "options": found.chosen}}
    assert yaml.safe_load(snippet(found)) == pasted


def test_the_table_has_the_best_and_always_the_defaults(found: Tuned) -> None:
    rows = [[cell.text for cell in row[:4]] for row in tuned_grid(found).rows]
    assert [row[0] for row in rows] == [*"ABCDE", "defaults", "defaults", "A"]
    assert rows[0] == ["A", "tuning", "91.0", "90.0"]
    assert rows[-2] == ["defaults", "held out", "81.0", "80.0"]
    assert rows[-1] == ["A", "held out", "91.0", "90.0"]


def test_what_is_not_worth_it_says_why_and_gives_nothing_to_paste(found: Tuned) -> None:
    small = replace(found, worth_it=False)
    reasons = {
        "inside the spread": replace(found.gain, mean_frac=0.01),
        "too small to matter": replace(found.gain, mean_frac=0.03),
        "A is no better": replace(found.gain, mean_frac=-0.01),
    }
    for reason, gain in reasons.items():
        told = said(replace(small, gain=gain))
        assert told[-1].startswith("Keep the defaults: ")
        assert reason in told[-1]
    stream = io.StringIO()
    print_tuned(small, stream)
    assert "policy:" not in stream.getvalue()
    ttft = replace(small, goal="ttft", chosen_held_out=windows(0.7))
    assert "costs requests that met both targets" in said(ttft)[-1]
    assert "% of the p95 TTFT" in said(ttft)[1]


def test_where_nothing_beat_the_defaults_that_is_all_there_is_to_say(found: Tuned) -> None:
    same = replace(
        found, tried=found.tried[::-1], chosen={}, chosen_held_out=windows(0.8), worth_it=False
    )
    assert said(same)[-1] == "Keep the defaults: no setting was better on the tuning windows."
    rows = [[cell.text for cell in row[:2]] for row in tuned_grid(same).rows]
    assert rows[0] == ["defaults", "tuning"]
    assert rows[-1] == ["defaults", "held out"]
