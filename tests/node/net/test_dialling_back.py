"""Seeing whether a peer answers at an address: no connection comes of it, and nothing is held against whoever looks."""

from __future__ import annotations

import pytest

from tests.node.net.grids import THEIRS, make, run
from tests.node.net.linked import both_up, grid, happens, linked

pytestmark = pytest.mark.slow

LOOKS = 30


def test_looking_leaves_the_connection_as_it_is() -> None:
    async def talk() -> None:
        a, b = linked(), linked()
        async with grid(a, b):
            await both_up(a, b)
            for _ in range(LOOKS):
                assert await a.links.answers_at(b.id, b.addresses[0], 5)
            a.say(b, "still here")
            await happens(lambda: b.told.bodies == ["still here"])
            await happens(lambda: b.node.door.half_open_count == 0)
            assert [len(each.node.connections()) for each in (a, b)] == [1, 1]
            assert a.told.words == b.told.words == ["up"]
            assert b.node.door.failed_count == 0
            assert b.node.membership.refused_count == 0

    run(talk)


def test_nobody_answers_there() -> None:
    """Nobody listens; somebody else does; somebody of another grid does; it is no address."""

    async def talk() -> None:
        a, b, c, stranger = linked(), linked(), linked(), linked(make(THEIRS))
        async with grid(a, b, c, stranger):
            for peer, address in (
                (b.id, "/ip4/127.0.0.1/tcp/1"),
                (b.id, c.addresses[0]),
                (stranger.id, stranger.addresses[0]),
                (b.id, "/nonsense"),
                ("nobody", b.addresses[0]),
            ):
                assert not await a.links.answers_at(peer, address, 5)

    run(talk)
