"""One page out of those of several worker processes: metrics by worker, the rest summed or merged.

Workers are routers like any other, each with counters and books of its own. A sample keeps its
value and is labelled with its worker, so that `sum by` gives the whole; in a page for people counts
are added up, and what is believed of the nodes is what the first worker believes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from spillway.router.metrics import METRICS

DECISIONS_SENT = 60
ADDED = ("inflight", "connections")
# Worker number: the body of its page.
Bodies = Mapping[int, bytes]


def merge_metrics(pages: Bodies, alive: Sequence[int], restarts: int) -> bytes:
    """Return one page of metrics, every sample labelled with its worker.

    alive: the workers that run. restarts: how often one was started again. O(samples).
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in sorted(pages.items()):
        name = ""
        for line in page.decode().splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            elif line:
                samples.setdefault(name, []).append(_labelled(line, worker))
    for name, lines in (
        ("spillway_workers", [f"spillway_workers {len(alive)}"]),
        ("spillway_worker_restarts_total", [f"spillway_worker_restarts_total {restarts}"]),
    ):
        metric = METRICS[name]
        heads[name] = [f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}"]
        samples[name] = lines
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return ("\n".join(lines) + "\n").encode()


def _labelled(sample: str, worker: int) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'


def merge_health(
    pages: Mapping[int, tuple[int, bytes]], workers_alive: int, workers_wanted: int
) -> tuple[int, bytes]:
    """Return status and body: healthy while some worker runs and all that run are.

    pages: (status, body) of each. The figures are those of the least healthy worker.
    """
    if not pages:
        body: dict[str, Any] = {"status": "unavailable"}
        status = 503
    else:
        status, worst = max(pages.values(), key=lambda page: page[0])
        body = msgspec.json.decode(worst)
    body |= {"workers": workers_alive, "workers_wanted": workers_wanted}
    return status, msgspec.json.encode(body)


def merge_decisions(pages: Bodies, count: int) -> bytes:
    """Return the last decisions of all workers, the newest first."""
    found = [one for page in pages.values() for one in msgspec.json.decode(page)["decisions"]]
    found.sort(key=lambda one: one["decided_at_s"], reverse=True)
    return msgspec.json.encode({"decisions": found[:count]})


def merge_figures(pages: Bodies) -> bytes:
    """Return what the live page shows of all workers together."""
    every = [msgspec.json.decode(page) for _, page in sorted(pages.items())]
    merged: dict[str, Any] = dict(every[0])
    for name in ADDED:
        merged[name] = sum(one[name] for one in every)
    requests: dict[tuple[str, ...], int] = {}
    decisions: dict[str, int] = {}
    for one in every:
        for *key, count in one["requests"]:
            requests[tuple(key)] = requests.get(tuple(key), 0) + count
        for reason, count in one["decisions"].items():
            decisions[reason] = decisions.get(reason, 0) + count
    merged["requests"] = [[*key, count] for key, count in sorted(requests.items())]
    merged["decisions"] = decisions
    for name in ("ttft", "gaps"):
        merged[name] = {
            route: [
                sum(counts) for counts in zip(*(one[name][route] for one in every), strict=True)
            ]
            for route in every[0][name]
        }
    last = [line for one in every for line in one["last"]]
    last.sort(key=lambda line: line["at_s"], reverse=True)
    merged["last"] = last[:DECISIONS_SENT]
    return msgspec.json.encode(merged)


def merge_nodes(pages: Bodies) -> bytes:
    """Return every node as the first worker has it, with the work of all workers."""
    every = [msgspec.json.decode(page)["nodes"] for _, page in sorted(pages.items())]
    outstanding: dict[str, int] = {}
    for nodes in every:
        for node in nodes:
            name = node["name"]
            outstanding[name] = outstanding.get(name, 0) + node["outstanding"]
    merged = [{**node, "outstanding": outstanding[node["name"]]} for node in every[0]]
    return msgspec.json.encode({"nodes": merged})
