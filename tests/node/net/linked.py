"""Nodes with links, for the tests: what each was told, and two of them connected."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from multiaddr import Multiaddr

from p2pgrid.core.member import Card, shown
from p2pgrid.core.messages import L_HELLO
from p2pgrid.core.wire import frame
from p2pgrid.node.net import host as net
from p2pgrid.node.net.links import LinkOptions, Links
from tests.node.net.grids import LOOPBACK, Node, make, until

NEWS = 9000
"""A kind of frame that no link knows."""


@dataclass
class Told:
    """What a listener was told, in order; `raises` is raised for the next frame."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    frames: list[tuple[str, int, Any]] = field(default_factory=list)
    hellos: dict[str, dict[str, Any]] = field(default_factory=dict)
    raises: Exception | None = None
    unknown: Callable[[str, int], object] = lambda _peer, _kind: None

    def up(self, peer: str, hello: dict[str, Any], member: Any) -> None:
        self.events.append(("up", peer))
        self.hellos[peer] = hello

    def down(self, peer: str, *, reset: bool, why: str) -> None:
        self.events.append(("down", peer, reset, why))

    def frame(self, peer: str, kind: int, body: Any) -> None:
        self.frames.append((peer, kind, body))
        self.unknown(peer, kind)
        if self.raises is not None:
            raise self.raises

    @property
    def words(self) -> list[str]:
        return [event[0] for event in self.events]

    @property
    def bodies(self) -> list[Any]:
        return [body for _, kind, body in self.frames if kind == NEWS]


@dataclass
class Linked:
    """A node that has links."""

    node: Node
    links: Links
    told: Told
    log: list[str]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)

    @property
    def id(self) -> str:
        return str(self.node.host.get_id())

    @property
    def addresses(self) -> list[str]:
        return [str(each) for each in self.node.addresses]

    def say(self, other: Linked, body: Any, kind: int = NEWS) -> None:
        self.links.send(other.id, kind, body)
        self.links.flush()

    async def kill(self) -> None:
        """End it without a word: what a SIGKILL looks like from outside."""
        for listener in list(self.node.host.get_network().listeners.values()):
            await listener.close()
        self.scope.cancel()
        await self.gone.wait()


def linked(
    node: Node | None = None, *, life: bytes = b"a life..", addresses: tuple[str, ...] = (), **limits: Any
) -> Linked:
    """Return a node with links, not running."""
    node = node or make()
    told, log = Told(), list[str]()
    card = Card(1, 1, life, False, addresses, {"name": "x"}, (0,))  # noqa: FBT003 - a card's fields stand in order

    def hello() -> list[bytes]:
        return [frame(L_HELLO, {"v": 1, "version": "0", "card": shown(card)})]

    me = str(node.host.get_id())
    options = LinkOptions(**limits)
    links = Links(me, node.host, node.membership, told, hello, log.append, random.Random(1), options)
    return Linked(node, links, told, log)


async def live(
    one: Linked, listen: list[Multiaddr], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    try:
        with one.scope:
            async with net.running(one.node.host, listen), trio.open_nursery() as nursery:
                await nursery.start(one.links.serve)
                task_status.started()
    finally:
        one.gone.set()


@asynccontextmanager
async def grid(*nodes: Linked, listen: list[Multiaddr] = LOOPBACK) -> AsyncIterator[None]:
    """Run these nodes; what ends one of them ends the test."""
    async with trio.open_nursery() as nursery:
        for one in nodes:
            await nursery.start(live, one, listen)
        yield
        nursery.cancel_scope.cancel()


async def both_up(a: Linked, b: Linked) -> None:
    a.links.connect(b.id, b.addresses)
    await until(lambda: a.links.is_up(b.id) and b.links.is_up(a.id))


async def happens(condition: Callable[[], bool]) -> float:
    return await until(condition)
