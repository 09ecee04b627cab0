"""Named synthetic workloads, usable from the command line.

Lengths and shapes follow the families by which prefill deflection is usually judged: low or high
prefill with low or high decode, and a long-tailed burst; beside them steady chat, and conversations
whose turns share their prefix. Default rates load two prefill nodes of an 8B model on A100 (about
15,000 prompt tokens/s each, nothing cached) to roughly half on average, so that queues form in
bursts and go away again. docs/workloads.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.wire.codec import did_you_mean
from spillway.workload.arrivals import Arrivals, Gamma, OnOff, Poisson
from spillway.workload.lengths import Lengths, Lognormal
from spillway.workload.parsing import by_arrival
from spillway.workload.row import Row
from spillway.workload.seeds import stream

BLOCK_TOKENS = 16  # of shared prefixes, as engines cache them
BLOCKS_MAX = 1 << 20  # ids that one conversation, or one system prompt, may use
TURNS_MAX = 100
USUAL_OUTPUT_TOKENS = 200  # for the length of warming up, which need not be exact
WARM_UP_SESSIONS = 4.0  # mean session lengths before time 0, so that time 0 is like any other


class Part(NamedTuple):
    """Requests that stand alone. share_frac: of the family's requests."""

    class_name: str
    share_frac: float
    arrivals: Arrivals
    prompt: Lengths
    output: Lengths

    def draw(self, seed: int, purpose: str, rate_per_s: float, duration_s: float) -> list[Row]:
        """Return the rows. Arrivals, prompts and outputs have streams of their own."""
        arrivals_s = self.arrivals.draw(stream(seed, f"{purpose}.arrivals"), rate_per_s, duration_s)
        prompts, outputs = stream(seed, f"{purpose}.prompt"), stream(seed, f"{purpose}.output")
        return [
            Row(arrival_s, self.prompt.draw(prompts), self.output.draw(outputs), self.class_name)
            for arrival_s in arrivals_s
        ]


class Conversations(NamedTuple):
    """Sessions whose every prompt is the whole conversation so far and one more question.

    A session opens with one of `system_count` system prompts of `system_tokens`. It has a geometric
    number of turns with mean `turns_mean`, and ends when a prompt would exceed
    `prompt_tokens_max`. The next question comes after the answer, taken to be written at
    `output_token_s` per token, and an exponential pause of mean `think_mean_s`. Sessions start as a
    Poisson process.
    """

    class_name: str
    share_frac: float
    turns_mean: float
    system_count: int
    system_tokens: int
    question: Lengths
    output: Lengths
    think_mean_s: float
    output_token_s: float
    prompt_tokens_max: int

    def draw(self, seed: int, purpose: str, rate_per_s: float, duration_s: float) -> list[Row]:
        """Return the turns that arrive in [0, duration_s). Cost: also the sessions of warming up.

        Sessions that began before time 0 are cut at it, so the rate is the same from the start.
        """
        turn_s = self.think_mean_s + USUAL_OUTPUT_TOKENS * self.output_token_s
        warm_up_s = WARM_UP_SESSIONS * self.turns_mean * turn_s
        starts = stream(seed, f"{purpose}.arrivals")
        starts_s = Poisson().draw(starts, rate_per_s / self.turns_mean, warm_up_s + duration_s)
        rows: list[Row] = []
        for number, start_s in enumerate(starts_s):
            session_id = f"{self.class_name}-{number}"
            rows += self._session(seed, f"{purpose}.{number}", session_id, number, start_s)
        moved = (row._replace(arrival_s=row.arrival_s - warm_up_s) for row in rows)
        return [row for row in moved if 0.0 <= row.arrival_s < duration_s]

    def _session(
        self, seed: int, purpose: str, session_id: str, number: int, start_s: float
    ) -> list[Row]:
        rng = stream(seed, purpose)
        system = rng.randrange(self.system_count)
        shared_blocks = self.system_tokens // BLOCK_TOKENS
        own_id = (self.system_count + number) * BLOCKS_MAX
        ids = list(range(system * BLOCKS_MAX, system * BLOCKS_MAX + shared_blocks))
        rows: list[Row] = []
        at_s, think_s, history_tokens = start_s, 0.0, self.system_tokens
        for turn in count(1):
            prompt_tokens = history_tokens + self.question.draw(rng)
            if prompt_tokens > self.prompt_tokens_max or turn > TURNS_MAX:
                break
            output_tokens = self.output.draw(rng)
            # Whole blocks only; turns share the id objects, as there are many.
            ids += range(own_id + len(ids), own_id + prompt_tokens // BLOCK_TOKENS)
            rows.append(
                Row(
                    at_s,
                    prompt_tokens,
                    output_tokens,
                    self.class_name,
                    tuple(ids),
                    BLOCK_TOKENS,
                    session_id,
                    think_s,
                )
            )
            if rng.random() < 1.0 / self.turns_mean:
                break
            history_tokens = prompt_tokens + output_tokens
            think_s = rng.expovariate(1.0 / self.think_mean_s)
            at_s += output_tokens * self.output_token_s + think_s
        return rows


class Family(NamedTuple):
    """summary: one line for `--help`. rate_per_s: used when none is asked for."""

    summary: str
    rate_per_s: float
    parts: tuple[Part | Conversations, ...]


def _grid(prompt_tokens: float, output_tokens: float) -> tuple[Part, ...]:
    """Clumped arrivals (CV 3), moderately spread lengths."""
    prompt = Lognormal(prompt_tokens, cv=0.5, tokens_max=16_384)
    return (Part("default", 1.0, Gamma(cv=3.0), prompt, Lognormal(output_tokens, cv=0.5)),)


_CHAT_PROMPT = Lognormal(300.0, cv=1.0, tokens_max=4_096)
_CHAT_OUTPUT = Lognormal(200.0, cv=0.7, tokens_max=1_024)
_BURST_PROMPT = Lognormal(2_000.0, cv=1.2, tokens_max=16_384)
_BURST_OUTPUT = Lognormal(60.0, cv=0.5, tokens_max=256)

FAMILIES: Mapping[str, Family] = {
    "burst": Family(
        "bursts of heavy-tailed prompts (mean 2k) with short outputs, over steady chat",
        12.0,
        (
            Part("burst", 0.65, OnOff(3.0, 3.0, 9.0), _BURST_PROMPT, _BURST_OUTPUT),
            Part("chat", 0.35, Poisson(), _CHAT_PROMPT, _CHAT_OUTPUT),
        ),
    ),
    "chat": Family(
        "steady chat, prompts of 300 and outputs of 200: nothing to deflect",
        12.0,
        (Part("chat", 1.0, Poisson(), _CHAT_PROMPT, _CHAT_OUTPUT),),
    ),
    "lpld": Family("low prefill, low decode: 800 in, 60 out", 18.0, _grid(800.0, 60.0)),
    "lphd": Family("low prefill, high decode: 800 in, 250 out", 14.0, _grid(800.0, 250.0)),
    "hpld": Family("high prefill, low decode: 4k in, 60 out", 3.6, _grid(4_000.0, 60.0)),
    "hphd": Family("high prefill, high decode: 4k in, 250 out", 3.6, _grid(4_000.0, 250.0)),
    "sessions": Family(
        "conversations of 6 turns on average that share their prefix, and one of 8 system prompts",
        6.0,
        (
            Conversations(
                "default",
                1.0,
                turns_mean=6.0,
                system_count=8,
                system_tokens=1_024,
                question=Lognormal(200.0, cv=1.5, tokens_max=4_096),
                output=Lognormal(200.0, cv=0.7, tokens_max=1_024),
                think_mean_s=15.0,
                output_token_s=0.03,
                prompt_tokens_max=16_384,
            ),
        ),
    ),
}


def family(name: str, seed: int, duration_s: float, rate_per_s: float | None = None) -> list[Row]:
    """Return the rows of a named workload, in order of arrival.

    rate_per_s: requests per second over all parts; the family's own when None. Each part draws
    from streams of its own, so a part added or taken away changes no other. Raises ConfigError on
    an unknown name, or a rate or duration that is not above 0.
    """
    if name not in FAMILIES:
        raise ConfigError(f"workload {name!r} is unknown; {did_you_mean(name, list(FAMILIES))}")
    chosen = FAMILIES[name]
    rate_per_s = chosen.rate_per_s if rate_per_s is None else rate_per_s
    rows: list[Row] = []
    for part in chosen.parts:
        purpose = f"synthetic.{name}.{part.class_name}"
        rows += part.draw(seed, purpose, rate_per_s * part.share_frac, duration_s)
    return by_arrival(rows)
