"""A large value of msgpack, decoded while it comes: all at once holds the loop, and msgpack copies what it returns.

Large bytes in it (an argument, a result, a row) are put aside as they come, and are the value as they are in the end:
where msgpack alone makes one copy more of 50 MB when the last byte is there, in 40 to 100 ms. What stands around them
is the *rest*, in which a mark stands for each. They are looked for among the first few values only: after these it is
msgpack that decodes, part by part, what may be millions of small things.

Rule: nothing here trusts the other side. What is wrong raises what msgpack raises, or ValueError.
"""

from __future__ import annotations

import contextlib
from io import BytesIO
from typing import Any

import msgpack

LARGE = 64 * 1024
VALUES_MAX = 256
"""Looked at one by one, in Python: 0.1 ms."""
MARK = 0x50
"""The type of the extension that stands for large bytes. One that a peer sends breaks their order: it is refused."""

_NESTS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
"""Lists and maps: bytes of their count. What is in them are the next values."""
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes, extensions, text: bytes of their length."""
_EXTENSIONS = (0xC7, 0xC8, 0xC9)
_BIN32, _FIXEXT4 = 0xC6, 0xD6
_PLAIN = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""All others of more than one byte: how many follow the first."""


class Growing:
    """One value in so many bytes.

    Attributes:
        missing: bytes still to come.
    """

    __slots__ = (
        "_at", "_due", "_fed", "_large", "_length", "_limits", "_looked", "_now", "_rest", "_unpacked", "_unpacker",
        "_used", "missing",
    )  # fmt: skip

    def __init__(self, length: int, limits: dict[str, Any]) -> None:
        self.missing = self._length = length
        self._limits = limits
        self._rest = bytearray()
        self._at = 0  # so much of the rest was looked at
        self._looked = 0  # so many values
        self._large: list[bytes] = []
        self._used = 0  # of these
        self._now: BytesIO | None = None
        self._due = 0  # bytes of that one
        self._unpacker: msgpack.Unpacker | None = None
        self._fed = 0
        self._unpacked: list[Any] = []

    def feed(self, data: memoryview | bytes) -> None:
        """Take in the next bytes, at most `missing`."""
        self.missing -= len(data)
        view = memoryview(data)
        while view:
            if self._now is not None:
                self._now.write(view[: self._due])
                view, self._due = view[self._due :], max(self._due - len(view), 0)
                if not self._due:
                    self._large.append(self._now.getvalue())  # no copy, if nobody writes there any more
                    self._now = None
            elif self._unpacker is not None:
                self._unpack(view)
                return
            else:
                self._rest += view
                view = memoryview(self._look())

    def value(self) -> Any:
        """Return what came, once nothing is missing; anything but exactly one value is wrong."""
        if self._unpacker is None:
            return msgpack.unpackb(self._rest, ext_hook=self._marked, **self._limits)
        (found,) = self._unpacked
        if self._unpacker.tell() != self._fed:
            raise ValueError("more than one value")
        return found

    def _look(self) -> bytes:
        """Go on in the rest; return what of it belongs to large bytes that have begun."""
        rest = self._rest
        while self._at < len(rest):
            if self._looked >= VALUES_MAX:
                self._give_up()
                return b""
            first = rest[self._at]
            width = _SIZED.get(first, 0)
            start = self._at + 1 + width
            if start > len(rest):
                return b""
            size = int.from_bytes(rest[self._at + 1 : start], "big")
            if first == _BIN32 and size > LARGE:
                return self._put_aside(start, size)
            end = start + size + (first in _EXTENSIONS) if width else start + _follow(first)
            if end > len(rest):
                return b""
            self._at = end
            self._looked += 1
        return b""

    def _put_aside(self, start: int, size: int) -> bytes:
        rest = self._rest
        if size > self.missing + len(rest) - start:
            raise ValueError("bytes beyond the end")
        begun = bytes(rest[start:])
        del rest[self._at :]
        rest += bytes([_FIXEXT4, MARK]) + len(self._large).to_bytes(4, "big")
        self._at = len(rest)
        self._looked += 1
        self._now, self._due = BytesIO(), size
        return begun

    def _give_up(self) -> None:
        """Leave what comes from here on to msgpack."""
        self._unpacker = msgpack.Unpacker(max_buffer_size=self._length, ext_hook=self._marked, **self._limits)
        rest, self._rest = self._rest, bytearray()
        self._unpack(rest)

    def _unpack(self, data: memoryview | bytearray) -> None:
        assert self._unpacker is not None
        self._fed += len(data)
        self._unpacker.feed(data)
        if self._unpacked:
            raise ValueError("more than one value")
        with contextlib.suppress(msgpack.OutOfData):
            self._unpacked.append(self._unpacker.unpack())

    def _marked(self, kind: int, data: bytes) -> Any:
        """Return what an extension stands for: ours stand for the large bytes, in their order."""
        if kind != MARK:
            return msgpack.ExtType(kind, data)
        if len(data) != 4 or int.from_bytes(data, "big") != self._used or self._used == len(self._large):  # noqa: PLR2004
            raise ValueError("an extension that is not ours")
        self._used += 1
        return self._large[self._used - 1]


def _follow(first: int) -> int:
    """Return how many bytes follow the first one of a value, before the next value; of lists and maps, their count."""
    if 0xA0 <= first <= 0xBF:  # noqa: PLR2004 - short text
        return first & 0x1F
    return _NESTS.get(first) or _PLAIN.get(first, 0)
