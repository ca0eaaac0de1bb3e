"""Hash rings: who observes whom, the same for all that know the same members, and nobody is asked.

Each ring orders the members by BLAKE3(ring ‖ id); on every ring a member observes the one after it. Eight rings make an
expander: no small group can hide a death, and one member more or less moves few (ALGORITHMS §2.3).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from p2pgrid.core.member import RINGS, positions


class Rings:
    """The members on their rings."""

    def __init__(self) -> None:
        self._rings: list[list[tuple[int, str]]] = [[] for _ in range(RINGS)]
        self._at: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, node: str) -> bool:
        return node in self._at

    def add(self, node: str) -> None:
        if node not in self._at:
            self._at[node] = places = positions(node)
            for ring, place in zip(self._rings, places, strict=True):
                insort(ring, (place, node))

    def remove(self, node: str) -> None:
        for ring, place in zip(self._rings, self._at.pop(node, ()), strict=False):
            del ring[bisect_left(ring, (place, node))]

    def after(self, node: str) -> list[str]:
        """Return who comes after a node on each ring, each once; the node itself need not stand there."""
        return self._next_to(node, forward=True)

    def before(self, node: str) -> list[str]:
        """Return who comes before a node on each ring, each once."""
        return self._next_to(node, forward=False)

    def _next_to(self, node: str, *, forward: bool) -> list[str]:
        found: dict[str, None] = {}
        for ring, place in zip(self._rings, self._at.get(node) or positions(node), strict=True):
            if ring:
                here = (place, node)
                index = bisect_right(ring, here) % len(ring) if forward else bisect_left(ring, here) - 1
                found[ring[index][1]] = None
        found.pop(node, None)
        return list(found)
