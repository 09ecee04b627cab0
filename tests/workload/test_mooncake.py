"""The Mooncake reader: blocks, ticks, and look-alikes with other block sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.traces import Trace, read_trace


def line(timestamp: Any, prompt_tokens: int, blocks: list[Any], output_tokens: int = 5) -> str:
    return json.dumps(
        {
            "timestamp": timestamp,
            "input_length": prompt_tokens,
            "output_length": output_tokens,
            "hash_ids": blocks,
        }
    )


def read(tmp_path: Path, *lines: str, **options: Any) -> Trace:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    return read_trace(path, **options)


def test_hash_ids_become_prefix_blocks_of_512_tokens(tmp_path: Path):
    trace = read(tmp_path, line(0, 1100, [0, 4, 7]), line(3000, 512, [0]), spread_ticks=False)
    assert trace.format_name == "mooncake"
    first, second = trace.rows
    assert first[:3] == (0.0, 1100, 5)
    assert first.prefix_blocks == (0, 4, 7)
    assert first.block_tokens == second.block_tokens == 512
    assert second.arrival_s == 3.0


def test_rows_are_spread_over_their_tick_and_it_is_noted(tmp_path: Path):
    lines = [line(3000 * tick, 100, [0]) for tick in range(20) for _ in range(10)]
    trace = read(tmp_path, *lines, seed=4)
    times_s = [row.arrival_s for row in trace.rows]
    assert times_s == sorted(times_s)
    assert len(set(times_s)) == 200
    per_tick = [
        sum(3.0 * tick <= time_s < 3.0 * (tick + 1) for time_s in times_s) for tick in range(20)
    ]
    assert per_tick == [10] * 20
    assert sum(times_s) / 200 == pytest.approx(30.0, abs=0.5)
    assert trace.notes == ("rows spread uniformly over their tick of 3.000 s (seed 4)",)


def test_the_spread_depends_on_the_seed_alone(tmp_path: Path):
    lines = [line(3000 * tick, 100, [0]) for tick in range(5)]
    assert read(tmp_path, *lines, seed=1).rows == read(tmp_path, *lines, seed=1).rows
    assert read(tmp_path, *lines, seed=1).rows != read(tmp_path, *lines, seed=2).rows


def test_a_wide_step_is_silence_and_not_a_tick(tmp_path: Path):
    trace = read(tmp_path, line(0, 100, [0]), line(60_000, 100, [0]))
    assert trace.rows[0].arrival_s < 3.1
    assert 60.0 <= trace.rows[1].arrival_s < 63.1


def test_a_single_time_has_no_tick(tmp_path: Path):
    trace = read(tmp_path, line(500, 100, [0]), line(500, 101, [0]))
    assert [row.arrival_s for row in trace.rows] == [0.5, 0.5]


def test_every_unusable_row_is_counted_under_its_reason(tmp_path: Path):
    trace = read(
        tmp_path,
        line(0, 100, [0]),
        line(0, 600, [0]),  # two blocks expected
        line(0, 100, [0], output_tokens=0),
        line(-1, 100, [0]),
        line("82", 100, [0]),  # RAGPulse writes seconds as text
        line(0, 100, ["a"]),
        '{"timestamp": 0, "input_length": 5}',
        "{broken",
        "",
    )
    assert len(trace.rows) == 1
    assert trace.dropped == {
        "hash_ids do not cover input_length in blocks of 512 tokens": 1,
        "output_length is below 1": 1,
        "timestamp is not a finite number >= 0": 1,
        "Expected `float`, got `str` - at `$.timestamp`": 1,
        "Expected `int`, got `str` - at `$.hash_ids[...]`": 1,
        "Object missing required field `output_length`": 1,
        "not valid JSON": 1,
    }


def test_a_look_alike_with_16_token_blocks_is_refused_whole(tmp_path: Path):
    with pytest.raises(ConfigError, match="blocks of 512"):
        read(tmp_path, line(0.5, 160, list(range(10))), line(1.5, 320, list(range(20))))
