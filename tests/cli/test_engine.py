"""`spillway engine`: from its flags to the engine's settings."""

from __future__ import annotations

from typing import Any

import pytest

from cli_command import Command
from spillway.core.types import ChunkMode, Role
from spillway.fakeengine import engine as fake
from spillway.fakeengine.engine import EngineSettings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[EngineSettings]:
    """The settings with which an engine would have been run."""
    settings: list[EngineSettings] = []
    monkeypatch.setattr(fake, "run_engine", lambda given, ready: settings.append(given))
    return settings


def test_defaults_are_a_decode_node_with_a_plug_in(
    spillway: Command, started: list[EngineSettings]
) -> None:
    assert spillway("engine").code == 0
    assert started == [EngineSettings(role=Role.DECODE, port=8001)]


def test_flags_reach_the_engine(spillway: Command, started: list[EngineSettings]) -> None:
    flags: dict[str, Any] = {
        "--role": "prefill",
        "--port": 0,
        "--name": "p7",
        "--bias": 1.2,
        "--noise": 0.1,
        "--chunk-tokens": 256,
        "--kv-tokens": 9000,
        "--time-scale": 4.0,
        "--tbt-margin": 0.7,
        "--records": "r.jsonl",
    }
    spillway("engine", "--stock", *(word for pair in flags.items() for word in pair))
    assert started == [
        EngineSettings(
            role=Role.PREFILL,
            port=0,
            node_id="p7",
            bias_frac=1.2,
            noise_frac=0.1,
            kv_capacity_tokens=9000,
            chunk_tokens_max=256,
            chunk_mode=ChunkMode.STATIC,
            time_scale=4.0,
            tbt_margin_frac=0.7,
            stock=True,
            records="r.jsonl",
        )
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--role", "both"), "--role 'both': choose prefill or decode"),
        (("--time-scale", "0"), "time_scale is 0.0"),
    ],
)
def test_a_bad_flag_is_one_line(spillway: Command, flags: tuple[str, ...], said: str) -> None:
    done = spillway("engine", *flags)
    assert done.code == 2
    assert said in done.err
