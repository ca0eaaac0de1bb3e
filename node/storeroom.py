"""The storeroom: carries out what the policies for objects say, on the arena and the files.

What is quick happens at once, in the loop; what blocks (disk, hashing of whole objects, memory that the system has to
make first) comes back as a *job* for a thread, whose event goes to `settled` before the policies hear it:

    for effect in effects:
        outcome = room.perform(effect)
        if callable(outcome):    outcome = room.settled(await to_thread.run_sync(outcome))
        if outcome is not None:  effects of objects.handle(outcome, now) …

A job reads and writes places in the arena that the policies leave alone until its event; nothing else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.pieces import PIECE_BYTES, Hashing, Manifest, ObjectId
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.arena import Arena
from p2pgrid.node.object_events import (
    Allocate,
    Allocated,
    Describe,
    Described,
    Expect,
    Forget,
    Key,
    NoRoom,
    PieceCame,
    Release,
    Remove,
    Restore,
    Restored,
    SendPieces,
    Spill,
    Spilled,
)
from p2pgrid.node.object_files import ObjectFiles

Event = Allocated | Described | NoRoom | Restored | Spilled
Job = Callable[[], Event]
Order = Allocate | Describe | Expect | Forget | Release | Remove | Restore | Spill


class Storeroom:
    """The bytes of a node's objects."""

    def __init__(self, arena: Arena, files: ObjectFiles) -> None:
        self.arena = arena
        self.files = files
        self._expected: dict[ObjectId, Manifest] = {}
        self._skipped: dict[tuple[str, ObjectId], RangeSet] = {}

    def perform(self, effect: Order) -> Event | Job | None:
        """Carry out an effect: return what came of it, a job for a thread, or None."""
        match effect:
            case Allocate(key, size):
                return self._allocate(key, size, lambda: Allocated(key))
            case Restore(key, known, size):
                return self._allocate(key, size, lambda: self._restore(key, known), blocks=True)
            case Spill(key):
                return lambda: self._spill(key)
            case Describe(key, id_):
                return lambda: Described(key, self._described(key, id_))
            case Release(key):
                self.arena.free(key)
            case Remove(id_):
                self.files.remove(id_)
            case Expect(id_, manifest):
                self._expected[id_] = manifest
            case Forget(id_):
                del self._expected[id_]
        return None

    def settled(self, event: Event) -> Event:
        """Take in what a job came to, in the loop; return it."""
        match event:
            case NoRoom(key):
                self.arena.free(key)
            case Restored(key, False):
                self.arena.free(key)
            case _:
                pass
        return event

    def _allocate(self, key: Key, size: int, then: Job, *, blocks: bool = False) -> Event | Job:
        try:
            place = self.arena.allocate(key, size)
        except QuotaExceeded as error:
            return NoRoom(key, error.message)

        def job() -> Event:
            try:
                self.arena.reserve(place)
            except QuotaExceeded as error:
                return NoRoom(key, error.message)
            return then()

        if place.cold:
            return job
        return then if blocks else then()

    def _restore(self, key: Key, id_: ObjectId) -> Event:
        return Restored(key, self.files.restore(id_, lambda at, data: self.arena.write(key, at, data)))

    def _spill(self, key: Key) -> Event:
        _, size = self.arena.where(key) or (0, 0)
        try:
            return Spilled(key, self.files.save(size, lambda lo, hi: self.arena.read(key, lo, hi)))
        except QuotaExceeded as error:
            return Spilled(key, None, error.message)

    def _described(self, key: Key, id_: ObjectId | None) -> Manifest | None:
        found = self.arena.where(key)
        if found is None:
            return None if id_ is None else self.files.manifest(id_)
        hashing = Hashing()
        for lo in range(0, found[1], PIECE_BYTES):
            hashing.update(self.arena.read(key, lo, min(lo + PIECE_BYTES, found[1])))
        return hashing.manifest()

    # ---- pieces ------------------------------------------------------------------------------------------------------

    def came(self, peer: str, id_: ObjectId, piece: int, data: bytes) -> PieceCame | None:
        """Verify a piece and write it to its place; None: nobody expects it. 100 to 200 µs, in the loop."""
        manifest = self._expected.get(id_)
        if manifest is None:
            return None
        good = manifest.fits(piece, data)
        if good:
            self.arena.write(id_, manifest.span(piece)[0], data)
        return PieceCame(peer, id_, piece, good)

    def skip(self, peer: str, id_: ObjectId, pieces: RangeSet) -> None:
        """A member does not want these any more."""
        if (peer, id_) in self._skipped:
            self._skipped[peer, id_].update(pieces)

    def sends(self, effect: SendPieces, key: Key | None) -> Iterator[tuple[int, list[Any]]]:
        """Yield the frames for a member, each read when it is asked for: take one when the last has left.

        `key` is where the object is now (`Shelf.find`, or its id while it is being fetched).
        """
        peer, id_ = effect.peer, effect.id
        skipped = self._skipped[peer, id_] = RangeSet()
        try:
            for lo, hi in effect.pieces:
                for piece in range(lo, hi):
                    if piece in skipped:
                        continue
                    data = self._read(id_, key, piece)
                    if data:
                        yield m.O_PIECE, [id_, piece, data]
                    else:
                        yield m.O_LACK, [id_, [piece, piece + 1]]
        finally:
            self._skipped.pop((peer, id_), None)

    def _read(self, id_: ObjectId, key: Key | None, piece: int) -> bytes | None:
        found = None if key is None else self.arena.where(key)
        if found is None or key is None:
            return self.files.read(id_, piece)
        lo = piece * PIECE_BYTES
        return self.arena.read(key, lo, min(lo + PIECE_BYTES, found[1])) if lo < found[1] else None
