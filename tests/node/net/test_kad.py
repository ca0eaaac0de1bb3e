"""Our DHT beside py-libp2p's own KadDHT, over real hosts.

Theirs ignores the prefix that it is given, so ours serves `/ipfs/kad/1.0.0` here.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import Validator
from libp2p.tools.anyio_service import background_trio_service

from p2pgrid.core.chains import public_of
from p2pgrid.dht import events as e
from p2pgrid.dht.machine import Options
from p2pgrid.dht.records import GRID_NAMESPACE, Open, Reason, RecordOptions, Signed, own_key
from p2pgrid.dht.wire import Contact, Kind, Message, Splitter, decode, framed, varint
from p2pgrid.node.net import kad as kad_module
from p2pgrid.node.net.dial import dial_any
from p2pgrid.node.net.host import plain_host, running
from p2pgrid.node.net.kad import Kad
from tests.node.net.grids import LOOPBACK, OURS, PATIENT, run, until
from tests.node.net.judged import judged, of_one_grid
from tests.node.net.linked import both_up, happens

pytestmark = pytest.mark.slow

CHUNK = create_new_key_pair(bytes(32)).public_key.to_bytes()


class AnyValue(Validator):  # type: ignore[misc]  # libp2p is Any here
    """What ours does with `Open`."""

    def validate(self, key: str, value: bytes) -> None:
        return

    def select(self, key: str, values: list[bytes]) -> int:
        return 0


@dataclass
class Peer:
    host: IHost

    @property
    def contact(self) -> Contact:
        return Contact(
            self.host.get_id().to_bytes(), tuple(each.to_bytes() for each in self.host.get_transport_addrs())
        )

    async def knows(self, other: Peer) -> None:
        """Connect, as a stock libp2p peer would after it was told an address."""
        id_, addresses = other.host.get_id(), other.host.get_transport_addrs()
        self.host.get_peerstore().add_addrs(id_, addresses, 7200)
        await dial_any(self.host, id_, addresses)


@dataclass
class Ours(Peer):
    kad: Kad


@dataclass
class Theirs(Peer):
    dht: KadDHT

    async def knows(self, other: Peer) -> None:
        await super().knows(other)
        await self.dht.routing_table.add_peer(
            PeerInfo(other.host.get_id(), other.host.get_transport_addrs()), skip_server_mode_check=True
        )


@asynccontextmanager
async def ours(number: int, options: Options = PATIENT) -> AsyncIterator[Ours]:
    host = plain_host(Ed25519PrivateKey.generate())
    kad = Kad(host, {"": Open()}, random.Random(number), options, str(PROTOCOL_ID))
    async with running(host, LOOPBACK), trio.open_nursery() as nursery:
        await nursery.start(kad.serve)
        yield Ours(host, kad)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def theirs() -> AsyncIterator[Theirs]:
    host = plain_host(Ed25519PrivateKey.generate())
    dht = KadDHT(host, DHTMode.SERVER)
    dht.register_validator("test", AnyValue())
    async with running(host, LOOPBACK), background_trio_service(dht):
        yield Theirs(host, dht)


def test_theirs_find_peers_values_and_providers_through_ours() -> None:
    """Two of theirs know nobody but one of ours."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            middle = await stack.enter_async_context(ours(1))
            one, other = [await stack.enter_async_context(theirs()) for _ in range(2)]
            for each in (one, other):
                await each.knows(middle)
                await each.dht.peer_routing.find_closest_peers_network(each.host.get_id().to_bytes())
            await until(lambda: len(middle.kad.machine.table) == 2)

            found = await one.dht.find_peer(other.host.get_id())
            assert found is not None
            where = {str(each).split("/p2p/")[0] for each in found.addrs}
            assert set(map(str, other.host.get_transport_addrs())) <= where

            await one.dht.put_value("/test/a", b"from theirs")
            assert middle.kad.machine.values.get(b"/test/a", trio.current_time()) is not None
            other.dht.value_store.store.clear()
            assert await other.dht.get_value("/test/a") == b"from theirs"

            assert await one.dht.provide(CHUNK.hex())
            other.dht.provider_store.providers.clear()
            providers = await other.dht.find_providers(CHUNK.hex())
            assert {each.peer_id for each in providers} == {one.host.get_id()}  # theirs names it once per answer
            assert [each.id for each in middle.kad.machine.providers.get(CHUNK, trio.current_time())] == [
                one.contact.id
            ]
            assert not middle.kad.machine.refused

    run(story)


def test_ours_find_peers_values_and_providers_through_theirs() -> None:
    """Two of ours know nobody but one of theirs."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            middle = await stack.enter_async_context(theirs())
            one, other = [await stack.enter_async_context(ours(number)) for number in (1, 2)]
            for each in (one, other):
                await middle.knows(each)
                each.kad.tell(e.MemberUp(middle.contact))
                await each.kad.do(e.Find, each.contact.id)

            found = await one.kad.do(e.Find, other.contact.id)
            assert found.peer is not None
            assert found.peer.id == other.contact.id

            assert (await one.kad.do(e.Put, b"/test/a", b"from ours")).copies >= 2
            assert middle.dht.value_store.get(b"/test/a").value == b"from ours"
            assert await other.kad.do(e.Get, b"/test/a") == e.Value(b"from ours")

            assert (await one.kad.do(e.Provide, CHUNK)).copies >= 2
            result = await other.kad.do(e.FindProviders, CHUNK)
            assert [each.id for each in result.providers] == [one.contact.id]
            assert middle.dht.provider_store.get_providers(CHUNK)

    run(story)


def test_what_theirs_put_ours_get_and_the_other_way_round() -> None:
    """One of each: values and providers cross in both directions."""

    async def story() -> None:
        async with ours(1) as mine, theirs() as their:
            await their.knows(mine)
            mine.kad.tell(e.MemberUp(their.contact))
            await their.dht.put_value("/test/theirs", b"1")
            await mine.kad.do(e.Put, b"/test/ours", b"2")
            await their.dht.provide(CHUNK.hex())

            assert await mine.kad.do(e.Get, b"/test/theirs") == e.Value(b"1")
            assert await their.dht.get_value("/test/ours") == b"2"
            result = await mine.kad.do(e.FindProviders, CHUNK)
            assert [each.id for each in result.providers] == [their.contact.id]

    run(story)


@pytest.mark.parametrize("garbage", [b"\x02\x08\x09", varint(1 << 20), b"\xff" * 5, b"\x04\x08\x00\x12\x00"])
def test_garbage_on_a_stream_resets_it_and_is_counted(garbage: bytes) -> None:
    """An unknown type, a megabyte announced, a length without end, a put of nothing; the next stream is served."""

    async def story() -> None:
        async with ours(1) as one, ours(2) as other:
            await other.knows(one)
            stream = await other.host.new_stream(one.host.get_id(), [PROTOCOL_ID])
            await stream.write(garbage)
            with pytest.raises(StreamError):
                await stream.read(10)

            other.kad.tell(e.MemberUp(one.contact))
            found = await other.kad.do(e.Find, one.contact.id)
            assert found.peer is not None
            assert one.kad.machine.refused == {"malformed": 1}
            assert len(one.kad.machine.values) == 0

    run(story)


def test_a_provider_record_that_is_refused_is_not_counted_as_a_copy() -> None:
    """The other has room for one: its reset of the second is a no, not a peer that hung up."""

    async def story() -> None:
        small = Options(records=RecordOptions(member_providers_max=1))
        async with ours(1) as one, ours(2, small) as other:
            one.kad.tell(e.MemberUp(other.contact))

            assert await one.kad.do(e.Provide, b"first") == e.Stored(2)
            assert await one.kad.do(e.Provide, b"second") == e.Stored(1)
            assert other.kad.machine.refused == {"too many from one member": 1}

    run(story)


@pytest.mark.parametrize("answered", [{Kind.FIND_NODE}, {Kind.FIND_NODE, Kind.PING}])
def test_a_peer_that_says_nothing_to_provider_records_has_taken_them(answered: set[Kind]) -> None:
    """It hangs up, or, as js-libp2p does, answers what comes next on the stream. To a value it must say yes."""

    async def story() -> None:
        async def mute(stream: INetStream) -> None:
            splitter = Splitter()
            while data := await stream.read(100_000):
                for each in map(decode, splitter.feed(data)):
                    if each.kind in answered:
                        await stream.write(framed(Message(each.kind)))
                    elif answered == {Kind.FIND_NODE}:
                        return

        host = plain_host(Ed25519PrivateKey.generate())
        host.set_stream_handler(PROTOCOL_ID, mute)
        async with ours(1) as one, running(host, LOOPBACK):
            one.kad.tell(e.MemberUp(Peer(host).contact))

            assert await one.kad.do(e.Provide, b"x") == e.Stored(2)
            assert await one.kad.do(e.Put, b"x", b"v") == e.Stored(1)

    run(story)


def test_a_peer_that_is_not_there_is_given_up() -> None:
    """The command ends by the machine's own timers, and the port that nobody listens on costs nothing more."""

    async def story() -> None:
        async with ours(1, Options()) as one:
            one.kad.tell(e.MemberUp(Contact(one.contact.id[:-1] + b"x", (LOOPBACK[0].to_bytes(),))))

            assert await one.kad.do(e.Get, b"/test/a") == e.Value(None)

    run(story)


def test_beside_links_and_between_members_only() -> None:
    """Two that are connected, and a third that only one of them knows: a put at one is got at the third."""

    async def story() -> None:
        a, b, c = nodes = [judged(number) for number in range(3)]
        async with of_one_grid(*nodes):
            await both_up(a.one, b.one)
            a.knows(b)
            b.knows(a)
            b.knows(c)
            c.knows(b)
            key = own_key(public_of(a.key), "where")
            assert (await a.kad.do(e.Put, key, b"here")).copies == 3
            assert await c.kad.do(e.Get, key) == e.Value(b"here")
            assert await c.kad.do(e.Put, key, b"not mine", renew=False) == e.Stored(0)
            assert a.one.told.words.count("up") == 2, "c was met for the question; b is as connected as before"
            # Two that ask each other at once dial each other at once; the links see to it that one connection stays.
            await happens(lambda: [len(each.one.node.connections()) for each in nodes] == [2, 2, 2])
            assert b.kad.stats()["values"] == 1

    run(story)


def test_in_another_grid_nothing_of_the_old_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way ends, connections that questions made are given back, and the new life works."""
    monkeypatch.setattr(kad_module, "LINGER_S", 0.1)

    async def story() -> None:
        a, b = nodes = [judged(number) for number in range(2)]
        async with of_one_grid(*nodes), AsyncExitStack() as stack, trio.open_nursery() as nursery:
            a.knows(b)
            found = await a.kad.do(e.Find, b.one.node.host.get_id().to_bytes())
            assert found.peer is not None
            await happens(lambda: a.released == [b.one.id])
            key = own_key(public_of(a.key), "where")
            assert (await a.kad.do(e.Put, key, b"here")).copies == 2

            results: list[object] = []

            async def ask() -> None:
                results.append(await a.kad.do(e.Get, b"/p2pgrid/nowhere"))

            mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            nobody = str(ID(a.one.node.host.get_id().to_bytes()[:-1] + b"x"))
            a.kad.member_up(nobody, [f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}"])
            nursery.start_soon(ask)
            await happens(lambda: len(a.kad._commands) == 1)
            a.kad.begin_anew({})
            await happens(lambda: results == [e.Refused(Reason.EXPIRED)])
            await happens(lambda: not any(a.kad.stats().values()))
            assert await a.kad.do(e.Put, key, b"here") == e.Refused(Reason.NAMESPACE)
            a.kad.begin_anew({GRID_NAMESPACE: Signed(public_of(OURS), lambda _public: True, a.key)})
            a.knows(b)
            assert (await a.kad.do(e.Put, key, b"there")).copies == 2

    run(story)
