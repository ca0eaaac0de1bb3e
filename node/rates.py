"""Rates: how long tasks take which member, as far as its results say."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

RATES_KEPT = 4096
PEERS_KEPT = 1024
WEIGHT = 0.3
"""Of what came last."""
CLOCKS_S = 1.0
"""By how much the clocks of two machines may differ in that."""
UNKNOWN_S = 60.0
"""For how long a member may have been busy that was given its tasks in a former life of this node."""
_NOBODY: Mapping[str, float] = {}


class Rates:
    """Seconds per task of a function, by member; those learned last are kept."""

    def __init__(self) -> None:
        self.by_fn: dict[bytes, dict[str, float]] = {}
        """By function and member; who delivered last is last."""
        self._newest: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._began_s: dict[str, float] = {}
        """When a member was given something first: it has not been busy for longer."""

    def get(self, peer: str, fn: bytes) -> float | None:
        """Return how long a task of a function takes a member, if it has delivered any."""
        return self.by_fn.get(fn, _NOBODY).get(peer)

    def of(self, fn: bytes) -> Mapping[str, float]:
        """Return how long a task of a function takes each member that has delivered some."""
        return self.by_fn.get(fn, _NOBODY)

    def members(self, fn: bytes) -> list[str]:
        """Return who has delivered results of a function."""
        return list(self.by_fn.get(fn, ()))

    def learn(self, peer: str, fn: bytes, seconds: float) -> None:
        """Take in what a member says of some tasks."""
        known = self.by_fn.setdefault(fn, {})
        before = known.pop(peer, seconds)
        known[peer] = before + WEIGHT * (seconds - before)
        self._newest[peer, fn] = None
        self._newest.move_to_end((peer, fn))
        if len(self._newest) > RATES_KEPT:
            (old, of), _ = self._newest.popitem(last=False)
            del self.by_fn[of][old]
            if not self.by_fn[of]:
                del self.by_fn[of]

    def began(self, peer: str, now: float) -> None:
        """A member is given something."""
        self._began_s.setdefault(peer, now)
        if len(self._began_s) > PEERS_KEPT:
            del self._began_s[next(iter(self._began_s))]

    def since(self, peer: str, now: float) -> float:
        """Return how long a member may have been busy at most."""
        return now - self._began_s.get(peer, now - UNKNOWN_S) + CLOCKS_S
