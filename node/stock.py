"""Stock: packed inputs and functions that keepers sent to this node, kept a while after their work is over.

A packed run of a map may hold 20,000 items in 8 MiB, and a holder gets it in many small shares: it travels once.

Rule: this file knows keys and sizes, neither jobs nor peers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

OVERHEAD = 512
"""Bytes that an entry costs beside its value, about; else millions of tiny ones would cost nothing."""


class Stock:
    """Values by key, the least recently used ones let go beyond `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, unless it is larger than all there is room for."""
        size += OVERHEAD
        _, before = self._kept.pop(key, (None, 0))
        self.size -= before
        if size > self.bytes_max:
            return
        self._kept[key] = (value, size)
        self.size += size
        while self.size > self.bytes_max:
            _, (_, gone) = self._kept.popitem(last=False)
            self.size -= gone

    def get(self, key: Hashable) -> Any:
        """Return a value that is still here, or None."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        self._kept.move_to_end(key)
        return entry[0]

    def keys(self) -> list[Hashable]:
        """Return what is here, used last in front."""
        return list(reversed(self._kept))

    def __len__(self) -> int:
        return len(self._kept)
