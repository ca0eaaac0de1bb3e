"""How long a peer's answer is waited for: its own round trips so far, not a flat ten seconds (ALGORITHMS §1.3).

An answer that comes late is still taken in, so a wrong guess costs a question too many and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

PEERS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class PatienceOptions:
    floor_s: float = 0.15
    cap_s: float = 3.0
    first_s: float = 1.0
    """Before anybody has ever answered."""
    stranger: float = 4.0
    """Round trips given to a peer that never answered: it has to be dialled (TCP, Noise, Yamux) before it is asked."""


LAN = PatienceOptions()
WAN = PatienceOptions(floor_s=0.5, first_s=2.0)


class RoundTrip:
    """Mean and deviation, forgetting slowly (Jacobson)."""

    __slots__ = ("deviation_s", "mean_s")

    def __init__(self, first_s: float) -> None:
        self.mean_s, self.deviation_s = first_s, first_s / 2

    def add(self, seconds: float) -> None:
        self.deviation_s += (abs(seconds - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (seconds - self.mean_s) / 8


class Patience:
    """Round trips of the peers that answered last, and of all together."""

    def __init__(self, options: PatienceOptions = LAN) -> None:
        self.options = options
        self._all: RoundTrip | None = None
        self._each: OrderedDict[bytes, RoundTrip] = OrderedDict()

    def answered(self, peer: bytes, seconds: float) -> None:
        """Learn how long an answer took, also one that came too late."""
        if self._all is None:
            self._all = RoundTrip(seconds)
        else:
            self._all.add(seconds)
        known = self._each.get(peer)
        if known is None:
            self._each[peer] = RoundTrip(seconds)
            if len(self._each) > PEERS_KEPT:
                self._each.popitem(last=False)
        else:
            known.add(seconds)
            self._each.move_to_end(peer)

    def timeout_s(self, peer: bytes) -> float:
        """Return for how long to wait for an answer of this peer."""
        known = self._each.get(peer)
        if known is not None:
            expected = known.mean_s + 4 * known.deviation_s
        elif self._all is not None:
            expected = self.options.stranger * self._all.mean_s + 4 * self._all.deviation_s
        else:
            expected = self.options.first_s
        return min(max(expected, self.options.floor_s), self.options.cap_s)
