"""Small matrices and made-up rows of sweeps, for tests of what runs them and what shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spillway.wire.cells import GAP_CURVE_FRACS, LENGTH_RANGES_TOKENS, TTFT_CURVE_FRACS, CellResult
from spillway.wire.matrix import Matrix, read_matrix
from spillway.wire.sweepfile import CapacityFound, Sweep, SweepHead

TINY = """
requests = 40
loads = [0.8, 1.2]
seeds = [1, 2]
policies = ["least-loaded", "headroom"]
[capacity]
requests = 40
seeds = [101]
[workloads.burst]
synthetic = "burst"
[targets.usual]
ttft_s = 1.0
tbt_s = 0.06
[clusters.2p2d]
nodes = "2p2d"
"""


def write_tiny(folder: Path, text: str = TINY) -> Path:
    """Write a matrix file that runs in about a second."""
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def tiny(folder: Path, text: str = TINY) -> Matrix:
    """Return that matrix."""
    return read_matrix(write_tiny(folder, text))


def cell(policy: str = "headroom", **changes: Any) -> CellResult:
    """Return a row; `joint_99_frac` and the other figures can be set by name."""
    lengths = len(LENGTH_RANGES_TOKENS)
    values: dict[str, Any] = {
        "workload": "burst",
        "target": "usual",
        "cluster": "2p2d",
        "fidelity": "exact",
        "load_frac": 0.9,
        "seed": 1,
        "policy": policy,
        "rate_per_s": 9.0,
        "capacity_per_s": 10.0,
        "slo_ttft_s": 1.0,
        "slo_tbt_s": 0.06,
        "requests_arrived": 100,
        "requests_finished": 100,
        "requests_failed": 0,
        "requests_rejected": 0,
        "requests_cancelled": 0,
        "ttft_mean_s": 0.2,
        "ttft_p50_s": 0.1,
        "ttft_p95_s": 0.5,
        "ttft_p99_s": 0.9,
        "tbt_p50_s": 0.012,
        "tbt_p99_s": 0.05,
        "tbt_max_s": 0.06,
        "late_tokens_frac": 0.0,
        "ttft_met_frac": 0.95,
        "tbt_mean_met_frac": 1.0,
        "tbt_99_met_frac": 1.0,
        "joint_mean_frac": 0.95,
        "joint_99_frac": 0.95,
        "goodput_per_s": 8.5,
        "deflected_frac": 0.2,
        "kv_moved_bytes": 1000,
        "p95_queue_s": 0.3,
        "p95_execute_s": 0.15,
        "p95_transfer_s": 0.02,
        "p95_admission_s": 0.01,
        "p95_first_step_s": 0.02,
        "ttft_curve_s": [0.05 + share for share in TTFT_CURVE_FRACS],
        "gap_curve_s": [0.01 + share / 20 for share in GAP_CURVE_FRACS],
        "length_requests": [10] * lengths,
        "length_deflected": [2] * lengths,
        "preemptions": 0,
        "policy_failures": 0,
    }
    return CellResult(**{**values, **changes})


def sweep(cells: list[CellResult], notes: tuple[str, ...] = ()) -> Sweep:
    """Return a finished sweep of these rows."""
    head = SweepHead(matrix={"requests": 100}, digest="d", spillway_version="0", notes=notes)
    first = cells[0]
    capacity = CapacityFound(
        workload=first.workload,
        target=first.target,
        cluster=first.cluster,
        fidelity=first.fidelity,
        policy="least-loaded",
        capacity_per_s=10.0,
        attained_frac=0.91,
        probes=7,
    )
    return Sweep(head, (capacity,), tuple(cells))


def contest() -> Sweep:
    """Return two policies in two cells of two seeds; each wins one cell."""
    scores = {
        ("least-loaded", 0.6): (0.99, 0.97),
        ("headroom", 0.6): (0.95, 0.95),
        ("least-loaded", 1.2): (0.50, 0.60),
        ("headroom", 1.2): (0.90, 0.90),
    }
    return sweep(
        [
            cell(policy, load_frac=load_frac, seed=seed, joint_99_frac=score, ttft_met_frac=score)
            for (policy, load_frac), by_seed in scores.items()
            for seed, score in enumerate(by_seed, start=1)
        ]
    )
