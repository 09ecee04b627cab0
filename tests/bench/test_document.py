"""The page that is generated from result files: it holds all that they hold, losses first."""

import json

import pytest

MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "kernel": "Linux 6",
    "python": "3.11.7",
    "libraries": "uvloop 1",
    "load_average": "0.1",
    "load_average_before": "0.2",
}


def result(group, comparisons=(), figures=(), absent=(), **changes):
    return {
        "schema": 1,
        "group": group,
        "command": f"make bench-{group}",
        "quick": False,
        "realtime": False,
        "wall_s": 61.0,
        "machine": MACHINE,
        "versions": {},
        "comparisons": [one.as_json() for one in comparisons],
        "figures": [one._asdict() | {"met": one.met} for one in figures],
        "absent": list(absent),
    } | changes


@pytest.fixture
def results():
    from comparison import Comparison
    from figures import figure

    def compared(quantity, ours, theirs, **options):
        samples = {"spillway": ours, "smg": theirs, "direct": [50.0] * len(ours)}
        return Comparison("P/D, pinned", "100 streams/s", quantity, "us", samples, **options)

    return {
        "router": result(
            "router",
            [
                compared("won", [1.0, 1.0], [4.0, 2.0], targets={"smg": 0.5}),
                compared("lost", [3.0, 3.0], [2.0, 1.0]),
                compared("missed", [3.0, 3.0], [4.0, 4.0], targets={"smg": 0.5}),
            ],
            absent=[{"name": "smg, unpinned", "reason": "it did\n not start"}],
        ),
        "core": result(
            "core",
            figures=[
                figure("decision", [7.0, 5.0, 6.0], "us", target=5.0, note="slow"),
                figure("decision_calls", [12.0], ""),
                figure("decision_peak", [900.0], "B"),
                figure("sim_largest_peak", [62.0], "MB"),
            ],
        ),
    }


def test_losing_cells_and_missed_targets_are_listed_and_others_are_not(results):
    import document

    lines = list(document._lost(results))[2:]
    assert [line.split(" | ")[2] for line in lines[:2]] == ["lost", "missed"]
    assert "lost" in lines[0]
    assert "target 0.5 missed" in lines[1]
    assert "`decision`" in lines[2]
    assert len(lines) == 3


def test_the_page_holds_every_cell_every_figure_and_what_is_absent(results):
    import document

    page = document.page(results)
    assert (
        "| 100 streams/s | won (us) | 1 | 3 (2 .. 4)<br>ours/this 0.375 (0.25 .. 0.5) | 50 |"
        in page
    )
    assert "- smg, unpinned: it did not start" in page
    assert "| `decision` | 6 | 5 | 7 | us | <= 5 | **missed**; slow; 12 calls, 900 B" in page
    assert "`decision_peak`" not in page
    assert "`sim_largest_peak`" in page
    assert "Not run: `make bench-sim`." in page
    assert "<!--" not in page


def test_figures_of_several_workers_have_a_table_of_their_own(results):
    import document
    from figures import figure

    assert "Not run: `make bench-workers`." in document.page(results)
    times = figure("workers_requests_times", [1.9], "x", target=1.8, at_least=True)
    page = document.page(results | {"workers": result("workers", figures=[times])})
    _, own = page.split("## Several worker processes")
    assert "| `workers_requests_times` | 1.9 |" in own.partition("## Simulator")[0]
    assert page.count("`workers_requests_times`") == 1


def test_a_page_from_quick_or_missing_results_says_so(results):
    import document

    assert "`make bench-sim`, `make bench-workers`." in "\n".join(document._draft(results))
    whole = results | {"sim": result("sim"), "workers": result("workers")}
    assert list(document._draft(whole)) == []
    whole["core"]["quick"] = True
    assert "`make bench-core`." in "\n".join(document._draft(whole))


def test_a_page_is_not_made_from_quick_or_missing_results(results, tmp_path, monkeypatch, capsys):
    import document

    for group, one in results.items():
        (tmp_path / f"bench-{group}.json").write_text(json.dumps(one | {"quick": True}))
    flags = ["--results", str(tmp_path), "--page", str(tmp_path / "page.md")]
    flags += ["--figures", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["document.py", *flags])
    assert document.main() == 2
    assert "make bench-sim" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
    monkeypatch.setattr("sys.argv", ["document.py", *flags, "--draft"])
    assert document.main() == 0
    assert (tmp_path / "page.md").exists()
    first = (tmp_path / "benchmarks-router.svg").read_bytes()
    assert document.main() == 0
    assert (tmp_path / "benchmarks-router.svg").read_bytes() == first
