"""Beyond: objects at members that this node is not connected with, by the DHT of the grid.

    Seek     ->  DHT: who says that it has it?  ->  dial them  ->  asked like any other, once they are connected
    shelf    ->  providing  ->  DHT: this node has it, as long as that is so

An object's name in the DHT is its hash as a multihash, as libp2p's content routing has it. A member that was dialled
for an object is let go when nothing comes from it any more, unless the machine wants it.

Rule: who is asked for what, and what is announced, is decided in `objects` and `providing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import trio

from p2pgrid.core.pieces import ObjectId
from p2pgrid.node.hands import Hands
from p2pgrid.node.object_events import Announce, Seek, Sighted
from p2pgrid.node.providing import Providing

SEEK_S = 10.0
"""For the DHT to say who has an object; then what it has said counts."""
PROVIDERS_MAX = 8
"""Of those who say so, so many are dialled."""
FIND_MAX = 4
"""Of the holders that a Ref names and whose address nobody here knows."""
ANNOUNCE_BEAT_S = 2.0
LINGER_S = 20.0
"""A connection made for an object is kept for so long at least."""

_BLAKE3 = b"\x1e\x20"


def name_of(id_: ObjectId) -> bytes:
    """Return under which name the DHT knows an object: a BLAKE3 multihash."""
    return _BLAKE3 + id_[1:]


class Beyond:
    """What one node asks and tells the DHT about objects."""

    def __init__(self, hands: Hands, is_apart: Callable[[], bool]) -> None:
        """`is_apart`: whether a live member is not connected."""
        self.hands = hands
        self.providing = Providing(hands.shelf)
        self._is_apart = is_apart
        self._life = 0
        self._announcing = False
        self._lingering: set[str] = set()
        hands.on_seek, hands.on_held = self._seek, self._held

    # ---- what is wanted here -----------------------------------------------------------------------------------------

    def _seek(self, seek: Seek) -> None:
        self.hands.nursery.start_soon(self._look_for, seek)

    async def _look_for(self, seek: Seek) -> None:
        """Find out who has it, and have them dialled; whatever happens, say what came of it."""
        net, found = self.hands.net, dict[str, list[str]]()
        kad = net.kad
        if kad is not None and net.links is not None:
            for holder in [one for one in seek.holders if not net.known_at(one)][:FIND_MAX]:
                net.soon(kad.find, holder)
            with trio.move_on_after(SEEK_S):
                found = await kad.providers(name_of(seek.id), PROVIDERS_MAX)
            found.pop(self.hands.me, None)
            for peer, addresses in found.items():
                if peer not in net.members:
                    net.soon(self._meet, peer, {*addresses, *net.known_at(peer)})
        self.hands.perform(self.hands.objects.handle(Sighted(seek.id, list(found)), time.monotonic()))

    async def _meet(self, peer: str, addresses: Iterable[str]) -> None:
        await self.hands.net.reach([f"{address}/p2p/{peer}" for address in addresses])
        self.lingers(peer)

    def lingers(self, peer: str) -> bool:
        """Keep a connection as long as objects pass on it; return whether any do."""
        used = self.hands.is_used(peer)
        if (used or peer in self.hands.net.members) and peer not in self._lingering:
            self._lingering.add(peer)
            self.hands.nursery.start_soon(self._linger, peer)
        return used

    async def _linger(self, peer: str) -> None:
        await trio.sleep(LINGER_S)
        while self.hands.is_used(peer):  # noqa: ASYNC110 - rare
            await trio.sleep(LINGER_S / 4)
        self._lingering.discard(peer)
        self.hands.net.release(peer)

    # ---- what is here ------------------------------------------------------------------------------------------------

    def _held(self) -> None:
        if not self._announcing and self.hands.shelf.items:
            self._announcing = True
            self.hands.nursery.start_soon(self._announce)

    async def _announce(self) -> None:
        """Say in the DHT what is here, as long as there is anything."""
        while self.hands.shelf.items or self.providing.announced:
            await trio.sleep(ANNOUNCE_BEAT_S)
            kad = self.hands.net.kad
            if kad is None:
                continue
            if kad.life != self._life:  # another grid, which knows nothing
                self.providing, self._life = Providing(self.hands.shelf), kad.life
            for said in self.providing.look(time.monotonic(), apart=self._is_apart()):
                (kad.provide if isinstance(said, Announce) else kad.withdraw)(name_of(said.id))
        self._announcing = False
