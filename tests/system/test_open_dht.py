"""A node process with `--open-dht`: a stranger under plain `/noise` asks its DHT, and comes to nothing else."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID

from p2pgrid.core import messages as m
from p2pgrid.core.wire import frame
from p2pgrid.dht.records import own_key
from p2pgrid.dht.wire import PROTOCOL, Contact, Kind, Message, Record
from p2pgrid.node.net.control import BULK, CONTROL
from p2pgrid.node.net.dial import NoConnection, dial_any
from p2pgrid.node.net.host import plain_host, running
from tests.node.net.grids import LOOPBACK, run
from tests.node.net.open_node import ELSE, ask
from tests.system.grids import Node, Nodes, wait
from tests.system.strangers import addresses_of
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

GARBAGE = 20


async def everything_else(node: Node) -> None:
    """Be a stranger that tries all there is: it gets answers of the DHT only."""
    peer = ID.from_base58(node.id)
    stranger = plain_host(Ed25519PrivateKey.generate())
    came: list[str] = []

    async def note(name: str, _stream: Any) -> None:
        came.append(name)

    for name in (CONTROL, BULK, PROTOCOL):
        stranger.set_stream_handler(TProtocol(name), partial(note, name))
    async with running(stranger, LOOPBACK):
        connection = await dial_any(stranger, peer, addresses_of(node))
        me = stranger.get_id().to_bytes()

        # What it may: ask.
        assert await ask(stranger, peer, Message(Kind.PING)) == Message(Kind.PING)
        found = await ask(stranger, peer, Message(Kind.FIND_NODE, peer.to_bytes()))
        assert found is not None
        assert peer.to_bytes() in [each.id for each in found.closer]
        nothing = await ask(stranger, peer, Message(Kind.GET_VALUE, own_key(bytes(32), "x")))
        assert nothing is not None
        assert nothing.record is None

        # What it may not: leave something, speak as a member, or say what is no message.
        key = own_key(bytes(32), "x")
        assert await ask(stranger, peer, Message(Kind.PUT_VALUE, key, Record(key, b"mine"))) is None
        where = (Contact(me, (LOOPBACK[0].to_bytes(),)),)
        assert await ask(stranger, peer, Message(Kind.ADD_PROVIDER, b"x" * 34, providers=where)) is None
        for name in ELSE:
            with pytest.raises(Exception, match=r".*"):
                await stranger.new_stream(peer, [TProtocol(name)])
        for _ in range(GARBAGE):
            stream = await stranger.new_stream(peer, [TProtocol(PROTOCOL)])
            await stream.write(frame(m.P_ASK, [1, "jobs", {}]) + os.urandom(500))
            with suppress(StreamError, StreamEOF):
                assert await stream.read(65536) == b"", "garbage was answered"
        assert await ask(stranger, peer, Message(Kind.PING)) == Message(Kind.PING)
        assert not connection.is_closed
        assert came == [], "a stranger was asked something itself"


def test_a_stranger_gets_answers_of_the_dht_and_nothing_else(tmp_path: Path) -> None:
    with Nodes(tmp_path) as nodes:
        node = nodes.node("open", "--open-dht").start()
        other = nodes.node("member").start(node.invite())
        nodes.wait_all_alive()
        run(everything_else, node)

        wait(lambda: node.network()["dht"]["refused"] > GARBAGE, SOON_S, "what was refused is counted")
        dht = node.network()["dht"]
        print(dht)
        assert dht["values"] == 0
        assert dht["providers"] == 0
        assert node.network()["connected"] == 1
        assert node.view() == other.view() == {"open": "alive", "member": "alive"}
        assert "Traceback" not in node.log()
        run(turned_away, other)  # it was not told to be open


async def turned_away(node: Node) -> None:
    stranger = plain_host(Ed25519PrivateKey.generate())
    async with running(stranger, LOOPBACK):
        with pytest.raises(NoConnection):
            await dial_any(stranger, ID.from_base58(node.id), addresses_of(node))
