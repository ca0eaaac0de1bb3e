"""Host, membership and links of a node, put together: the one thing that `node.network` asks of this folder."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost
from multiaddr import Multiaddr

from p2pgrid.core.bounds import largest_frame
from p2pgrid.dht.records import Namespace
from p2pgrid.node.net.control import LinkOptions
from p2pgrid.node.net.door import Door
from p2pgrid.node.net.host import make_host, running, strangers_host
from p2pgrid.node.net.kad import Kad
from p2pgrid.node.net.links import Links, Listener
from p2pgrid.node.net.membership import Admit, Membership


class Owner(Listener, Protocol):
    """Whose station it is."""

    rng: random.Random

    @property
    def members(self) -> Mapping[str, Any]:
        """What admission says of those who are connected by now; `roles` may be others than at the handshake."""

    @property
    def admit(self) -> Admit: ...
    def has_tasks_of_ours(self, peer: str) -> bool: ...
    def hello(self) -> list[bytes]: ...
    def log(self, text: str) -> None: ...
    def turned_away(self, address: str) -> None: ...
    def grid_time_s(self) -> float: ...
    def namespaces(self) -> Mapping[str, Namespace]: ...
    def release(self, peer: str) -> None: ...


class Station(NamedTuple):
    """What a network is made of; `running` is to be entered before `links.serve` and `kad.serve`."""

    membership: Membership
    door: Door
    links: Links
    kad: Kad
    running: AbstractAsyncContextManager[Any]


def build(
    me: str,
    key: Ed25519PrivateKey,
    certificate: bytes,
    owner: Owner,
    opened: Mapping[str, socket.socket],
    *,
    open_dht: bool = False,
) -> Station:
    """Return the parts; nothing runs yet. `opened` are the sockets that listen, by multiaddr."""
    membership = Membership(certificate, owner.admit)
    door = Door(on_failed=owner.turned_away)
    strangers = strangers_host(key, membership) if open_dht else None
    host = make_host(key, membership, door, opened=opened, strangers=strangers)
    options = LinkOptions(
        frame_max=lambda peer, admitted: largest_frame(
            owner.members.get(peer, admitted).roles, was_given_tasks=owner.has_tasks_of_ours(peer)
        )
    )
    links = Links(me, host, membership, owner, owner.hello, owner.log, owner.rng, options)
    kad = Kad(host, owner.namespaces(), owner.rng, wall=owner.grid_time_s, release=owner.release)
    if strangers is not None:
        kad.answer_strangers(strangers)
    return Station(membership, door, links, kad, _running(host, [Multiaddr(address) for address in opened], strangers))


@asynccontextmanager
async def _running(host: IHost, addresses: list[Multiaddr], strangers: IHost | None) -> AsyncIterator[IHost]:
    async with AsyncExitStack() as stack:
        if strangers is not None:
            await stack.enter_async_context(running(strangers, []))
        yield await stack.enter_async_context(running(host, addresses))
