"""What goes into and comes out of the policies for objects, beside `node/events.py` whose rules hold here too.

The policies never see a byte of an object. The shell (arena, files, threads) moves the bytes, verifies what arrives and
says what came of it. A *key* names an object on this node: its id (33 bytes), or 16 bytes of the writer's choice until
the id is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pgrid.core.pieces import Manifest, ObjectId
from p2pgrid.core.ranges import Span

Key = bytes
Owner = tuple[str, bytes]
"""Whoever needs an object: ("job", its id), ("session", its id), ("task", …), ("copy", b"") for the grid."""

# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocated:
    """The place asked for with Allocate is there."""

    key: Key


@dataclass(frozen=True, slots=True)
class Spilled:
    """The object is on disk under its id; None: it is not, for the reason given."""

    key: Key
    id: ObjectId | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """The object is in memory again; not `good`: its file was damaged or is gone, and so is the place in memory."""

    key: Key
    good: bool


@dataclass(frozen=True, slots=True)
class PieceCame:
    """A piece that was expected arrived. `good`: it had the right hash and lies in the arena."""

    peer: str
    id: ObjectId
    piece: int
    good: bool


@dataclass(frozen=True, slots=True)
class Described:
    """The manifest asked for with Describe; None: the object is damaged or gone."""

    key: Key
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A piece of an object could not be read from disk to be sent: the file was not what its name says, and is gone."""

    id: ObjectId


@dataclass(frozen=True, slots=True)
class Served:
    """So many pieces of SendPieces have left for that member, or never will."""

    peer: str
    pieces: int


@dataclass(frozen=True, slots=True)
class Sighted:
    """What came of Seek: members that say in the DHT that they have it, who are being dialled; nobody, perhaps."""

    id: ObjectId
    peers: Sequence[str]


# ---- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make a place in the arena and answer Allocated, or NoMemory."""

    key: Key
    size: int


@dataclass(frozen=True, slots=True)
class Spill:
    """Write an object from the arena to disk, hash it on the way, and answer Spilled. Its place stays."""

    key: Key


@dataclass(frozen=True, slots=True)
class Restore:
    """Make a place in the arena, fill it from disk, and answer Restored."""

    key: Key
    id: ObjectId
    size: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give up a place in the arena; nobody has it mapped."""

    key: Key


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the file of an object."""

    id: ObjectId


@dataclass(frozen=True, slots=True)
class NoRoom:
    """As an effect: who asked for a place for `key` gets QuotaExceeded. As an event: Allocate found no memory."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Who asked for a place for `key` may write there now."""

    key: Key


@dataclass(frozen=True, slots=True)
class Ready:
    """An object that was wanted lies in the arena: it may be mapped."""

    key: Key


@dataclass(frozen=True, slots=True)
class Gone:
    """An object that was wanted is not to be had: ObjectLost, with those who had it last."""

    id: ObjectId
    last_holders: Sequence[str]


@dataclass(frozen=True, slots=True)
class Expect:
    """From now on verify pieces of this object that arrive and write them to its place: PieceCame for each."""

    id: ObjectId
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Forget:
    """Expect no more pieces of this object."""

    id: ObjectId


@dataclass(frozen=True, slots=True)
class SendPieces:
    """Read these pieces of an object, from the arena or from disk, and send each as O_PIECE; O_LACK what is damaged."""

    peer: str
    id: ObjectId
    pieces: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Describe:
    """Hash an object in the arena, or read the manifest of its file, and answer Described."""

    key: Key
    id: ObjectId | None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A member sent a piece that is not what its id says: count it, say so once."""

    peer: str
    id: ObjectId
    piece: int


@dataclass(frozen=True, slots=True)
class Seek:
    """Look beyond those who are connected: for these holders, and in the DHT for others. Sighted, always."""

    id: ObjectId
    holders: Sequence[str]


@dataclass(frozen=True, slots=True)
class Announce:
    """Say in the DHT that this node has an object, and go on saying so."""

    id: ObjectId


@dataclass(frozen=True, slots=True)
class Unsay:
    """Say it no longer; what others keep expires."""

    id: ObjectId


ShelfEffect = Allocate | Spill | Restore | Release | Remove | NoRoom | Placed | Ready
