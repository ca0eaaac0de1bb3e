"""`--open-dht`: strangers ask the DHT of a node under plain `/noise`, and come to nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.custom_types import TProtocol

from p2pgrid.core.chains import public_of
from p2pgrid.dht import events as e
from p2pgrid.dht.records import Reason, own_key
from p2pgrid.dht.wire import PROTOCOL, Contact, Kind, Message, Record
from p2pgrid.node.net import entrance
from p2pgrid.node.net.control import BULK, CONTROL
from p2pgrid.node.net.dial import NoConnection, dial_any
from p2pgrid.node.net.host import plain_host, running
from tests.node.net.grids import LOOPBACK, run, until
from tests.node.net.open_node import ELSE, ask, open_node

pytestmark = pytest.mark.slow


def test_a_stranger_asks_and_leaves_nothing(tmp_path: Path) -> None:
    """It finds peers and values. What it wants to leave is refused, a member's value too; it is never asked itself."""

    async def story() -> None:
        stranger = plain_host(Ed25519PrivateKey.generate())
        asked: list[Any] = []
        stranger.set_stream_handler(TProtocol(PROTOCOL), asked.append)
        async with open_node(tmp_path) as ours, running(stranger, LOOPBACK):
            await dial_any(stranger, ours.host.get_id(), ours.addresses)
            me, kad = stranger.get_id().to_bytes(), ours.station.kad

            found = await ask(stranger, ours.host.get_id(), Message(Kind.FIND_NODE, ours.host.get_id().to_bytes()))
            assert found is not None
            assert [each.id for each in found.closer] == [ours.host.get_id().to_bytes()]
            got = await ask(stranger, ours.host.get_id(), Message(Kind.GET_VALUE, ours.key))
            assert got is not None
            assert got.record is not None
            assert (await ask(stranger, ours.host.get_id(), Message(Kind.PING))) == Message(Kind.PING)
            providers = await ask(stranger, ours.host.get_id(), Message(Kind.GET_PROVIDERS, b"x" * 34))
            assert providers is not None
            assert providers.providers == ()

            again = Message(Kind.PUT_VALUE, ours.key, Record(ours.key, got.record.value))
            assert await ask(stranger, ours.host.get_id(), again) is None
            provided = Message(Kind.ADD_PROVIDER, b"x" * 34, providers=(Contact(me, (LOOPBACK[0].to_bytes(),)),))
            assert await ask(stranger, ours.host.get_id(), provided) is None
            assert kad.machine.refused == {Reason.STRANGER: 2}
            assert (len(kad.machine.values), len(kad.machine.providers), len(kad.machine.table)) == (1, 0, 0)
            assert not asked
            assert ours.owner.words == []

    run(story)


@pytest.mark.parametrize("is_members_key", [False, True])
def test_a_stranger_comes_to_nothing_else(tmp_path: Path, *, is_members_key: bool) -> None:
    """Every other protocol is refused; no stream is opened towards it, no link made, also if it has a member's key."""

    async def story() -> None:
        key = Ed25519PrivateKey.generate()
        stranger = plain_host(key)
        came: list[str] = []

        async def note(name: str, _stream: Any) -> None:
            came.append(name)

        for name in (CONTROL, BULK):
            stranger.set_stream_handler(TProtocol(name), partial(note, name))
        async with open_node(tmp_path) as ours, running(stranger, LOOPBACK):
            peer = str(stranger.get_id())
            if is_members_key:  # the machine wants a connection with it; only a member's will do
                ours.station.links.connect(peer, list(map(str, stranger.get_transport_addrs())))
            connection = await dial_any(stranger, ours.host.get_id(), ours.addresses)
            for name in ELSE:
                with pytest.raises(Exception, match=r".*"):
                    await stranger.new_stream(ours.host.get_id(), [TProtocol(name)])
            assert await ask(stranger, ours.host.get_id(), Message(Kind.PING)) == Message(Kind.PING)
            assert not connection.is_closed
            assert ours.host.get_network().get_connections() == []
            assert ours.station.links.peers() == []
            assert ours.owner.events == []
            assert came == []
            if is_members_key:
                with pytest.raises(NoConnection):
                    await dial_any(ours.host, stranger.get_id(), stranger.get_transport_addrs())
                found = await ours.station.kad.do(e.Find, stranger.get_id().to_bytes())
                assert found.peer is None

    run(story)


def test_without_the_flag_a_stranger_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        stranger = plain_host(Ed25519PrivateKey.generate())
        async with open_node(tmp_path, open_dht=False) as ours, running(stranger, LOOPBACK):
            with pytest.raises(NoConnection):
                await dial_any(stranger, ours.host.get_id(), ours.addresses)

    run(story)


def test_members_connect_as_ever(tmp_path: Path) -> None:
    """Two open nodes and members of one grid: they speak the members' protocol with each other, and put and get."""

    async def story() -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        async with open_node(tmp_path / "a") as one, open_node(tmp_path / "b") as other:
            connection = await dial_any(one.host, other.host.get_id(), other.addresses)
            assert one.station.membership.member_of(connection)
            one.station.kad.member_up(str(other.host.get_id()), list(map(str, other.addresses)))
            key = own_key(public_of(one.owner.key), "x")
            assert await one.station.kad.do(e.Put, key, b"y") == e.Stored(2)
            assert len(other.host.get_network().get_connections()) == 1

    run(story)


def test_a_stranger_does_not_stay_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is for others after a while."""
    monkeypatch.setattr(entrance, "STRANGER_S", 0.3)

    async def story() -> None:
        stranger = plain_host(Ed25519PrivateKey.generate())
        async with open_node(tmp_path) as ours, running(stranger, LOOPBACK):
            connection = await dial_any(stranger, ours.host.get_id(), ours.addresses)
            await until(lambda: connection.is_closed)

    run(story)
