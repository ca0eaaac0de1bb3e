"""What is below the streams of a connection: its encrypted messages, several of them for each call to the kernel.

The library reads the length of a message, then the message, then hands it up through six layers, each with its copies,
locks and turns of the loop: twice the work that a node does for an object itself. Here one read takes what the kernel
has, and the data frames in it go straight to where their streams are read; every other frame is the library's to
handle, as before. One write takes as many frames as there are.

It is the library's own cipher state and its own socket, so what else it writes there by itself stays in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from libp2p.io.exceptions import IncompleteReadError
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT

READ_MIN, READ_MAX = 16 << 10, 256 << 10
"""Bytes from the kernel at once: more where more comes. They are decrypted without a pause: 0.1 ms at most."""
_LENGTH = struct.Struct(">H")
_HEADER = struct.Struct(YAMUX_HEADER_FORMAT)


class Taker(Protocol):
    """Who may take the data of a stream as it comes."""

    def take(self, stream_id: int, data: memoryview) -> bool:
        """Take it; False: not this way."""


class Sealed:
    """The messages of one secured connection, from when it is multiplexed."""

    def __init__(self, secured: Any, taker: Taker) -> None:
        """Read what `secured` reads from now on."""
        noise = secured.conn
        self._raw = noise.read_writer.read_write_closer
        self._seal, self._open = noise.encrypt, noise.decrypt
        self._taker = taker
        self._size = READ_MIN
        self._sealed, self._begun = b"", 0
        self._plain, self._at = b"", 0
        self._left_over = secured._drain
        secured.read = self.read

    async def read(self, size: int) -> bytes:
        """Return the header of the next frame that is the library's to handle: that is all it reads by itself.

        Raises:
            IncompleteReadError: the connection has ended.
        """
        if self._left_over is not None:
            self._plain, self._left_over = self._left_over(None), None
        while True:
            self._give_out()
            if len(self._plain) - self._at >= size:
                break
            await self._more()
        self._at += size
        return self._plain[self._at - size : self._at]

    async def read_body(self, size: int) -> bytes:
        """Return what follows the header that was read last."""
        body = bytearray()
        while True:
            part = self._plain[self._at : self._at + size - len(body)]
            self._at += len(part)
            body += part
            if len(body) == size:
                return bytes(body)
            await self._more()

    async def write(self, frames: Iterable[bytes]) -> None:
        """Send frames. One call at a time: each message has the next number of the cipher."""
        await self._raw.write(b"".join(self._messages(frames)))

    def _messages(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        for data in frames:
            for at in range(0, len(data), MAX_PLAINTEXT_LENGTH):
                sealed = self._seal(data[at : at + MAX_PLAINTEXT_LENGTH])
                yield _LENGTH.pack(len(sealed))
                yield sealed

    def _give_out(self) -> None:
        """Let the data frames that are here whole be taken, up to the first frame that is something else."""
        plain = self._plain
        view = memoryview(plain)
        while len(plain) - self._at >= HEADER_SIZE:
            _, kind, flags, stream_id, length = _HEADER.unpack_from(plain, self._at)
            start = self._at + HEADER_SIZE
            if kind != TYPE_DATA or flags or start + length > len(plain):
                return
            if not self._taker.take(stream_id, view[start : start + length]):
                return
            self._at = start + length

    async def _more(self) -> None:
        """Decrypt the next message, once it is here."""
        while (end := self._end()) is None:
            data = await self._raw.read(self._size)
            if len(data) == self._size:
                self._size = min(2 * self._size, READ_MAX)
            elif len(data) < self._size // 4:
                self._size = max(self._size // 2, READ_MIN)
            if not data:
                raise IncompleteReadError("the connection has ended", received_bytes=len(self._sealed) - self._begun)
            self._sealed, self._begun = self._sealed[self._begun :] + data, 0
        message = self._sealed[self._begun + _LENGTH.size : end]
        self._begun = end
        self._plain, self._at = self._plain[self._at :] + self._open(message), 0

    def _end(self) -> int | None:
        """Return where the next message ends; None: it is not here whole."""
        start = self._begun + _LENGTH.size
        if len(self._sealed) < start:
            return None
        end = start + int(_LENGTH.unpack_from(self._sealed, self._begun)[0])
        return end if end <= len(self._sealed) else None
