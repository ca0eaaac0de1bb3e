"""A member with a real certificate that speaks the real protocol, and says on it whatever a test wants."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from p2pgrid.core import messages as m
from p2pgrid.core.member import Card, shown
from p2pgrid.core.wire import FRAME_MAX_CONTROL, Frame, Splitter, frame
from p2pgrid.node.identity import Identity, peer_id
from tests.system.grids import Node
from tests.system.strangers import Stranger, signed_by

CONTROL, BULK = TProtocol("/p2pgrid/control/1.0.0"), TProtocol("/p2pgrid/bulk/1.0.0")
READ_BYTES = 65536
DEADLINE_S = 60.0


class Liar:
    """One connection with a node, by its two control streams.

    Attributes:
        heard: what the node has said, frame by frame.
        ended: set once the node has hung up.
    """

    def __init__(self, stranger: Stranger, node: Node) -> None:
        self.id = peer_id(stranger.public)
        self.heard: list[Frame] = []
        self.ended = trio.Event()
        facts = {"name": "liar", "slots": 0, "resources": {}}
        card = Card(int(time.time()), 0, os.urandom(8), leaf=False, addresses=(), facts=facts, load=())
        self.card = stranger.signed(card)
        self._stranger = stranger
        self._node = node
        self._stream: INetStream
        self._connection: Any
        stranger.host.set_stream_handler(CONTROL, self._read)
        stranger.host.set_stream_handler(BULK, self._read)

    async def connect(self) -> None:
        """Dial, and open a control stream on which nothing is said yet."""
        self._connection = await self._stranger.dial(self._node)
        self._stream = await self.open(CONTROL)

    async def open(self, protocol: TProtocol) -> INetStream:
        return await self._stranger.host.new_stream(ID.from_base58(self._node.id), [protocol])

    async def introduce(self, card: Any = None) -> None:
        """Say HELLO, with its card or what is given for one, and no revocations."""
        said = shown(self.card) if card is None else card
        hello = {"v": 1, "version": "0.1.0", "card": said}
        await self.say(frame(m.L_HELLO, hello), frame(m.L_REVOCATIONS, [[]]))

    async def say(self, *parts: bytes) -> None:
        """Write bytes on the control stream; that the node has hung up is seen elsewhere."""
        try:
            await self._stream.write(b"".join(parts))
        except Exception:  # noqa: BLE001 - whatever the library raises when the other side has gone
            await trio.lowlevel.checkpoint()

    async def is_dropped(self, within_s: float = DEADLINE_S) -> bool:
        """Wait for the node to hang up."""
        with trio.move_on_after(within_s):
            await self._connection.event_closed.wait()
        return bool(self._connection.event_closed.is_set())

    async def hears(self, kind: int, within_s: float = DEADLINE_S) -> bool:
        """Wait for a frame of that type."""
        with trio.move_on_after(within_s):
            while not any(each.kind == kind for each in self.heard):  # noqa: ASYNC110 - a test
                await trio.sleep(0.02)
            return True
        return False

    async def _read(self, stream: INetStream) -> None:
        splitter = Splitter(FRAME_MAX_CONTROL)
        while data := await stream.read(READ_BYTES):
            self.heard += splitter.feed(data)
            del self.heard[:-10_000]


@asynccontextmanager
async def lying_to(node: Node, admin: Identity, key: Ed25519PrivateKey | None = None) -> AsyncIterator[Liar]:
    """A member that an admin has signed, connected with a node; nothing has been said yet."""
    key = key or Ed25519PrivateKey.generate()
    stranger = Stranger(key, signed_by(admin, key.public_key().public_bytes_raw()))
    stranger.grid = admin.grid
    liar = Liar(stranger, node)
    async with stranger.running():
        with trio.fail_after(DEADLINE_S):
            await liar.connect()
        yield liar
