"""What an object is in bytes: one pickle and the buffers beside it, laid out so that a reader maps them.

    u32 length of the header (big-endian)
    header   msgpack [version, length of the pickle, [offset, length, offset, length, …]]
    pickle   protocol 5
    buffers  each at a multiple of 64 bytes from the start of the object, zeros in between

A writer learns the size before a byte is copied and copies each buffer once, to where it will stay. A reader unpickles
from a mapping and gets views onto it: nothing is copied but the pickle's own small things. Every view is read-only,
whatever its size: an array does not change its manners with its length, and nobody writes into what others read.

Rule: standard library and msgpack only, since worker children of any interpreter read and write objects. What names
and verifies an object is `core.pieces`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

VERSION = 1
ALIGN_BYTES = 64
"""A cache line, and the widest vector register: NumPy and BLAS read from here without a slow first lap."""
HEADER_BYTES_MAX = 32 * 1024 * 1024
BUFFERS_MAX = 1 << 20
"""Further ones travel inside the pickle."""
HEADER_FIELDS = 3

_LENGTH = struct.Struct(">I")

Part = bytes | memoryview
BufferCallback = Callable[[pickle.PickleBuffer], Any]
MakePickler = Callable[[Any, BufferCallback], Any]
"""From a sink with `write` and a buffer callback to something with `dump`: pickle's Pickler, or cloudpickle's."""


def plain_pickler(sink: Any, callback: BufferCallback) -> pickle.Pickler:
    """Return the pickler of the standard library."""
    return pickle.Pickler(sink, 5, buffer_callback=callback)


@dataclass(frozen=True, slots=True)
class Serialised:
    """An object ready to be written. Its large parts are views of the value itself: write before that changes."""

    parts: tuple[Part, ...]
    size: int

    def write_into(self, target: memoryview) -> None:
        """Copy the object to the start of `target`, which has room for `size` bytes."""
        at = 0
        for part in self.parts:
            end = at + len(part)
            target[at:end] = part
            at = end

    def joined(self) -> bytes:
        """Return the object as one byte string: for small ones."""
        return b"".join(self.parts)


class _Sink:
    """Takes the pickler's output. What the pickler hands over whole (a large byte string) is kept, not copied."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def write(self, data: Any) -> int:
        if not isinstance(data, bytes):
            data = data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data)
        part: Part = data
        self.parts.append(part)
        return len(part)


def serialise(value: object, pickler: MakePickler = plain_pickler) -> Serialised:
    """Return `value` in the form above; whatever its pickling raises."""
    buffers: list[memoryview] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        if len(buffers) == BUFFERS_MAX:
            return True  # pickle's word for: keep it inside
        try:
            buffers.append(buffer.raw())
        except BufferError:  # strided in no order at all: only pickle itself can walk it
            return True
        return False

    sink = _Sink()
    pickler(sink, out_of_band).dump(value)
    return laid_out(sink.parts, buffers)


def laid_out(pickled: Sequence[Part], buffers: Sequence[memoryview]) -> Serialised:
    """Return the object that these parts of a pickle and its out-of-band buffers make."""
    size = sum(map(len, pickled))
    header, offsets = _header(size, [len(buffer) for buffer in buffers])
    parts: list[Part] = [header, *pickled]
    at = len(header) + size
    for offset, buffer in zip(offsets, buffers, strict=True):
        if offset > at:
            parts.append(bytes(offset - at))
        parts.append(buffer)
        at = offset + len(buffer)
    return Serialised(tuple(parts), at)


def _aligned(at: int) -> int:
    return -(-at // ALIGN_BYTES) * ALIGN_BYTES


def _header(pickle_bytes: int, lengths: list[int]) -> tuple[bytes, list[int]]:
    """Return the header and where the buffers begin. Each depends on the other: it is made longer until it fits."""
    room = _LENGTH.size
    while True:
        offsets: list[int] = []
        at = room + pickle_bytes
        for length in lengths:
            offsets.append(_aligned(at))
            at = offsets[-1] + length
        flat = [number for pair in zip(offsets, lengths, strict=True) for number in pair]
        header = pack([VERSION, pickle_bytes, flat])
        if not lengths or _LENGTH.size + len(header) <= room:
            return _LENGTH.pack(len(header)) + header, offsets
        room = _LENGTH.size + len(header)


def load(data: memoryview, loads: Callable[..., Any] = pickle.loads) -> Any:
    """Return the value of an object that lies in `data` (a view of bytes); what its views keep alive is `data`.

    Raises:
        PeerError: this is no object.
        Exception: whatever unpickling raises.
    """
    pickled, *buffers = taken_apart(data)
    return loads(pickled, buffers=buffers)


def taken_apart(data: memoryview) -> list[memoryview]:
    """Return the pickle of an object and its buffers, as they lie. Raises PeerError: this is no object."""
    data = data.toreadonly()
    start, end, spans = _read_header(data)
    return [data[start:end], *(data[lo:hi] for lo, hi in spans)]


def _read_header(data: memoryview) -> tuple[int, int, list[tuple[int, int]]]:
    """Return begin and end of the pickle, and of each buffer."""
    if len(data) < _LENGTH.size:
        raise PeerError("an object without a header")
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    if length > HEADER_BYTES_MAX or start > len(data):
        raise PeerError("an object whose header does not fit")
    match unpack(data[_LENGTH.size : start]):
        case [int(version), int(pickle_bytes), list(flat), *_] if version >= VERSION and pickle_bytes >= 0:
            end = start + pickle_bytes
        case _:
            raise PeerError("an object with a malformed header")
    if version > VERSION:
        raise PeerError(f"an object of format {version}, newer than this program's {VERSION}")
    if end > len(data) or len(flat) % 2 or len(flat) > 2 * BUFFERS_MAX or any(type(one) is not int for one in flat):
        raise PeerError("an object with a malformed table of buffers")
    spans = []
    at = end
    for offset, size in zip(flat[::2], flat[1::2], strict=True):
        if offset < at or offset % ALIGN_BYTES or size < 0:
            raise PeerError("an object with a misplaced buffer")
        at = offset + size
        spans.append((offset, at))
    if at != len(data):
        raise PeerError(f"an object of {at} bytes in a place of {len(data)}")
    return start, end, spans
