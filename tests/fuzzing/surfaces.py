"""The surfaces, and how one is fuzzed: in batches, each with a router of its own.

Every input has a number, and a generator of its own that follows from seed, surface and number. A
batch begins with everything new, so that any input can be repeated by running its batch.
"""

from __future__ import annotations

from collections import Counter

from fuzzing.client import ClientSurface
from fuzzing.configuration import ConfigurationSurface
from fuzzing.decoders import DecoderSurface
from fuzzing.reports import ReportSurface
from fuzzing.upstream import UpstreamSurface
from spillway.workload.seeds import stream

BATCH = 250
KINDS = (ClientSurface, UpstreamSurface, ReportSurface, DecoderSurface, ConfigurationSurface)
SURFACES = {surface.name: surface for surface in KINDS}


class Found(Exception):
    """An input did harm. number: which one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"input {number}")
        self.number = number


def fuzz(name: str, seed: int, first: int, count: int) -> Counter[str]:
    """Try `count` inputs from the one numbered `first` on, and return how they ended.

    Raises Found with what an input did wrong as its cause.
    """
    surface, ends = SURFACES[name], Counter[str]()
    for batch in range(first // BATCH, (first + count - 1) // BATCH + 1):
        with surface(batch) as under_test:
            for number in range(batch * BATCH, (batch + 1) * BATCH):
                try:
                    ends.update(under_test.one(stream(seed, f"fuzz/{name}/{number}")))
                except Exception as error:
                    raise Found(number) from error
                if number + 1 >= first + count:
                    break
    return ends
