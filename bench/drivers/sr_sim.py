"""Runs vllm-sr-sim on a trace, in its own environment: TRACE GPUS OUT. Imports nothing of ours.

Its command line draws its own requests; its library replays a file, which is what is compared.
"""

import json
import sys
from pathlib import Path

from fleet_sim.core.fleet import Fleet, FleetConfig, PoolConfig
from fleet_sim.gpu_profiles.profiles import H100_80GB
from fleet_sim.workload.trace import TraceWorkload

CONTEXT_TOKENS_MAX = 16_384


def main(trace: str, gpus: str, out: str) -> None:
    """Replay the trace on one pool and write what came out."""
    pool = PoolConfig("all", H100_80GB, int(gpus), CONTEXT_TOKENS_MAX)
    router = {"threshold": CONTEXT_TOKENS_MAX}
    fleet = Fleet(FleetConfig([pool], router_type="LengthRouter", router_kwargs=router))
    done = fleet.run(TraceWorkload(trace, fmt="azure_csv").generate()).completed
    ttfts_s = [one.ttft for one in done if one.ttft is not None]
    finishes_s = [one.e2e_latency for one in done if one.e2e_latency is not None]
    means = {
        "finished": len(done),
        "ttft_s": sum(ttfts_s) / len(ttfts_s),
        "e2e_s": sum(finishes_s) / len(finishes_s),
    }
    Path(out).write_text(json.dumps(means), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
