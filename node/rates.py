"""Rates: how long tasks take which member, as far as its results say."""

from __future__ import annotations

from collections import OrderedDict

RATES_KEPT = 4096
PEERS_KEPT = 1024
WEIGHT = 0.3
"""Of what came last."""
CLOCKS_S = 1.0
"""By how much the clocks of two machines may differ in that."""
UNKNOWN_S = 60.0
"""For how long a member may have been busy that was given its tasks in a former life of this node."""


class Rates:
    """Seconds per task of a function, by member; those learned last are kept."""

    def __init__(self) -> None:
        self.seconds: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._began_s: dict[str, float] = {}
        """When a member was given something first: it has not been busy for longer."""

    def get(self, peer: str, fn: bytes) -> float | None:
        """Return how long a task of a function takes a member, if it has delivered any."""
        return self.seconds.get((peer, fn))

    def members(self, fn: bytes) -> list[str]:
        """Return who has delivered results of a function."""
        return [peer for peer, of in self.seconds if of == fn]

    def learn(self, peer: str, fn: bytes, seconds: float) -> None:
        """Take in what a member says of some tasks."""
        before = self.seconds.pop((peer, fn), seconds)
        self.seconds[peer, fn] = before + WEIGHT * (seconds - before)
        if len(self.seconds) > RATES_KEPT:
            self.seconds.popitem(last=False)

    def began(self, peer: str, now: float) -> None:
        """A member is given something."""
        self._began_s.setdefault(peer, now)
        if len(self._began_s) > PEERS_KEPT:
            del self._began_s[next(iter(self._began_s))]

    def since(self, peer: str, now: float) -> float:
        """Return how long a member may have been busy at most."""
        return now - self._began_s.get(peer, now - UNKNOWN_S) + CLOCKS_S
