"""`python -m spillway` is the `spillway` command."""

from __future__ import annotations

from spillway.cli.main import run

if __name__ == "__main__":
    run()
