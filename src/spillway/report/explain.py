"""One decision in words: what was known, what each way would have cost, and why one was taken.

Works from a `DecisionRecord` alone, so it explains a line of `/debug/decisions` and a simulated
decision alike. It judges nothing: every number is one the policy had.
"""

from __future__ import annotations

import sys
import textwrap
from typing import NamedTuple, TextIO

from msgspec.structs import replace

from spillway.report.grid import Cell, Grid, print_grid
from spillway.report.tables import NOTHING, seconds
from spillway.wire.decisions import (
    CandidateRecord,
    DecidedRequest,
    DecisionBody,
    DecisionRecord,
    PlanRecord,
    ShadowRecord,
)
from spillway.wire.records import RequestRecord

CANDIDATES_SHOWN_MAX = 12
LINE_CHARS = 80

VERDICTS = {
    "chosen": "chosen",
    "slower": "slower",
    "not_planned": "could not win",
    "tbt_veto": "would break TBT",
    "kv_veto": "no room for KV",
    "cap_veto": "deflections full",
    "stale_veto": "state not known",
    "drift_veto": "steps unlike its profile",
    "ttft_veto": "would miss TTFT",
    "node_down": "down",
}
HEAD = ("way", "verdict", "queue", "execute", "transfer", "admit", "first\nstep", "TTFT s")


class Explanation(NamedTuple):
    """The parts of an explanation, for a terminal or a page to set out.

    outcome: what then happened, if a record of it was given.   left_out: candidates not shown.
    shadow: what a policy that only watched would have done, if there was one.
    """

    headline: str
    request: str
    why: str
    candidates: Grid
    left_out: int
    outcome: str
    shadow: Explanation | None = None


def explain(record: DecisionRecord, happened: RequestRecord | None = None) -> Explanation:
    """Return the explanation of one decision. `happened`: the same request's later record."""
    told = _explained(record, _headline(record))
    if happened is not None:
        told = told._replace(outcome=_outcome(record, happened))
    watched = record.shadow
    if watched is None:
        return told
    instead = replace(record, decision=watched.decision, policy=watched.policy, shadow=None)
    return told._replace(shadow=_explained(instead, _would_have(record, watched)))


def _explained(record: DecisionRecord, headline: str) -> Explanation:
    shown, left_out = _shown(record.decision)
    return Explanation(
        headline=headline,
        request=_request(record.request),
        why=_declined(record) + _why(record),
        candidates=Grid(HEAD, tuple(map(_row, shown)), left=2),
        left_out=left_out,
        outcome="",
    )


def print_explanation(
    record: DecisionRecord, happened: RequestRecord | None = None, stream: TextIO | None = None
) -> None:
    """Print the explanation: with colour to a terminal, as plain text to anything else."""
    stream = stream or sys.stdout
    told = explain(record, happened)
    lines = [textwrap.fill(line, LINE_CHARS) for line in _after(told)]
    print(told.headline, textwrap.fill(told.request, LINE_CHARS), "", sep="\n", file=stream)
    print_grid(told.candidates, stream)
    print("", *lines, sep="\n", file=stream)
    if told.shadow is not None:
        headline = textwrap.fill(told.shadow.headline, LINE_CHARS)
        lines = [textwrap.fill(line, LINE_CHARS) for line in _after(told.shadow)]
        print("", headline, "", sep="\n", file=stream)
        print_grid(told.shadow.candidates, stream)
        print("", *lines, sep="\n", file=stream)


def _after(told: Explanation) -> list[str]:
    left_out = f"({told.left_out} more ways, none better, are not shown.)" if told.left_out else ""
    return [line for line in (left_out, told.why, told.outcome) if line]


def _shown(decision: DecisionBody) -> tuple[list[CandidateRecord], int]:
    """Return the candidates to show, in the order looked at, and how many are left out."""
    candidates = list(decision.candidates)
    if len(candidates) <= CANDIDATES_SHOWN_MAX:
        return candidates, 0

    def rank(at: int) -> tuple[bool, float]:
        estimate = candidates[at].estimate
        return candidates[at].verdict != "chosen", estimate.total_s if estimate else float("inf")

    kept = sorted(sorted(range(len(candidates)), key=rank)[:CANDIDATES_SHOWN_MAX])
    return [candidates[at] for at in kept], len(candidates) - len(kept)


def _row(candidate: CandidateRecord) -> tuple[Cell, ...]:
    chosen = candidate.verdict == "chosen"
    verdict = VERDICTS.get(candidate.verdict, candidate.verdict)
    words = [way(candidate.prefill_node_id, candidate.decode_node_id), verdict]
    part = candidate.estimate
    if part is None:
        figures = [NOTHING] * 6
    else:
        figures = [
            seconds(value_s)
            for value_s in (
                part.queue_s,
                part.execute_s,
                part.transfer_s,
                part.admission_s,
                part.first_step_s,
                part.total_s,
            )
        ]
    return tuple(Cell(text, chosen and i in (0, 7)) for i, text in enumerate(words + figures))


def way(prefill_node_id: str | None, decode_node_id: str | None) -> str:
    """Return `p0 → d1` for the prefill path, `deflect to d1` for a deflection."""
    if prefill_node_id is None:
        return f"deflect to {decode_node_id}" if decode_node_id else "nowhere"
    return f"{prefill_node_id} → {decode_node_id}" if decode_node_id else prefill_node_id


def _headline(record: DecisionRecord) -> str:
    decision = record.decision
    policy = f" by {record.policy}" if record.policy else ""
    request_id = record.request.request_id
    match decision.route:
        case "deflected":
            return f"Request {request_id} was deflected to {decision.decode_node_id}{policy}"
        case "prefill":
            ways = way(decision.prefill_node_id, decision.decode_node_id)
            return f"Request {request_id} went to prefill node {ways}{policy}"
        case _:
            return f"Request {request_id} was {decision.route}{policy}"


def _would_have(record: DecisionRecord, shadow: ShadowRecord) -> str:
    """Return what the policy that only watched would have done, beside what was done."""
    done, would = record.decision, shadow.decision
    who = f"In the shadow, {shadow.policy} would have"
    if would.route == "rejected":
        return f"{who} rejected it"
    if place_of(would) == place_of(done):
        return f"{who} done the same"
    if would.route == "deflected":
        return f"{who} deflected it to {would.decode_node_id}"
    return f"{who} sent it to prefill node {way(would.prefill_node_id, would.decode_node_id)}"


def place_of(decision: DecisionBody) -> tuple[str, str | None]:
    """Return the route of a decision, and the node where the prompt runs."""
    return decision.route, decision.prefill_node_id or decision.decode_node_id


def _request(request: DecidedRequest) -> str:
    cached = ", ".join(
        f"{tokens:,} of them cached on {node}"
        for node, tokens in request.cached_tokens_by_node.items()
        if tokens
    )
    return (
        f"{request.prompt_tokens:,} prompt tokens{', ' if cached else ''}{cached}; targets: first "
        f"token within {_s(request.slo_ttft_s)}, then a token every {_s(request.slo_tbt_s)}"
    )


def _declined(record: DecisionRecord) -> str:
    if not record.declined_by:
        return ""
    return f"{record.declined_by} had declined it, for what other routers had sent there. "


def _why(record: DecisionRecord) -> str:
    """Return the reason as one sentence, or two."""
    decision, reason = record.decision, record.decision.reason
    node = decision.decode_node_id
    remote = _best(decision, deflected=False)
    local = _best(decision, deflected=True)
    fixed = {
        "static": "This policy sends every prompt to the prefill pool.",
        "no_pressure": f"The prefill path had room{_queue(remote)}, so nothing was deflected.",
        "prefill_busy": f"The prefill pool was busier than the policy's threshold{_queue(remote)}.",
        "short_prompt": "The prompt is short enough, by the policy's threshold, to be deflected.",
        "best_score": "It scored best by the policy's own measure.",
        "colocated": "This policy runs prompt and decode on one node, always.",
        "no_safe_decode_node": "No decode node could take the prompt safely, so it went to the "
        "prefill pool.",
        "ttft_veto": "Deflected, the request would have missed its own TTFT target.",
        "prefill_down": "No prefill node was usable.",
        "no_node": "No node could take the request.",
        "too_late": "Refused: no path would have met its target for the first token.",
        "worth_waiting": "It waits at the router: no node is worth committing to yet.",
        "policy_failed": "The policy failed on this request; the fall-back decided.",
    }
    if reason == "faster_on_decode":
        return _sooner(f"On {node}", local, remote, "the best prefill path") + _plan(decision.plan)
    if reason == "faster_on_prefill":
        return _sooner("On the prefill path", remote, local, "the best deflection")
    said = fixed.get(reason, f"The policy's reason: {reason}.")
    return said + (_plan(decision.plan) if decision.route == "deflected" else "")


def _sooner(
    subject: str, won: CandidateRecord | None, lost: CandidateRecord | None, rival: str
) -> str:
    if won is None or won.estimate is None:
        return f"{subject} the first token was predicted to come sooner."
    said = f"{subject} the first token was predicted after {_s(won.estimate.total_s)}"
    if lost is None or lost.estimate is None:
        return f"{said}."
    ways = way(lost.prefill_node_id, lost.decode_node_id)
    waiting = f", {_s(lost.estimate.queue_s)} of it in the queue" if lost.estimate.queue_s else ""
    return f"{said}; {rival}, {ways}, would have taken {_s(lost.estimate.total_s)}{waiting}."


def _queue(remote: CandidateRecord | None) -> str:
    if remote is None or remote.estimate is None:
        return ""
    return f" (predicted wait {_s(remote.estimate.queue_s)})"


def _plan(plan: PlanRecord | None) -> str:
    if plan is None or not plan.chunks:
        return ""
    steps = sum(count for _, count in plan.chunks)
    sizes = [tokens for tokens, _ in plan.chunks]
    size = f"{max(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    return (
        f" The prompt runs there in {steps} step{'s' if steps > 1 else ''} of {size} tokens, none "
        f"predicted longer than {_s(plan.step_s_max)}, and no KV moves."
    )


def _best(decision: DecisionBody, *, deflected: bool) -> CandidateRecord | None:
    """Return the chosen candidate of one kind, else the one with the lowest estimate."""
    kind = [
        one
        for one in decision.candidates
        if (one.prefill_node_id is None) is deflected and one.estimate is not None
    ]
    return min(
        kind,
        key=lambda one: (one.verdict != "chosen", one.estimate.total_s if one.estimate else 0.0),
        default=None,
    )


def _outcome(record: DecisionRecord, happened: RequestRecord) -> str:
    if happened.ttft_s is None:
        return f"What happened: the request {happened.outcome} without a token."
    predicted = record.decision.estimate
    against = f" (predicted: {_s(predicted.total_s)})" if predicted and predicted.total_s else ""
    late = f"{happened.gaps_late} of its {happened.gaps:,} token gaps were late"
    return f"What happened: first token after {_s(happened.ttft_s)}{against}; {late}."


def _s(value_s: float) -> str:
    """Return `0.62 s`, or `54 ms` below a tenth of a second."""
    return f"{value_s * 1e3:.3g} ms" if value_s < 0.1 else f"{value_s:.3g} s"
