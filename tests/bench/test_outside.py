"""The small run of an outside load generator: what it counts as wrong."""

import pytest

SEEN = {"spillway_ttft_seconds_count": 40.0, "spillway_bad_requests_total": 0.0}


@pytest.fixture
def sent():
    import judges

    return judges.Load("http://router", "m", 5.0, 40, 512, 24)


@pytest.fixture
def whole():
    import judges

    return judges.Verdict(40, 0, 0.05, 0.5)


def test_nothing_is_wrong_when_all_was_completed_without_an_error(sent, whole):
    import outside

    assert outside.faults(sent, whole, SEEN) == []


@pytest.mark.parametrize(
    ("said", "seen", "named"),
    [
        ({"completed": 39}, {}, "39 requests completed of 40"),
        ({"errors": 1}, {}, "1 errors"),
        ({}, {"spillway_bad_requests_total": 2.0}, "the router refused 2 requests"),
        ({}, {"spillway_ttft_seconds_count": 39.0}, "the router counts 39 answers"),
    ],
)
def test_every_disagreement_is_named(sent, whole, said, seen, named):
    import outside

    assert named in "; ".join(outside.faults(sent, whole._replace(**said), SEEN | seen))


def test_a_tool_that_cannot_be_had_is_an_exit_status_and_a_reason(monkeypatch, capsys):
    import outside
    from mocks import BenchError

    def missing():
        raise BenchError("aiperf cannot be installed: no route")

    monkeypatch.setattr(outside, "installed", missing)
    monkeypatch.setattr("sys.argv", ["outside.py", "--install"])
    assert outside.main() == 1
    assert "aiperf cannot be installed: no route" in capsys.readouterr().err
