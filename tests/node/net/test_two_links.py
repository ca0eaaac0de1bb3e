"""Two connections with one peer: which one stays, what becomes of the other, and what the listener is told."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import public_of
from p2pgrid.node.identity import peer_id
from p2pgrid.node.net import links
from p2pgrid.node.net.control import Link
from tests.node.net.grids import make, run, wire_to
from tests.node.net.linked import NEWS, Linked, Told, grid, happens, linked

pytestmark = pytest.mark.slow

ROUNDS = 50
SMALL = 40
"""Frames from each side, sent while two connections are there; and one large one every so often."""
EVERY = 10


class Talker(Told):
    """Sends from the moment it is told that the peer is up."""

    talk: Callable[[str], None] | None = None

    def up(self, peer: str, hello: dict[str, Any], member: Any) -> None:
        super().up(peer, hello, member)
        if self.talk is not None:
            self.talk(peer)


def talker() -> Linked:
    one = linked()
    one.told = one.links._listener = Talker()
    return one


def lead_to(link: list[Link], links: Any) -> None:
    """Note each link that gets ready, before anything is decided about it."""
    ready = links.ready

    def noted(each: Link) -> None:
        link.append(each)
        ready(each)

    links.ready = noted


def frames(count: int) -> list[tuple[int, bytes]]:
    return [(number, bytes(200_000 if number % EVERY == 0 else 10)) for number in range(count)]


async def meet(seed: int) -> bool:
    """Let two dial each other; say whether there were two connections. Nothing is lost and nothing comes twice."""
    rng = random.Random(seed)
    a, b = sorted((talker(), talker()), key=lambda one: one.id)
    seen: dict[str, list[Link]] = {a.id: [], b.id: []}
    async with grid(a, b), trio.open_nursery() as nursery:
        for one, other in ((a, b), (b, a)):
            lead_to(seen[one.id], one.links)

            def talk(peer: str, one: Linked = one) -> None:
                nursery.start_soon(say_all, one, peer)

            async def say_all(one: Linked, peer: str) -> None:
                for body in frames(SMALL):
                    one.links.send(peer, NEWS, body)
                    one.links.flush()
                    await trio.sleep(0.001)

            async def dial(one: Linked, other: Linked, after_s: float) -> None:
                await trio.sleep(after_s)
                one.links.connect(other.id, other.addresses)

            assert isinstance(one.told, Talker)
            one.told.talk = talk
            nursery.start_soon(dial, one, other, rng.uniform(0, 0.01) if seed % 2 else 0.0)
        await happens(lambda: len(a.told.bodies) >= SMALL and len(b.told.bodies) >= SMALL)
        await happens(lambda: len(a.node.connections()) == len(b.node.connections()) == 1)
        await happens(lambda: len(a.links._links) == len(b.links._links) == 1)
        for one in (a, b):
            assert one.told.words == ["up"], one.told.events
            assert sorted(number for number, _ in one.told.bodies) == list(range(SMALL))
            assert one.log == []
        stays, its_other = a.links._used(b.id), b.links._used(a.id)
        assert stays is not None
        assert its_other is not None
        assert stays.dialler == its_other.dialler
        two = len(seen[a.id]) > 1
        if two:
            assert stays.dialler == a.id
    return two


@pytest.mark.parametrize("lot", range(5))
def test_of_two_connections_made_at_once_that_of_the_smaller_peer_id_stays(lot: int) -> None:
    """Fifty times in all: one up on each side, no down, and every frame sent after up arrives once."""
    two = [run(meet, seed) for seed in range(lot * ROUNDS // 5, (lot + 1) * ROUNDS // 5)]

    print(f"{sum(two)} of {len(two)} times there were two")
    assert any(two), "they never met half-way"


def of_keys(*, smaller_first: bool) -> list[Ed25519PrivateKey]:
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    return sorted(keys, key=lambda key: peer_id(public_of(key)), reverse=not smaller_first)


@pytest.mark.parametrize("is_smaller", [True, False])
def test_a_restarted_peer_replaces_its_former_self_whose_connection_nobody_has_closed(*, is_smaller: bool) -> None:
    """Its machine lost power: no FIN was ever sent. The new process has the same key and another life."""

    async def restart() -> Linked:
        mine, its = of_keys(smaller_first=is_smaller)
        a, before = linked(make(key=mine)), linked(make(key=its), life=b"life one")
        async with grid(a), wire_to(a.node) as wire, grid(before):
            before.links.connect(a.id, [str(each) for each in wire.addresses])
            await happens(lambda: a.links.is_up(before.id))
            wire.cut()
            await before.kill()
            after = linked(make(key=its), life=b"life two")
            async with grid(after):
                after.links.connect(a.id, a.addresses)
                await happens(lambda: a.told.words == ["up", "down", "up"] and after.links.is_up(a.id))
                a.say(after, "welcome back")
                after.say(a, "thank you")
                await happens(lambda: after.told.bodies == ["welcome back"] and a.told.bodies == ["thank you"])
                await happens(lambda: len(a.node.connections()) == 1)
                assert after.told.words == ["up"]
                assert a.told.words == ["up", "down", "up"]
        return a

    a = run(restart)

    assert a.told.events[1][2:] == (False, "it has restarted")


@pytest.mark.parametrize("is_smaller", [True, False])
def test_a_connection_that_answers_nothing_makes_room_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch, *, is_smaller: bool
) -> None:
    """A router has forgotten it, and only one side has noticed."""
    monkeypatch.setattr(links, "ANSWER_S", 0.5)

    async def forget() -> tuple[Linked, Linked]:
        mine, its = of_keys(smaller_first=is_smaller)
        a, b = linked(make(key=mine)), linked(make(key=its))
        async with grid(a, b), wire_to(a.node) as wire:
            b.links.connect(a.id, [str(each) for each in wire.addresses])
            await happens(lambda: a.links.is_up(b.id) and b.links.is_up(a.id))
            wire.cut()
            (connection,) = b.node.connections()
            await connection.muxed_conn.secured_conn.close()
            b.links.connect(a.id, a.addresses)
            await happens(lambda: a.told.words == b.told.words == ["up", "down", "up"])
            a.say(b, "there you are")
            await happens(lambda: b.told.bodies == ["there you are"])
            await happens(lambda: len(a.node.connections()) == len(b.node.connections()) == 1)
        return a, b

    a, b = run(forget)

    assert a.told.events[1][2:] == (False, "it did not answer")
    assert a.told.words == b.told.words == ["up", "down", "up"]


def test_a_second_connection_of_the_same_side_is_given_up_while_the_first_one_answers() -> None:
    async def again() -> None:
        a, b = sorted((linked(), linked()), key=lambda one: one.id)
        async with grid(a, b):
            for one, other in ((a, b), (b, a)):
                one.links.connect(other.id, other.addresses)
                await happens(lambda: a.links.is_up(b.id) and b.links.is_up(a.id))
                first = a.links._used(b.id)
                network = one.node.host.get_network()
                assert await network._dial_addr_single_attempt(other.node.addresses[0], other.node.host.get_id())
                a.say(b, one.id)
                await happens(lambda one=one: one.id in b.told.bodies)  # type: ignore[misc]
                await happens(lambda: len(a.node.connections()) == len(b.node.connections()) == 1)
                assert a.links._used(b.id) is first
            assert a.told.words == b.told.words == ["up"]

    run(again)


def test_what_was_sent_in_bulk_arrives_although_its_reader_is_slow_and_its_connection_is_given_up() -> None:
    """The goodbye overtakes bulk; who took it for the end would hang up on frames that have come and were not read."""

    async def linger() -> list[int]:
        a, b = sorted((linked(), linked()), key=lambda one: one.id)
        slow = linked(b.node, frames_per_s=20, frames_burst=2)  # the PINGs of bulk do not count: they would be a flood
        async with grid(a, slow):
            slow.links.connect(a.id, a.addresses)
            await happens(lambda: a.links.is_up(b.id) and slow.links.is_up(a.id))
            for number in range(20):
                a.say(slow, [number, bytes(70_000)])
            await a.node.host.get_network()._dial_addr_single_attempt(slow.node.addresses[0], b.node.host.get_id())
            await happens(lambda: len(slow.told.bodies) == 20)
            await happens(lambda: len(a.node.connections()) == len(slow.node.connections()) == 1)
            assert a.links._used(b.id).dialler == a.id  # type: ignore[union-attr]
            assert a.told.words == slow.told.words == ["up"]
        return [number for number, _ in slow.told.bodies]

    assert run(linger) == list(range(20))
