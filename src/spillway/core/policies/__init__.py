"""Every policy by name: the only list of them, and how a name with its options becomes one.

A policy is selected by the same text everywhere, live and in simulation: its name, or its name with
switches, `headroom:pressure=off,deflections_max=1`. docs/policies.md describes them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches

from spillway.core.baselines import LeastLoaded, RoundRobin, Threshold
from spillway.core.decide import Policy
from spillway.core.errors import ConfigError
from spillway.core.headroom import Headroom
from spillway.core.kairos import KairosPaper
from spillway.core.policies.colocated import Colocated
from spillway.core.policies.dynamo import DynamoIslBounding, DynamoIslOrLoad, DynamoPrefillLoad
from spillway.core.policies.externality import Externality
from spillway.core.policies.joint import LeastTtft
from spillway.core.policies.kairos_adapted import KairosAdapted
from spillway.core.policies.llmd import LlmdPrefix
from spillway.core.policies.power_of_two import PowerOfTwo
from spillway.core.policies.ppd import Ppd
from spillway.core.policies.sangam import Sangam
from spillway.core.policies.splitwise import SplitwiseMixed
from spillway.core.policies.taichi import TaichiLite
from spillway.core.policies.xllm import Xllm

PolicyClass = type[
    RoundRobin
    | LeastLoaded
    | PowerOfTwo
    | Threshold
    | DynamoIslBounding
    | DynamoPrefillLoad
    | DynamoIslOrLoad
    | LlmdPrefix
    | SplitwiseMixed
    | Sangam
    | Xllm
    | Ppd
    | TaichiLite
    | Colocated
    | LeastTtft
    | Externality
    | KairosPaper
    | KairosAdapted
    | Headroom
]

POLICIES: dict[str, PolicyClass] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "power-of-two": PowerOfTwo,
    "threshold": Threshold,
    "dynamo-isl-bounding": DynamoIslBounding,
    "dynamo-prefill-load": DynamoPrefillLoad,
    "dynamo-isl-or-load": DynamoIslOrLoad,
    "llmd-prefix": LlmdPrefix,
    "splitwise-mixed": SplitwiseMixed,
    "sangam": Sangam,
    "xllm": Xllm,
    "ppd": Ppd,
    "taichi-lite": TaichiLite,
    "colocated": Colocated,
    "least-ttft": LeastTtft,
    "externality": Externality,
    "kairos-paper": KairosPaper,
    "kairos-adapted": KairosAdapted,
    "headroom": Headroom,
}
POLICY_NAMES = tuple(POLICIES)

_SWITCHES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def build_policy(text: str, options: Mapping[str, object] | None = None) -> Policy:
    """Return the policy that `text` names, with the switches in it and `options` set.

    Raises ConfigError that says what exists and what is nearest, for an unknown name or option, for
    a value of the wrong type or out of range, and for an option that is given twice.
    """
    name, _, switches = text.partition(":")
    found = POLICIES.get(name)
    if found is None:
        raise ConfigError(
            f"policy {name!r} is not known{_nearest(name, POLICIES)}; choose one of "
            f"{', '.join(POLICIES)}"
        )
    given = dict(options or {})
    for key, value in _parsed(text, switches).items():
        if key in given:
            raise ConfigError(f"policy {text}: option {key!r} is given twice")
        given[key] = value
    defaults = policy_options(found)
    for key, value in given.items():
        if key not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise ConfigError(
                f"policy {name}: option {key!r} is not known{_nearest(key, defaults)}; it has: "
                f"{allowed}"
            )
        given[key] = _coerced(name, key, value, defaults[key])
    return found(**given)  # type: ignore[arg-type]


def policy_options(policy: PolicyClass) -> dict[str, object]:
    """Return the options of a policy with their defaults."""
    return {field.name: field.default for field in fields(policy) if field.name != "name"}


def option_text(value: object) -> str:
    """Return an option's value as it is written behind a policy's name: `on`, `512+256`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "+".join(map(option_text, value))
    return str(value)


def _nearest(word: str, known: Mapping[str, object]) -> str:
    """Return ` (did you mean ...?)` for a slip of the pen, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parsed(text: str, switches: str) -> dict[str, object]:
    """Return the options of `key=value,key=value`. Raises ConfigError on anything else."""
    given: dict[str, object] = {}
    for part in switches.split(",") if switches else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in given:
            raise ConfigError(
                f"policy {text!r}: {part!r} is not understood; write NAME:OPTION=VALUE,OPTION=VALUE"
            )
        given[key] = _value(value)
    return given


def _value(text: str) -> object:
    """Return the number, switch or list (512+256) that `text` reads as; itself if none."""
    if text in _SWITCHES:
        return _SWITCHES[text]
    if "+" in text:
        return tuple(_value(one) for one in text.split("+"))
    try:
        return float(text) if set(text) & set(".en") else int(text)
    except ValueError:
        return text


def _coerced(name: str, key: str, value: object, default: object) -> object:
    """Return `value` in the type of the option's default. Raises ConfigError."""
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, str):
        if isinstance(value, str):
            return value
    elif isinstance(default, float) and isinstance(value, int | float):
        return float(value)
    elif isinstance(default, int) and isinstance(value, int):
        return value
    elif (
        isinstance(default, tuple)
        and isinstance(value, list | tuple)
        and all(isinstance(one, int) for one in value)
    ):
        return tuple(value)
    words = {"tuple": "list of whole numbers", "str": "word"}
    kind = type(default).__name__
    kind = words.get(kind, kind)
    raise ConfigError(f"policy {name}: option {key} is {value!r}; it must be a {kind}")
