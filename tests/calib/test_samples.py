"""The file of samples: what is written is read, and what is wrong is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import make_profile
from calibsamples import make_head, samples_of
from spillway.calib.samples import Sample, SampleFile, read_samples, write_samples
from spillway.core.errors import ConfigError


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    file = SampleFile(make_head(notes=("a note",)), samples_of(make_profile())[:20])
    write_samples(path, file)
    assert read_samples(path) == file
    assert len(path.read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "line 2 is not a sample"),
        (b'{"decode_seqs": 1, "kv_tokens": 9}', "missing required field `step_s`"),
        (b'{"decode_seqs": 1, "kv_tokens": 9, "step_s": 0}', "step_s"),
        (b'{"decode_seqs": -1, "kv_tokens": 9, "step_s": 1}', "decode_seqs"),
        (b'{"decode_seqs": 0, "kv_tokens": 0, "step_s": 1}', "a step computes something"),
        (
            b'{"decode_seqs": 1, "kv_tokens": 9, "step_s": 1, "prefill_token_pairs": 5}',
            "prefill_token_pairs without prefill_tokens",
        ),
        (b"\xff", "line 2 is not a sample"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples(path, SampleFile(make_head(), []))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ConfigError, match="line 2") as raised:
        read_samples(path)
    assert fault in str(raised.value)


def test_what_is_no_file_of_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with pytest.raises(ConfigError, match="spillway profile"):
        read_samples(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        read_samples(path)
    path.write_bytes(b'{"decode_seqs": 1, "kv_tokens": 9, "step_s": 1}\n')
    with pytest.raises(ConfigError, match="line 1 is not the head"):
        read_samples(path)
    write_samples(path, SampleFile(make_head(schema_version=99), []))
    with pytest.raises(ConfigError, match="schema_version is 99"):
        read_samples(path)


def test_a_sample_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="computes something"):
        Sample(decode_seqs=0, kv_tokens=0, step_s=1.0)
