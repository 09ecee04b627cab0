"""What a matrix amounts to: its runs, their requests, and what they are a digest of."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode
from spillway.sim.matrix import Place, make_plan, place_of
from spillway.wire.sweepfile import CapacityFound
from sweep_samples import TINY, tiny

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{at}.0,{100 + at},5\n" for at in range(50)
)
WITH_TRACE = TINY.replace('synthetic = "burst"', 'trace = "rows.csv"')


def found(place: Place, capacity_per_s: float) -> CapacityFound:
    return CapacityFound(
        **place._asdict(),
        policy="least-loaded",
        capacity_per_s=capacity_per_s,
        attained_frac=0.9,
        probes=1,
    )


def test_every_combination_is_one_run_and_those_on_the_same_requests_one_task(
    tmp_path: Path,
) -> None:
    plan = make_plan(tiny(tmp_path), tmp_path)
    assert len(plan.keys) == len(set(plan.keys)) == 2 * 2 * 2
    tasks = list(plan.cells_tasks([found(plan.places[0], 10.0)], ()))
    assert [key for task in tasks for key in task.keys] == plan.keys
    assert [len(task.keys) for task in tasks] == [2] * 4
    assert {place_of(key) for key in plan.keys} == set(plan.places)


def test_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path), tmp_path)
    capacities = [found(plan.places[0], 10.0)]
    left = list(plan.cells_tasks(capacities, plan.keys[:3]))
    assert [key for task in left for key in task.keys] == plan.keys[3:]
    assert not list(plan.cells_tasks(capacities, plan.keys))
    assert not plan.capacity_tasks(plan.places)


def test_load_is_relative_to_the_capacity(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TRACE)
    plan = make_plan(tiny(tmp_path, WITH_TRACE), tmp_path)
    for task in plan.cells_tasks([found(plan.places[0], 10.0)], ()):
        rows = task.rows()
        rate_per_s = len(rows) / rows[-1].arrival_s
        assert rate_per_s == pytest.approx(10.0 * task.keys[0].load_frac)


def test_the_settings_reach_the_scenario(tmp_path: Path) -> None:
    text = (
        TINY.replace('nodes = "2p2d"', 'nodes = "1p3d"\nprofile = "qwen3-8b-h100"')
        + "[fidelity.rough]\nnoise_frac = 0.1\nreport_period_s = 0.5\ndecode_chunk_tokens = 512\n"
    )
    plan = make_plan(tiny(tmp_path, text), tmp_path)
    scenario = plan.scenario(plan.places[0])
    assert (scenario.cluster, scenario.profile) == ("1p3d", "qwen3-8b-h100")
    assert (scenario.noise_frac, scenario.report_period_s) == (0.1, 0.5)
    assert (scenario.chunk_mode, scenario.chunk_tokens_max) == (ChunkMode.STATIC, 512)
    assert scenario.slos["default"].ttft_s == 1.0


def test_the_digest_notices_a_changed_matrix_and_a_changed_trace(tmp_path: Path) -> None:
    trace = tmp_path / "rows.csv"
    trace.write_text(TRACE)

    def digest(text: str) -> str:
        return make_plan(tiny(tmp_path, text), tmp_path).head.digest

    before = digest(WITH_TRACE)
    assert digest(WITH_TRACE) == before
    assert digest(WITH_TRACE + "# a comment is no change\n") == before
    assert digest(WITH_TRACE.replace("1.2", "1.3")) != before
    trace.write_text(TRACE.replace("149", "148"))
    assert digest(WITH_TRACE) != before


def test_a_trace_can_be_changed_and_what_was_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TRACE + "60.0,0,5\n")
    change = WITH_TRACE.replace('"rows.csv"', '"rows.csv"\napply = ["context-max=129"]')
    plan = make_plan(tiny(tmp_path, change), tmp_path)
    (source,) = plan.sources.values()
    assert [row.prompt_tokens for row in source.rows] == list(range(100, 125))
    dropped, applied = plan.head.notes
    assert "1 × prompt_tokens is below 1 (line 52)" in dropped
    assert "context-max=129" in applied
    with pytest.raises(ConfigError, match="apply is for traces"):
        tiny(tmp_path, change.replace('trace = "rows.csv"', 'synthetic = "burst"'))


def test_a_derived_profile_is_said(tmp_path: Path) -> None:
    cluster = 'nodes = "2p2d"\nprofile = "deepseek-v2-lite-h100-derived"'
    assert 'nodes = "2p2d"' in TINY
    plan = make_plan(tiny(tmp_path, TINY.replace('nodes = "2p2d"', cluster)), tmp_path)
    assert any("derived from first principles" in note for note in plan.head.notes)


def test_an_optional_trace_that_is_absent_is_left_out_and_said(tmp_path: Path) -> None:
    extra = '[workloads.real]\ntrace = "absent.csv"\n'
    with pytest.raises(ConfigError, match=r"absent\.csv"):
        make_plan(tiny(tmp_path, TINY + extra), tmp_path)
    plan = make_plan(tiny(tmp_path, TINY + extra + "optional = true\n"), tmp_path)
    assert list(plan.sources) == ["burst"]
    assert "real was left out" in plan.head.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('synthetic = "burst"', 'synthetic = "brust"', "'brust' is unknown"),
        ('nodes = "2p2d"', 'nodes = "two"', "two"),
        ('nodes = "2p2d"', 'nodes = "2p2d"\nprofile = "none"', "none"),
        ('synthetic = "burst"', 'trace = "x"\noptional = true', "no workload is left"),
    ],
)
def test_a_setting_without_sense_ends_it_before_the_first_run(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(tiny(tmp_path, TINY.replace(old, new, 1)), tmp_path)
