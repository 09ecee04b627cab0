"""Who waits for whom in a closed loop: a turn of a session begins when the one before is over.

Replayed by recorded times, a slow cluster is sent the next question of a person who is still
reading the answer to come. In a closed loop it is sent once that answer has ended and the recorded
pause is over, so an overloaded cluster is asked less, as it is in life.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.workload.row import Row


class Turn(NamedTuple):
    """The number of the row of a turn, and from when on it may arrive."""

    number: int
    start_s: float


class Turns:
    """The order of turns within each session: that of their arrivals.

    first: rows that wait for nobody, in order: first turns, and requests without a session.
    waiting_count: the others. unknown_count: those of them without a recorded pause.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Raises ConfigError when no turn would wait for another."""
        self._rows = rows
        self._next: dict[int, int] = {}
        last: dict[str, int] = {}
        self.first: list[int] = []
        for index, row in enumerate(rows):
            before = last.get(row.session_id) if row.session_id else None
            if before is None:
                self.first.append(index)
            else:
                self._next[before] = index
            if row.session_id:
                last[row.session_id] = index
        waiting = self._next.values()
        self.waiting_count = len(waiting)
        self.unknown_count = sum(not rows[index].think_s for index in waiting)
        if not waiting:
            raise ConfigError(
                "a closed loop needs sessions of several turns, and no request follows another in "
                "one; replay these by their recorded times"
            )

    def after(self, index: int, end_s: float) -> Turn | None:
        """Return the turn that follows when the one in row `index` has ended, however it ended.

        It comes after its recorded pause. Without one it comes at its recorded time, or at once
        where that has passed. None after the last turn.
        """
        following = self._next.get(index)
        if following is None:
            return None
        row = self._rows[following]
        start_s = end_s + row.think_s if row.think_s else max(end_s, row.arrival_s)
        return Turn(following, start_s)

    def note(self) -> str:
        """Return a line on what the closed loop does to these rows."""
        said = (
            f"closed loop: {self.waiting_count:,} of {len(self._rows):,} requests wait for the "
            "turn before them"
        )
        if not self.unknown_count:
            return said
        return f"{said}; {self.unknown_count:,} have no recorded pause, and wait for their time too"
