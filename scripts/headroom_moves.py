"""What moving a prompt that has a node already could gain `headroom`: a bound, not a policy.

    .venv/bin/python scripts/headroom_moves.py            (see docs/decisions/010)

An oracle watches the simulated nodes. Whenever a node is idle and nobody is held at the router, it
takes from the other pool the prompt whose first token would come soonest by moving, by the nodes'
own state and the true step law, at once. Tokens computed so far move for nothing and are not moved
back. What a real router could do is less: its state is old, its orders take time, and KV has bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from math import exp, inf, log
from typing import ClassVar, NamedTuple

from headroom_cells import CELLS, Cell, rows_of, scenario_of

import spillway.sim.run as sim_run
from spillway.core.chunks import drain_s
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import StartDeflected, StartPrefill
from spillway.core.latency import prefill_s, step_s, token_pairs
from spillway.core.ledger import Entry
from spillway.core.lifecycle import State, Trigger
from spillway.core.types import RequestId, Role
from spillway.sim.cluster import Cluster
from spillway.sim.flights import decode_job, prefill_job
from spillway.sim.kv import KvPool
from spillway.sim.node import SimNode
from spillway.sim.port import Port
from spillway.sim.prompts import Prompts
from spillway.sim.residents import QUEUED, Job, Resident
from spillway.sim.run import RunOutput, Simulation
from spillway.wire.results import RunResult, summarise

SEEDS = (1, 2)  # `--seeds` takes more
CELLS_MOVED = (
    "burst, 12/s",
    "burst, 16/s",
    "4k in, 60 out, 5.5/s",
    "Azure code, 600-840 s",
    "TBT target 20 ms",
    "TBT target 16 ms",
    "1P3D",
)


class Rule(NamedTuple):
    """started: prompts that have begun may move too. gain_s: what a move must be worth."""

    name: str
    started: bool
    gain_s: float


RULES = (
    Rule("not begun", False, 0.0),
    Rule("any, gain > 0", True, 0.0),
    Rule("any, gain > 30 ms", True, 0.03),
)


class HandedKv(KvPool):
    """KV room in which a prompt finds what it has computed elsewhere."""

    def enter(self, resident: Resident, tokens: int) -> int:
        self.take(tokens)
        return resident.computed_tokens


class Adopting(SimNode):
    """A node that goes on with a prompt of which another has computed a part.

    kept: tokens of each prompt that moved which a decode node had computed, and need not pull.
    """

    kept: ClassVar[dict[RequestId, int]] = {}

    def _clear(self) -> None:
        super()._clear()
        self.kv = HandedKv(self.spec.kv_capacity_tokens)
        self.prompts = Prompts(self.spec, self.batch, self.kv, self._skips_max, self._learning)

    def submit_pull(self, job: Job, now_s: float) -> Resident:
        resident = super().submit_pull(job, now_s)
        resident.computed_tokens = self.kept.get(job.request_id, 0)
        return resident

    def adopt(self, job: Job, now_s: float, *, done_tokens: int, local: bool) -> Resident:
        """Queue a prompt of which `done_tokens` are computed."""
        resident = self._enter(job, job.prompt_tokens + job.output_tokens, QUEUED, local, now_s)
        resident.computed_tokens = done_tokens
        self.prompts.push(resident)
        self._wake(now_s, for_prompt=True)
        return resident


class Move(NamedTuple):
    """One prompt that could move. gain_s: by how much sooner its first token would come."""

    gain_s: float
    source: Port
    to: Port
    resident: Resident


class MovingCluster(Cluster):
    """A cluster whose idle nodes take prompts from others. rule and moves are set by `simulate`."""

    rule = RULES[0]
    moves = 0

    def _wake(self, port: Port) -> None:
        super()._wake(port)
        if self.dispatcher.counts[State.HELD]:
            return  # whoever is held goes first
        for idle in list(self.ports.values()):
            prompts = idle.node.prompts
            if not (prompts.running or prompts.queued):
                best = max(self._moves_to(idle), key=lambda move: move.gain_s, default=None)
                if best is not None:
                    self._move(best)

    def _moves_to(self, to: Port) -> Iterator[Move]:
        for source in self.ports.values():
            if source.spec.role is to.spec.role:
                continue
            ahead_tokens, ahead_pairs = 0, 0.0
            for resident in (*source.node.prompts.running, *source.node.prompts.queued):
                if resident.doomed or resident.preemptions:
                    continue
                tokens = resident.remaining_tokens
                pairs = token_pairs(tokens, resident.computed_tokens)
                ahead_tokens += tokens
                ahead_pairs += pairs
                if resident.started_s is not None and not self.rule.started:
                    continue
                stays_s = _first_token_s(source, ahead_tokens, ahead_pairs, tokens)
                goes_s = _first_token_s(to, tokens, pairs, tokens)
                if goes_s < inf and stays_s - goes_s > self.rule.gain_s:
                    yield Move(min(stays_s, 1e3) - goes_s, source, to, resident)

    def _move(self, move: Move) -> None:
        request_id, now_s = move.resident.request_id, self.kernel.now_s
        flight = self.flights.get(request_id)
        job_is_local = move.to.spec.role is Role.DECODE
        done_tokens, tokens = move.resident.computed_tokens, move.resident.remaining_tokens
        if flight is None or not tokens:
            return
        order = _rebook(self.dispatcher, request_id, move.to, tokens, done_tokens, now_s)
        if order is None:
            return
        type(self).moves += 1
        Adopting.kept[request_id] = 0 if job_is_local else done_tokens
        self._drop(move.source, request_id)
        self._take_order(order)
        assert isinstance(move.to.node, Adopting)
        adopt = partial(move.to.node.adopt, done_tokens=done_tokens, local=job_is_local)
        job = decode_job(flight) if job_is_local else prefill_job(flight)
        resident = self._submit(flight, move.to, adopt, job)
        if job_is_local:
            flight.decode = resident
        else:
            flight.prefill = resident


def _first_token_s(port: Port, tokens: int, pairs: float, own_tokens: int) -> float:
    """Return when the last of `tokens` prompt tokens yields a first token, transfer included."""
    spec, batch = port.spec, port.node.batch
    if spec.role is Role.DECODE:
        budget_s = spec.tbt_margin_frac * batch.tbt_s_min if batch.seqs else inf
        return drain_s(
            spec.profile,
            batch.seqs,
            batch.context_tokens,
            tokens,
            pairs,
            budget_s,
            spec.chunk_tokens_max,
            spec.chunk_tokens_multiple,
        )
    kv_bytes = own_tokens * spec.profile.kv_bytes_per_token
    transfer_s = spec.link_base_s + kv_bytes / spec.link_bytes_per_s
    computed_s = prefill_s(spec.profile, tokens, pairs, spec.step_tokens_max)
    return computed_s + transfer_s + step_s(spec.profile, 1, 0)


def _rebook(
    dispatcher: Dispatcher, request_id: RequestId, to: Port, tokens: int, done: int, now_s: float
) -> StartPrefill | StartDeflected | None:
    """Book a request that is being prefilled on another node; None when it is past that."""
    tracked = dispatcher._live[request_id]
    if tracked.state not in (State.PREFILLING, State.DEFLECTED) or tracked.entry is None:
        return None
    local = to.spec.role is Role.DECODE
    dispatcher._unbook(tracked, now_s)
    dispatcher._move(tracked, Trigger.TO_DEFLECTED if local else Trigger.TO_PREFILL)
    request, pairs = tracked.request, token_pairs(tokens, done)
    entry = Entry(
        dispatcher._next_dispatch(),
        tokens,
        pairs,
        request.prompt_tokens,
        request.slo.tbt_s if local else inf,
    )
    dispatcher.ledger.nodes[to.node_id].add_prefill(
        entry, now_s, _first_token_s(to, tokens, pairs, 0)
    )
    tracked.node_id, tracked.entry = to.node_id, entry
    if local:
        return StartDeflected(request_id, to.node_id, entry.dispatch_id, request.slo.tbt_s, ())
    return StartPrefill(request_id, to.node_id, entry.dispatch_id)


class MovingSimulation(Simulation):
    """A simulation whose nodes adopt prompts."""

    node_kind = Adopting


def simulate(cell: Cell, policy: str, seed: int, rule: Rule | None) -> tuple[RunResult, int]:
    """Return one run's figures and how many prompts moved; rule: None for nobody."""
    kind = MovingCluster if rule is not None else Cluster
    MovingCluster.moves = 0
    Adopting.kept.clear()
    MovingCluster.rule = rule or RULES[0]
    sim_run.Cluster = kind  # type: ignore[misc]
    output: RunOutput = MovingSimulation(scenario_of(cell, policy), rows_of(cell, seed), seed).run()
    figures = summarise(policy=policy, records=output.records, gaps=output.gaps, wall_s=0.0)
    return figures, MovingCluster.moves


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per rule: ratios to the run without moves, over the cells and the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--policy", nargs="+", default=["headroom"])
    options = parser.parse_args(arguments)
    cells = [cell for cell in CELLS if cell.name in CELLS_MOVED]
    tasks = [(cell, seed) for cell in cells for seed in options.seeds]
    print("policy, rule: moved, p95, p99, mean TTFT; joint attainment, points")
    for policy in options.policy:
        plain = [simulate(cell, policy, seed, None)[0] for cell, seed in tasks]
        for rule in RULES:
            runs = [simulate(cell, policy, seed, rule) for cell, seed in tasks]
            moved = sum(moves for _, moves in runs) / sum(r.requests.arrived for r, _ in runs)
            shares = [
                exp(sum(log(ratio) for ratio in ratios) / len(tasks))
                for ratios in zip(
                    *(
                        (
                            after.ttft_s.p95 / before.ttft_s.p95,
                            after.ttft_s.p99 / before.ttft_s.p99,
                            after.ttft_s.mean / before.ttft_s.mean,
                        )
                        for (after, _), before in zip(runs, plain, strict=True)
                    ),
                    strict=True,
                )
            ]
            points = sum(
                after.attainment.joint_99 - before.attainment.joint_99
                for (after, _), before in zip(runs, plain, strict=True)
            )
            told = ", ".join(f"{share:.3f}" for share in shares)
            points *= 100 / len(tasks)
            print(f"{policy}, {rule.name}: {moved:.1%}, {told}; {points:+.2f}", flush=True)


if __name__ == "__main__":
    main()
