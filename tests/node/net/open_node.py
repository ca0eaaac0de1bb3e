"""A node whose DHT strangers may ask, as the daemon has it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.core.chains import public_of
from p2pgrid.core.wire import frame
from p2pgrid.dht import events as e
from p2pgrid.dht.records import GRID_NAMESPACE, Namespace, Signed, own_key
from p2pgrid.dht.wire import PROTOCOL, Message, Splitter, decode, framed
from p2pgrid.node.addresses import listen
from p2pgrid.node.net.control import BULK, CONTROL
from p2pgrid.node.net.host import plain_host
from p2pgrid.node.net.station import Station, build
from tests.node.net.grids import OURS, admit, issue
from tests.node.net.linked import Told

ELSE = (
    CONTROL, BULK, "/ipfs/id/push/1.0.0", "/ipfs/kad/1.0.0", "/p2pgrid/anything/1.0.0",
    "/libp2p/circuit/relay/0.2.0/hop", "/meshsub/1.1.0", "/libp2p/autonat/1.0.0", "/libp2p/dcutr",
)  # fmt: skip
"""Protocols that a stranger must not get."""


async def ask(stranger: IHost, peer: ID, message: Message) -> Message | None:
    """Return the answer; None: the stream was reset."""
    stream = await stranger.new_stream(peer, [TProtocol(PROTOCOL)])
    try:
        await stream.write(framed(message))
        splitter = Splitter()
        while True:
            for answer in splitter.feed(await stream.read(65536)):
                return decode(answer)
    except Exception:  # noqa: BLE001 - many types
        return None
    finally:
        await stream.close()


@dataclass
class Owner(Told):
    """What a network is to its station."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    members: dict[str, Any] = field(default_factory=dict)

    def admit(self, certificate: bytes, public: bytes, *, dialler: bool) -> int:
        return admit(certificate, public, dialler=dialler)

    def hello(self) -> list[bytes]:
        return [frame(1, {"secret": "this is for members"})]

    def log(self, text: str) -> None: ...
    def turned_away(self, address: str) -> None: ...
    def release(self, peer: str) -> None: ...

    def has_tasks_of_ours(self, peer: str) -> bool:
        return False

    def grid_time_s(self) -> float:
        return 1.8e9

    def namespaces(self) -> dict[str, Namespace]:
        return {GRID_NAMESPACE: Signed(public_of(OURS), lambda _public: True, self.key)}


@dataclass
class OpenNode:
    owner: Owner
    station: Station
    host: IHost
    addresses: list[Multiaddr]

    @property
    def key(self) -> bytes:
        return own_key(public_of(self.owner.key), "where")


@asynccontextmanager
async def open_node(tmp_path: Path, *, open_dht: bool = True) -> AsyncIterator[OpenNode]:
    """A station with one value in its DHT, as the daemon has it."""
    owner = Owner()
    public = public_of(owner.key)
    listening = listen(("/ip4/127.0.0.1/tcp/0",), tmp_path)
    me = str(plain_host(owner.key).get_id())
    station = build(me, owner.key, issue(OURS, public), owner, listening.sockets, open_dht=open_dht)
    async with station.running as host, trio.open_nursery() as nursery:
        await nursery.start(station.links.serve)
        await nursery.start(station.kad.serve)
        found = OpenNode(owner, station, host, list(map(Multiaddr, listening.addresses)))
        assert await station.kad.do(e.Put, found.key, b"here") == e.Stored(1)
        yield found
        nursery.cancel_scope.cancel()
