"""Prints a digest of all that runs of many kinds give: records, decisions, gaps and work counts.

Run as a program, so that the same runs can be made by the package and by its compiled copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import spillway.core.dispatcher
from spillway.core.events import LogDecision
from spillway.core.policies import POLICIES
from spillway.core.types import ChunkMode, NodeView
from spillway.sim.faults import NodeDies, NodeSlows
from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.workload.row import Row
from spillway.workload.synthetic import family

SEED = 3
ROWS_MAX = 400
CLOSE_LOOKS = ("least-loaded", "headroom", "kairos-paper")


def scenarios() -> Iterator[tuple[str, Scenario]]:
    """Yield every policy on the default cluster, and what differs from it for a few of them."""
    for policy in sorted(POLICIES):
        yield policy, Scenario(policy=policy)
    faults = (
        NodeDies(node_id="d0", at_s=5.0, back_s=12.0),
        NodeDies(node_id="p1", at_s=8.0, back_s=20.0),
        NodeSlows(node_id="p0", at_s=3.0, scale_frac=2.0, until_s=9.0),
    )
    for policy in CLOSE_LOOKS:
        plain = Scenario(policy=policy)
        yield f"{policy}, noise", replace(plain, noise_frac=0.1)
        yield f"{policy}, bias and drift", replace(plain, bias_frac=1.2, drift_frac=0.2)
        yield f"{policy}, late reports", replace(plain, report_delay_s=0.05, report_loss_frac=0.1)
        yield f"{policy}, late orders", replace(plain, order_delay_s=0.001)
        yield f"{policy}, little room", replace(plain, kv_capacity_tokens=30_000)
        yield f"{policy}, clients leave", replace(plain, cancel_frac=0.1)
        yield f"{policy}, faults", replace(plain, faults=faults)
        stock = replace(plain, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=256)
        yield f"{policy}, stock engines", replace(stock, report_period_s=0.0)


def digest_of(scenario: Scenario, rows: list[Row], *, checks: bool) -> str:
    """Return the digest of one run."""
    found = hashlib.sha256()

    def decided(log: LogDecision) -> None:
        found.update(repr(log).encode())

    output = run(scenario, rows, SEED, checks=checks, on_decision=decided)
    for record in output.records:
        found.update(repr(record).encode())
    gaps = output.gaps
    figures = (gaps.count, gaps.sum_s, gaps.max_s, gaps.quantile(0.5), gaps.quantile(0.99))
    found.update(repr((figures, output.counts, output.work, output.end_s)).encode())
    return found.hexdigest()


def frozen_view() -> str:
    """Return a node's view as the decision log keeps it, which simulated runs have no need of."""
    view = NodeView(spec=Scenario().specs()[0], backlog_prompts=3, decode_seqs=2, tbt_s_min=0.05)
    return repr(view.copied())


def main() -> None:
    made_of = spillway.core.dispatcher.__file__ or ""
    print("dispatcher:", "source" if made_of.endswith(".py") else "extension")
    print("frozen view", frozen_view())
    rows = family("burst", 1, 60.0, None)[:ROWS_MAX]
    for name, scenario in scenarios():
        print(name, digest_of(scenario, rows, checks=False))
    print("with checks", digest_of(Scenario(), rows[:100], checks=True))


if __name__ == "__main__":
    main()
