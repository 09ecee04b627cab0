"""A process that was started by another one says when it is ready, and ends when that one is gone.

The ready line is for people and programs alike, so that a port that the system chose is never
guessed. The parent holds our standard input open; it closes however the parent dies.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading

READY_LINE = re.compile(r" ready at (http://\S+)")


def print_ready(what: str, url: str) -> None:
    """Say on stdout that `what` takes requests at `url`; `READY_LINE` finds it again."""
    print(f"{what} ready at {url}", flush=True)


def end_with_parent() -> None:
    """Send this process SIGTERM, for an orderly end, once its standard input closes."""
    threading.Thread(target=_watch, name="parent-watch", daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
