"""Providing: which objects are announced in the DHT, so that a member that is not connected with this node finds them.

Whoever is connected asks directly, and needs no announcement. So nothing is announced while every live member is
connected; in a larger grid, what is in use here and was for some seconds: whole objects, never their pieces, some at a
time and so many at most, the large ones first. Many small objects thus cost the grid no more than a few hundred do.

Rule: names and sizes only; the DHT renews what was announced (every ten minutes), and is told when it ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from p2pgrid.core.pieces import ObjectId
from p2pgrid.node.object_events import Announce, Unsay
from p2pgrid.node.shelf import Item, Shelf


@dataclass(frozen=True, slots=True)
class ProvidingOptions:
    settled_s: float = 5.0
    """What is dropped sooner is not announced."""
    per_look: int = 8
    announced_max: int = 256
    """Each costs some twenty messages in ten minutes."""
    apart_s: float = 120.0
    """So long after the last member that was not connected: to announce something connects with some for a moment."""
    scanned_max: int = 4096
    """Objects looked at in one turn; of more, the next ones in the next."""


class Providing:
    """What one node has announced."""

    def __init__(self, shelf: Shelf, options: ProvidingOptions | None = None) -> None:
        self.shelf = shelf
        self.options = options or ProvidingOptions()
        self.announced: dict[ObjectId, None] = {}
        self._since_s: dict[ObjectId, float] = {}
        """Objects in use that may be announced: since when they are known here."""
        self._apart_s = -math.inf
        self._at = 0

    def look(self, now: float, *, apart: bool) -> list[Announce | Unsay]:
        """Return what to say now; `apart`: a live member is not connected. To be called every few seconds."""
        if apart:
            self._apart_s = now
        elif now - self._apart_s > self.options.apart_s:
            self._since_s.clear()
            return self._unsay(list(self.announced))
        out = self._unsay([id_ for id_ in self.announced if not self._is_used(id_)])
        self._since_s = {id_: since_s for id_, since_s in self._since_s.items() if self._is_used(id_)}
        for id_ in self._next_few():
            if id_ not in self.announced and len(self._since_s) < self.options.scanned_max:
                self._since_s.setdefault(id_, now)
        due = [id_ for id_, since_s in self._since_s.items() if now - since_s >= self.options.settled_s]
        due.sort(key=self._size, reverse=True)
        room = min(self.options.per_look, self.options.announced_max - len(self.announced))
        for id_ in due[:room]:
            self.announced[id_] = None
            del self._since_s[id_]
            out.append(Announce(id_))
        return out

    def _unsay(self, ids: list[ObjectId]) -> list[Announce | Unsay]:
        for id_ in ids:
            del self.announced[id_]
        return [Unsay(id_) for id_ in ids]

    def _next_few(self) -> list[ObjectId]:
        """Return which of the next few on the shelf are in use."""
        items = self.shelf.items
        start = self._at if self._at < len(items) else 0
        self._at = start + self.options.scanned_max
        looked = islice(items.values(), start, self._at)
        return [item.id for item in looked if item.id is not None and _is_in_use(item)]

    def _is_used(self, id_: ObjectId) -> bool:
        return any(_is_in_use(self.shelf.items[key]) for key in self.shelf.twins(id_))

    def _size(self, id_: ObjectId) -> int:
        return max(self.shelf.items[key].size for key in self.shelf.twins(id_))


def _is_in_use(item: Item) -> bool:
    return item.whole and bool(item.pins or item.maps)
