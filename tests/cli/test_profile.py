"""`spillway profile`, then `spillway fit`, on a fake engine: the law that it runs by comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_command import Command
from spillway.calib.samples import read_samples
from spillway.core.latency import step_s
from spillway.wire.profile import load_profile, load_profile_file

NAME = "llama-3.1-8b-h100"


@pytest.fixture
def engine_url() -> Iterator[str]:
    """A fake engine in a process of its own, five times as fast as its profile."""
    command = [sys.executable, "-m", "spillway", "engine", "--port", "0", "--time-scale", "5"]
    command += ["--profile", NAME, "--chunk-tokens", "1024", "--noise", "0.01"]
    process = subprocess.Popen(
        [*command, "--end-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    line = process.stdout.readline()
    yield line[line.index("http") :].split()[0]
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@pytest.mark.slow
def test_the_law_an_engine_runs_by_comes_back(
    spillway: Command, engine_url: str, tmp_path: Path
) -> None:
    samples, out = tmp_path / "samples.jsonl", tmp_path / "fitted.json"
    done = spillway(
        *("profile", "--url", engine_url, "--quick", "--streams", "8", "--out", samples),
        *("--kv-bytes-per-token", "131072", "--gpu", "none"),
    )
    assert done.code == 0, done.err
    assert f"Next: spillway fit {samples}" in done.out
    assert "by its step reports" in " ".join(done.err.split())
    assert read_samples(samples).head.rungs_done > 3
    done = spillway("fit", samples, "--out", out)
    assert done.code == 0, done.err
    error = load_profile_file(str(out)).fit_error
    assert error is not None
    assert error.mean_frac is not None
    assert error.mean_frac <= 0.03
    true, found = load_profile(NAME), load_profile(str(out))
    for seqs, kv, chunk, context in ((1, 128, 0, 0), (8, 30_000, 0, 0), (4, 4000, 512, 1024)):
        true_s = step_s(true, seqs, kv, chunk, context) / 5
        assert step_s(found, seqs, kv, chunk, context) == pytest.approx(true_s, rel=0.03)


def test_nobody_there_is_an_operators_error(spillway: Command, tmp_path: Path) -> None:
    done = spillway("profile", "--url", "http://127.0.0.1:1", "--out", tmp_path / "samples.jsonl")
    assert done.code == 2
    assert "cannot be reached" in done.err


def test_a_model_configuration_that_is_none_is_named(spillway: Command, tmp_path: Path) -> None:
    done = spillway("profile", "--url", "http://127.0.0.1:1", "--model-config", tmp_path)
    assert done.code == 2
    assert "config.json" in done.err
