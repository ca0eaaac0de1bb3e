"""What goes straight from messages to streams, what the library handles, and that each byte does one of both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.io.exceptions import IncompleteReadError
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.yamux.yamux import FLAG_FIN, HEADER_SIZE, TYPE_DATA, TYPE_PING, TYPE_WINDOW_UPDATE

from p2pgrid.node.net.sealed import Sealed
from p2pgrid.node.net.streams import frame

OURS, OTHER = 2, 4
LONG = bytes(range(256)) * 300
"""More than a message."""


class Wire:
    """A secured connection whose cipher writes a message backwards and adds a mark, and whose bytes come in parts."""

    def __init__(self, left_over: bytes = b"") -> None:
        self.parts: list[bytes] = []
        self.written: list[bytes] = []
        self.taken: dict[int, bytes] = {OURS: b""}
        raw = SimpleNamespace(read=self._read, write=self._write)
        self.conn = SimpleNamespace(
            read_writer=SimpleNamespace(read_write_closer=raw), encrypt=self.encrypt, decrypt=self._decrypt
        )
        self._left_over = left_over
        self.read: Any = None

    def _drain(self, _size: None) -> bytes:
        return self._left_over

    async def _read(self, _size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.parts.pop(0) if self.parts else b""

    async def _write(self, data: bytes) -> None:
        self.written.append(data)

    @staticmethod
    def encrypt(data: bytes) -> bytes:
        return data[::-1] + b"!" * 16

    @staticmethod
    def _decrypt(data: bytes) -> bytes:
        assert data.endswith(b"!" * 16)
        return data[:-16][::-1]

    def take(self, stream_id: int, data: memoryview) -> bool:
        if stream_id not in self.taken:
            return False
        self.taken[stream_id] += data
        return True

    def comes(self, plain: bytes, message: int, part: int) -> None:
        """Let bytes come, in messages and parts of such lengths."""
        bodies = [self.encrypt(plain[at : at + message]) for at in range(0, len(plain), message)]
        sealed = b"".join(len(body).to_bytes(2, "big") + body for body in bodies)
        self.parts += [sealed[at : at + part] for at in range(0, len(sealed), part)]


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(TYPE_DATA, flags, stream_id, len(body)) + body


@pytest.mark.parametrize("message", [1, 11, 12, 13, 1000, MAX_PLAINTEXT_LENGTH])
@pytest.mark.parametrize("part", [1000, 65_537, 1 << 20])
def test_data_goes_to_its_stream_and_all_else_to_the_library(message: int, part: int) -> None:
    """However the bytes are cut; in the order in which they came."""
    said = [
        data(OURS, b"first"),
        frame(TYPE_PING, 1, 0, 77),
        data(OURS, b""),
        data(OTHER, b"for nobody"),
        data(OURS, b"se"),
        data(OURS, b"cond"),
        frame(TYPE_WINDOW_UPDATE, 0, OURS, 5),
        data(OURS, LONG),
        data(OURS, b"last", FLAG_FIN),
    ]

    async def talk() -> tuple[Wire, list[bytes]]:
        wire = Wire(left_over=said[0][:3])
        Sealed(wire, wire)
        sealed = wire.read.__self__
        wire.comes(b"".join(said)[3:], message, part)
        handled: list[bytes] = []

        async def handle_all() -> None:
            while True:
                header = await wire.read(HEADER_SIZE)
                length = int.from_bytes(header[8:12], "big")
                body = await sealed.read_body(length) if header[1] == TYPE_DATA else b""
                handled.append(header + body)
                if body and header[4:8] == bytes([0, 0, 0, OURS]) and not header[3]:
                    wire.taken[OURS] += body  # as the library does

        with pytest.raises(IncompleteReadError) as ended:
            await handle_all()
        assert ended.value.is_clean_close
        return wire, handled

    wire, handled = trio.run(talk)

    assert wire.taken == {OURS: b"firstsecond" + LONG}
    not_ours = [each for each in said if each[4:8] != said[0][4:8] or each[1] != TYPE_DATA or each[3]]
    assert [each for each in handled if each in not_ours] == not_ours
    if message == MAX_PLAINTEXT_LENGTH:
        assert [each for each in handled if each not in not_ours] == [data(OURS, LONG)], "the rest went straight"


def test_an_end_within_a_message_is_no_clean_end() -> None:
    async def talk() -> bool:
        wire = Wire()
        Sealed(wire, wire)
        wire.comes(data(OURS, b"cut off"), 100, 20)
        del wire.parts[-1]
        with pytest.raises(IncompleteReadError) as ended:
            await wire.read(HEADER_SIZE)
        return bool(ended.value.is_clean_close)

    assert not trio.run(talk)


def test_frames_leave_in_one_write_each_in_messages_of_its_own() -> None:
    """What does not fit into one goes on in the next."""

    async def talk() -> Wire:
        wire = Wire()
        await Sealed(wire, wire).write([b"a", data(OURS, LONG), b"z"])
        return wire

    wire = trio.run(talk)

    (written,) = wire.written
    messages = []
    while written:
        end = 2 + int.from_bytes(written[:2], "big")
        messages.append(wire._decrypt(written[2:end]))
        written = written[end:]
    long = data(OURS, LONG)
    rest = [long[at : at + MAX_PLAINTEXT_LENGTH] for at in range(0, len(long), MAX_PLAINTEXT_LENGTH)]
    assert messages == [b"a", *rest, b"z"]
