"""What a worker child still keeps: the same small memory on both sides of its pipe.

The daemon must know which functions and blobs a child still has. Nobody asks: both sides keep a `Recent` of the same
size and touch it in the same order (as W_CODE, W_BLOB and W_RUN pass), so both forget the same entry at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

CODES_MAX = 256
"""Functions a child keeps. A run may not name more of them."""

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The last `size` entries, in the order of their last use."""

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        """Keep at most `size` entries."""
        self._size = size
        self._entries: dict[K, V] = {}

    def __contains__(self, key: K) -> bool:
        """Whether the entry is still kept."""
        return key in self._entries

    def put(self, key: K, value: V) -> None:
        """Add an entry as the newest; the oldest goes where there is no room."""
        self._entries.pop(key, None)
        self._entries[key] = value
        if len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]

    def touch(self, keys: Iterable[K]) -> None:
        """A run that uses these entries passes: they become the newest, in this order."""
        for key in keys:
            if key in self._entries:
                self._entries[key] = self._entries.pop(key)

    def peek(self, key: K) -> V | None:
        """Return the entry without making it newer: the other side does not see when we use it."""
        return self._entries.get(key)

    def values(self) -> list[V]:
        """Return all entries that are kept."""
        return list(self._entries.values())

    def replace(self, key: K, value: V) -> None:
        """Change an entry that is kept, without making it newer."""
        if key in self._entries:
            self._entries[key] = value
