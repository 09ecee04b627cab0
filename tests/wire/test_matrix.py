"""The matrix file: what it says by default, and how it says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.core.policies import POLICY_NAMES
from spillway.wire.matrix import FidelitySetting, read_matrix
from sweep_samples import TINY, tiny

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    text = TINY.replace('policies = ["least-loaded", "headroom"]\n', "")
    matrix = tiny(tmp_path, text)
    assert matrix.policy_names == POLICY_NAMES
    assert matrix.fidelity == {"exact": FidelitySetting()}
    assert matrix.capacity.attainment_frac == 0.9
    assert matrix.as_data()["policies"] == list(POLICY_NAMES), "results say what was run"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("loads = [0.8, 1.2]", "loads = []", "loads is empty"),
        ("loads = [0.8, 1.2]", "loads = [0.8, -1]", r"load -1\.0 must be above 0"),
        ("loads = [0.8, 1.2]", "loads = [0.8, 0.8]", "loads names something twice"),
        ("requests = 40", "requests = 0", "requests is 0"),
        ("requests = 40", "request = 40", "unknown field `request`"),
        ("seeds = [1, 2]", 'seeds = "1"', "seeds"),
        ('"headroom"]', '"hedroom"]', "did you mean 'headroom'"),
        ('policies = ["least-loaded", "headroom"]', 'policies = "most"', "policies is 'most'"),
        ('synthetic = "burst"', "", "give either synthetic or trace"),
        ('synthetic = "burst"', 'synthetic = "burst"\ntrace = "t"', "give either"),
        ("ttft_s = 1.0", "", "ttft_s"),
        ("seeds = [101]", "seeds = []", "capacity needs seeds"),
        ("seeds = [1, 2]", "seeds = [1, 2", "not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TINY
    with pytest.raises(ConfigError, match=said):
        tiny(tmp_path, TINY.replace(old, new, 1))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        read_matrix(tmp_path / "absent.toml")


def test_the_example_covers_what_it_promises() -> None:
    matrix = read_matrix(ROOT / "examples" / "matrix.toml")
    drawn = [one for one in matrix.workloads.values() if one.synthetic]
    assert len(drawn) >= 5, "it must run on a fresh checkout"
    assert all(one.optional for one in matrix.workloads.values() if one.trace)
    axes = (matrix.loads, matrix.targets, matrix.clusters, matrix.seeds)
    assert [len(axis) for axis in axes] == [3, 2, 2, 5]
    assert matrix.policy_names == POLICY_NAMES
