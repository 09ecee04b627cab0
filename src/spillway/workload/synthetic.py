"""Named synthetic workloads, usable from the command line.

Lengths and shapes follow the families by which prefill deflection is usually judged: low or high
prefill with low or high decode, and a long-tailed burst. Default rates load two prefill nodes of an
8B model on A100 (about 15,000 prompt tokens/s each) to roughly half on average, so that queues form
in bursts and go away again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.workload.arrivals import Arrivals, Gamma, OnOff, Poisson
from spillway.workload.lengths import Lengths, Lognormal
from spillway.workload.row import Row
from spillway.workload.seeds import stream


class Part(NamedTuple):
    """One kind of request within a family. share_frac: of the family's requests."""

    class_name: str
    share_frac: float
    arrivals: Arrivals
    prompt: Lengths
    output: Lengths


class Family(NamedTuple):
    """summary: one line for `--help`. rate_per_s: used when none is asked for."""

    summary: str
    rate_per_s: float
    parts: tuple[Part, ...]


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
}


def family(name: str, seed: int, duration_s: float, rate_per_s: float | None = None) -> list[Row]:
    """Return the rows of a named workload, in order of arrival.

    rate_per_s: requests per second over all parts; the family's own when None. Each part draws
    arrivals, prompts and outputs from streams of its own, so a part added or taken away changes no
    other. Raises ConfigError on an unknown name, or a rate or duration that is not above 0.
    """
    if name not in FAMILIES:
        raise ConfigError(f"workload {name!r} is unknown; it is one of {', '.join(FAMILIES)}")
    chosen = FAMILIES[name]
    rate_per_s = chosen.rate_per_s if rate_per_s is None else rate_per_s
    rows: list[Row] = []
    for part in chosen.parts:
        purpose = f"synthetic.{name}.{part.class_name}"
        arrivals_s = part.arrivals.draw(
            stream(seed, f"{purpose}.arrivals"), rate_per_s * part.share_frac, duration_s
        )
        prompts, outputs = stream(seed, f"{purpose}.prompt"), stream(seed, f"{purpose}.output")
        rows += [
            Row(arrival_s, part.prompt.draw(prompts), part.output.draw(outputs), part.class_name)
            for arrival_s in arrivals_s
        ]
    return sorted(rows, key=lambda row: row.arrival_s)
