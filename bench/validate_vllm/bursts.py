"""The same burst by two policies on one prefill and one decode node, and the simulator's account.

Policies take turns, each pair on the rows of one seed. The simulator gets the law, the handover and
the noise that were measured in this run, and the rows; nothing of it is fitted to the bursts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spillway.cli.vllm_burst import (
    BASELINE,
    Burst,
    make_burst,
    router_for,
    send_burst,
    with_kv_moved,
)
from spillway.clock import MonotonicClock
from spillway.core.latency import LatencyProfile
from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import VllmPlan
from spillway.wire.results import RunResult, summarise
from validate_vllm.handover import link_of
from validate_vllm.results import BurstRun, Bursts, Handover

POLICY = "headroom"
REPORT_PERIOD_S = 0.02  # the plug-in's own
SETTLE_S = 1.0


async def measure(
    cluster: VllmCluster,
    law: LatencyProfile,
    handover: Handover,
    noise_frac: float,
    pairs: int,
    *,
    prompts: int,
    note: Callable[[str], None],
) -> Bursts:
    """Return the runs of `pairs` seeds. Raises NodeError."""
    clock = MonotonicClock()
    runs = []
    first = make_burst(law, 1, prompts)
    for seed in range(1, pairs + 1):
        burst = make_burst(law, seed, prompts)
        policies = (BASELINE, POLICY) if seed % 2 else (POLICY, BASELINE)
        for policy in policies:
            async with router_for(cluster, policy, burst.slo, link_of(handover)) as url:
                sent = await send_burst(url, burst, f"{policy}, seed {seed}")
            records = with_kv_moved(sent.records, law.kv_bytes_per_token)
            measured = summarise(policy=policy, records=records, gaps=sent.gaps, wall_s=sent.wall_s)
            simulated = simulate(cluster.plan, policy, burst, handover, noise_frac, seed)
            late_s = sent.lateness.p99_s
            runs.append(
                BurstRun(
                    seed=seed,
                    policy=policy,
                    measured=measured,
                    simulated=simulated,
                    late_client_s=late_s,
                )
            )
            note(
                f"  seed {seed}, {policy}: p95 TTFT {measured.ttft_s.p95:.2f} s"
                f" (simulated {simulated.ttft_s.p95:.2f} s)"
            )
            await clock.sleep_until(clock.now_s() + SETTLE_S)
    return Bursts(
        title=first.title, slo_ttft_s=first.slo.ttft_s, slo_tbt_s=first.slo.tbt_s, runs=runs
    )


def simulate(
    plan: VllmPlan, policy: str, burst: Burst, handover: Handover, noise_frac: float, seed: int
) -> RunResult:
    """Return what the simulator makes of the burst on a cluster like the plan's."""
    scenario = Scenario(
        cluster=f"{plan.prefill_count}p{plan.decode_count}d",
        profile=str(Path(plan.profile_path)),
        kv_capacity_tokens=plan.kv_capacity_tokens,
        link_bytes_per_s=handover.link_bytes_per_s,
        link_base_s=handover.link_base_s,
        step_tokens_max=plan.step_tokens_max,
        chunk_tokens_max=plan.step_tokens_max,
        seqs_max=plan.seqs_max,
        policy=policy,
        slos={"default": burst.slo},
        output_tokens_max=1,  # clients declare what they ask for
        noise_frac=noise_frac,
        report_period_s=REPORT_PERIOD_S,
        order_delay_s=handover.order_s,
    )
    output = run(scenario, burst.rows, seed)
    return summarise(policy=policy, records=output.records, gaps=output.gaps, wall_s=output.end_s)
