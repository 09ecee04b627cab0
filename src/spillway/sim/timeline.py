"""Simulates a run once more and keeps every step of a stretch of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from spillway.sim.node import SimNode
from spillway.sim.residents import Outcome
from spillway.sim.run import Simulation
from spillway.sim.scenario import Scenario
from spillway.wire.results import summarise
from spillway.wire.timeline import Span, Timeline, Waiting
from spillway.workload.operations import largest_burst
from spillway.workload.row import Row

BURST_S, LEAD_S, TAIL_S = 5.0, 1.0, 5.0  # what is looked at: the burst, before it, after it


def worst_burst_s(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the stretch around the BURST_S in which most prompt tokens arrive."""
    start_s, end_s = largest_burst(rows, BURST_S)
    return max(0.0, start_s - LEAD_S), end_s + TAIL_S


def record_timeline(
    scenario: Scenario, rows: Sequence[Row], seed: int, stretch_s: tuple[float, float]
) -> Timeline:
    """Return what every node did in a stretch of the run; the run itself is as without."""
    simulation = WatchedSimulation(scenario, rows, seed)
    simulation.stretch_s = from_s, to_s = stretch_s
    output = simulation.run()
    waiting = [
        Waiting(
            from_s=record.arrival_s,
            to_s=record.arrival_s + record.parts.queue,
            prompt_tokens=record.prompt_tokens,
        )
        for record in output.records
        if record.parts is not None
        and record.arrival_s < to_s
        and record.arrival_s + record.parts.queue > from_s
    ]
    figures = summarise(policy=output.policy, records=output.records, gaps=output.gaps, wall_s=0.0)
    return Timeline(
        policy=scenario.policy,
        from_s=from_s,
        to_s=to_s,
        node_ids=tuple(spec.node_id for spec in simulation.specs),
        spans=tuple(sorted(simulation.spans, key=lambda span: (span.start_s, span.node_id))),
        waiting=tuple(waiting),
        ttft_p95_s=figures.ttft_s.p95,
    )


class WatchedNode(SimNode):
    """A node that tells of every segment it ends."""

    spans: list[Span]
    stretch_s: tuple[float, float]

    def _close(self, at_s: float, outcomes: list[Outcome]) -> None:
        from_s, to_s = self.stretch_s
        if at_s > from_s and self.segment.start_s < to_s:
            self.spans.append(self._span(at_s))
        super()._close(at_s, outcomes)

    def _span(self, at_s: float) -> Span:
        chunks = self.prompts.chunks
        deflected = sum(tokens for resident, tokens in chunks if resident.local)
        return Span(
            node_id=self.node_id,
            start_s=self.segment.start_s,
            end_s=at_s,
            steps=self.segment.steps,
            decode_seqs=self.batch.seqs,
            prefill_tokens=sum(tokens for _, tokens in chunks) - deflected,
            deflected_tokens=deflected,
            prompts=tuple(resident.request_id for resident, _ in chunks),
        )


class WatchedSimulation(Simulation):
    """A run of watched nodes. spans: what they told, in no order between nodes."""

    node_kind: ClassVar[type[SimNode]] = WatchedNode

    @property
    def spans(self) -> list[Span]:
        """Return every span of every node."""
        return [span for node in self._watched() for span in node.spans]

    @property
    def stretch_s(self) -> tuple[float, float]:
        """Return the stretch that is kept."""
        return self._watched()[0].stretch_s

    @stretch_s.setter
    def stretch_s(self, value: tuple[float, float]) -> None:
        for node in self._watched():
            node.stretch_s, node.spans = value, []

    def _watched(self) -> list[WatchedNode]:
        nodes = [port.node for port in self.cluster.ports.values()]
        return [node for node in nodes if isinstance(node, WatchedNode)]
