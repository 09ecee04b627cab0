"""Latency profiles on disk: built-ins against published anchors and physics, and bad files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest

from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile, step_s
from spillway.wire.profile import (
    DEFAULT_PROFILE,
    builtin_names,
    load_profile,
    load_profile_file,
    write_profile_file,
)

GRIDS = Path(__file__).parents[2].parent / "shared" / "profiles" / "kernel_table_grids.json"

# From the models' configurations: parameters, layers, KV heads, head size.
MODELS = {
    "Llama-3.1-8B": (8.03e9, 32, 8, 128),
    "Llama-3.1-70B": (70.55e9, 80, 8, 128),
    "Qwen3-8B": (8.19e9, 36, 8, 128),
    "Qwen3-32B": (32.76e9, 64, 8, 128),
}
# From the makers' data sheets: dense bfloat16 FLOP/s, memory bytes/s, memory bytes.
GPUS = {
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12, 80e9),
    "NVIDIA H100-SXM-80GB-HBM3": (989.5e12, 3.35e12, 80e9),
    "NVIDIA H200-SXM-141GB": (989.5e12, 4.8e12, 141e9),
}
# (profile, decode seqs at 1,024 tokens of context) and (profile, chunk tokens, context): seconds.
DECODE_ANCHORS_S = {
    ("llama-3.1-8b-a100", 1): 0.0119,
    ("llama-3.1-8b-a100", 64): 0.0178,
    ("llama-3.1-8b-a100", 256): 0.0437,
    ("llama-3.1-8b-h100", 16): 0.0075,
    ("llama-3.1-8b-h100", 256): 0.0196,
    ("llama-3.1-70b-tp4-a100", 64): 0.0364,
    ("llama-3.1-70b-tp4-h100", 64): 0.0191,
    ("qwen3-32b-tp2-h100", 64): 0.0205,
}
PREFILL_ANCHORS_S = {
    ("llama-3.1-8b-a100", 1024, 0): 0.0647,
    ("llama-3.1-8b-a100", 8192, 0): 0.557,
    ("llama-3.1-8b-a100", 2048, 8192): 0.173,
    ("llama-3.1-8b-h100", 1024, 0): 0.0221,
    ("llama-3.1-8b-h100", 8192, 0): 0.200,
    ("llama-3.1-70b-tp4-a100", 1024, 0): 0.182,
    ("llama-3.1-70b-tp4-h100", 8192, 0): 0.577,
    ("qwen3-32b-tp2-h100", 1024, 0): 0.0555,
}


def test_the_expected_profiles_are_built_in() -> None:
    assert builtin_names() == (
        "llama-3.1-70b-tp4-a100",
        "llama-3.1-70b-tp4-h100",
        "llama-3.1-8b-a100",
        "llama-3.1-8b-h100",
        "llama-3.1-8b-h200",
        "qwen3-32b-tp2-h100",
        "qwen3-8b-a100",
        "qwen3-8b-h100",
    )
    assert DEFAULT_PROFILE in builtin_names()


@pytest.mark.parametrize("name", builtin_names())
def test_a_builtin_says_where_it_comes_from(name: str) -> None:
    profile = load_profile_file(name)
    assert profile.name == load_profile(name).name == name
    assert "AISimulate 0.13.0 (Apache-2.0; NVIDIA kernel tables)" in profile.provenance.source
    assert profile.fit_error is not None
    assert 0 < profile.fit_error.median_frac < 0.03
    assert profile.fit_error.median_frac < profile.fit_error.p95_frac < profile.fit_error.max_frac
    assert profile.validity is not None


@pytest.mark.parametrize(("name", "decode_seqs"), DECODE_ANCHORS_S)
def test_decode_steps_meet_the_anchors(name: str, decode_seqs: int) -> None:
    predicted_s = step_s(load_profile(name), decode_seqs, decode_seqs * 1024)
    assert predicted_s == pytest.approx(DECODE_ANCHORS_S[name, decode_seqs], rel=_p95_frac(name))


@pytest.mark.parametrize(("name", "chunk_tokens", "context_tokens"), PREFILL_ANCHORS_S)
def test_prefill_steps_meet_the_anchors(name: str, chunk_tokens: int, context_tokens: int) -> None:
    predicted_s = step_s(load_profile(name), 0, 0, chunk_tokens, context_tokens)
    anchor_s = PREFILL_ANCHORS_S[name, chunk_tokens, context_tokens]
    assert predicted_s == pytest.approx(anchor_s, rel=_p95_frac(name))


@pytest.mark.parametrize("name", builtin_names())
def test_no_builtin_is_faster_than_the_hardware_can_be(name: str) -> None:
    """Coefficients under these floors have been published; no scheduler result survives them."""
    profile = load_profile(name)
    parameters, flops_per_s, bytes_per_s = _physics(name)
    token_floor_s = 2 * parameters / flops_per_s
    assert profile.hinge_slope_s[-1] >= token_floor_s
    assert profile.kv_token_s >= profile.kv_bytes_per_token / bytes_per_s
    assert profile.step_base_s >= 2 * parameters / bytes_per_s  # the weights are read every step
    for tokens in (1, 64, 256, 768, 1024, 4096, 8192):
        assert step_s(profile, 0, 0, tokens) >= token_floor_s * tokens


@pytest.mark.parametrize("name", builtin_names())
def test_kv_sizes_follow_from_model_and_memory(name: str) -> None:
    profile = load_profile_file(name)
    made_for = profile.provenance
    parameters, layers, kv_heads, head_size = MODELS[made_for.model]
    assert profile.kv_bytes_per_token == layers * kv_heads * head_size * 2 * 2
    memory_bytes = GPUS[made_for.gpu][2] * made_for.tensor_parallel
    room_tokens = (0.9 * memory_bytes - 2 * parameters) / profile.kv_bytes_per_token
    assert profile.kv_capacity_tokens == pytest.approx(room_tokens, rel=0.002)
    assert profile.kv_capacity_tokens % 16 == 0


@pytest.mark.skipif(not GRIDS.exists(), reason=f"no kernel table grids at {GRIDS}")
@pytest.mark.parametrize("name", builtin_names())
def test_a_builtin_fits_its_grid(name: str) -> None:
    profile = load_profile(name)
    grid = json.loads(GRIDS.read_text())["grid"][_grid_key(name)]
    errors_frac = [
        abs(step_s(profile, seqs, seqs * context) * 1e3 / step_ms - 1)
        for seqs, context, step_ms in grid["dec"]
    ] + [
        abs(step_s(profile, 0, 0, chunk, context) * 1e3 / step_ms - 1)
        for chunk, context, step_ms in grid["pre"]
    ]
    assert median(errors_frac) <= 0.03
    stated = load_profile_file(name).fit_error
    assert stated is not None
    assert max(errors_frac) <= stated.max_frac + 0.001


def test_a_profile_survives_a_round_trip(tmp_path: Path) -> None:
    profile = load_profile_file(DEFAULT_PROFILE)
    path = tmp_path / "mine.json"
    write_profile_file(path, profile)
    assert load_profile_file(str(path)) == profile
    assert load_profile(str(path)) == load_profile(DEFAULT_PROFILE)
    assert isinstance(load_profile(str(path)), LatencyProfile)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 9}, "schema_version: is 9; this version of spillway reads 1"),
        ({"nam": "x"}, "nam: unknown key; did you mean 'name'? allowed: schema_version, name,"),
        ({"name": ""}, "name: is ''; it must be text of length >= 1"),
        ({"name": None}, "name: expected text, got nothing"),
        ({"coefficients": 3}, "coefficients: expected a table of keys, got a whole number"),
        (
            {"coefficients.step_base_s": -1},
            "coefficients.step_base_s: is -1; it must be a number >= 0.0",
        ),
        (
            {"coefficients.kv_token_s": "1"},
            "coefficients.kv_token_s: expected a number, got text",
        ),
        (
            {"coefficients.token_s": [1e-5, -1e-5, 1e-6]},
            "coefficients.token_s[1]: is -1e-05; it must be a number >= 0.0",
        ),
        ({"coefficients.token_s": [1e-5]}, "token_s needs one slope per hinge, 3"),
        ({"coefficients.token_hinges": [64, 0, 1]}, "it must ascend and start at 0"),
        (
            {"coefficients.token": 1},
            "coefficients.token: unknown key; did you mean 'token_s'? allowed: step_base_s,",
        ),
        ({"kv_bytes_per_token": 0}, "kv_bytes_per_token: is 0; it must be a whole number >= 1"),
        ({"provenance.tensor_parallel": 1.5}, "provenance.tensor_parallel: expected a whole"),
        ({"-": "name"}, "name: is missing and has no default"),
        ({"-": "provenance.source"}, "provenance.source: is missing and has no default"),
    ],
)
def test_a_bad_profile_is_one_line_that_names_the_key(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(_changed(DEFAULT_PROFILE, change)))
    with pytest.raises(ConfigError) as caught:
        load_profile(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\xff"])
def test_a_file_that_is_no_profile_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"bad\.json: (not valid JSON|expected a table of keys)"):
        load_profile(str(path))


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("llama-8b-a100")
    assert "did you mean 'llama-3.1-8b-a100'?" in str(caught.value)
    for name in builtin_names():
        assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: cannot read the profile: No such file"):
        load_profile(str(tmp_path / "absent.json"))


def _p95_frac(name: str) -> float:
    error = load_profile_file(name).fit_error
    assert error is not None
    return error.p95_frac


def _physics(name: str) -> tuple[float, float, float]:
    """Return parameters, peak FLOP/s and memory bytes/s of the profile's GPUs together."""
    made_for = load_profile_file(name).provenance
    flops_per_s, bytes_per_s, _ = GPUS[made_for.gpu]
    gpus = made_for.tensor_parallel
    return MODELS[made_for.model][0], flops_per_s * gpus, bytes_per_s * gpus


def _grid_key(name: str) -> str:
    made_for = load_profile_file(name).provenance
    gpu = name.rsplit("-", 1)[1]
    return f"{made_for.model}|{gpu}_sxm|tp{made_for.tensor_parallel}"


def _changed(name: str, change: dict[str, Any]) -> Any:
    """Return the JSON of a built-in with dotted keys set, or removed under the key "-"."""
    raw = msgspec.to_builtins(load_profile_file(name))
    for dotted, value in change.items():
        target, keys = raw, (value if dotted == "-" else dotted).split(".")
        for key in keys[:-1]:
            target = target[key]
        if dotted == "-":
            del target[keys[-1]]
        else:
            target[keys[-1]] = value
    return raw
