"""The built-in profiles are what their script makes of the published grids."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from spillway.wire.profile import builtin_names, load_profile_file

ROOT = Path(__file__).resolve().parents[2]
GRIDS = ROOT.parent / "shared" / "profiles" / "kernel_table_grids.json"


def script() -> ModuleType:
    spec = spec_from_file_location("builtin_profiles", ROOT / "scripts" / "builtin_profiles.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not GRIDS.exists(), reason=f"no kernel table grids at {GRIDS}")
def test_the_profiles_are_current() -> None:
    made = {profile.name: profile for profile in script().profiles(json.loads(GRIDS.read_text()))}
    assert set(made) == set(builtin_names())
    for name, profile in made.items():
        again = "run: .venv/bin/python scripts/builtin_profiles.py GRIDS"
        assert profile == load_profile_file(name), f"{name}: {again}"


def test_the_expert_term_is_drawn_through_its_hinges() -> None:
    module = script()
    shape = module.SHAPES["Qwen3-30B-A3B"]
    values_s = [module._coverage(shape, hinge) for hinge in module.HINGES]
    added = module._added(1e-5, values_s)
    slope_s = value_s = 0.0
    for at, hinge in enumerate(module.HINGES):
        if at:
            value_s += slope_s * (hinge - module.HINGES[at - 1])
        slope_s += added[at]
        assert value_s == pytest.approx(values_s[at] + 1e-5 * hinge, abs=1e-9)
    assert slope_s == pytest.approx(1e-5)
    assert values_s[-1] == pytest.approx(1.0, abs=0.003)
