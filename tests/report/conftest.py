"""What there is to show: a comparison and a decision."""

from __future__ import annotations

import pytest

from report_samples import Sample, make_decision, three_policies
from spillway.wire.decisions import DecisionRecord


@pytest.fixture
def sample() -> Sample:
    return three_policies()


@pytest.fixture
def decision() -> DecisionRecord:
    return make_decision()
