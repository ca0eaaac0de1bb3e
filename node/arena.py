"""The arena of a node: one piece of shared memory in which its objects lie, mapped by its workers and local clients.

It is a memfd: it has no name, so nothing can be left behind however the node ends, and the kernel takes it back with
the last process that has it. It is not bound to the size of /dev/shm (64 MiB in a container). A worker inherits the
descriptor; a client gets it over the local socket (`hand_over`), which only its own user may open. Both work across the
namespaces of containers, and for workers under another user, where a path would not. Where there is no memfd, or memory
is scarce, it is a file under the node's directory that was unlinked when it was made: the same, but the system may
write its pages to disk instead of keeping them.

Memory is reserved before a place is handed out, so that a full machine is an error to the one who asks for the place
and never a SIGBUS to the one who writes. Fresh pages are slow (0.8 GB/s on a virtual machine, warm ones 4 to 12), so
`warm_up` writes zeros ahead of need. fallocate alone does not warm: it leaves the zeroing to the first touch.

Rule: what may go and what must stay is decided elsewhere (`node/shelf.py`). Methods that say "blocks" are for a thread;
the others are for the loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from functools import cache
from pathlib import Path
from typing import Any

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.mapped import handed
from p2pgrid.core.units import format_size
from p2pgrid.node.arena_space import GRANULE_BYTES, Place, Space, Span

WARM_STEP_BYTES = 8 * 1024 * 1024
ADDRESSES_PER_BYTE = 4
"""Address space beside the memory it may use; see `arena_space`."""
_ZEROS = bytes(1024 * 1024)
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 1, 2, 4


class Arena:
    """The shared memory of one life of a node.

    Attributes:
        fd: to be inherited or handed over.
        size: bytes of address space.
        in_memory: whether it is a memfd; else an unlinked file in `folder`.
    """

    def __init__(self, memory_bytes: int, folder: Path, *, in_memory: bool = True) -> None:
        """Make an arena that is to hold up to `memory_bytes`."""
        self.space = Space(memory_bytes * ADDRESSES_PER_BYTE)
        self.size = self.space.limit
        self.memory_bytes = memory_bytes
        self._places: dict[bytes, tuple[Place, int]] = {}
        self.fd = _memfd() if in_memory else -1
        self.in_memory = self.fd >= 0
        if not self.in_memory:
            self.fd = _unlinked(folder)
        os.ftruncate(self.fd, self.size)
        if self.in_memory:
            _seal(self.fd)

    def close(self) -> None:
        """Give it up; who has it mapped keeps it."""
        os.close(self.fd)

    # ---- places ------------------------------------------------------------------------------------------------------

    def allocate(self, key: bytes, size: int) -> Place:
        """Return a place for the object `key`; a cold one needs `reserve`, in a thread, before anybody writes there.

        Raises:
            QuotaExceeded: no hole is large enough.
        """
        assert key not in self._places
        place = self.space.allocate(size)
        if place is None:
            raise _full(size)
        self._places[key] = (place, size)
        return place

    def reserve(self, place: Place) -> None:
        """Have the system set memory aside for a cold place. Blocks. Raises QuotaExceeded: it has none."""
        lo = place.offset // GRANULE_BYTES * GRANULE_BYTES  # a small one's neighbours to come as well
        hi = -(-place.end // GRANULE_BYTES) * GRANULE_BYTES
        try:
            os.posix_fallocate(self.fd, lo, hi - lo)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
                raise _full(place.room) from error
            raise

    def free(self, key: bytes) -> None:
        """The place of `key` may be given to others: nobody has it mapped."""
        place, _ = self._places.pop(key)
        self.space.free(place)

    def where(self, key: bytes) -> tuple[int, int] | None:
        """Return offset and size of an object, or None."""
        found = self._places.get(key)
        return None if found is None else (found[0].offset, found[1])

    def read(self, key: bytes, lo: int, hi: int) -> bytes:
        """Return a part of an object, a piece at most at a time."""
        place, size = self._places[key]
        assert 0 <= lo <= hi <= size
        return os.pread(self.fd, hi - lo, place.offset + lo)

    def write(self, key: bytes, lo: int, data: bytes | memoryview) -> None:
        """Write a part of an object that arrives in pieces."""
        place, size = self._places[key]
        assert 0 <= lo <= lo + len(data) <= size
        written = os.pwrite(self.fd, data, place.offset + lo)
        assert written == len(data), "reserved memory was not there"

    # ---- warm and cold -----------------------------------------------------------------------------------------------

    def wants_warmth(self, ahead_bytes: int) -> Span | None:
        """Return what to `warm_up` next so that `ahead_bytes` are free and warm, or None; then say `warmed`."""
        missing = min(ahead_bytes, self.memory_bytes - self.space.used) - self.space.warm.total
        return self.space.take_cold(min(missing, WARM_STEP_BYTES)) if missing > 0 else None

    def warm_up(self, span: Span) -> bool:
        """Touch every page of a span. Blocks, about 10 ms per step. Returns whether there was memory for it."""
        try:
            for at in range(span[0], span[1], len(_ZEROS)):
                data = memoryview(_ZEROS)[: min(len(_ZEROS), span[1] - at)]
                if os.pwrite(self.fd, data, at) < len(data):
                    return False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise
            return False
        return True

    def warmed(self, span: Span, *, done: bool) -> None:
        """What `wants_warmth` gave is warm now, or not."""
        (self.space.warmed if done else self.space.cooled)(span)

    def give_back(self, most: int) -> Span | None:
        """Return what to `cool_down` next, at most so many bytes, or None; then say `cooled`."""
        return self.space.take_warm(most)

    def cool_down(self, span: Span) -> bool:
        """Give the memory of a span back to the system. Blocks. Returns whether the system can do that."""
        lo, hi = span
        return bool(_fallocate()(self.fd, _PUNCH_HOLE | _KEEP_SIZE, lo, hi - lo) == 0)

    def cooled(self, span: Span, *, done: bool) -> None:
        """What `give_back` gave is cold now, or still warm."""
        (self.space.cooled if done else self.space.warmed)(span)

    def resident_bytes(self) -> int:
        """Return how much memory the system has given."""
        return os.fstat(self.fd).st_blocks * 512


def _full(size: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"no room for {format_size(size)} in this node's shared memory",
        next="drop references you no longer need, or give the node more: p2pgrid node --quota",
    )


def _memfd() -> int:
    try:
        return os.memfd_create("p2pgrid", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):  # built without it, an old kernel, a sandbox that forbids it
        return -1


def _unlinked(folder: Path) -> int:
    """Open a file that has no name. A node killed between the two calls leaves an empty one, which the next removes."""
    for old in folder.glob("arena.*"):  # the caller holds the lock of the directory: they are nobody's
        old.unlink(missing_ok=True)
    path = folder / f"arena.{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd


def _seal(fd: int) -> None:
    """Nobody who has the descriptor can make it shorter, which would be a SIGBUS to all that read."""
    import fcntl  # noqa: PLC0415 - there is none where there are no seals

    fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)


@cache
def _fallocate() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call


# ---- to another process on this machine ------------------------------------------------------------------------------


def hand_over(stream: socket.socket, fd: int, size: int) -> None:
    """Give an arena to the process at the other end of a Unix socket; `client/arena.py` takes it."""
    socket.send_fds(stream, [handed(size)], [fd])
