"""An object at a member that is not connected: announced, found and dialled, over real hosts and our own DHT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from p2pgrid.core.pieces import ObjectId
from p2pgrid.node import beyond as beyond_module
from p2pgrid.node.beyond import Beyond, name_of
from p2pgrid.node.object_events import Seek, Sighted
from p2pgrid.node.shelf import Shelf, ShelfOptions
from tests.node.net.grids import run
from tests.node.net.judged import Judged, judged, of_one_grid
from tests.node.net.linked import both_up, happens

pytestmark = pytest.mark.slow

OBJECT = ObjectId(b"\x01" + bytes(range(32)))
DIAL_S = 30.0


class Node:
    """One that shares objects, as `Beyond` sees it: hands, objects, and network in one."""

    def __init__(self, judged: Judged, nursery: trio.Nursery) -> None:
        self.judged = judged
        self.nursery = nursery
        self.me = judged.one.id
        self.shelf = Shelf(ShelfOptions(10**9, 10**9))
        self.told: list[Any] = []
        self.used = True
        self.released: list[str] = []
        self.kad, self.links = judged.kad, judged.one.links
        self.objects = self.net = self

    @property
    def members(self) -> list[str]:
        return self.judged.one.links.peers()

    def known_at(self, _peer: str) -> set[str]:
        return set()

    def soon(self, work: Any, *arguments: Any) -> None:
        self.nursery.start_soon(work, *arguments)

    async def reach(self, addresses: Sequence[str]) -> None:
        await self.judged.one.links.dial(addresses[0], DIAL_S)

    def release(self, peer: str) -> None:
        self.released.append(peer)

    def is_used(self, _peer: str) -> bool:
        return self.used

    def handle(self, event: Any, _now: float) -> list[Any]:
        self.told.append(event)
        return []

    def perform(self, _effects: Sequence[Any]) -> None:
        return

    def has(self, id_: ObjectId) -> None:
        """Have an object on the shelf, for a job."""
        self.shelf.admit(id_, 1000, ("job", b"j"), 0.0)
        self.shelf.allocated(id_)
        self.shelf.written(id_, id_)


def test_what_one_has_another_finds_whom_only_a_third_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that comes of it lasts as long as it is of use."""
    monkeypatch.setattr(beyond_module, "ANNOUNCE_BEAT_S", 0.05)
    monkeypatch.setattr(beyond_module, "LINGER_S", 0.05)

    async def story() -> None:
        a, b, c = nodes = [judged(number) for number in range(3)]
        async with of_one_grid(*nodes), trio.open_nursery() as nursery:
            await both_up(a.one, b.one)
            for one, other in ((a, b), (b, a), (b, c), (c, b)):
                one.knows(other)
            has, needs = Node(a, nursery), Node(c, nursery)
            keeping = Beyond(has, lambda: True)  # type: ignore[arg-type]
            keeping.providing.options = keeping.providing.options.__class__(settled_s=0.0)
            has.has(OBJECT)
            keeping._held()
            await happens(lambda: b.kad.stats()["providers"] == 1 and not a.kad.machine._searches)
            a.one.links.drop(c.one.id, "a question of the DHT has connected them")
            await happens(lambda: a.one.id not in needs.members)

            seeking = Beyond(needs, lambda: False)  # type: ignore[arg-type]
            seeking._seek(Seek(OBJECT, ["a holder that is gone"]))
            await happens(lambda: needs.told == [Sighted(OBJECT, [a.one.id])])
            await happens(lambda: a.one.id in needs.members)
            assert seeking.lingers(a.one.id)
            assert needs.released == []
            needs.used = False
            await happens(lambda: a.one.id in needs.released)

            has.shelf.unpin(OBJECT, ("job", b"j"))
            await happens(lambda: not keeping.providing.announced)
            await happens(lambda: not a.kad.machine.providers.get(name_of(OBJECT), trio.current_time()))
            nursery.cancel_scope.cancel()

    run(story)


def test_what_nobody_has_said_is_answered_with_nobody() -> None:
    async def story() -> None:
        a, b = nodes = [judged(number) for number in range(2)]
        async with of_one_grid(*nodes), trio.open_nursery() as nursery:
            a.knows(b)
            needs = Node(a, nursery)
            Beyond(needs, lambda: False)._seek(Seek(OBJECT, []))  # type: ignore[arg-type]
            await happens(lambda: needs.told == [Sighted(OBJECT, [])])
            nursery.cancel_scope.cancel()

    run(story)


def test_without_a_network_nobody_is_found() -> None:
    """An embedded node that nobody joined has none."""

    async def story() -> None:
        async with trio.open_nursery() as nursery:
            needs = Node(judged(1), nursery)
            needs.kad = None  # type: ignore[assignment]
            Beyond(needs, lambda: False)._seek(Seek(OBJECT, []))  # type: ignore[arg-type]
            await happens(lambda: needs.told == [Sighted(OBJECT, [])])

    run(story)
