"""The plug-in in vLLM's own schedulers, synchronous and asynchronous, driven without a model.

`make test-vllm` runs these in the environment that has vLLM; elsewhere they are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.v1", reason="vLLM is not installed here; make test-vllm runs this")

from vllm.config import SchedulerConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

from spillway.core.chunks import next_chunk_tokens
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s, token_pairs
from spillway.engine.plugin import Plugin
from spillway.engine.scheduler import DeflectAsyncScheduler, DeflectScheduler, make
from spillway.engine.settings import EngineSettings
from spillway.wire.profile import load_profile
from vllmrig import BLOCK_TOKENS, STREAMS, FakeConnector, Rig

PROFILE_NAME = "llama-3.1-8b-a100"
PROFILE = load_profile(PROFILE_NAME)
TBT_S = 0.06
BUDGET_S = 0.9 * TBT_S
MULTIPLE = 64
MakeRig = Callable[..., Rig]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def rig(asynchronous: bool, tmp_path: Path) -> Iterator[MakeRig]:
    """Makes a rig with the plug-in, its clock in the rig's hands and its learning off."""
    made: list[Rig] = []

    def build(scheduler: Any = make, **options: Any) -> Rig:
        fields = {"role": "decode", "profile": PROFILE_NAME, "learning": False}
        fields |= options.pop("spillway", {})
        one = Rig(scheduler, tmp_path, asynchronous=asynchronous, spillway=fields, **options)
        made.append(one)
        if scheduler is make:
            one.use_manual_clock()
        return one

    yield build
    for one in made:
        one.close()


def test_the_factory_takes_the_class_of_the_engines_kind(rig: MakeRig, asynchronous: bool) -> None:
    one = rig()
    kind = DeflectAsyncScheduler if asynchronous else DeflectScheduler
    assert type(one.scheduler) is kind
    assert one.scheduler.spillway.acting
    assert one.scheduler.spillway.fault == ""


def test_vllm_finds_the_factory_by_its_name() -> None:
    config = SchedulerConfig.default_factory(scheduler_cls="spillway.engine.scheduler.make")
    assert config.get_scheduler_cls() is make


def test_each_step_takes_what_the_planner_allows_for_its_real_batch(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    one.add("p", 4000, 8, order="r1:1:60")
    one.run(100, until=lambda: one.outputs.get("p", 0) >= 8)
    chunks = [step for step in one.trace if "p" in step.prefill(one.prompts)]
    for step in chunks:
        tokens, context = step.prefill(one.prompts)["p"]
        allowed = next_chunk_tokens(
            PROFILE, 16, one.kv_tokens(step), context, 4000 - context, BUDGET_S, 2032, MULTIPLE
        )
        assert tokens == allowed
    assert sum(step.tokens["p"] for step in chunks) == 4000
    assert len(chunks) >= 5
    assert not one.scheduler.spillway.errors


def test_decodes_are_never_displaced(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    for number in range(6):
        one.add(f"p{number}", 1500, 4)
    one.run(200, until=lambda: all(one.outputs.get(f"p{n}", 0) for n in range(6)))
    for step in one.trace:
        assert all(step.tokens.get(name) == 1 for name in STREAMS)


def test_several_prompts_share_a_step_exactly_and_finish_in_order(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    lengths = {"a": 90, "b": 200, "c": 3000, "d": 100, "e": 50, "f": 1200}
    for name, tokens in lengths.items():
        one.add(name, tokens, 30)
    done: list[str] = []
    for _ in range(100):
        one.step()
        done += [name for name in lengths if one.outputs.get(name) and name not in done]
        if len(done) == len(lengths):
            break
    assert done == sorted(lengths)
    for step in one.trace:
        parts = step.prefill(one.prompts)
        tokens = sum(part for part, _ in parts.values())
        pairs = sum(token_pairs(*part) for part in parts.values())
        seqs = len(one.decodes(step))
        actual_s = step_s(PROFILE, seqs + tokens, one.kv_tokens(step))
        assert actual_s + PROFILE.token_pair_s * pairs <= BUDGET_S + 1e-9
        assert sum(part < lengths[name] - at for name, (part, at) in parts.items()) <= 1


def test_a_stricter_stream_makes_chunks_smaller(rig: MakeRig) -> None:
    one = rig()
    one.start_streams(strictest_ms=40)
    one.add("p", 4000, 4, order="r1:6:200")
    one.run(100, until=lambda: one.outputs.get("p", 0) >= 1)
    step = one.trace[1]
    tokens, context = step.prefill(one.prompts)["p"]
    assert tokens == next_chunk_tokens(
        PROFILE, 16, one.kv_tokens(step), context, 4000 - context, 0.9 * 0.04, 2032, MULTIPLE
    )
    assert one.scheduler.spillway.reporter.seen.by_router() == {"r1": 6}


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_where_nothing_is_deflected_no_step_changes(
    rig: MakeRig, asynchronous: bool, role: str
) -> None:
    """On a decode node: remote requests only. On a prefill node: whatever comes."""
    stock = AsyncScheduler if asynchronous else Scheduler
    traces = []
    for scheduler in (stock, make):
        one = rig(scheduler, remote=True, spillway={"role": role})
        remote = role == "decode"
        for number in range(30):
            one.add(f"s{number}", 40 + 61 * number, 5 + number % 7, remote=remote)
            one.step()
            if remote and number % 3 == 2:
                one.arrive(*[f"s{n}" for n in (number - 2, number)])
        if remote:
            one.arrive(*[f"s{number}" for number in range(1, 30, 3)])
        one.run(200)
        assert not one.scheduler.has_requests()
        traces.append(one.trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 30


def test_a_local_prompt_that_is_alone_is_left_to_the_engine(rig: MakeRig) -> None:
    one = rig()
    one.add("p", 5000, 1)
    one.run(20)
    assert [step.tokens["p"] for step in one.trace] == [2048, 2048, 904]


def steps_until_running(one: Rig, name: str, steps_max: int) -> int:
    """Return how many steps it takes until the KV of `name` is asked for."""
    for count in range(1, steps_max + 1):
        one.step()
        if one.scheduler.requests[name].status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            return count
    return steps_max + 1


def test_a_remote_request_is_not_starved_by_a_local_prompt(
    rig: MakeRig, asynchronous: bool
) -> None:
    stock = AsyncScheduler if asynchronous else Scheduler
    waits = {}
    for scheduler in (stock, make):
        one = rig(scheduler, remote=True, step_tokens=256)
        for name in STREAMS:
            one.add(name, 10, 500)
        one.run(50, until=lambda one=one: all(one.outputs.get(n, 0) for n in STREAMS))
        one.add("p", 6000, 4)
        one.step()
        one.add("r", 1000, 4, remote=True)
        waits[scheduler is make] = steps_until_running(one, "r", 15)
        if scheduler is make:
            one.arrive("r")
            for _ in range(4):
                one.step()
            assert one.outputs.get("r", 0) >= 1
            assert one.outputs.get("p", 0) == 0  # while the prompt is still under way
            one.run(200, until=lambda one=one: one.outputs.get("p", 0) >= 4)
    assert waits[True] == 1
    assert waits[False] > 15  # what the plug-in is for


def test_remote_requests_come_first_also_without_a_safe_chunk(rig: MakeRig) -> None:
    one = rig(remote=True)
    one.start_streams(strictest_ms=13)
    one.add("p", 4000, 4)
    one.add("q", 500, 4)
    one.step()
    one.add("r", 1000, 4, remote=True)
    assert steps_until_running(one, "r", 3) == 1
    one.arrive("r")
    one.run(5, until=lambda: one.outputs.get("r", 0) >= 1)
    assert one.outputs.get("p", 0) == 0


def test_a_pull_that_failed_is_computed_here_in_chunks_like_any_prompt(rig: MakeRig) -> None:
    if "failed_recving" not in KVConnectorOutput.__dataclass_fields__:
        pytest.skip("this release says by blocks, not by requests, what did not arrive")
    one = rig(remote=True)
    one.start_streams()
    one.add("r", 4000, 4, remote=True)
    one.step()
    one.fail("r")
    one.run(40, until=lambda: one.outputs.get("r", 0) >= 1)
    parts = [step.prefill(one.prompts) for step in one.trace]
    chunks = [part["r"] for part in parts if "r" in part]
    assert sum(tokens for tokens, _ in chunks) >= 4000
    assert all(tokens < 1500 for tokens, _ in chunks)
    assert not one.scheduler.spillway.errors


def test_without_a_safe_chunk_the_prompt_still_gets_through(rig: MakeRig) -> None:
    one = rig(spillway={"skipped_steps_max": 3})
    one.start_streams(strictest_ms=13)
    one.add("p", 640, 4)
    one.run(100, until=lambda: one.outputs.get("p", 0) >= 1)
    taken = [step.tokens.get("p", 0) for step in one.trace]
    assert taken[:8] == [0, 0, 0, MULTIPLE] * 2
    assert one.scheduler.spillway.planner.forced_steps == 10


def test_with_a_prefix_cache_the_first_chunk_is_safe_wherever_the_hit_ends(rig: MakeRig) -> None:
    one = rig(caching=True, blocks=4096)
    one.add("first", 16_000, 1, first_token=9)
    one.run(30)
    one.start_streams()
    one.add("again", 20_000, 4, first_token=9)
    one.run(200, until=lambda: one.outputs.get("again", 0) >= 1)
    first = next(step for step in one.trace if "again" in step.tokens)
    tokens, context = first.prefill(one.prompts)["again"]
    assert context == 16_000 // BLOCK_TOKENS * BLOCK_TOKENS
    assert tokens > 0
    for step in one.trace:
        parts = step.prefill(one.prompts)
        if "again" in parts:
            tokens, context = parts["again"]
            spent_s = step_s(PROFILE, 16, one.kv_tokens(step), tokens, context)
            assert spent_s <= BUDGET_S + 1e-9


def test_a_full_cache_preempts_and_everything_finishes(rig: MakeRig) -> None:
    one = rig(blocks=220)
    for number in range(8):
        one.add(f"s{number}", 200, 300)
    one.run(60, until=lambda: all(one.outputs.get(f"s{n}", 0) for n in range(8)))
    for number in range(3):
        one.add(f"p{number}", 1500, 20)
    one.run(3000)
    assert not one.scheduler.requests
    assert all(one.outputs[f"p{number}"] >= 20 for number in range(3))
    assert any(one.scheduler.kv_cache_manager.usage == 0 for _ in "x")
    assert not one.scheduler.spillway.errors


def test_a_prompt_that_is_held_back_can_be_aborted(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    for name in ("a", "b", "c"):
        one.add(name, 3000, 4)
    one.step()
    one.scheduler.finish_requests("b", RequestStatus.FINISHED_ABORTED)
    one.run(100, until=lambda: one.outputs.get("c", 0) >= 1)
    assert "b" not in one.outputs
    assert "b" not in one.scheduler.requests


def test_priorities_still_order_local_prompts(rig: MakeRig) -> None:
    one = rig(policy="priority")
    one.start_streams()
    for name, priority in (("a", 5), ("b", 1), ("c", 3)):
        one.add(name, 1000, 40, priority=priority)
    done: list[str] = []
    for _ in range(60):
        one.step()
        done += [name for name in "abc" if one.outputs.get(name) and name not in done]
    assert done == ["b", "c", "a"]


def test_the_engines_own_limits_are_back_after_every_step(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    one.add("p", 3000, 4)
    one.add("q", 3000, 4)
    for _ in range(10):
        one.step()
        assert one.scheduler.max_num_scheduled_tokens == 2048
        assert one.scheduler.scheduler_config.long_prefill_token_threshold == 0
        assert len(one.scheduler.waiting) + len(one.scheduler.running) == len(
            one.scheduler.requests
        )


def test_a_bug_in_the_plug_in_costs_its_effect_and_nothing_else(
    rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    one.start_streams()
    monkeypatch.setattr(one.scheduler.spillway.planner, "plan", lambda *_: 1 / 0)
    one.add("p", 3000, 4)
    step = one.step()
    assert step is not None
    assert step.tokens["p"] == 2048 - 16
    assert one.scheduler.spillway.fault.startswith("ZeroDivisionError")
    one.run(10, until=lambda: one.outputs.get("p", 0) >= 1)


def test_steps_are_noted_as_they_were(rig: MakeRig) -> None:
    one = rig()
    one.start_streams()
    one.add("p", 2000, 4)
    one.run(100, until=lambda: one.outputs.get("p", 0) >= 3)
    chunks = [step for step in one.trace if "p" in step.prefill(one.prompts)]
    noted_chunks = [step for step in one.noted if step.prefill_tokens]
    assert len(noted_chunks) == len(chunks) > 1
    for found, step in zip(noted_chunks, chunks, strict=True):
        tokens, context = step.prefill(one.prompts)["p"]
        assert found.prefill_tokens == tokens
        assert found.prefill_token_pairs == token_pairs(tokens, context)
        assert (found.decode_seqs, found.kv_tokens) == (16, one.kv_tokens(step))
        assert found.budget_s == pytest.approx(BUDGET_S)
        assert found.predicted_s == pytest.approx(
            step_s(PROFILE, 16, found.kv_tokens, tokens, context)
        )


def test_the_report_reconciles_with_what_the_scheduler_holds(rig: MakeRig) -> None:
    one = rig(remote=True)
    for name in STREAMS:
        one.add(name, 500, 2000)
    one.run(200, until=lambda: all(one.outputs.get(name, 0) > 2 for name in STREAMS))
    one.add("p", 4000, 8)
    one.add("q", 300, 8)
    one.add("r", 800, 8, remote=True)
    one.step()
    plugin: Plugin = one.scheduler.spillway
    plugin.before_schedule()
    report = plugin.reporter.make(plugin._view, plugin._step, plugin.planner, "", 0)
    requests = one.scheduler.requests
    left = {name: requests[name].num_tokens - requests[name].num_computed_tokens for name in "pq"}
    assert report.backlog_tokens == sum(left.values())
    assert (report.backlog_prompts, report.backlog_tokens_running) == (2, left["p"])
    assert (report.decode_seqs, report.pulling_seqs) == (16, 1)
    held = sum(-(-one_.num_computed_tokens // BLOCK_TOKENS) for one_ in requests.values())
    assert abs(report.kv_used_tokens / BLOCK_TOKENS - held) <= len(requests)
    assert report.chunk_tokens_now > 0


def test_a_wrong_setting_stops_the_engine_with_a_sentence(rig: MakeRig) -> None:
    with pytest.raises(ConfigError, match=r"tbt: unknown key; did you mean 'tbt_s'"):
        rig(spillway={"tbt": 0.1})


def test_the_stand_in_connector_is_one() -> None:
    assert not FakeConnector.__abstractmethods__


def test_settings_reach_the_plug_in_through_additional_config(rig: MakeRig) -> None:
    one = rig(spillway={"chunk_tokens_max": 128})
    assert one.scheduler.spillway.settings == EngineSettings(
        role="decode",  # type: ignore[arg-type]
        profile=PROFILE_NAME,
        learning=False,
        chunk_tokens_max=128,
    )
