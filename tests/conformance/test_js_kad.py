"""Our DHT beside js-libp2p's own kad-dht, in processes of its own: the wire format and the customs of another libp2p.

What is put and provided is looked for by somebody who came when its author was gone, so that whoever stands between
must have kept it.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.dht import events as e
from p2pgrid.dht.records import GRID_NAMESPACE, Open, RecordOptions
from p2pgrid.dht.wire import PROTOCOL, Contact
from p2pgrid.node.net.host import plain_host, running
from p2pgrid.node.net.kad import Kad
from tests.node.net.grids import LOOPBACK, PATIENT, run, until
from tests.node.net.open_node import open_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the first one installs

KEY, VALUE = b"/test/a", b"\x00\xff value \x80"
CHUNK = b"\x12\x20" + sha256(b"chunk").digest()
"""js provides content ids; what it sends of one is the multihash, and it takes no other than sha256."""


@dataclass
class Ours:
    host: IHost
    kad: Kad

    @property
    def id(self) -> str:
        return str(self.host.get_id())

    @property
    def address(self) -> str:
        return str(self.host.get_addrs()[0])

    @property
    def contact(self) -> Contact:
        return contact(self.address)

    def knows(self, address: str) -> None:
        self.kad.tell(e.MemberUp(contact(address)))

    async def is_met_by(self, other: Js) -> None:
        """Let js connect and walk, once it has said where it listens: it could ask before that."""
        await other.do("connect", address=self.address)
        peer, machine = contact(other.address), self.kad.machine
        await until(lambda: set(self.kad._contact(ID(peer.id)).addresses) == set(peer.addresses), 8)
        await other.do("walk")
        await until(lambda: machine.table.entry(peer.id) is not None, 8)


@dataclass
class Js:
    """The other end of js/peer.mjs."""

    process: trio.Process
    address: str = ""
    _rest: bytes = b""

    @property
    def id(self) -> str:
        return self.address.split("/p2p/")[1]

    async def hear(self) -> Any:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            data = await self.process.stdout.receive_some()
            assert data, "the js peer has ended; what it said is among what was printed"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    async def do(self, what: str, **words: str | int | bytes) -> Any:
        assert self.process.stdin is not None
        shown = {name: word.hex() if isinstance(word, bytes) else word for name, word in words.items()}
        await self.process.stdin.send_all(json.dumps({"do": what, **shown}).encode() + b"\n")
        return await self.hear()


@asynccontextmanager
async def ours(number: int) -> AsyncIterator[Ours]:
    host = plain_host(Ed25519PrivateKey.generate())
    kad = Kad(host, {"": Open()}, random.Random(number), PATIENT)
    async with running(host, LOOPBACK), trio.open_nursery() as nursery:
        await nursery.start(kad.serve)
        yield Ours(host, kad)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def js_peer(js: Path) -> AsyncIterator[Js]:
    """Run a peer; to leave is to end its process, whatever it is at."""
    words = ["node", "peer.mjs", PROTOCOL]
    async with trio.open_nursery() as nursery:
        peer = Js(await nursery.start(partial(trio.run_process, words, cwd=js, stdin=PIPE, stdout=PIPE, check=False)))
        peer.address = await peer.hear()
        yield peer
        nursery.cancel_scope.cancel()


def contact(address: str) -> Contact:
    where, id_ = address.split("/p2p/")
    return Contact(ID.from_string(id_).to_bytes(), (Multiaddr(where).to_bytes(),))


def places(addresses: list[str]) -> set[str]:
    return {each.split("/p2p/")[0] for each in addresses}


def test_theirs_find_peers_values_and_providers_through_ours(js: Path) -> None:
    """Two of theirs, and one that comes later, know nobody but one of ours."""

    async def story() -> None:
        async with ours(1) as middle, js_peer(js) as other:
            await middle.is_met_by(other)
            async with js_peer(js) as one:
                await middle.is_met_by(one)

                found = await other.do("find", id=one.id)
                assert found["id"] == one.id
                assert places([one.address]) <= places(found["addresses"])

                assert await one.do("put", key=KEY, value=VALUE) >= 1
                kept = middle.kad.machine.values.get(KEY, trio.current_time())
                assert kept is not None
                assert kept[0] == VALUE
                await one.do("provide", key=CHUNK)  # it does not wait to hear
                await until(lambda: len(middle.kad.machine.providers) == 1, 8)

            async with js_peer(js) as late:
                await middle.is_met_by(late)
                assert bytes.fromhex(await late.do("get", key=KEY)) == VALUE
                providers = await late.do("providers", key=CHUNK)
                assert {each["id"] for each in providers} == {one.id}
                assert places([one.address]) <= places(providers[0]["addresses"])
                assert (await late.do("find", id=other.id))["id"] == other.id
                assert await late.do("get", key=b"/test/nowhere") is None
            assert not middle.kad.machine.refused

    run(story)


def test_ours_find_peers_values_and_providers_through_theirs(js: Path) -> None:
    """Two of ours, and one that comes later, know nobody but one of theirs."""

    async def story() -> None:
        async with js_peer(js) as middle, ours(1) as other:
            other.knows(middle.address)
            async with ours(2) as one:
                one.knows(middle.address)
                for each in (one, other):
                    await each.kad.do(e.Find, each.contact.id)
                await middle.do("met", count=2)

                found = await other.kad.do(e.Find, one.contact.id)
                assert found.peer is not None
                assert found.peer.id == one.contact.id
                assert set(one.contact.addresses) <= set(found.peer.addresses)

                assert (await one.kad.do(e.Put, KEY, VALUE)).copies == 3
                assert (await one.kad.do(e.Provide, CHUNK)).copies == 3
                gone = one.contact

            # `other` has kept what it was given; now it is gone as well.
            async with ours(3) as late:
                late.knows(middle.address)
                assert await late.kad.do(e.Get, KEY) == e.Value(VALUE)
                result = await late.kad.do(e.FindProviders, CHUNK)
                assert [each.id for each in result.providers] == [gone.id]
                assert set(gone.addresses) <= set(result.providers[0].addresses)
                assert await late.kad.do(e.Get, b"/test/nowhere") == e.Value(None)

    run(story)


def test_what_theirs_put_ours_get_and_the_other_way_round(js: Path) -> None:
    """One of each: values and providers cross in both directions, and each finds the other by its id."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            mine, their = await stack.enter_async_context(ours(1)), await stack.enter_async_context(js_peer(js))
            await mine.is_met_by(their)
            mine.knows(their.address)
            assert await their.do("put", key=b"/test/theirs", value=b"1") == 1
            assert await mine.kad.do(e.Put, b"/test/ours", b"2") == e.Stored(2)
            await their.do("provide", key=CHUNK)

            assert await mine.kad.do(e.Get, b"/test/theirs") == e.Value(b"1")
            assert bytes.fromhex(await their.do("get", key=b"/test/ours")) == b"2"
            await until(lambda: len(mine.kad.machine.providers) == 1, 8)
            result = await mine.kad.do(e.FindProviders, CHUNK)
            assert [str(ID(each.id)) for each in result.providers] == [their.id]
            assert (await their.do("find", id=mine.id))["id"] == mine.id
            found = await mine.kad.do(e.Find, contact(their.address).id)
            assert str(ID(found.peer.id)) == their.id

    run(story)


def test_what_one_refuses_is_no_success_for_the_other(js: Path) -> None:
    """Ours a value beyond the limit, theirs a provider record of what is no content id: a stream is reset, no more."""

    async def story() -> None:
        async with ours(1) as mine, js_peer(js) as their:
            await mine.is_met_by(their)
            mine.knows(their.address)
            large = bytes(RecordOptions().value_max + 1)
            assert await their.do("put", key=KEY, value=large) == 0
            assert len(mine.kad.machine.values) == 0
            assert mine.kad.machine.refused == {"too large": 1}
            assert await mine.kad.do(e.Provide, b"no multihash") == e.Stored(1)

            assert await their.do("put", key=KEY, value=VALUE) == 1
            assert await mine.kad.do(e.Provide, CHUNK) == e.Stored(2)

    run(story)


def test_a_node_with_an_open_dht_answers_theirs(js: Path, tmp_path: Path) -> None:
    """What a member has put they find; what they want to put there has no member's signature."""

    async def story() -> None:
        async with open_node(tmp_path) as ours, js_peer(js) as their:
            await their.do("connect", address=f"{ours.addresses[0]}/p2p/{ours.host.get_id()}")
            assert await their.do("find", id=str(ours.host.get_id())) is not None
            value = bytes.fromhex(await their.do("get", key=ours.key))
            assert (
                ours.owner.namespaces()[GRID_NAMESPACE].check(ours.key, value, ours.owner.grid_time_s()).payload
                == b"here"
            )
            assert await their.do("put", key=KEY, value=VALUE) == 0
            assert len(ours.station.kad.machine.values) == 1
            assert len(ours.station.kad.machine.table) == 0

    run(story)
