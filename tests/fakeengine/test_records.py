"""Records survive the way to the disk and back."""

import pytest

from spillway.core.errors import ConfigError
from spillway.fakeengine.records import FLUSH_BYTES, EngineRecord, RecordFile, read_records


def record(number: int) -> EngineRecord:
    return EngineRecord(
        request_id=f"r{number}",
        node_id="d0",
        role="decode",
        leg="decode",
        outcome="finished",
        prompt_tokens=10,
        output_tokens=2,
        transfer_s=0.5,
    )


def test_what_is_added_is_read_back_in_order(tmp_path):
    path = tmp_path / "records.jsonl"
    file = RecordFile(str(path))
    written = [record(number) for number in range(1000)]
    for one in written:
        file.add(one)
    assert path.stat().st_size > 0
    assert path.stat().st_size % FLUSH_BYTES < path.stat().st_size  # flushed under way
    file.flush()
    assert read_records(path) == written


def test_no_path_writes_nothing(tmp_path):
    file = RecordFile(None)
    file.add(record(1))
    file.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--records"):
        RecordFile(str(tmp_path / "missing" / "file"))


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1"):
        read_records(path)
