"""Frames: `u32 length (big-endian) | msgpack [version, type, id, body]`, with a limit on everything.

Sans-IO: bytes in, frames out. Whoever reads a stream owns one Splitter. Nothing here trusts the other side: a length
beyond the limit, bytes that are not msgpack, or a frame of another shape raise PeerError, and the connection is to be
dropped.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from p2pgrid.core.errors import PeerError
from p2pgrid.core.growing import Growing

VERSION = 1
FIELDS = 4
FRAME_MAX_LOCAL = 320 * 1024 * 1024
"""Local socket and worker pipe: one batch of values (at most 256 MiB) and its envelope."""
FRAME_MAX_CONTROL = 64 * 1024
"""Control frames between members."""
FRAME_WHOLE = 1024 * 1024
"""Larger frames are decoded while they come (`core.growing`). All at once holds the loop: 50 MB for 20 to 160 ms when
they are byte strings, for seconds when they are small things; a thread would hold it just as long, msgpack never lets
go of the GIL."""
SHORT = 16
"""Longer lists are packed as they are, without a look at what is in them."""
LEVELS_MAX = 96
"""Of lists and maps in each other, in anything that is not taken apart before it is used."""

_LENGTH = struct.Struct(">I")
_BIN32 = struct.Struct(">BI")
_NOT_MSGPACK = (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError)
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


class Frame(NamedTuple):
    """One decoded frame."""

    version: int
    kind: int
    id: int
    body: Any


def _limits(limit: int) -> dict[str, Any]:
    return {
        "raw": False,
        "strict_map_key": False,
        "max_bin_len": limit,
        "max_str_len": limit,
        "max_array_len": min(limit, 16_777_216),
        "max_map_len": min(limit, 1_048_576),
    }


_LOCAL_LIMITS = _limits(FRAME_MAX_LOCAL)


def pack(value: Any) -> bytes:
    """Return `value` as msgpack."""
    return _packer.pack(value)  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview, *, limit: int = FRAME_MAX_LOCAL) -> Any:
    """Return the value that `data` holds. Raises PeerError if it is not exactly one msgpack value."""
    try:
        return msgpack.unpackb(data, **(_LOCAL_LIMITS if limit == FRAME_MAX_LOCAL else _limits(limit)))
    except _NOT_MSGPACK as error:
        raise PeerError(f"not msgpack: {type(error).__name__}") from error


@contextlib.contextmanager
def _msgpack() -> Iterator[None]:
    """Translate what is raised by what is not msgpack."""
    try:
        yield
    except _NOT_MSGPACK as error:
        raise PeerError(f"not msgpack: {type(error).__name__}") from error


def is_shallow(value: Any, levels: int = LEVELS_MAX) -> bool:
    """Say whether lists and maps in an unpacked value are nested at most so deep.

    msgpack reads a thousand levels; `==`, `str()` and `repr()` of such a value raise RecursionError. Whatever is kept,
    compared or printed without being taken apart has to be asked about here first.
    """
    if isinstance(value, dict):
        return levels > 0 and all(is_shallow(part, levels - 1) for part in value.values())
    if isinstance(value, list | tuple):
        return levels > 0 and all(is_shallow(part, levels - 1) for part in value)
    return True


def frame(kind: int, body: Any, id_: int = 0) -> bytes:
    """Return one frame as bytes."""
    data = pack([VERSION, kind, id_, body])
    return _LENGTH.pack(len(data)) + data


def frame_pieces(kind: int, body: Any) -> list[bytes]:
    """Return one frame in pieces: large bytes in it are pieces as they are, without the copies that `frame` makes."""
    whole = [VERSION, kind, 0, body]
    if not _has_large(body):
        data = pack(whole)
        return [_LENGTH.pack(len(data)), data]
    pieces = [b"", *_apart(whole)]
    pieces[0] = _LENGTH.pack(sum(map(len, pieces)))
    return pieces


def _has_large(value: Any, levels: int = 4) -> bool:
    """Say whether there are large bytes in a few short lists in each other: where frames have them."""
    if type(value) is bytes:
        return len(value) > FRAME_MAX_CONTROL
    if type(value) is list and levels and len(value) <= SHORT:
        return any(_has_large(part, levels - 1) for part in value)
    return False


def _apart(value: Any) -> Iterator[bytes]:
    """Yield what `pack` would return, large bytes by themselves."""
    if not _has_large(value):
        yield pack(value)
    elif type(value) is bytes:
        yield _BIN32.pack(0xC6, len(value))
        yield value
    else:
        yield _packer.pack_array_header(len(value))
        for part in value:
            yield from _apart(part)


class Splitter:
    """Cuts a byte stream into frames.

    `feed` takes what was read and returns the frames that are complete; an unfinished one is kept, at most `limit`
    bytes of it, or what could be decoded so far. `limit` may be changed; what is kept already is kept on.
    """

    __slots__ = ("_buffer", "_growing", "_need", "limit")

    def __init__(self, limit: int = FRAME_MAX_LOCAL) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._need = 4
        self._growing: Growing | None = None

    @property
    def missing(self) -> int:
        """How many bytes are still to come of the frame that has begun; at least so many complete none."""
        return self._need - len(self._buffer) if self._growing is None else self._growing.missing

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames completed by `data`. Raises PeerError on a frame that is too long or malformed."""
        if self._growing is not None:
            return self._grow(self._growing, data)
        buffer = self._buffer
        if not buffer and len(data) > _LENGTH.size and _LENGTH.unpack_from(data)[0] == len(data) - _LENGTH.size:
            # One whole frame and nothing else: what a conversation of small frames is made of.
            if len(data) - _LENGTH.size > self.limit:
                raise PeerError(f"a frame of {len(data)} bytes, more than the {self.limit} allowed")
            return [self._decode(memoryview(data)[_LENGTH.size :])]
        buffer += data
        size = len(buffer)
        if size < self._need:
            return []
        frames: list[Frame] = []
        at = 0
        view = memoryview(buffer)
        try:
            while size - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, at)
                if length > self.limit:
                    msg = f"a frame of {length} bytes, more than the {self.limit} allowed"
                    raise PeerError(msg)
                end = at + 4 + length
                if end > size:
                    if length > FRAME_WHOLE:
                        self._growing = Growing(length, _limits(length))
                        with _msgpack():
                            self._growing.feed(view[at + 4 :])
                        at, self._need = size, 4
                    else:
                        self._need = end - at
                    break
                frames.append(self._decode(view[at + 4 : end]))
                at = end
            else:
                self._need = 4
        finally:
            view.release()
        del buffer[:at]
        return frames

    def _grow(self, growing: Growing, data: bytes) -> list[Frame]:
        rest = data[growing.missing :]
        with _msgpack():
            growing.feed(data[: growing.missing] if rest else data)
            if growing.missing:
                return []
            self._growing = None
            done = growing.value()
        return [_checked(done), *self.feed(rest)] if rest else [_checked(done)]

    def _decode(self, data: memoryview) -> Frame:
        with data:
            return _checked(unpack(data, limit=self.limit))


def _checked(value: Any) -> Frame:
    if type(value) is list and len(value) == FIELDS:  # spelled out: it runs for every frame
        version, kind, id_, body = value
        if isinstance(version, int) and isinstance(kind, int) and isinstance(id_, int):
            return Frame(version, kind, id_, body)
    raise PeerError("a frame that is not [version, type, id, body]")
