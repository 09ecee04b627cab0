"""What must hold after every event of a simulated run, and at its end.

The checks recount from the parts what the simulator keeps as sums, so they cost O(live requests)
per event: for tests and sweeps, not for long runs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from spillway.core.decide import Policy
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import InvariantViolation
from spillway.core.events import Action, Event, LogDecision
from spillway.core.invariants import check_decision, check_dispatcher
from spillway.core.kairos import KairosPaper
from spillway.core.lifecycle import State
from spillway.core.types import NodeSpec, Role
from spillway.sim.cluster import Cluster
from spillway.sim.flights import Flight
from spillway.sim.routers import Routers, dispatchers_of
from spillway.sim.snapshot import recount_kv
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord

LAST_FACTS = 50
SUM_TOLERANCE_S = 1e-6
DEFLECTED = "deflected"


class TapedDispatcher(Dispatcher):
    """A dispatcher that remembers its last facts, to be shown when something breaks."""

    def __init__(
        self,
        policy: Policy,
        nodes: Sequence[NodeSpec],
        limits: DispatchLimits,
        *,
        record_views: bool = False,
        dispatch_ids: Iterator[int] | None = None,
    ) -> None:
        super().__init__(
            policy, nodes, limits, record_views=record_views, dispatch_ids=dispatch_ids
        )
        self.tape: deque[tuple[float, Event]] = deque(maxlen=LAST_FACTS)

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one fact: see `Dispatcher.handle`."""
        self.tape.append((now_s, event))
        return super().handle(event, now_s)

    def last_facts(self) -> str:
        """Return the tape as text, one fact a line."""
        return "\n".join(f"  {at_s:.6f} {event}" for at_s, event in self.tape)


def last_facts(dispatcher: Dispatcher | Routers) -> str:
    """Return what a dispatcher was told last, or each of several."""
    taped = [one for one in dispatchers_of(dispatcher) if isinstance(one, TapedDispatcher)]
    return "\n".join(one.last_facts() for one in taped)


def require(holds: bool, text: str) -> None:
    """Raise InvariantViolation(text) unless `holds`."""
    if not holds:
        raise InvariantViolation(text)


def check_cluster(cluster: Cluster) -> None:
    """Check a cluster between two events: the dispatcher's books, INV-1, INV-10, INV-12."""
    dispatcher = cluster.dispatcher
    for each in dispatchers_of(dispatcher):
        check_dispatcher(each)
    require(
        len(cluster.flights) == dispatcher.live_requests,
        f"INV-1: {dispatcher.live_requests} requests are live, {len(cluster.flights)} on their way",
    )
    for flight in cluster.flights.values():
        require(
            not (flight.moving and flight.route == DEFLECTED),
            f"INV-10: {flight.request.request_id} is deflected and moves its KV",
        )
    for port in cluster.ports.values():
        recount_kv(port.node)


def check_log(log: LogDecision, policy: Policy) -> None:
    """Check a decision against the view it was made from: INV-4, INV-5, INV-14, INV-19."""
    assert log.cluster is not None  # views are recorded whenever checks are on
    tbt_frac = policy.beta if isinstance(policy, KairosPaper) else 1.0
    check_decision(log.decision, log.request, log.cluster, tbt_frac=tbt_frac)


def check_flight(flight: Flight, record: RequestRecord) -> None:
    """Check one request that has ended: INV-10, INV-11, and that its TTFT parts add up."""
    request_id, decode = record.request_id, flight.decode
    if record.route == DEFLECTED and decode is not None:
        require(decode.kv_arrived_s is None, f"INV-10: {request_id} is deflected and pulled its KV")
    moments = [("arrival", record.arrival_s)]
    if flight.decided_s >= 0.0 or record.outcome != "cancelled":  # it may have left while held
        moments.append(("decision", flight.decided_s))
    if record.ttft_s is not None:
        assert decode is not None
        first = decode if decode.kv_arrived_s is None else flight.prefill
        assert first is not None
        moments += [("start", first.started_s), ("first token", decode.first_token_s)]  # type: ignore[list-item]
    if record.finish_s is not None:
        moments.append(("end", record.finish_s))
    for (before, before_s), (after, after_s) in pairwise(moments):
        require(
            before_s <= after_s,
            f"INV-11: {request_id} has its {before} at {before_s} s, its {after} at {after_s} s",
        )
    if record.ttft_s is not None and record.parts is not None:
        parts = record.parts
        each = (parts.queue, parts.execute, parts.transfer, parts.admission, parts.first_step)
        require(
            abs(sum(each) - record.ttft_s) < SUM_TOLERANCE_S and min(each) >= 0.0,
            f"the parts {each} of {request_id} do not make its TTFT of {record.ttft_s} s",
        )
    if record.outcome == "finished":
        require(
            record.output_tokens == flight.output_tokens,
            f"{request_id} finished with {record.output_tokens} of {flight.output_tokens} tokens",
        )


def check_end(cluster: Cluster, records: Sequence[RequestRecord], gaps: GapHistogram) -> None:
    """Check a run that is over: everything ended once, and nothing was left behind."""
    check_cluster(cluster)
    require(not cluster.flights, f"{len(cluster.flights)} requests never ended (INV-2)")
    counts = cluster.dispatcher.counts
    outcomes = Counter(record.outcome for record in records)
    counted = {state.name.lower(): counts[state] for state in State if state.is_final}
    told = {name: outcomes[name] for name in counted}
    require(counted == told, f"INV-1: the dispatcher counts {counted}, the records say {told}")
    for port in cluster.ports.values():
        node = port.node
        require(not node.members, f"{node.node_id} still holds {list(node.members)}")
        require(node.kv.used_tokens == 0, f"INV-12: {node.node_id} kept KV of nobody")
    moved = sum(record.kv_bytes_moved for record in records)
    ports = cluster.ports.values()
    carried = sum(port.link.bytes_moved for port in ports if port.spec.role is Role.PREFILL)
    require(moved == carried, f"the records moved {moved} bytes of KV, the links {carried}")
    counted_gaps = sum(record.gaps for record in records)
    require(
        counted_gaps == gaps.count,
        f"the records have {counted_gaps} token gaps, the histogram {gaps.count}",
    )
