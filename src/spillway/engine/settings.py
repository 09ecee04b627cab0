"""What the operator tells the plug-in, checked once at start-up.

vLLM hands `--additional-config '{"spillway": {...}}'` to every process of the engine; the variable
SPILLWAY_ENGINE holds the same JSON object for launchers that cannot change flags. What the flag
says wins, key by key. A mistake stops the engine with a sentence that names the key: an engine that
quietly ran without its plug-in would break promises that the router makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.wire.codec import KeyPath, convert, dotted, parse_json

CONFIG_KEY = "spillway"
ENVIRONMENT_KEY = "SPILLWAY_ENGINE"

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine's plug-in.

    role: None takes it from the engine's kv_role; prefill nodes only report.
    profile: built-in name or file of the step-time law; "" leaves chunks alone and only reports.
    node_id: shown in reports; "" makes one of role and port.
    tbt_s: target of a stream whose request brings none.
    tbt_margin_frac: the share of the strictest target that a step with prompt chunks may fill.
    chunk_tokens_multiple: granularity of chunks, rounded up to what the model needs.
    chunk_tokens_max: largest prefill of one step beside decodes; 0 is the engine's own step limit.
    chunk_tokens_min: prefill that runs although it is not safe, after `skipped_steps_max` steps
        without any; 0 is one multiple.
    learning: correct the profile by measured step times.
    report_host, report_port: where routers read reports; each data-parallel rank adds its number
        to the port; 0 is no reports.
    report_interval_s, heartbeat_s: reports come no closer and no further apart.
    """

    role: Role | None = None
    profile: str = ""
    node_id: str = ""
    tbt_s: Seconds = 0.06
    tbt_margin_frac: Share = 0.9
    chunk_tokens_multiple: AtLeastOne = 64
    chunk_tokens_max: Count = 0
    chunk_tokens_min: Count = 0
    skipped_steps_max: AtLeastOne = 8
    learning: bool = True
    report_host: str = "127.0.0.1"
    report_port: Port = 0
    report_interval_s: Seconds = 0.020
    heartbeat_s: Seconds = 0.250


def load_settings(additional_config: object, environment: Mapping[str, str]) -> EngineSettings:
    """Return the settings of an engine's additional_config and environment.

    Raises ConfigError naming the source, the key and what is allowed there.
    """
    from_flag = additional_config.get(CONFIG_KEY) if isinstance(additional_config, dict) else None
    from_environment = _environment(environment)
    if from_flag is None and from_environment is None:
        return EngineSettings()
    given: dict[str, Any] = {}
    for source, values in (
        (ENVIRONMENT_KEY, from_environment),
        (f"--additional-config {CONFIG_KEY}", from_flag),
    ):
        if values is None:
            continue
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: expected a table of keys, got {type(values).__name__}")
        convert(values, EngineSettings, _in(source))  # so that a fault names its own source
        given |= values
    return convert(given, EngineSettings, _in(CONFIG_KEY))


def _environment(environment: Mapping[str, str]) -> object:
    text = environment.get(ENVIRONMENT_KEY, "").strip()
    return parse_json(text.encode(), ENVIRONMENT_KEY) if text else None


def _in(source: str) -> Any:
    def where(path: KeyPath) -> str:
        return f"{source}: {dotted(path)}" if path else source

    return where
