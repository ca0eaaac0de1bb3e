"""The messages of libp2p's kad-dht: protobuf with an unsigned-varint length before it, read and written by hand.

    Record  { bytes key = 1; bytes value = 2; string timeReceived = 5 }
    Message { MessageType type = 1; bytes key = 2; Record record = 3; Peer closerPeers = 8 …; Peer providerPeers = 9 … }
    Peer    { bytes id = 1; bytes addrs = 2 …; ConnectionType connection = 3 }

Rule: whatever the other side sends ends in a Message or in PeerError. Fields that we do not know are skipped, as
protobuf wants it (py-libp2p sends signed peer records); too long, too many or cut off is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from p2pgrid.core.errors import PeerError

PROTOCOL = "/p2pgrid/kad/1.0.0"
MESSAGE_MAX = 64 * 1024
NAME_MAX = 128
"""Bytes of a key on the wire; as in go-libp2p."""
PEERS_MAX = 64
ADDRESSES_MAX = 32
ADDRESS_MAX = 256
TIME_MAX = 64
FIELDS_MAX = 4096
VARINT_MAX = 10
LENGTH_BYTES_MAX = 4

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Kind(IntEnum):
    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5
    """Deprecated, never sent; answered, because py-libp2p still asks."""


class Connection(IntEnum):
    NOT_CONNECTED = 0
    CONNECTED = 1
    CAN_CONNECT = 2
    CANNOT_CONNECT = 3


class Contact(NamedTuple):
    """A peer and where it can be reached: binary PeerId, binary multiaddrs."""

    id: bytes
    addresses: tuple[bytes, ...] = ()
    connection: int = Connection.NOT_CONNECTED


class Record(NamedTuple):
    key: bytes
    value: bytes
    received: str = ""
    """When the one who answers got it, RFC 3339."""


class Message(NamedTuple):
    """A request, or the answer to one."""

    kind: Kind
    key: bytes = b""
    record: Record | None = None
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()


def encode(message: Message) -> bytes:
    """Return the message without its length."""
    parts = [b"\x08", bytes([message.kind])]
    if message.key:
        parts += _field(2, message.key)
    if message.record is not None:
        record = message.record
        inner = _field(1, record.key) + _field(2, record.value)
        if record.received:
            inner += _field(5, record.received.encode())
        parts += _field(3, b"".join(inner))
    for number, contacts in ((8, message.closer), (9, message.providers)):
        for contact in contacts:
            inner = _field(1, contact.id)
            for address in contact.addresses:
                inner += _field(2, address)
            parts += _field(number, b"".join([*inner, b"\x18", bytes([contact.connection])]))
    return b"".join(parts)


def framed(message: Message) -> bytes:
    """Return the message with its length before it, as it goes on the stream."""
    data = encode(message)
    return varint(len(data)) + data


def decode(data: bytes) -> Message:
    """Return the message. Raises PeerError if it is malformed or beyond a limit."""
    if len(data) > MESSAGE_MAX:
        raise PeerError(f"a DHT message of {len(data)} bytes, more than the {MESSAGE_MAX} allowed")
    kind, key = 0, b""
    record: Record | None = None
    peers: dict[int, list[Contact]] = {8: [], 9: []}
    for number, value in _fields(data):
        if number == 1:
            kind = _number(value)
        elif number == 2:  # noqa: PLR2004 - the numbers are those of the page's head, here and below
            key = _bytes(value, NAME_MAX)
        elif number == 3:  # noqa: PLR2004
            if record is not None:
                raise PeerError("a DHT message with two records")
            record = _record(_bytes(value, MESSAGE_MAX))
        elif number in peers:
            if len(peers[number]) >= PEERS_MAX:
                raise PeerError(f"a DHT message with more than {PEERS_MAX} peers")
            peers[number].append(_contact(_bytes(value, MESSAGE_MAX)))
    if kind > max(Kind):
        raise PeerError("a DHT message of an unknown type")
    return Message(Kind(kind), key, record, tuple(peers[8]), tuple(peers[9]))


def _record(data: bytes) -> Record:
    key, value, received = b"", b"", b""
    for number, each in _fields(data):
        if number == 1:
            key = _bytes(each, NAME_MAX)
        elif number == 2:  # noqa: PLR2004
            value = _bytes(each, MESSAGE_MAX)
        elif number == 5:  # noqa: PLR2004
            received = _bytes(each, TIME_MAX)
    try:
        return Record(key, value, received.decode())
    except UnicodeDecodeError as error:
        raise PeerError("a DHT record whose time is no text") from error


def _contact(data: bytes) -> Contact:
    id_, connection = b"", 0
    addresses: list[bytes] = []
    for number, each in _fields(data):
        if number == 1:
            id_ = _bytes(each, NAME_MAX)
        elif number == 2:  # noqa: PLR2004
            if len(addresses) >= ADDRESSES_MAX:
                raise PeerError(f"a peer with more than {ADDRESSES_MAX} addresses")
            addresses.append(_bytes(each, ADDRESS_MAX))
        elif number == 3:  # noqa: PLR2004
            connection = _number(each)
    return Contact(id_, tuple(addresses), connection if connection <= max(Connection) else 0)


# ---- protobuf -------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """Return an unsigned varint."""
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits to a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> list[bytes]:
    return [bytes([number << 3 | _BYTES]), varint(len(data)), data]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give number and value of each field; those of fixed length are skipped, for none of ours is."""
    at = 0
    for _ in range(FIELDS_MAX):
        if at == len(data):
            return
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise PeerError("a DHT message with a field of no number")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise PeerError("a DHT message with a group in it")
        if length > len(data) - at:
            raise PeerError("a DHT message that is cut off")
        if wire == _BYTES:
            yield number, data[at : at + length]
        at += length
    raise PeerError(f"a DHT message with more than {FIELDS_MAX} fields")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for count in range(VARINT_MAX):
        if at + count >= len(data):
            break
        byte = data[at + count]
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # noqa: PLR2004 - the last one
            return number & (1 << 64) - 1, at + count + 1
    raise PeerError("a DHT message with a number that does not end")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise PeerError("bytes where a DHT message has a number")
    return value


def _bytes(value: int | bytes, limit: int) -> bytes:
    if isinstance(value, int):
        raise PeerError("a number where a DHT message has bytes")
    if len(value) > limit:
        raise PeerError(f"{len(value)} bytes in a DHT message where {limit} are allowed")
    return value


class Splitter:
    """Cuts a stream into messages; keeps an unfinished one, at most MESSAGE_MAX bytes of it."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        """Whether the stream may end here."""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages completed by `data`, without their lengths. Raises PeerError on one that is too long."""
        self._buffer += data
        messages = []
        while self._buffer:
            head = bytes(self._buffer[:LENGTH_BYTES_MAX])
            if all(byte >= 0x80 for byte in head) and len(head) < LENGTH_BYTES_MAX:  # noqa: PLR2004
                break
            length, at = _varint(head, 0)
            if length > MESSAGE_MAX:
                raise PeerError(f"a DHT message of {length} bytes, more than the {MESSAGE_MAX} allowed")
            if len(self._buffer) < at + length:
                break
            messages.append(bytes(self._buffer[at : at + length]))
            del self._buffer[: at + length]
        return messages
