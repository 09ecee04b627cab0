"""Draws requests from ServeGen: per client, arrival rates by window and distributions of lengths.

`chunk-N-trace.csv` has no header: window start (s), rate, CV, family, shape, scale; a window ends
where the next begins. Gaps are a renewal process of that family, rescaled to the rate.
`chunk-N-dataset.json` has the distribution of prompt and output lengths per six hours, each as the
text of a Python dict. Prompt and output are published as marginals only and drawn independently;
the upstream generator ties their ranks. `reason_ratio`, the share of the output that is reasoning,
changes nothing here. There are no turns and no prefixes. Source: github.com/alibaba/ServeGen and
arXiv:2505.09999.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import inf, isfinite
from random import Random
from typing import NamedTuple

import msgspec

from spillway.core.errors import ConfigError
from spillway.workload.arrivals import ARRIVALS_MAX, Arrivals, Gamma, Weibull
from spillway.workload.parsing import (
    BadRow,
    Bundle,
    Content,
    Drops,
    Reading,
    by_arrival,
    checked_time,
    decode_line,
    number,
    token_count,
)
from spillway.workload.row import Row
from spillway.workload.seeds import stream

CLIENT = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
RATES, LENGTHS = "trace.csv", "dataset.json"
BUSIEST_S = 3_600.0  # drawn when no part is asked for: a whole day is over a million requests
COLUMNS = 6
LAST_WINDOW_S = 600.0  # length of a window that none follows


class _Spell(NamedTuple):
    """A window in which a client sends. rate_per_s is above 0."""

    from_s: float
    to_s: float
    rate_per_s: float
    arrivals: Arrivals


class _Pmf(NamedTuple):
    """A distribution over token counts, as `random.choices` wants it."""

    tokens: Sequence[int]
    cumulated: Sequence[float]


class _Client(NamedTuple):
    """lengths: (from_s, prompt, output) in order; valid until the next begins."""

    spells: list[_Spell]
    lengths: list[tuple[float, _Pmf, _Pmf]]


def _matches(name: str, content: bytes) -> bool:
    del content
    return CLIENT.search(name) is not None


def _read(members: Mapping[str, bytes], drops: Drops, reading: Reading) -> Content:
    """About 6 µs per drawn request."""
    clients = _clients(members, drops)
    from_s, to_s, notes = reading.from_s, reading.to_s, []
    if (from_s, to_s) == (0.0, inf):
        from_s = _busiest_s([spell for client in clients.values() for spell in client.spells])
        to_s = from_s + BUSIEST_S
        notes.append(f"the busiest hour, from {from_s:g} s to {to_s:g} s of the recording")
    expected = sum(
        spell.rate_per_s * max(0.0, min(spell.to_s, to_s) - max(spell.from_s, from_s))
        for client in clients.values()
        for spell in client.spells
    )
    if expected > ARRIVALS_MAX:
        raise ConfigError(f"a draw of {expected:.0f} requests; choose a shorter part")
    rows: list[Row] = []
    for name, client in sorted(clients.items()):
        rows += _draw(name, client, from_s, to_s, reading.seed, drops)
    notes.append(
        f"drawn from {len(clients)} clients' rates and lengths (seed {reading.seed}); "
        "prompt and output lengths independently"
    )
    return Content(by_arrival(rows), tuple(notes), from_s=from_s)


def _draw(
    name: str, client: _Client, from_s: float, to_s: float, seed: int, drops: Drops
) -> list[Row]:
    """Each window draws from streams of its own, so a part is the same whatever is around it."""
    rows: list[Row] = []
    for spell in client.spells:
        if spell.to_s <= from_s or spell.from_s >= to_s:
            continue
        purpose = f"servegen.{name}.{spell.from_s:g}"
        times_s = spell.arrivals.draw(
            stream(seed, f"{purpose}.arrivals"), spell.rate_per_s, spell.to_s - spell.from_s
        )
        at = bisect_right(client.lengths, spell.from_s, key=lambda entry: entry[0]) - 1
        if at < 0 or not (client.lengths[at][1].tokens and client.lengths[at][2].tokens):
            drops.add("a client sends without known lengths", name, len(times_s))
            continue
        _, prompt, output = client.lengths[at]
        prompts = _choices(stream(seed, f"{purpose}.prompt"), prompt, len(times_s))
        outputs = _choices(stream(seed, f"{purpose}.output"), output, len(times_s))
        rows += [
            Row(spell.from_s + time_s, prompt_tokens, output_tokens)
            for time_s, prompt_tokens, output_tokens in zip(times_s, prompts, outputs, strict=True)
            if from_s <= spell.from_s + time_s < to_s
        ]
    return rows


def _choices(rng: Random, pmf: _Pmf, count: int) -> list[int]:
    return rng.choices(pmf.tokens, cum_weights=pmf.cumulated, k=count)


def _clients(members: Mapping[str, bytes], drops: Drops) -> dict[str, _Client]:
    """Return the clients by number, padded so that names sort as numbers do."""
    clients = {}
    for name, content in members.items():
        found = CLIENT.search(name)
        if found is None or found[2] == LENGTHS:
            continue
        lengths = members.get(name.removesuffix(RATES) + LENGTHS)
        if lengths is None:
            drops.add(f"a client without its {LENGTHS}", name)
            continue
        try:
            client = _Client(_spells(content, name, drops), _lengths(lengths))
        except BadRow as bad:
            drops.add(str(bad), name)
            continue
        clients[f"client-{int(found[1]):06d}"] = client
    return clients


def _spells(content: bytes, name: str, drops: Drops) -> list[_Spell]:
    windows: list[tuple[float, float, Arrivals | None]] = []
    for at, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            windows.append(_window(line))
        except (BadRow, ConfigError) as bad:
            drops.add(f"window: {bad}", f"{name} line {at}")
    windows.sort(key=lambda window: window[0])
    ends_s = [later[0] for _, later in pairwise(windows)]
    if windows:
        ends_s.append(windows[-1][0] + LAST_WINDOW_S)
    return [
        _Spell(from_s, to_s, rate_per_s, arrivals)
        for (from_s, rate_per_s, arrivals), to_s in zip(windows, ends_s, strict=True)
        if arrivals is not None and to_s > from_s
    ]


def _window(line: str) -> tuple[float, float, Arrivals | None]:
    """Return (start, rate, process); no process for an idle window. Raises BadRow."""
    fields = line.split(",")
    if len(fields) != COLUMNS:
        raise BadRow(f"not {COLUMNS} columns")
    from_s = checked_time(number(fields[0], "window start"), "window start")
    rate_per_s = checked_time(number(fields[1], "rate"), "rate")
    if rate_per_s == 0.0:
        return from_s, 0.0, None
    family, shape = fields[3].strip(), number(fields[4], "shape")
    if family == "Gamma" and shape > 0.0:
        return from_s, rate_per_s, Gamma(cv=shape**-0.5)
    if family == "Weibull":
        return from_s, rate_per_s, Weibull(shape)
    raise BadRow("family is not Gamma or Weibull with a shape above 0")


def _lengths(content: bytes) -> list[tuple[float, _Pmf, _Pmf]]:
    parts = decode_line(msgspec.json.Decoder(dict[str, dict[str, str]]), content)
    return sorted(
        (
            number(start, "window start"),
            _pmf(part.get("input_tokens", "{}")),
            _pmf(part.get("output_tokens", "{}")),
        )
        for start, part in parts.items()
    )


def _pmf(text: str) -> _Pmf:
    """Return the distribution written as a Python dict of whole numbers. Raises BadRow.

    Taken apart by its punctuation, which is ten times as fast as evaluating it.
    """
    body = text.strip().removeprefix("{").removesuffix("}").strip()
    pairs = [pair.partition(":") for pair in body.split(",")] if body else []
    tokens = [token_count(token, "a length") for token, _, _ in pairs]
    weights = [checked_time(number(weight, "a weight"), "a weight") for _, _, weight in pairs]
    cumulated = list(accumulate(weights))
    if tokens and not (cumulated[-1] > 0.0 and isfinite(cumulated[-1])):
        raise BadRow("a distribution of lengths without weight")
    return _Pmf(tokens, cumulated)


def _busiest_s(spells: Sequence[_Spell]) -> float:
    """Return the window start from which BUSIEST_S holds the most expected requests."""
    expected: defaultdict[float, float] = defaultdict(float)
    for spell in spells:
        expected[spell.from_s] += spell.rate_per_s * (spell.to_s - spell.from_s)
    starts_s = sorted(expected)
    best_s, most, held, end = 0.0, -1.0, 0.0, 0
    for start_s in starts_s:
        while end < len(starts_s) and starts_s[end] < start_s + BUSIEST_S:
            held += expected[starts_s[end]]
            end += 1
        if held > most:
            best_s, most = start_s, held
        held -= expected[start_s]
    return best_s


BUNDLE = Bundle(
    "servegen", "folder or .tar.xz of chunk-N-trace.csv and chunk-N-dataset.json", _matches, _read
)
