"""What every test run shares: how Hypothesis draws, and the switch that rewrites golden files."""

from __future__ import annotations

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
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten instead of compared."""
    return bool(request.config.getoption("--update-golden"))
