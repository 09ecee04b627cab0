"""A child process and the one that started it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from spillway.cli.parent import READY_LINE, print_ready


def test_the_ready_line_is_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    print_ready("decode node d0", "http://127.0.0.1:4711")
    found = READY_LINE.search(capsys.readouterr().out)
    assert found is not None
    assert found[1] == "http://127.0.0.1:4711"


@pytest.mark.slow
def test_a_child_ends_when_its_parent_is_gone() -> None:
    code = (
        "import time; from spillway.cli.parent import end_with_parent; end_with_parent();"
        "print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    assert child.poll() is None
    child.stdin.close()  # what the system does when a parent dies, however it dies
    assert child.wait(timeout=20) == -signal.SIGTERM
    child.stdout.close()
