"""A node's arena as its clients and workers see it: a file descriptor, mapped to write and to read.

To write, the whole arena is mapped once: the pages that a process has touched stay mapped, and a copy into them runs at
the speed of memory. To read, each object is mapped by itself, and only to be read: the hardware refuses what a careless
extension module would write, and the mapping ends with the last view of it. That end is how a reader's node learns
that nobody looks at the object any longer; until then its place is never given to another.

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

PAGE_BYTES = mmap.ALLOCATIONGRANULARITY
POPULATE_BYTES_MIN = 1024 * 1024
_HANDED = struct.Struct(">4sQ")
_MAGIC = b"pgA1"
HANDED_BYTES = _HANDED.size
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; the module does not name it
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value


class Mapped:
    """The arena behind `fd`, `size` bytes of address space. `fd` stays open as long as this is used."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._whole = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._whole)

    def write(self, offset: int, value: Serialised) -> None:
        """Write an object to its place, which was allocated for it and is nobody else's."""
        if value.size >= POPULATE_BYTES_MIN:
            start = offset // PAGE_BYTES * PAGE_BYTES
            with contextlib.suppress(OSError):  # an older kernel: then page by page, at the first touch
                self._whole.madvise(_POPULATE_WRITE, start, offset + value.size - start)
        value.write_into(self._view[offset : offset + value.size])

    def view(self, offset: int, size: int, released: Callable[[], object]) -> memoryview:
        """Return an object, read-only. `released` is called once its last view is gone, in whatever thread that is.

        Raises OSError where the system allows no further mapping (65,530 by default).
        """
        start = offset // PAGE_BYTES * PAGE_BYTES
        mapping = _read_only(self._fd, start, offset + size - start)
        weakref.finalize(mapping, released).atexit = False
        return memoryview(mapping)[offset - start :].toreadonly()

    def close(self) -> None:
        """Write no more. What was viewed stays valid."""
        self._view.release()
        self._whole.close()


def _read_only(fd: int, offset: int, size: int) -> mmap.mmap:
    """Return a mapping that keeps no descriptor: mmap duplicates its own (until Python 3.13), and 1,000 are many.

    So it is made of no file, and the arena is then mapped over it.
    """
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anchor = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(anchor)
    del anchor  # it would count as a view
    if _mmap()(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, offset) == _MAP_FAILED:
        code = ctypes.get_errno()
        mapping.close()
        raise OSError(code, "cannot map an object")
    return mapping


@cache
def _mmap() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "mmap64", None) or libc.mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    return call


def handed(size: int) -> bytes:
    """Return the bytes beside which the descriptor of an arena of that size is handed over."""
    return _HANDED.pack(_MAGIC, size)


def read_handed(data: bytes) -> int:
    """Return the size of the arena. Raises PeerError: no arena is handed over here."""
    if len(data) != _HANDED.size or not data.startswith(_MAGIC):
        raise PeerError("no arena was handed over")
    return int(_HANDED.unpack(data)[1])
