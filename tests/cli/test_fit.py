"""`spillway fit` on files of samples: what is printed, written and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import make_profile
from calibsamples import make_head, samples_of
from cli_command import Command
from spillway.calib.samples import SampleFile, write_samples
from spillway.wire.profile import load_profile, load_profile_file

PROFILE = make_profile(token_hinges=(0, 128), token_s=(5e-6, 40e-6))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    write_samples(path, SampleFile(make_head(), samples_of(PROFILE, noise_frac=0.02)))
    return path


@pytest.mark.slow
def test_a_good_fit_is_told_drawn_and_written(spillway: Command, samples: Path) -> None:
    out = samples.parent / "made" / "mine.json"
    done = spillway("fit", samples, "--out", out, "--notes", "a note")
    assert done.code == 0, done.err
    for said in (
        *("per step", "per token above 128", "per KV token", "90 % of"),
        *("decode only", "mixed, chunk up to 256", "prefill only", "context up to 512", "repeats"),
        *("Good: held-out steps are predicted within", "Use it: spillway serve --profile"),
    ):
        assert said in done.out
    assert max(len(line) for line in done.out.splitlines() if str(out) not in line) <= 100
    assert load_profile(str(out)).name == "mine"
    assert load_profile_file(str(out)).provenance.notes == "a note"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_refused_fit_leaves_the_plot_and_no_profile(spillway: Command, samples: Path) -> None:
    out = samples.parent / "mine.json"
    plot = samples.parent / "why.svg"
    done = spillway("fit", samples, "--out", out, "--plot", plot, "--error-limit", "0.005")
    assert done.code == 1
    assert "Refused: held-out steps" in done.out
    assert "The worst region: " in done.out
    assert done.err.startswith("spillway: error: refused")
    assert not out.exists()
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--clock", "sun"), "choose wall or cpu"),
        (("--holdout", "0"), "between 0 and 1"),
    ],
)
def test_an_operators_error(
    spillway: Command, samples: Path, arguments: tuple[str, str], fault: str
) -> None:
    done = spillway("fit", samples, *arguments)
    assert done.code == 2
    assert fault in done.err


def test_the_size_of_the_kv_must_come_from_somewhere(spillway: Command, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples(path, SampleFile(make_head(kv_bytes_per_token=0), samples_of(PROFILE)))
    done = spillway("fit", path)
    assert done.code == 2
    assert "--kv-bytes-per-token" in done.err


def test_a_file_that_is_not_there(spillway: Command, tmp_path: Path) -> None:
    done = spillway("fit", tmp_path / "none.jsonl")
    assert done.code == 2
    assert "`spillway profile` makes them" in done.err
