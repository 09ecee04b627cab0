"""`spillway check` as a person runs it, against fake engines in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_command import Command
from spillway.wire.checks import CHECK_SCHEMA_VERSION

StartEngine = Callable[..., str]


@pytest.fixture
def engine() -> Iterator[StartEngine]:
    """Start fake engines: `engine("--stock", ...)` returns the URL of one."""
    running = []

    def start(*flags: str) -> str:
        command = [sys.executable, "-m", "spillway", "engine", "--port", "0", *flags]
        process = subprocess.Popen(
            [*command, "--end-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        return line[line.index("http") :].split()[0]

    yield start
    for process in running:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.mark.slow
def test_a_cluster_that_works_and_one_that_does_not(
    spillway: Command, engine: StartEngine, tmp_path: Path
) -> None:
    prefill, plugin = engine("--role", "prefill"), engine("--role", "decode")
    stock = engine("--role", "decode", "--stock", "--chunk-tokens", "512")
    done = spillway("check", "--prefill", prefill, "--decode", plugin, "--try-pairs")
    assert done.code == 0, done.out
    assert "Fine: 2 nodes answer, 1 take deflected prompts." in done.out

    out = tmp_path / "check.json"
    done = spillway("check", "--prefill", prefill, "--decode", stock, "--json", out)
    assert done.code == 1
    assert "--max-num-batched-tokens 512" in done.out
    assert "nothing is deflected to" in " ".join(done.out.split())
    written = json.loads(out.read_bytes())
    assert written["schema_version"] == CHECK_SCHEMA_VERSION
    assert [node["node_id"] for node in written["nodes"]] == ["p0", "d0"]
    assert [one["level"] for one in written["findings"]] == ["error"]
    assert written["nodes"][1]["chunks"]["flags"]["max_num_batched_tokens"] == 512

    given = ("--prefill", prefill, "--decode", stock, "--decode-chunk-tokens", "512")
    assert spillway("check", *given).code == 0
    done = spillway("check", *given, "--streams", "60")
    assert done.code == 1
    assert "chunks of 512 make steps of up to" in " ".join(done.out.split())


def test_a_configuration_is_checked_node_by_node(spillway: Command, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "nodes:\n"
        "  prefill: [{url: 'http://127.0.0.1:1', name: west}]\n"
        "  decode: [{url: 'http://127.0.0.1:2', name: east}]\n"
    )
    done = spillway("check", "--config", config)
    assert done.code == 1
    assert "error: west http://127.0.0.1:1 cannot be used: connection_refused" in done.out
    assert "2 things are wrong." in done.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "which engines?"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--prefill", "ftp://a", "--decode", "http://127.0.0.1:1"), "--prefill"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    spillway: Command, given: tuple[str, ...], said: str
) -> None:
    done = spillway("check", *given)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
