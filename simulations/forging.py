"""Members that lie in what they send: frames that are garbage, and real ones with something in them changed.

A forger has a certificate and its connections, as a stolen laptop would. What it sends must not make a machine raise;
what it may achieve is to lose its connections, to delay, and to have work done twice. It names itself as the sender,
for nobody can do otherwise on a connection; it does not pretend to results of tasks that it was given.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from p2pgrid.core import messages as m
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

KEPT = 64
SPARED = frozenset({m.P_RESULTS, m.P_RESULTS_ACK})
"""Changed, these would be lies about results, or break a promise by a lie of its receiver: see `liar`."""
NUMBERS = (0, 1, -1, 2**31, 2**53, 2**63, 0.0, -1.0, 1e18, float("nan"), float("inf"))
DEPTH = 3


class Forger:
    """One member that sends forged frames."""

    def __init__(self, node: Node, world: World, rng: random.Random, end_s: float) -> None:
        self.node = node
        self.world = world
        self.rng = rng
        self.end_s = end_s
        self._seen: list[tuple[int, Any]] = []
        self._rate = 1.0

    def begin(self, rate: float) -> None:
        """Send so many frames per second until the storm is over."""
        self._rate = rate
        self.world.forgers[self.node.name] = None
        self.world.at(self.rng.expovariate(rate), self._again)

    def _again(self) -> None:
        if self.world.now >= self.end_s:
            return
        node = self.node
        for _, event, _ in list(node.recent):
            if isinstance(event, e.PeerSent) and event.kind not in SPARED:
                self._seen.append((event.kind, event.body))
        del self._seen[:-KEPT]
        if node.alive and node.frozen is None and node.links:
            peer = self.rng.choice(list(node.links))
            kind, body = self._forged()
            self.world.network.send(node, peer, kind, body)
        self.world.at(self.rng.expovariate(self._rate), self._again)

    def _forged(self) -> tuple[int, Any]:
        if self._seen and self.rng.random() < 0.7:  # noqa: PLR2004 - more of what looks real
            kind, body = self.rng.choice(self._seen)
            return kind, self._changed(unpack(pack(body)))
        kinds = [one for one in range(m.P_WANT, m.P_LIFELINE + 1) if one not in SPARED and not 120 <= one < 140]  # noqa: PLR2004
        return self.rng.choice(kinds), self._anything(DEPTH)

    def _changed(self, body: Any) -> Any:
        """Change one thing somewhere in it."""
        if isinstance(body, list) and body and self.rng.random() < 0.9:  # noqa: PLR2004
            at = self.rng.randrange(len(body))
            body[at] = self._changed(body[at])
            return body
        if type(body) is int:
            return self.rng.choice([*NUMBERS, body + 1, body - 1])
        if isinstance(body, str) and body in self.world.nodes:
            return self.rng.choice(list(self.world.nodes))
        return self._anything(1)

    def _anything(self, depth: int) -> Any:
        rng = self.rng
        choice = rng.randrange(7 if depth else 5)
        if choice == 0:
            return rng.choice(NUMBERS)
        if choice == 1:
            return rng.randbytes(rng.choice([0, 1, 8, 16, 64]))
        if choice == 2:  # noqa: PLR2004
            return rng.choice([*self.world.nodes, "", "x" * 100])
        if choice == 3:  # noqa: PLR2004
            return None
        if choice == 4:  # noqa: PLR2004
            return rng.randrange(1 << 32)
        if choice == 5:  # noqa: PLR2004
            return {str(rng.randrange(9)): self._anything(depth - 1) for _ in range(rng.randrange(3))}
        return [self._anything(depth - 1) for _ in range(rng.randrange(5))]
