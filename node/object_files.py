"""Objects on disk: what does not fit into memory, or has to survive the node. One file per object, named by its id.

    content | manifest | u32 length of the manifest (big-endian) | b"pgO1"

A file is written beside its place, synced and renamed, so under its name it is whole or absent. It is believed no
further than that: each piece is checked against the manifest, and the manifest against the name, whenever it is read.
What is damaged is removed and counts as lost here; others may have it.

An object is hashed on its way to disk, in parts of one piece: nowhere here is a whole one in memory. All methods but
`remove` block: they are for a thread. Reads and writes of several objects at once are fine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from p2pgrid.core.errors import PeerError, QuotaExceeded
from p2pgrid.core.pieces import (
    ID_BYTES,
    MANIFEST_BYTES_MAX,
    PIECE_BYTES,
    Hashing,
    Manifest,
    ObjectId,
    is_id,
    read_manifest,
)
from p2pgrid.core.units import format_size

QUOTA_BYTES_MAX = 10 * 1000**3
QUOTA_OF_FREE = 0.1
_TRAILER = struct.Struct(">I4s")
_MAGIC = b"pgO1"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ObjectFiles:
    """The folder `objects` under a node's directory."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "objects"
        self._written = 0

    def open(self) -> list[tuple[ObjectId, int]]:
        """Begin a life: remove what a former one did not finish; return (id, size) of what it left, oldest first."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[tuple[float, ObjectId, int]] = []
        for path in sorted(self.folder.iterdir()):
            id_ = _id_of(path.name)
            with contextlib.suppress(OSError):  # somebody tidies the folder by hand
                state = path.stat()
                size = self._content_bytes(path, state.st_size) if id_ is not None else None
                if id_ is None or size is None:
                    path.unlink()
                else:
                    found.append((state.st_mtime, id_, size))
        return [(id_, size) for _, id_, size in sorted(found)]

    @staticmethod
    def _content_bytes(path: Path, file_bytes: int) -> int | None:
        with path.open("rb") as file:
            if file_bytes < _TRAILER.size:
                return None
            file.seek(-_TRAILER.size, os.SEEK_END)
            length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
        size = file_bytes - _TRAILER.size - int(length)
        return size if magic == _MAGIC and size > 0 else None

    def save(self, size: int, read: Callable[[int, int], bytes]) -> ObjectId:
        """Write the object whose bytes [lo, hi) `read` returns, and return its id.

        Raises:
            QuotaExceeded: the disk is full; nothing is left behind.
        """
        self._written += 1
        beside = self.folder / f".{os.getpid()}.{self._written}"
        hashing = Hashing()
        fd = -1
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            for lo in range(0, size, PIECE_BYTES):
                data = read(lo, min(lo + PIECE_BYTES, size))
                hashing.update(data)
                _write_all(fd, data)
            manifest = hashing.manifest()
            packed = manifest.packed()
            _write_all(fd, packed + _TRAILER.pack(len(packed), _MAGIC))
            os.fsync(fd)
            beside.rename(self._path(manifest.id))
            _sync_folder(self.folder)
        except OSError as error:
            beside.unlink(missing_ok=True)
            if error.errno in _FULL:
                raise QuotaExceeded(
                    f"the disk has no room for an object of {format_size(size)}",
                    next=f"make room where {self.folder} is, or give the node less: p2pgrid node --quota",
                ) from error
            raise
        finally:
            if fd >= 0:
                os.close(fd)
        return manifest.id

    def manifest(self, id_: ObjectId) -> Manifest | None:
        """Return the pieces of an object that is here, or None."""
        opened = self._opened(id_)
        if opened is None:
            return None
        os.close(opened[0])
        return opened[1]

    def read(self, id_: ObjectId, piece: int) -> bytes | None:
        """Return one piece, verified; None: it is not here, or damaged."""
        opened = self._opened(id_)
        if opened is None:
            return None
        fd, manifest = opened
        try:
            return self._piece(id_, fd, manifest, piece) if 0 <= piece < manifest.count else None
        finally:
            os.close(fd)

    def restore(self, id_: ObjectId, write: Callable[[int, bytes], object]) -> bool:
        """Hand all pieces, verified, to `write(offset, data)`; False: it is not here, or was found damaged."""
        opened = self._opened(id_)
        if opened is None:
            return False
        fd, manifest = opened
        try:
            for piece in range(manifest.count):
                data = self._piece(id_, fd, manifest, piece)
                if data is None:
                    return False
                write(manifest.span(piece)[0], data)
        finally:
            os.close(fd)
        return True

    def remove(self, id_: ObjectId) -> None:
        """Forget an object."""
        self._path(id_).unlink(missing_ok=True)

    def quota_bytes(self, held_bytes: int) -> int:
        """Return how much this node may keep, with what it holds already: min(10 GB, a tenth of what is free)."""
        state = os.statvfs(self.folder)
        return min(QUOTA_BYTES_MAX, int((state.f_bavail * state.f_frsize + held_bytes) * QUOTA_OF_FREE))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _path(self, id_: ObjectId) -> Path:
        return self.folder / id_.hex()

    def _opened(self, id_: ObjectId) -> tuple[int, Manifest] | None:
        """Return a descriptor and the verified manifest, or None; a damaged file is removed."""
        try:
            fd = os.open(self._path(id_), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            end = os.fstat(fd).st_size - _TRAILER.size
            length, magic = _TRAILER.unpack(os.pread(fd, _TRAILER.size, max(end, 0)))
            if magic != _MAGIC or length > min(end, MANIFEST_BYTES_MAX):
                raise PeerError("no trailer")
            manifest = read_manifest(id_, os.pread(fd, length, end - length))
            if manifest.size != end - length:
                raise PeerError("a part is missing")
        except (PeerError, struct.error):
            os.close(fd)
            self.remove(id_)
            return None
        return fd, manifest

    def _piece(self, id_: ObjectId, fd: int, manifest: Manifest, piece: int) -> bytes | None:
        lo, hi = manifest.span(piece)
        data = os.pread(fd, hi - lo, lo)
        if manifest.fits(piece, data):
            return data
        self.remove(id_)
        return None

    def __iter__(self) -> Iterator[ObjectId]:
        """Walk over what is here."""
        for path in sorted(self.folder.iterdir()):
            id_ = _id_of(path.name)
            if id_ is not None:
                yield id_


def ids_in(directory: Path) -> list[ObjectId]:
    """Return the ids of the objects on disk under a node's directory; nothing is opened or made."""
    folder = directory / "objects"
    found = [_id_of(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return [id_ for id_ in found if id_ is not None]


def _id_of(name: str) -> ObjectId | None:
    if len(name) != 2 * ID_BYTES or name != name.lower():
        return None
    try:
        id_ = bytes.fromhex(name)
    except ValueError:
        return None
    return ObjectId(id_) if is_id(id_) else None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
