"""Clients, the debug page, metrics and the decision log tell one story, for every policy."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from spillway.core.dispatcher import DispatchLimits
from spillway.core.policies import build_policy
from spillway.core.types import ChunkMode
from spillway.router.decision_log import decode_line

POLICIES = ("round-robin", "least-loaded", "threshold", "kairos-paper", "headroom")


def burst(wish, requests: int, output_tokens: int = 6) -> list:
    """Return long prompts of every kind, more than the prefill nodes can take at once."""
    return [
        wish(
            kind=("ids", "text", "chat")[seed % 3],
            prompt_tokens=3000 + 100 * (seed % 20),
            output_tokens=output_tokens,
            stream=seed % 3 != 1,
            seed=seed,
        )
        for seed in range(requests)
    ]


async def serve_burst(cluster, wish, requests: int = 24) -> list:
    replies = await asyncio.gather(*map(cluster.ask, burst(wish, requests)))
    for reply in replies:
        reply.check()
        assert reply.outcome == "finished", reply
    assert not cluster.server.shell.metrics.upstream_errors, "no leg fails on healthy engines"
    return replies


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_serves_a_burst_and_says_what_it_decided(cluster, wish, policy):
    await cluster.start(policy=policy)
    replies = await serve_burst(cluster, wish)

    reasons: Counter[str] = Counter()
    for reply in replies:
        [decided] = await cluster.decisions(reply.request_id)
        assert decided["policy"] == policy
        chosen = decided["decision"]
        assert (chosen["route"], chosen["reason"]) == (reply.route, reply.reason)
        assert decided["request"]["request_id"] == reply.request_id
        if reply.wish.kind == "ids":
            assert decided["request"]["prompt_tokens"] == reply.wish.prompt_tokens
        assert chosen["candidates"], "a decision names what it looked at"
        reasons[reply.reason] += 1
    page = await cluster.metrics()
    for reason, count in reasons.items():
        assert page[f'spillway_decisions_total{{reason="{reason}"}}'] == count
    routes = Counter(reply.route for reply in replies)
    assert cluster.legs("p0", "p1") == routes["prefill"]
    assert cluster.legs("d0", "d1") == len(replies), "each was decoded once, deflected or not"
    if policy in ("round-robin", "least-loaded"):
        assert routes["deflected"] == 0
    elif policy != "threshold":  # whose default threshold this burst need not reach
        assert routes["deflected"] > 0
    await cluster.check_quiet()


async def test_the_debug_page_keeps_both_decisions_of_a_request_that_was_moved(cluster, wish):
    await cluster.start("p0 d0", policy="least-loaded", engine={"time_scale": 0.1})
    task = cluster.send(wish(prompt_tokens=1500))
    await cluster.until(lambda: cluster.flights("p0"))
    await cluster.kill("p0")
    reply = await task

    newest, first = await cluster.decisions(reply.request_id)
    assert (newest["decision"]["route"], newest["decision"]["reason"]) == (
        reply.route,
        reply.reason,
    )
    assert first["decision"]["route"] == "prefill"
    assert newest["decided_at_s"] > first["decided_at_s"]


async def test_targets_and_class_of_a_request_reach_the_decision(cluster, wish):
    await cluster.start("p0 d0")
    await cluster.ask(wish(), **{"x-request-id": "mine", "x-slo-ttft-ms": "2500"})
    [decided] = await cluster.decisions("mine")
    assert decided["request"]["slo_ttft_s"] == 2.5
    assert decided["request"]["slo_tbt_s"] == 0.06
    assert decided["request"]["class_name"] == "default"


# --- what is not known is not used --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["headroom", "kairos-paper", "threshold"])
@pytest.mark.parametrize("mode", [ChunkMode.UNKNOWN, ChunkMode.STATIC, ChunkMode.ENGINE])
async def test_stock_engines_take_deflected_work_only_with_known_chunks(
    cluster, wish, policy, mode
):
    options = {"prompt_tokens_max": 100_000} if policy == "threshold" else {}
    await cluster.start(
        policy=build_policy(policy, options), engine={"stock": True}, spec={"chunk_mode": mode}
    )
    replies = await serve_burst(cluster, wish)
    routes = Counter(reply.route for reply in replies)
    _, body = await cluster.page("/debug/decisions?n=100")
    verdicts = {
        candidate["verdict"]
        for decided in json.loads(body)["decisions"]
        for candidate in decided["decision"]["candidates"]
        if candidate["prefill_node_id"] is None
    }
    if mode is ChunkMode.STATIC:
        assert routes["deflected"] > 0
        assert "chosen" in verdicts
    else:  # nobody tells the chunk, or nobody reports: the gate stays shut
        assert routes["deflected"] == 0
        assert verdicts == {"stale_veto"}
    await cluster.check_quiet()


@pytest.mark.slow
async def test_a_node_that_falls_silent_gets_no_deflected_work(cluster, wish):
    deflect = build_policy("threshold", {"prompt_tokens_max": 100_000})
    await cluster.start("p0 d0", policy=deflect, limits=DispatchLimits(report_age_max_s=0.5))
    assert (await cluster.ask(wish())).route == "deflected"

    cluster.engines["d0"].backend.reports.close()  # it lives on, and says no more
    view = cluster.ledger["d0"].view
    await cluster.until(lambda: cluster.server.shell.clock.now_s() - view.heard_at_s > 0.5)
    reply = await cluster.ask(wish())

    assert (reply.outcome, reply.route) == ("finished", "prefill")
    [decided] = await cluster.decisions(reply.request_id)
    vetoed = [one for one in decided["decision"]["candidates"] if one["prefill_node_id"] is None]
    assert [one["verdict"] for one in vetoed] == ["stale_veto"]


async def test_a_node_that_came_back_gets_no_deflected_work_before_it_reports(cluster, wish):
    deflect = build_policy("threshold", {"prompt_tokens_max": 100_000})
    await cluster.start("p0 d0", policy=deflect)
    await cluster.kill("d0")
    view = cluster.ledger["d0"].view
    await cluster.until(lambda: not view.usable)
    await cluster.restart("d0")
    cluster.engines["d0"].backend.reports.close()
    await cluster.until(lambda: view.usable)

    reply = await cluster.ask(wish())

    assert (reply.outcome, reply.route) == ("finished", "prefill")
    assert not view.reporting


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
async def test_logged_decisions_are_made_again_identically(cluster, wish, policy, tmp_path: Path):
    """INV-8: what production decided, the same policy decides again from the log alone."""
    path = tmp_path / "decisions.jsonl"
    await cluster.start(policy=policy, decision_log_path=str(path))
    specs = {name: node.spec for name, node in cluster.ledger.items()}
    replies = await serve_burst(cluster, wish)
    await cluster.server.close()

    await cluster.until(lambda: path.exists() and path.read_bytes().count(b"\n") == len(replies))
    lines = path.read_bytes().splitlines()
    again = build_policy(policy)
    for line in lines:
        logged = decode_line(line)
        assert logged.replay(again, specs) == logged.logged.decision
    by_id = {decode_line(line).logged.request.request_id: decode_line(line) for line in lines}
    for reply in replies:
        assert by_id[reply.request_id].logged.decision.route == reply.route
