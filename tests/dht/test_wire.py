"""The messages, beside those that py-libp2p's protobuf classes read and write."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.kad_dht.pb import kademlia_pb2 as pb

from p2pgrid.core.errors import PeerError
from p2pgrid.dht.wire import (
    ADDRESS_MAX,
    ADDRESSES_MAX,
    MESSAGE_MAX,
    NAME_MAX,
    PEERS_MAX,
    TIME_MAX,
    Contact,
    Kind,
    Message,
    Record,
    Splitter,
    decode,
    encode,
    framed,
    varint,
)

times = st.text(st.characters(codec="utf-8"), max_size=TIME_MAX // 4)
contacts = st.builds(
    Contact, st.binary(max_size=NAME_MAX), st.lists(st.binary(max_size=64), max_size=4).map(tuple), st.integers(0, 3)
)
records = st.builds(Record, st.binary(max_size=NAME_MAX), st.binary(max_size=300), times)
peers = st.lists(contacts, max_size=4).map(tuple)
messages = st.builds(
    Message, st.sampled_from(Kind), st.binary(max_size=NAME_MAX), st.none() | records, closer=peers, providers=peers
)


def to_theirs(message: Message) -> Any:
    theirs = pb.Message(type=message.kind.name, key=message.key)
    if message.record is not None:
        key, value, received = message.record
        theirs.record.CopyFrom(pb.Record(key=key, value=value, timeReceived=received))
    for mine, into in ((message.closer, theirs.closerPeers), (message.providers, theirs.providerPeers)):
        for contact in mine:
            into.add(id=contact.id, addrs=contact.addresses, connection=contact.connection)
    return theirs


@given(messages)
def test_what_we_write_protobuf_reads(message: Message) -> None:
    """Every message, field for field."""
    theirs = pb.Message()
    theirs.ParseFromString(encode(message))

    assert theirs == to_theirs(message)


@given(messages, st.binary(max_size=40), st.integers(-(2**31), 2**31 - 1))
def test_what_protobuf_writes_we_read(message: Message, unknown: bytes, level: int) -> None:
    """Also with the fields that we skip: signed peer records, an author, the unused level."""
    theirs = to_theirs(message)
    theirs.senderRecord = unknown
    theirs.clusterLevelRaw = level
    for peer in (*theirs.closerPeers, *theirs.providerPeers):
        peer.signedRecord = unknown
    if message.record is not None:
        theirs.record.author = theirs.record.signature = unknown

    assert decode(theirs.SerializeToString()) == message


@given(st.binary(max_size=200))
def test_garbage_is_a_message_or_a_peer_error(data: bytes) -> None:
    """No other exception comes out, and what protobuf refuses we refuse."""
    try:
        message = decode(data)
    except PeerError:
        return
    pb.Message().ParseFromString(data)
    assert decode(encode(message)) == message


@given(messages, st.data())
def test_a_message_with_a_wrong_byte_is_a_message_or_a_peer_error(message: Message, data: st.DataObject) -> None:
    """As above, for garbage that is nearly right."""
    good = encode(message)
    at = data.draw(st.integers(0, len(good) - 1))
    try:
        decode(good[:at] + data.draw(st.binary(max_size=2)) + good[at + 1 :])
    except PeerError:
        return


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


FIND = b"\x08\x04"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08\x06", "unknown type"),
        (b"\x08", "does not end"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x0a\x01x", "bytes where"),
        (b"\x10\x01", "a number where"),
        (b"\x12\x05abc", "cut off"),
        (b"\x29\x00", "cut off"),
        (b"\x00\x00", "no number"),
        (b"\x13\x14", "group"),
        (FIND + field(2, bytes(NAME_MAX + 1)), "129 bytes"),
        (FIND + field(3, b"") * 2, "two records"),
        (FIND + field(3, field(5, b"\xff")), "no text"),
        (FIND + field(3, field(5, bytes(TIME_MAX + 1))), "65 bytes"),
        (FIND + field(8, b"") * (PEERS_MAX + 1), "more than 64 peers"),
        (FIND + field(8, field(2, b"") * (ADDRESSES_MAX + 1)), "more than 32 addresses"),
        (FIND + field(9, field(2, bytes(ADDRESS_MAX + 1))), "257 bytes"),
        (FIND + b"\x50\x00" * 5000, "more than 4096 fields"),
        (bytes(MESSAGE_MAX + 1), "more than the 65536"),
    ],
)
def test_what_is_beyond_a_bound_is_refused(data: bytes, why: str) -> None:
    """Too long, too many, cut off, of the wrong type: each says which."""
    with pytest.raises(PeerError, match=why):
        decode(data)


@given(st.lists(messages, max_size=4), st.integers(1, 50))
def test_a_stream_is_cut_into_its_messages_wherever_reads_end(several: list[Message], step: int) -> None:
    """Pieces of any size give the same messages, and nothing is left."""
    stream, splitter = b"".join(map(framed, several)), Splitter()
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]

    assert [decode(each) for piece in pieces for each in splitter.feed(piece)] == several
    assert splitter.empty


@pytest.mark.parametrize("head", [varint(MESSAGE_MAX + 1), b"\xff\xff\xff\xff", b"\x80\x80\x80\x80\x01"])
def test_a_length_beyond_the_bound_is_refused_before_anything_is_kept(head: bytes) -> None:
    """Four bytes of length at most, and no more than 64 KiB announced by them."""
    with pytest.raises(PeerError):
        Splitter().feed(head)
