"""Who is at the port of a real node and should not be: raw sockets, hosts with bad certificates, a member that lies."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.core.chains import ALL_ROLES, below, public_of, sign_link
from p2pgrid.core.member import Card, said
from p2pgrid.node.identity import Identity, open_identity, peer_id
from p2pgrid.node.net import host as net
from p2pgrid.node.net.membership import Membership
from tests.system.grids import Node, wait
from tests.waiting import SOON_S

MULTISTREAM = "/multistream/1.0.0"
CONNECT_S = 60.0


# ---- raw sockets ----------------------------------------------------------------------------------------------------


@dataclass
class Talk:
    """What a node answered to raw bytes, and when it hung up.

    Attributes:
        ended_s: seconds from connecting to the end of the connection; None: it is still open.
    """

    answer: bytes
    ended_s: float | None

    @property
    def lines(self) -> list[str]:
        """Return the lines of multistream that the answer consists of."""
        found, rest = [], self.answer
        while rest:
            size, rest = rest[0], rest[1:]  # no line here is longer than 127
            found.append(rest[:size].decode(errors="replace").rstrip("\n"))
            rest = rest[size:]
        return found


def line(text: str) -> bytes:
    """Return a line as multistream has it."""
    data = text.encode() + b"\n"
    return bytes([len(data)]) + data


def talk(port: int, *parts: bytes, patience_s: float = SOON_S, half: bool = False) -> Talk:
    """Connect, send, and listen until the other side hangs up or `patience_s` are over; `half`: close our half."""
    started = time.monotonic()
    answer = bytearray()
    with socket.create_connection(("127.0.0.1", port), CONNECT_S) as sock:
        try:
            for part in parts:
                sock.sendall(part)
            if half:
                sock.shutdown(socket.SHUT_WR)
            while (left := patience_s - (time.monotonic() - started)) > 0:
                sock.settimeout(left)
                data = sock.recv(65536)
                if not data:
                    return Talk(bytes(answer), time.monotonic() - started)
                answer += data
        except TimeoutError:
            pass
        except OSError:
            return Talk(bytes(answer), time.monotonic() - started)
    return Talk(bytes(answer), None)


# ---- certificates ---------------------------------------------------------------------------------------------------


def identity_in(folder: Path) -> Identity:
    """Return the keys and chains that a node keeps: what its thief has."""
    return open_identity(folder, None, time.time())


def signed_by(admin: Identity, public: bytes, *, roles: int = ALL_ROLES, until: int = 0) -> bytes:
    """Return the chain of a member whom an admin has signed."""
    signed = sign_link(admin.key, admin.grid, "n", public, roles, int(time.time()) - 60, until, b"")
    return below(min(admin.chains, key=len), signed)


class Stranger:
    """A libp2p host of ours that shows whatever certificate it is given, and would let everybody in."""

    def __init__(self, key: Ed25519PrivateKey | None = None, certificate: bytes | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.certificate = certificate or b""
        self.grid = b""
        self.host: IHost
        if certificate is None:
            self.host = net.plain_host(self.key)
            return
        self.host = net.make_host(self.key, Membership(certificate, _anybody))

    @property
    def public(self) -> bytes:
        return public_of(self.key)

    def signed(self, card: Card) -> Card:
        """Return a card with what proves it, in the grid that was set."""
        card = card._replace(chain=self.certificate)
        return card._replace(proof=self.key.sign(said(peer_id(self.public), self.grid, card)))

    async def dial(self, node: Node) -> Any:
        """Connect to a node, or raise `NoConnection`."""
        return await net.dial_any(self.host, ID.from_base58(node.id), addresses_of(node))

    @asynccontextmanager
    async def running(self, listen: Sequence[str] = ()) -> AsyncIterator[Stranger]:
        async with net.running(self.host, [Multiaddr(each) for each in listen]):
            yield self


def addresses_of(node: Node) -> list[Multiaddr]:
    """Return where a node listens, without its PeerId."""
    return [Multiaddr(each.partition("/p2p/")[0]) for each in node.addresses]


def _anybody(certificate: bytes, public: bytes, *, dialler: bool) -> str:
    return "anybody"


# ---- what a node has open -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What a node holds in memory and has open."""

    rss: int
    fds: int
    tasks: int

    @classmethod
    def by(cls, node: Node) -> Held:
        found = node.process()
        return cls(found["rss"], found["fds"], found["tasks"])

    def within(self, before: Held, memory: int) -> bool:
        return self.fds <= before.fds and self.tasks <= before.tasks and self.rss <= before.rss + memory


def settled(node: Node, quiet_s: float = 6.0) -> Held:
    """Return what a node holds once that has not changed for longer than a stranger may be half open."""
    held, since = Held.by(node), time.monotonic()

    def quiet() -> bool:
        nonlocal held, since
        now = Held.by(node)
        if (now.fds, now.tasks) != (held.fds, held.tasks):
            since = time.monotonic()
        held = now
        return time.monotonic() - since > quiet_s

    wait(quiet, 60, "a quiet node")
    return held


def hang_up(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        with suppress(OSError):
            sock.close()
