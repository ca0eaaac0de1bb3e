"""What an object is called, and how a part of it is verified on arrival: pieces of 256 KiB and their manifest.

    manifest = msgpack [size, 262144, BLAKE3 of each piece, 32 bytes each, end to end]
    id       = 0x01 ‖ BLAKE3 of the manifest          33 bytes

Who knows an id can verify a manifest from anybody, and with it every piece from anybody, one by one and in any order:
no signature, no trust in a holder, nothing to be thrown away but the one piece that is wrong. Equal bytes have equal
ids. A plain BLAKE3 of the content, with a signed list of pieces, would make a reader trust whoever signed, or find out
after the last byte that one piece in a thousand was wrong; BLAKE3's own inner tree would do without a manifest, but its
nodes are not within reach of the `blake3` package. 0.012 % of an object is its manifest.

A worker never computes an id (its interpreter may have no blake3): who writes from a client hashes there, and results
are hashed by their node when they first leave it or go to disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

import blake3

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

ObjectId = NewType("ObjectId", bytes)

PIECE_BYTES = 256 * 1024
HASH_BYTES = 32
ID_PREFIX = b"\x01"
"""BLAKE3 over a manifest of BLAKE3s; another way of hashing gets another number."""
ID_BYTES = 1 + HASH_BYTES
OBJECT_BYTES_MAX = 64 * 1024**3
MANIFEST_BYTES_MAX = OBJECT_BYTES_MAX // PIECE_BYTES * HASH_BYTES + 64


def is_id(value: object) -> bool:
    """Whether this can be an object's id."""
    return isinstance(value, bytes) and len(value) == ID_BYTES and value.startswith(ID_PREFIX)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The pieces of one object."""

    size: int
    hashes: bytes

    @property
    def count(self) -> int:
        """How many pieces; an object has at least one byte."""
        return len(self.hashes) // HASH_BYTES

    def span(self, piece: int) -> tuple[int, int]:
        """Return begin and end of a piece within the object."""
        return piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, self.size)

    def fits(self, piece: int, data: bytes | memoryview) -> bool:
        """Whether `data` is this piece."""
        if not 0 <= piece < self.count:
            return False
        lo, hi = self.span(piece)
        at = piece * HASH_BYTES
        return len(data) == hi - lo and blake3.blake3(data).digest() == self.hashes[at : at + HASH_BYTES]

    def packed(self) -> bytes:
        return pack([self.size, PIECE_BYTES, self.hashes])

    @property
    def id(self) -> ObjectId:
        """The name of the object."""
        return ObjectId(ID_PREFIX + blake3.blake3(self.packed()).digest())


@dataclass(slots=True)
class Hashing:
    """Makes a manifest from bytes that come one after the other, in parts of any length."""

    size: int = 0
    _hashes: list[bytes] = field(default_factory=list)
    _rest: blake3.blake3 = field(default_factory=blake3.blake3)

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            room = PIECE_BYTES - self.size % PIECE_BYTES
            part = view[:room]
            self._rest.update(part)
            self.size += len(part)
            view = view[room:]
            if self.size % PIECE_BYTES == 0:
                self._hashes.append(self._rest.digest())
                self._rest.reset()

    def manifest(self) -> Manifest:
        """Return the manifest of all that came."""
        last = [self._rest.digest()] if self.size % PIECE_BYTES else []
        return Manifest(self.size, b"".join([*self._hashes, *last]))


def manifest_of(data: bytes | memoryview) -> Manifest:
    """Return the manifest of a whole object."""
    hashing = Hashing()
    hashing.update(data)
    return hashing.manifest()


def read_manifest(id_: bytes, packed: bytes) -> Manifest:
    """Return the manifest of the object `id_`. Raises PeerError unless it is exactly that."""
    if not is_id(id_) or blake3.blake3(packed).digest() != id_[1:]:
        raise PeerError("a manifest of another object")
    match unpack(packed, limit=MANIFEST_BYTES_MAX):
        case [int(size), int(piece_bytes), bytes(hashes)] if piece_bytes == PIECE_BYTES:
            count, rest = divmod(len(hashes), HASH_BYTES)
        case _:
            raise PeerError("a malformed manifest")
    if rest or not 0 < size <= OBJECT_BYTES_MAX or count != -(-size // PIECE_BYTES):
        raise PeerError("a manifest whose pieces do not make its object")
    manifest = Manifest(int(size), hashes)
    if manifest.packed() != packed:  # True is an int, and a number can be packed in several ways
        raise PeerError("a manifest in another form than ours")
    return manifest
