"""Frames: whatever the chunks, the frames come out; whatever the bytes, nothing but PeerError."""

from __future__ import annotations

import itertools
import struct
from collections import deque
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import wire
from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import FRAME_MAX_CONTROL, FRAME_WHOLE, Frame, Splitter, frame, frame_pieces, pack, unpack

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.binary(max_size=40) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=20,
)
frames = st.lists(st.tuples(st.integers(0, 300), values, st.integers(0, 2**32)), max_size=8)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(frames, st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_chunking(sent: list[tuple[int, Any, int]], cuts: list[int]) -> None:
    """What was framed comes out of the splitter, in order, however the stream was cut."""
    stream = b"".join(frame(kind, body, id_) for kind, body, id_ in sent)
    splitter = Splitter()
    got = [one for chunk in chunks(stream, cuts) for one in splitter.feed(chunk)]

    assert got == [Frame(1, kind, id_, body) for kind, body, id_ in sent]


@given(frames, st.lists(st.integers(0, 10_000), max_size=20), st.integers(0, 60))
def test_what_is_decoded_as_it_comes_is_what_was_sent(
    sent: list[tuple[int, Any, int]], cuts: list[int], whole: int
) -> None:
    """Large frames, here those of more than a few bytes, between others."""
    stream = b"".join(frame(kind, body, id_) for kind, body, id_ in sent)
    with mock.patch.object(wire, "FRAME_WHOLE", whole):
        splitter = Splitter()
        got = [one for chunk in chunks(stream, cuts) for one in splitter.feed(chunk)]

    assert got == [Frame(1, kind, id_, body) for kind, body, id_ in sent]


@pytest.mark.parametrize(
    "content",
    [
        pack([1, 2, 0, bytes(100)])[:-1],
        pack([1, 2, 0, bytes(100)]) + b"\0",
        pack([1, 2, 0, bytes(100)]) + bytes(50),
        pack([1, 2, 0, bytes(100)]) * 2,
        b"\xc1" + bytes(100),
        pack([1, 2]) + bytes(100),
        pack([1, 2, bytes(100)]),
        b"\xdd\xff\xff\xff\xff" + bytes(100),
        b"\x91" * 2000,
        pack({1: bytes(100)}),
        b"\x81\x90\0" + bytes(100),
    ],
)
def test_a_large_frame_that_is_none_is_refused(content: bytes) -> None:
    """However it is cut: too short, two of them, no msgpack, another shape."""
    stream = len(content).to_bytes(4, "big") + content
    with mock.patch.object(wire, "FRAME_WHOLE", 20):
        for size in (1, 7, 64, len(stream) - 1):
            splitter = Splitter()
            with pytest.raises(PeerError):
                deque(splitter.feed(stream[at : at + size]) for at in range(0, len(stream), size))


@given(st.integers(0, 300), values, st.integers(0, 60))
def test_pieces_are_a_frame(kind: int, body: Any, large: int) -> None:
    """Wherever the bytes are that are not copied."""
    with mock.patch.object(wire, "FRAME_MAX_CONTROL", large):
        pieces = frame_pieces(kind, body)

    assert unpack(b"".join(pieces)[4:]) == unpack(frame(kind, body)[4:])
    assert int.from_bytes(pieces[0], "big") == sum(map(len, pieces[1:]))


@pytest.mark.parametrize("size", [FRAME_MAX_CONTROL, FRAME_MAX_CONTROL + 1, FRAME_WHOLE + 1])
def test_large_bytes_in_a_frame_are_not_copied(size: int) -> None:
    """They are pieces themselves, from where it is worth it, in the lists in which frames have them."""
    data = bytes(size)

    for body in (data, ["an id", 3, data], [[1, 2], b"job", [[0, 5, data], [5, 9, b"small"]], None]):
        pieces = frame_pieces(7, body)

        assert b"".join(pieces) == frame(7, body)
        assert any(piece is data for piece in pieces) == (size > FRAME_MAX_CONTROL)
    assert b"".join(frame_pieces(7, [data] * 20)) == frame(7, [data] * 20)


def test_a_splitter_says_how_much_it_is_sure_to_need() -> None:
    """So much less one byte completes nothing; so much completes the frame that has begun."""
    data = frame(1, bytes(3000)) + frame(2, 5)
    splitter = Splitter()

    assert splitter.feed(data[:100]) == []
    assert splitter.feed(data[100 : 100 + splitter.missing - 1]) == []
    assert splitter.missing == 1
    at = len(frame(1, bytes(3000)))
    assert [each.kind for each in splitter.feed(data[at - 1 : at])] == [1]
    assert splitter.missing <= len(data) - at


def test_what_cannot_be_packed_leaves_nothing_behind() -> None:
    with pytest.raises(TypeError):
        frame_pieces(1, [2, object()])

    assert b"".join(frame_pieces(1, 2)) == frame(1, 2)


@given(frames, st.binary(max_size=3))
def test_an_unfinished_frame_waits(sent: list[tuple[int, Any, int]], rest: bytes) -> None:
    """Less than a length is kept for later and disturbs nothing."""
    splitter = Splitter()
    got = splitter.feed(b"".join(frame(kind, body, id_) for kind, body, id_ in sent) + rest)

    assert len(got) == len(sent)
    assert splitter.feed(b"") == []


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_raises_peer_error_and_nothing_else(garbage: list[bytes]) -> None:
    """A splitter that is fed anything returns frames or raises PeerError."""
    splitter = Splitter(limit=1000)
    try:
        for chunk in garbage:
            for one in splitter.feed(chunk):
                assert isinstance(one, Frame)
    except PeerError:
        pass


@given(st.binary(max_size=200))
def test_a_well_framed_body_of_garbage_raises_peer_error_and_nothing_else(garbage: bytes) -> None:
    """The length is right, the msgpack is not."""
    try:
        got = Splitter().feed(struct.pack(">I", len(garbage)) + garbage)
    except PeerError:
        return

    assert len(got) == 1


@given(st.integers(101, 2**32 - 1))
def test_a_length_above_the_limit_is_refused_before_its_bytes_arrive(length: int) -> None:
    """Nobody makes us keep more than the limit."""
    with pytest.raises(PeerError, match="more than the 100 allowed"):
        Splitter(limit=100).feed(struct.pack(">I", length))


@given(values)
def test_values_round_trip(value: Any) -> None:
    """`unpack` is the inverse of `pack`; a byte too many or too few is refused."""
    data = pack(value)

    assert unpack(data) == value
    with pytest.raises(PeerError):
        unpack(data + b"\x00")
    with pytest.raises(PeerError):
        unpack(data[:-1])


def test_nesting_without_end_is_refused() -> None:
    """A thousand lists in one another are a PeerError, not a crash."""
    with pytest.raises(PeerError):
        unpack(b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize("value", [[1, 2, 3], {}, [1, "x", 0, None], None, [1, 2, None, 3], [1, 2, 3, 4, 5]])
def test_a_frame_of_another_shape_is_refused(value: Any) -> None:
    """A frame is [version, type, id, body]."""
    data = pack(value)
    with pytest.raises(PeerError):
        Splitter().feed(struct.pack(">I", len(data)) + data)
