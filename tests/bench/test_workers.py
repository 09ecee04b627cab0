"""Two workers beside one process: what is measured is there, and the load reaches both."""

import shutil
import sys

import pytest

pytestmark = [
    pytest.mark.slow,  # compiles the mocks, starts three routers
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler answers to `cc`"),
    pytest.mark.skipif(sys.platform != "linux", reason="the mocks are built on epoll"),
]


def test_both_workers_serve_and_every_figure_is_there():
    import bench_workers
    from figures import Effort

    figures = {one.name: one for one in bench_workers.run(Effort(quick=True, realtime=False))}
    assert set(figures) == {
        f"workers_{load}_{what}" for load in ("requests", "streams") for what in ("times", "share")
    }
    assert figures["workers_requests_times"].target == 1.8
    for load in ("requests", "streams"):
        assert 0.5 <= figures[f"workers_{load}_share"].value < 1.0
        assert figures[f"workers_{load}_times"].low > 0
