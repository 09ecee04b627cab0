"""What every test run shares: how Hypothesis draws, and the switch that rewrites golden files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# `test` draws the same examples on every run, so a red run is red again. `explore` draws fresh
# ones, many: pytest --hypothesis-profile=explore tests/core
settings.register_profile(
    "test",
    max_examples=60,
    deadline=None,  # a shared machine stalls; no test of this project measures time
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("test"), max_examples=1500, derandomize=False
)
settings.load_profile("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the golden files from what the code does now; then read the diff",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `golden(name, text)`: the file beside the test must hold the text.

    With --update-golden it is rewritten instead; the test still runs to its end, invariants and
    all, so that a wrong table cannot pass for a new one.
    """

    def compare(name: str, text: str) -> None:
        path = request.path.parent / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.name} is missing; make it with: make golden"
        assert text == path.read_text(encoding="utf-8"), "if it is meant: make golden"

    return compare
