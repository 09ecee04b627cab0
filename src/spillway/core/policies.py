"""Every policy by name: the only list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from spillway.core.baselines import LeastLoaded, RoundRobin, Threshold
from spillway.core.decide import Policy
from spillway.core.errors import ConfigError
from spillway.core.headroom import Headroom
from spillway.core.kairos import KairosPaper

PolicyClass = (
    type[RoundRobin] | type[LeastLoaded] | type[Threshold] | type[KairosPaper] | type[Headroom]
)

POLICIES: dict[str, PolicyClass] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "threshold": Threshold,
    "kairos-paper": KairosPaper,
    "headroom": Headroom,
}
POLICY_NAMES = tuple(POLICIES)


def build_policy(name: str, options: Mapping[str, object] | None = None) -> Policy:
    """Return the policy `name` with `options` set.

    Raises ConfigError that lists what exists, for an unknown name, option or a wrong type.
    """
    found = POLICIES.get(name)
    if found is None:
        raise ConfigError(f"policy {name!r} is not known; choose one of {', '.join(POLICIES)}")
    given = dict(options or {})
    defaults = {field.name: field.default for field in fields(found) if field.name != "name"}
    for key, value in given.items():
        if key not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise ConfigError(f"policy {name}: option {key!r} is not known; it has: {allowed}")
        given[key] = _coerced(name, key, value, defaults[key])
    return found(**given)  # type: ignore[arg-type]


def _coerced(name: str, key: str, value: object, default: object) -> object:
    """Return `value` in the type of the option's default. Raises ConfigError."""
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
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
    kind = "list of whole numbers" if isinstance(default, tuple) else type(default).__name__
    raise ConfigError(f"policy {name}: option {key} is {value!r}; it must be a {kind}")
