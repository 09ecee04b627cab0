"""Where every random number of the project comes from.

One stream per purpose: a run that draws more arrivals still draws the same lengths, and adding a
stream shifts no other.
"""

from __future__ import annotations

import random
from hashlib import sha256


def stream(seed: int, name: str) -> random.Random:
    """Return the generator of the purpose `name` in the run `seed`; the same pair, the same draws.

    Hashed here rather than by `random.Random(str)`, so that the draws depend on nothing but the
    pair.
    """
    digest = sha256(f"{seed}/{name}".encode()).digest()
    return random.Random(int.from_bytes(digest, "little"))
