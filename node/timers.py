"""Timers of the machine as one heap, and the lag of the loop: both are about when things run, and neither awaits."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Any

SAMPLES_MAX = 1024


class Timers:
    """At most one deadline per key. Replaced ones stay in the heap until they surface or are swept out."""

    def __init__(self) -> None:
        self._at: dict[Hashable, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, tuple[Any, ...]]] = []
        self._count = 0

    def set(self, key: tuple[Any, ...], at_s: float | None) -> None:
        """Set, replace or (None) cancel a timer."""
        if at_s is None:
            self._at.pop(key, None)
            return
        self._count += 1
        self._at[key] = (at_s, self._count)
        heappush(self._heap, (at_s, self._count, key))
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [(*when, key) for key, when in self._at.items()]  # type: ignore[misc]
            heapify(self._heap)

    def due(self, now: float) -> list[tuple[Any, ...]]:
        """Take out the keys that are due, in order of their deadlines."""
        keys = []
        while (at_s := self.next()) is not None and at_s <= now:
            _, _, key = heappop(self._heap)
            del self._at[key]
            keys.append(key)
        return keys

    def next(self) -> float | None:
        """Return the earliest deadline."""
        while self._heap:
            at_s, count, key = self._heap[0]
            if self._at.get(key) == (at_s, count):
                return at_s
            heappop(self._heap)
        return None


class Lag:
    """How late the loop was when it was busy: the newest `SAMPLES_MAX` samples."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def add(self, seconds: float) -> None:
        """Note that something ran so much later than it was due."""
        self._samples.append(max(seconds, 0.0))

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile in seconds, or None before the first sample."""
        if not self._samples:
            return None
        return sorted(self._samples)[min(int(q * len(self._samples)), len(self._samples) - 1)]
