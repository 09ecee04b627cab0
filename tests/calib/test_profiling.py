"""A profiling session: what is asked of the engine, what must be said, and the head of the file."""

from __future__ import annotations

from typing import Any

import pytest

from spillway import __version__
from spillway.calib.profiling import ProfileOptions, machine, profile_engine
from spillway.calib.samples import SampleFile
from spillway.clock import MonotonicClock
from spillway.core.errors import ConfigError


async def session(url: str, **changes: Any) -> SampleFile:
    fields: dict[str, Any] = {"url": url, "quick": True, "streams_max": 2, "time_limit_s": 0.01}
    options = ProfileOptions(**(fields | changes))
    return await profile_engine(options, MonotonicClock(), "2026-01-02")


@pytest.mark.slow
async def test_the_head_says_what_was_measured_where_and_how(start) -> None:
    engine = await start()
    head, _ = await session(
        engine.url, gpu="a GPU", dtype="bfloat16", tensor_parallel=2, kv_bytes_per_token=9, seed=7
    )
    assert (head.spillway_version, head.date, head.source) == (__version__, "2026-01-02", "reports")
    assert (head.model, head.engine) == ("fake-llama", "spillway engine")
    assert head.engine_version == f"{__version__}+fake"
    assert (head.limits.kv_capacity_tokens, head.limits.chunk_tokens_max) == (60_000, 512)
    assert (head.limits.context_tokens_max, head.limits.streams_max) == (4096, 2)
    assert (head.gpu, head.dtype, head.tensor_parallel) == ("a GPU", "bfloat16", 2)
    assert (head.kv_bytes_per_token, head.seed, head.quick) == (9, 7, True)
    assert head.rungs_done < head.rungs_planned
    assert head.flags["streams_max"] == 2
    assert head.machine == machine()
    assert head.notes


@pytest.mark.slow
async def test_gaps_can_be_asked_for_and_a_fake_engines_chunk_leaves_the_decodes_out(start) -> None:
    engine = await start()
    head, _ = await session(engine.url, source="gaps", chunk_tokens=256)
    assert head.source == "gaps"
    assert head.limits.chunk_tokens_max == 256
    assert not head.limits.chunk_counts_decodes


async def test_what_a_stock_engine_does_not_tell_must_be_said(start) -> None:
    engine = await start(stock=True, kv_capacity_tokens=0)
    with pytest.raises(ConfigError, match="--chunk-tokens"):
        await session(engine.url)
    with pytest.raises(ConfigError, match="--kv-capacity-tokens"):
        await session(engine.url, chunk_tokens=512)


def test_the_machine_is_described_without_its_name() -> None:
    from platform import node

    assert "cores" in machine()
    assert node() not in machine()
