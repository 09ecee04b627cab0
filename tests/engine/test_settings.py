"""Settings of the plug-in: where they come from, which wins, and how a mistake is named."""

from __future__ import annotations

import json

import pytest

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.engine.settings import ENVIRONMENT_KEY, EngineSettings, load_settings


def load(flag: object = None, environment: object = None) -> EngineSettings:
    config = {} if flag is None else {"spillway": flag, "other": {"of": "somebody else"}}
    text = environment if isinstance(environment, str) else json.dumps(environment)
    return load_settings(config, {} if environment is None else {ENVIRONMENT_KEY: text})


def test_nothing_given_is_the_defaults() -> None:
    assert load() == EngineSettings()
    assert load_settings(None, {}) == EngineSettings()
    assert load_settings({}, {ENVIRONMENT_KEY: "  "}) == EngineSettings()


def test_the_flag_wins_over_the_environment_key_by_key() -> None:
    settings = load({"tbt_s": 0.04}, {"tbt_s": 0.1, "role": "decode", "report_port": 9000})
    assert (settings.tbt_s, settings.role, settings.report_port) == (0.04, Role.DECODE, 9000)


@pytest.mark.parametrize(
    ("flag", "environment", "text"),
    [
        ({"rolle": "decode"}, None, r"--additional-config spillway: rolle: unknown key.*'role'"),
        (None, {"tbt": 0.05}, r"SPILLWAY_ENGINE: tbt: unknown key.*'tbt_s'"),
        ({"role": "router"}, None, r"role: is 'router'"),
        ({"tbt_s": 0}, None, r"tbt_s: is 0"),
        ({"tbt_margin_frac": 1.5}, None, r"tbt_margin_frac: is 1.5"),
        ({"report_port": 70000}, None, r"report_port: is 70000"),
        ({"chunk_tokens_multiple": 0}, None, r"chunk_tokens_multiple: is 0"),
        ({"tbt_s": "fast"}, None, r"tbt_s: expected a number"),
        ([1], None, r"--additional-config spillway: expected a table of keys, got list"),
        (None, "{", r"SPILLWAY_ENGINE: not valid JSON"),
        (None, [1], r"SPILLWAY_ENGINE: expected a table of keys"),
    ],
)
def test_a_mistake_is_named_with_its_source(flag: object, environment: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(flag, environment)
