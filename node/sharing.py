"""Sharing: the objects of this node, put together: hands, visitors, belongings.

Made when somebody asks for shared memory the first time, or when objects or jobs that need some are found at the start;
a node whose programs share nothing has neither the memory nor the modules.

    requests of programs, frames of workers  ->  visitors      who has the memory mapped, who waits
    effects of the machine                   ->  belongings    which results and jobs need what
    frames of members                        ->  hands         what the policies say is done
    members that are not connected           ->  beyond        who of them has what: the DHT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from p2pgrid.node import events as e
from p2pgrid.node.belongings import Belongings
from p2pgrid.node.beyond import Beyond
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.hands import Hands
from p2pgrid.node.local import LocalServer
from p2pgrid.node.network import Network
from p2pgrid.node.visitors import Visitors

Deliver = Callable[[Sequence[e.Event]], None]


class Mind(Protocol):
    """What the objects want to know of the machine."""

    def is_apart(self) -> bool:
        """Whether a live member is not connected, and so cannot ask this node for anything."""

    def progress(self, job: bytes) -> tuple[int, int]:
        """Return the first task of a job that is not over, and the end of those that are known."""


class Sharing:
    """The objects of one node, as its daemon sees them."""

    def __init__(
        self, config: NodeConfig, me: str, server: LocalServer, network: Network, nursery: trio.Nursery,
        log: Callable[[e.Log], None], deliver: Deliver, mind: Mind,
    ) -> None:  # fmt: skip
        """Make the shared memory.

        Raises:
            OSError: the system has none, or the disk is full.
        """
        self.hands = Hands(config, me, network, nursery, log)
        self.visitors = Visitors(self.hands, server, adapts=config.quota is None)
        self.belongings = Belongings(self.hands, self.visitors, deliver, mind.progress)
        self.beyond = Beyond(self.hands, mind.is_apart)
        self._by_effect: dict[type, Callable[[Any], None]] = {
            e.Name: self.belongings.name,
            e.Pull: self.belongings.pull,
            e.Needs: self.belongings.needs,
            e.Secure: self.belongings.secure,
            e.Freed: self.belongings.freed,
            e.Delivered: self.belongings.delivered,
        }
        server.on_gone = self.visitors.gone
        network.keeper = self
        for peer in network.members:
            self.peer_up(peer)

    def perform(self, effect: e.Effect) -> None:
        """Do what the machine wants of objects."""
        self._by_effect[type(effect)](effect)

    def peer_up(self, peer: str) -> None:
        """A member is connected."""
        self.hands.peer_up(peer, keeps=True)

    def peer_down(self, peer: str) -> None:
        """A member is not connected any more."""
        self.hands.peer_down(peer)

    def received(self, peer: str, kind: int, body: Any) -> None:
        """Take a frame of a member about objects."""
        self.hands.received(peer, kind, body)

    def lingers(self, peer: str) -> bool:
        """Whether a connection that the machine does not want is of use for objects."""
        return self.beyond.lingers(peer)

    def stats(self) -> dict[str, int]:
        """Return the figures of `status`."""
        return {**self.hands.stats(), "announced": len(self.beyond.providing.announced)}
