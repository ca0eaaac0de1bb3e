"""Frames: `u32 length (big-endian) | msgpack [version, type, id, body]`, with a limit on everything.

Sans-IO: bytes in, frames out. Whoever reads a stream owns one Splitter. Nothing here trusts the other side: a length
beyond the limit, bytes that are not msgpack, or a frame of another shape raise PeerError, and the connection is to be
dropped.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgpack

from p2pgrid.core.errors import PeerError

VERSION = 1
FIELDS = 4
FRAME_MAX_LOCAL = 320 * 1024 * 1024
"""Local socket and worker pipe: one batch of values (at most 256 MiB) and its envelope."""
FRAME_MAX_CONTROL = 64 * 1024
"""Control frames between members."""
LEVELS_MAX = 96
"""Of lists and maps in each other, in anything that is not taken apart before it is used."""

_LENGTH = struct.Struct(">I")
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


class Frame(NamedTuple):
    """One decoded frame."""

    version: int
    kind: int
    id: int
    body: Any


def pack(value: Any) -> bytes:
    """Return `value` as msgpack."""
    return _packer.pack(value)  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview, *, limit: int = FRAME_MAX_LOCAL) -> Any:
    """Return the value that `data` holds. Raises PeerError if it is not exactly one msgpack value."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_bin_len=limit,
            max_str_len=limit,
            max_array_len=min(limit, 16_777_216),
            max_map_len=min(limit, 1_048_576),
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        msg = f"not msgpack: {type(error).__name__}"
        raise PeerError(msg) from error


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


class Splitter:
    """Cuts a byte stream into frames.

    `feed` takes what was read and returns the frames that are complete; an unfinished one is kept, at most `limit`
    bytes of it.
    """

    __slots__ = ("_buffer", "_limit", "_need")

    def __init__(self, limit: int = FRAME_MAX_LOCAL) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._need = 4

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames completed by `data`. Raises PeerError on a frame that is too long or malformed."""
        buffer = self._buffer
        if not buffer and len(data) > _LENGTH.size and _LENGTH.unpack_from(data)[0] == len(data) - _LENGTH.size:
            # One whole frame and nothing else: what a conversation of small frames is made of.
            if len(data) - _LENGTH.size > self._limit:
                raise PeerError(f"a frame of {len(data)} bytes, more than the {self._limit} allowed")
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
                if length > self._limit:
                    msg = f"a frame of {length} bytes, more than the {self._limit} allowed"
                    raise PeerError(msg)
                end = at + 4 + length
                if end > size:
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

    def _decode(self, data: memoryview) -> Frame:
        with data:
            value = unpack(data, limit=self._limit)
        if type(value) is list and len(value) == FIELDS:  # spelled out: it runs for every frame
            version, kind, id_, body = value
            if isinstance(version, int) and isinstance(kind, int) and isinstance(id_, int):
                return Frame(version, kind, id_, body)
        raise PeerError("a frame that is not [version, type, id, body]")
