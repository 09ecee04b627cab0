"""`spillway demo`, small: one prefill and one decode engine, a handful of requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_command import Command
from spillway.cli.demo import IN_TURN, TOGETHER, burst_cut


def test_the_cut_fits_the_prefill_pool() -> None:
    one = burst_cut("llama-3.1-8b-a100", 1, IN_TURN)
    two = burst_cut("llama-3.1-8b-a100", 2, IN_TURN)
    assert two.prompt_tokens_max == pytest.approx(2 * one.prompt_tokens_max, abs=1)
    # An A100 prefills an 8B model at some 15,000 tokens per second.
    assert 12_000 < one.prompt_tokens_max / IN_TURN.work_s < 20_000
    faster = burst_cut("llama-3.1-8b-h200", 1, IN_TURN)
    assert faster.prompt_tokens_max > one.prompt_tokens_max
    longer = burst_cut("llama-3.1-8b-a100", 1, TOGETHER)
    assert (longer.lead_s, longer.window_s, longer.tail_s) == TOGETHER[:3]


@pytest.mark.slow
@pytest.mark.parametrize("order", [(), ("--in-turn",)])
def test_it_plays_compares_explains_and_reports(
    spillway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Six long prompts at once: the only prefill node is busy, so some are deflected.
    rows = "".join(f"{at / 100},3000,4\n" for at in range(6))
    Path("trace.csv").write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    done = spillway(
        *("demo", "--trace", "trace.csv", "--from-s", "0", "--cluster", "1p1d"),
        *("--policy", "least-loaded", "--policy", "headroom", *order),
        *("--json", "out.json", "--html", "page.html"),
    )
    assert done.code == 0, done.err
    static, run = json.loads(Path("out.json").read_text())["runs"]
    assert (static["policy"], static["deflected_frac"]) == ("least-loaded", 0)
    assert static["requests"]["finished"] == 6
    assert run["requests"]["finished"] == run["requests"]["arrived"] == 6
    assert 0 < run["deflected_frac"] < 1
    assert run["kv_bytes_moved"] > 0
    parts_s = run["ttft_parts_p95_s"]
    assert sum(parts_s.values()) == pytest.approx(run["ttft_s"]["p95"], rel=0.25)
    assert "One deflection, explained" in done.out
    assert "What happened: first token after" in done.out
    assert "warning" not in done.out
    page = Path("page.html").read_text()
    assert "was deflected to d0 by headroom" in page
    assert "http" not in page.split("<body>")[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--policy", "nope"), "policy 'nope'"),
        (("--cluster", "0p1d"), "0p1d"),
        (("--profile", "nope"), "profile 'nope'"),
        (("--trace", "missing.csv"), "missing.csv"),
    ],
)
def test_a_bad_flag_is_told_before_anything_starts(
    spillway: Command, flags: tuple[str, ...], said: str
) -> None:
    done = spillway("demo", *flags)
    assert done.code == 2
    assert said in done.err
