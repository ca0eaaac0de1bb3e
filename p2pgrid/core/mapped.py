"""A node's arena as its clients and workers see it: a file descriptor, mapped twice, to write and to read.

Both mappings are of the whole arena and stay: pages that a process has touched once cost it nothing the next time (a
mapping of its own for each object cost 40 ms per 256 MB, most of it page faults). What is read is mapped only to be
read: the hardware refuses what a careless extension module would write.

Every view of an object hangs on one small thing of its own, whose end says that nobody looks at the object any longer;
until then its place is never given to another. Arrays that the reader made of it, slices of them, a part that was put
into a global: all of them keep it.

Rule: standard library only; who opens and closes the descriptor is another's business (`node.arena`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import struct
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from p2pgrid.core.errors import PeerError
from p2pgrid.core.objects import Serialised
from p2pgrid.core.ranges import RangeSet

PAGE_BYTES = mmap.ALLOCATIONGRANULARITY
POPULATE_BYTES_MIN = 1024 * 1024
_HANDED = struct.Struct(">4sQ")
_MAGIC = b"pgA1"
HANDED_BYTES = _HANDED.size
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; the module does not name it
_MAP_FAILED = ctypes.c_void_p(-1).value


class Mapped:
    """The arena behind `fd`, `size` bytes of address space; the caller may close `fd` afterwards."""

    def __init__(self, fd: int, size: int) -> None:
        self._whole = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._whole)
        self._window = _Window(fd, size)
        self.size = size
        self._populated = RangeSet()

    def write(self, offset: int, value: Serialised) -> None:
        """Write an object to its place, which was allocated for it and is nobody else's."""
        if value.size >= POPULATE_BYTES_MIN:
            self._populate(offset // PAGE_BYTES * PAGE_BYTES, -(-(offset + value.size) // PAGE_BYTES) * PAGE_BYTES)
        value.write_into(self._view[offset : offset + value.size])

    def _populate(self, lo: int, hi: int) -> None:
        """Have the pages mapped in one go, not one by one at the first touch; once, since asking again costs too."""
        for start, end in self._populated.missing(lo, hi):
            with contextlib.suppress(OSError):  # an older kernel
                self._whole.madvise(_POPULATE_WRITE, start, end - start)
        self._populated.add(lo, hi)

    def view(self, offset: int, size: int, released: Callable[[], object]) -> memoryview:
        """Return an object, read-only. `released` is called once its last view is gone, in whatever thread that is."""
        assert 0 <= offset <= offset + size <= len(self._view)
        # As long as the next power of two, since every length is a type of its own; nothing beyond `size` is shown.
        anchor = (ctypes.c_ubyte * (1 << size.bit_length())).from_address(self._window.address + offset)
        weakref.finalize(anchor, _let_go, self._window, released).atexit = False
        return memoryview(anchor).cast("B")[:size].toreadonly()

    def close(self) -> None:
        """Read and write no more. What was viewed stays valid, and mapped until the last of it is gone."""
        self._view.release()
        self._whole.close()
        del self._window


class _Window:
    """A mapping to read from that ends with the last object that refers to this one.

    By hand, because Python's own neither says where it lies nor may be told to stay while something points into it.
    """

    def __init__(self, fd: int, size: int) -> None:
        map_, unmap = _calls()
        address = map_(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address in (None, _MAP_FAILED):
            raise OSError(ctypes.get_errno(), "cannot map the arena")
        self.address = int(address)
        weakref.finalize(self, unmap, address, size).atexit = False


def _let_go(window: _Window, released: Callable[[], object]) -> None:
    """End a view; that it held `window` until now is the point."""
    released()


@cache
def _calls() -> tuple[Any, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    map_ = getattr(libc, "mmap64", None) or libc.mmap
    map_.restype = ctypes.c_void_p
    map_.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return map_, libc.munmap


def handed(size: int) -> bytes:
    """Return the bytes beside which the descriptor of an arena of that size is handed over."""
    return _HANDED.pack(_MAGIC, size)


def read_handed(data: bytes) -> int:
    """Return the size of the arena. Raises PeerError: no arena is handed over here."""
    if len(data) != _HANDED.size or not data.startswith(_MAGIC):
        raise PeerError("no arena was handed over")
    return int(_HANDED.unpack(data)[1])
