"""Output lengths learned from completions: a running quantile per service class.

The only place from which a decision learns how long an answer may become. It sees a length when
the request is over, never before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

WINDOW = 256  # completions remembered per class
CLASSES_MAX = 64  # classes tracked; further ones share the default


class OutputLengths:
    """A sliding-window quantile of completed output lengths for each class.

    quantile_frac: which quantile to keep (0.7 over-reserves a little, policies of KV admission).
    """

    __slots__ = ("_sorted", "_windows", "by_class", "quantile_frac")

    def __init__(self, quantile_frac: float = 0.7) -> None:
        self.quantile_frac = quantile_frac
        self.by_class: dict[str, int] = {}
        self._windows: dict[str, deque[int]] = {}
        self._sorted: dict[str, list[int]] = {}

    def add(self, class_name: str, output_tokens: int) -> None:
        """Take one completed request into account. O(log window) search, O(window) shift."""
        window = self._windows.get(class_name)
        if window is None:
            if len(self._windows) >= CLASSES_MAX:
                return  # bounded; the class keeps the default length
            window = self._windows[class_name] = deque()
            self._sorted[class_name] = []
        ordered = self._sorted[class_name]
        if len(window) == WINDOW:
            del ordered[bisect_left(ordered, window.popleft())]
        window.append(output_tokens)
        insort(ordered, output_tokens)
        self.by_class[class_name] = ordered[int(self.quantile_frac * (len(ordered) - 1))]
