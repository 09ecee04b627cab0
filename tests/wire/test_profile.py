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
from spillway.wire.gpus import GPUS
from spillway.wire.profile import (
    DEFAULT_PROFILE,
    builtin_names,
    load_profile,
    load_profile_file,
    write_profile_file,
)

GRIDS = Path(__file__).parents[2].parent / "shared" / "profiles" / "kernel_table_grids.json"

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
    ("qwen3-32b-tp2-a100", 64): 0.0354,
    ("qwen3-30b-a3b-h100", 1): 0.0060,
    ("qwen3-30b-a3b-h100", 64): 0.0254,
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
    ("qwen3-30b-a3b-h100", 8192, 0): 0.153,
}


def test_the_expected_profiles_are_built_in() -> None:
    models = ("llama-3.1-70b-tp4", "llama-3.1-8b", "qwen3-30b-a3b", "qwen3-32b-tp2", "qwen3-8b")
    expected = {f"{model}-{gpu}" for model in models for gpu in ("a100", "h100", "h200")}
    expected |= {f"deepseek-v2-lite-{gpu}-derived" for gpu in ("a100", "h100", "h200")}
    assert set(builtin_names()) == expected
    assert DEFAULT_PROFILE in builtin_names()


MEASURED = tuple(name for name in builtin_names() if not name.endswith("-derived"))


@pytest.mark.parametrize("name", MEASURED)
def test_a_builtin_says_where_it_comes_from(name: str) -> None:
    profile = load_profile_file(name)
    assert profile.name == load_profile(name).name == name
    assert "AISimulate 0.13.0 (Apache-2.0; NVIDIA kernel tables)" in profile.provenance.source
    assert profile.fit_error is not None
    weak = name == "qwen3-30b-a3b-a100"  # its kernel tables are the roughest
    assert 0 < profile.fit_error.median_frac < (0.07 if weak else 0.03)
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
def test_a_builtin_knows_its_model_and_keeps_above_the_floors(name: str) -> None:
    profile = load_profile_file(name)
    assert profile.model is not None
    assert profile.provenance.gpu in GPUS
    assert profile.below_floor_because == ""
    assert profile.faults() == []
    assert profile.kv_capacity_tokens > 100_000
    assert profile.kv_capacity_tokens % 16 == 0


@pytest.mark.parametrize("name", set(builtin_names()) - set(MEASURED))
def test_a_derived_builtin_says_so(name: str) -> None:
    profile = load_profile_file(name)
    assert profile.derived_error_frac == 0.4
    assert profile.fit_error is profile.validity is None
    assert profile.caveats() == (
        f"profile {name}: derived from first principles (±40%), not measured",
    )
    assert load_profile_file(DEFAULT_PROFILE).caveats() == ()


def test_the_derived_profile_meets_the_figure_it_is_scaled_to() -> None:
    """arXiv 2607.02043, Figure 1: chunks beside a decode batch of DeepSeek-V2-Lite on A100."""
    profile = load_profile("deepseek-v2-lite-a100-derived")

    def added_s(chunk_tokens: int) -> float:
        batch = (64, 64 * 1024)
        return step_s(profile, *batch, chunk_tokens) - step_s(profile, *batch)

    assert added_s(512) <= 0.030
    assert 0.200 < added_s(2048) < 0.230


def test_host_overhead_is_part_of_every_step(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(_changed(DEFAULT_PROFILE, {"host_overhead_s": 0.002})))
    plain, loaded = load_profile(DEFAULT_PROFILE), load_profile(str(path))
    assert loaded.step_base_s == plain.step_base_s + 0.002
    assert step_s(loaded, 8, 8_000, 64) == pytest.approx(step_s(plain, 8, 8_000, 64) + 0.002)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coefficients.token_pair_s": 1e-9}, "token_pair_s is 1e-09 s, faster than the hardware"),
        ({"coefficients.kv_token_s": 4e-8}, "kv_token_s is 4e-08 s, faster than the hardware"),
        ({"coefficients.step_base_s": 0.001}, "a step of 1 tokens is"),
        ({"coefficients.token_s": [7e-6, 2e-5, 3e-6]}, "the last slope of token_s is 3e-05 s"),
        ({"kv_bytes_per_token": 4096}, "is 4096, but follows from model as 131072"),
        ({"derived_error_frac": 0.3}, "name: 'derived' is for profiles with derived_error_frac"),
    ],
)
def test_a_profile_that_cannot_be_true_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "fast.json"
    path.write_text(json.dumps(_changed(DEFAULT_PROFILE, change)))
    with pytest.raises(ConfigError) as caught:
        load_profile_file(str(path))
    assert said in str(caught.value)


def test_a_profile_below_the_floor_is_read_when_it_says_why(tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    why = {"coefficients.token_pair_s": 1e-12, "below_floor_because": "attention is sparse"}
    path.write_text(json.dumps(_changed(DEFAULT_PROFILE, why)))
    (caveat,) = load_profile_file(str(path)).caveats()
    assert caveat.endswith("faster than its hardware at its peak, because: attention is sparse")


def test_a_profile_of_unknown_hardware_has_no_floor(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    change = {"coefficients.token_pair_s": 1e-12, "provenance.gpu": "of our own"}
    path.write_text(json.dumps(_changed(DEFAULT_PROFILE, change)))
    assert load_profile_file(str(path)).faults() == []


@pytest.mark.skipif(not GRIDS.exists(), reason=f"no kernel table grids at {GRIDS}")
@pytest.mark.parametrize("name", MEASURED)
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
    stated = load_profile_file(name).fit_error
    assert stated is not None
    assert median(errors_frac) <= stated.median_frac + 0.015
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
            {"coefficients.token_s": [1e-5, -2e-5, 1e-6]},
            "a step with more tokens must not be shorter",
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
