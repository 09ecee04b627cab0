"""The TOML file of `spillway sweep`: what to compare, under which conditions, how often.

Every axis is a table of named settings; the sweep runs their whole product. docs/sweeps.md
describes it for users.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from spillway.core.errors import ConfigError
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.wire.profile import DEFAULT_PROFILE

ALL_POLICIES = "all"
RUNS_MAX = 1_000_000
REQUESTS_MAX = 1_000_000


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all tables of the file have in common: an unknown key is an error."""


class WorkloadSetting(Settings, frozen=True, kw_only=True):
    """A synthetic family, or a part of a trace. One of the two.

    trace: relative to the matrix file.   optional: leave the workload out when it is not there.
    from_s, to_s: the part of the trace that windows are cut from.
    apply: operations on that part, in this order, as behind `--apply`.
    """

    synthetic: str = ""
    trace: str = ""
    optional: bool = False
    from_s: float = 0.0
    to_s: float | None = None
    apply: tuple[str, ...] = ()


class TargetSetting(Settings, frozen=True, kw_only=True):
    """Targets of every request."""

    ttft_s: float
    tbt_s: float


class ClusterSetting(Settings, frozen=True, kw_only=True):
    """Nodes, their profile and their links. kv_capacity_tokens: None takes the profile's."""

    nodes: str
    profile: str = DEFAULT_PROFILE
    link_bytes_per_s: float = 25e9
    kv_capacity_tokens: int | None = None


class FidelitySetting(Settings, frozen=True, kw_only=True):
    """How far the router's knowledge is from the truth; the default is exact but for reports.

    decode_chunk_tokens: decode nodes are stock engines with this prefill chunk; None sizes chunks.
    """

    bias_frac: float = 1.0
    noise_frac: float = 0.0
    report_period_s: float = 0.1
    report_delay_s: float = 0.0
    report_loss_frac: float = 0.0
    decode_chunk_tokens: int | None = None


class CapacitySetting(Settings, frozen=True, kw_only=True):
    """How the load that counts as 1 is measured.

    It is the highest rate at which a policy that never deflects still lets `attainment_frac` of the
    requests meet both targets, over `requests` requests of each seed. The seeds are others than
    those of the sweep, so that no evaluated run has set its own load.
    """

    requests: int = 1000
    seeds: tuple[int, ...] = (1001, 1002, 1003)
    attainment_frac: float = 0.9


class Matrix(Settings, frozen=True, kw_only=True):
    """The whole file. requests: per run.   loads: relative to the measured capacity."""

    workloads: dict[str, WorkloadSetting]
    targets: dict[str, TargetSetting]
    clusters: dict[str, ClusterSetting]
    loads: tuple[float, ...]
    policies: tuple[str, ...] | str = ALL_POLICIES
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    requests: int = 1000
    fidelity: dict[str, FidelitySetting] = msgspec.field(
        default_factory=lambda: {"exact": FidelitySetting()}
    )
    capacity: CapacitySetting = CapacitySetting()

    @property
    def policy_names(self) -> tuple[str, ...]:
        """Return the policies to run, in order."""
        return POLICY_NAMES if isinstance(self.policies, str) else self.policies

    def as_data(self) -> dict[str, Any]:
        """Return the file as plain data, with every default written out."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        data["policies"] = list(self.policy_names)
        return data


def read_matrix(path: Path) -> Matrix:
    """Return the matrix in a TOML file. Raises ConfigError naming the file and the key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        matrix = msgspec.convert(data, Matrix)
    except OSError as error:
        raise ConfigError(f"matrix {path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"matrix {path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"matrix {path}: {error}") from None
    try:
        _check(matrix)
    except ConfigError as error:
        raise ConfigError(f"matrix {path}: {error}") from None
    return matrix


def _check(matrix: Matrix) -> None:
    """Raise ConfigError on anything that would end or spoil the sweep half-way."""
    if isinstance(matrix.policies, str) and matrix.policies != ALL_POLICIES:
        raise ConfigError(f"policies is {matrix.policies!r}; write a list, or {ALL_POLICIES!r}")
    for name in matrix.policy_names:
        build_policy(name)
    axes: dict[str, Any] = {
        "workloads": matrix.workloads,
        "targets": matrix.targets,
        "clusters": matrix.clusters,
        "fidelity": matrix.fidelity,
        "loads": matrix.loads,
        "seeds": matrix.seeds,
        "policies": matrix.policy_names,
    }
    runs = 1
    for name, values in axes.items():
        if not values:
            raise ConfigError(f"{name} is empty; give at least one")
        if len(set(values)) < len(values):
            raise ConfigError(f"{name} names something twice")
        runs *= len(values)
    if runs > RUNS_MAX:
        raise ConfigError(f"{runs:,} runs are more than {RUNS_MAX:,}; shorten an axis")
    for load_frac in matrix.loads:
        if not 0 < load_frac <= 10:
            raise ConfigError(f"load {load_frac} must be above 0 and at most 10")
    for name, workload in matrix.workloads.items():
        if bool(workload.synthetic) == bool(workload.trace):
            raise ConfigError(f"workload {name}: give either synthetic or trace")
        if workload.synthetic and workload.apply:
            raise ConfigError(f"workload {name}: apply is for traces")
    capacity = matrix.capacity
    for what, requests in (("requests", matrix.requests), ("capacity.requests", capacity.requests)):
        if not 1 <= requests <= REQUESTS_MAX:
            raise ConfigError(f"{what} is {requests}; it must be between 1 and {REQUESTS_MAX:,}")
    if not 0 < capacity.attainment_frac <= 1 or not capacity.seeds:
        raise ConfigError("capacity needs seeds and an attainment_frac above 0, at most 1")
