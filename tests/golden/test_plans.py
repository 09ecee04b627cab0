"""Chunk schedules of typical batches, as a table to be read as a diff."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from builders import A100_8B
from spillway.core.chunks import STEP_TOLERANCE_S, ChunkPlan, plan_chunks, plan_from_sizes

SIZES = (2048, 1024, 512, 256, 128)
BATCHES = ((0, 0), (30, 45_000), (100, 150_000))
BUDGETS_S = (0.03, 0.054, 0.1)
PROMPTS = (300, 2000, 16_000, 60_000)
SHOWN_MAX = 6


def shown(plan: ChunkPlan | None) -> str:
    if plan is None:
        return "none | | | "
    runs = [f"{chunk}×{steps}" for chunk, steps in plan.chunks]
    if len(runs) > SHOWN_MAX:
        runs = [*runs[: SHOWN_MAX - 1], f"… {len(runs) - SHOWN_MAX} more …", runs[-1]]
    return f"{' '.join(runs)} | {plan.steps} | {plan.execute_s:.3f} | {plan.step_s_max * 1e3:.2f}"


def test_plans_by_batch(golden: Callable[[str, str], None]) -> None:
    text = (
        "# Chunk schedules by batch\n\n"
        "Llama-3.1-8B on A100. exact: `plan_chunks`; coarse: the same with about two distinct"
        " sizes, as the router\nplans; printed: `plan_from_sizes`, the rule of Kairos. Written by"
        " `make golden`.\n\n"
        "| streams / KV | budget ms | prompt | plan | chunks × steps | steps | s | slowest step ms"
        " |\n|--:|--:|--:|---|---|--:|--:|--:|\n"
    )
    for (seqs, kv_tokens), budget_s, prompt in product(BATCHES, BUDGETS_S, PROMPTS):
        batch = (A100_8B, seqs, kv_tokens, 0, prompt, budget_s, 2048, 64)
        plans = {
            "exact": plan_chunks(*batch),
            "coarse": plan_chunks(*batch, 2),
            "printed": plan_from_sizes(A100_8B, seqs, kv_tokens, prompt, budget_s, SIZES),
        }
        for kind, plan in plans.items():
            assert plan is None or plan.tokens == prompt
            assert plan is None or plan.step_s_max <= budget_s + 2 * STEP_TOLERANCE_S
            head = f"| {seqs} / {kv_tokens // 1000}k | {budget_s * 1e3:g} | {prompt} | {kind} | "
            text += head + shown(plan) + " |\n"
    golden("plans.md", text)
