"""Grid time: this node's clock, corrected by the median of what the clocks of others say (DESIGN §6).

Only vouchers, guests' ends and jobs' expiry are judged by it; leases and timers use the local monotonic clock. A median
of three does not follow one clock that is years off. A node whose own clock is, runs on: it warns and deletes nothing.

Rule: no clock is read here; the shell says once in a while what wall clock minus monotonic clock is.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.node.events import Log, NodeId, Send

Effect = Send | Log


@dataclass(frozen=True, slots=True)
class GridTimeOptions:
    """Times in seconds."""

    peers_max: int = 8
    """How many clocks are looked at."""
    again_s: float = 600.0
    answer_s: float = 5.0
    """A slower answer says nothing."""
    forget_s: float = 3600.0
    apart_s: float = 300.0
    """Further apart is worth a warning."""


@dataclass(slots=True)
class Clock:
    """The clock of a member, as last heard."""

    ahead_s: float
    error_s: float
    heard_s: float


class GridTime:
    """How far the grid's clocks are from ours."""

    def __init__(self, options: GridTimeOptions, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.clocks: dict[NodeId, Clock] = {}
        self._wall_offset_s = 0.0
        self._asked: OrderedDict[int, tuple[NodeId, float]] = OrderedDict()
        self._seq = 0
        self._next_s: float | None = None
        self._warned = False
        self._offset_s: float | None = None
        self._known = True
        """Whether that is the median of the clocks as they are: it is asked for after every frame."""

    def wall_offset(self, seconds: float) -> None:
        """Wall clock minus monotonic clock, as the shell sees it; if it was set, all clocks moved against ours."""
        for clock in self.clocks.values():
            clock.ahead_s -= seconds - self._wall_offset_s
        self._known = False
        self._wall_offset_s = seconds

    def offset_s(self) -> float | None:
        """Return grid time minus own clock, or None while no other clock is known.

        Of an even number of others ours takes part: the mean of two would follow half-way one that is years off.
        """
        if not self._known:
            ahead = [clock.ahead_s for clock in self.clocks.values()]
            self._offset_s = median(ahead if len(ahead) % 2 else [*ahead, 0.0]) if ahead else None
            self._known = True
        return self._offset_s

    def grid_s(self, now: float) -> float | None:
        """Return grid time as unix time, or None before it exists."""
        offset = self.offset_s()
        return None if offset is None else now + self._wall_offset_s + offset

    def met(self, peer: NodeId, now: float) -> list[Effect]:
        """A connection to a member came up."""
        if self._next_s is None:
            self._next_s = now + self.options.again_s
        return self._ask([peer], now) if len(self.clocks) < self.options.peers_max else []

    def _ask(self, peers: Iterable[NodeId], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer in peers:
            self._seq += 1
            self._asked[self._seq] = (peer, now)
            if len(self._asked) > 4 * self.options.peers_max:
                self._asked.popitem(last=False)
            effects.append(Send(peer, m.P_CLOCK, [self._seq]))
        return effects

    def received(self, peer: NodeId, kind: int, body: Any, now: float) -> list[Effect]:
        """Take in a frame of 117 or 118, as read by `core.member_shapes.from_neighbour`."""
        if kind == m.P_CLOCK:
            return [Send(peer, m.P_CLOCK_IS, [body[0], now + self._wall_offset_s])]
        asked, sent_s = self._asked.pop(body[0], ("", 0.0))
        if asked != peer or now - sent_s > self.options.answer_s:
            return []
        error_s = (now - sent_s) / 2
        self._known = False
        self.clocks[peer] = Clock(body[1] + error_s - now - self._wall_offset_s, error_s, now)
        if len(self.clocks) > self.options.peers_max:
            del self.clocks[min(self.clocks, key=lambda node: self.clocks[node].heard_s)]
        return self._compare()

    def _compare(self) -> list[Effect]:
        """Warn once when this node's clock is far from the grid's, and say when it is well again."""
        offset = self.offset_s()
        apart = offset is not None and abs(offset) > self.options.apart_s
        if offset is None or apart == self._warned:
            return []
        self._warned = apart
        if not apart:
            return [Log("info", "this machine's clock agrees with the grid again")]
        seconds = f"{abs(offset):,.0f} s {'behind' if offset > 0 else 'ahead of'}"
        many = f"{len(self.clocks)} member{'s' * (len(self.clocks) > 1)}"
        text = f"this machine's clock is {seconds} the grid's (median of {many}): set it, or let NTP do so"
        return [Log("warning", text)]

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still: answers that run are worthless."""
        self._asked.clear()
        self._next_s = None if self._next_s is None else self._next_s + seconds

    def next_s(self) -> float | None:
        """Return when `tick` is due."""
        return self._next_s

    def tick(self, peers: list[NodeId], now: float) -> list[Effect]:
        """Look at clocks again; `peers` are the members that are connected now."""
        if self._next_s is None or self._next_s > now:
            return []
        self._next_s = now + self.options.again_s
        old = now - self.options.forget_s
        self._known = False
        self.clocks = {node: clock for node, clock in self.clocks.items() if clock.heard_s > old}
        known = [peer for peer in peers if peer in self.clocks]
        others = [peer for peer in peers if peer not in self.clocks]
        self.rng.shuffle(others)
        return self._ask((known + others)[: self.options.peers_max], now)
