"""A value that is decoded while it comes is the one that msgpack makes of the whole, or refused as there."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import growing
from p2pgrid.core.growing import LARGE, MARK, Growing
from p2pgrid.core.wire import pack

LIMITS = {"raw": False, "strict_map_key": False}
REFUSED = (ValueError, TypeError, msgpack.exceptions.UnpackException)

plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain | st.binary(max_size=40),
    lambda some: st.lists(some, max_size=5) | st.dictionaries(st.text(max_size=4), some, max_size=3),
    max_leaves=20,
)


def longest(value: Any) -> bytes:
    """Pack with the longest way there is to say how long bytes are: as large ones are said."""
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    if isinstance(value, list):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(longest, value))
    if isinstance(value, dict):
        return b"\x80" if not value else pack(value)
    return pack(value)


def grown(data: bytes, cuts: list[int], large: int = LARGE, looked: int = growing.VALUES_MAX) -> Any:
    """Decode what comes in parts."""
    with mock.patch.multiple(growing, LARGE=large, VALUES_MAX=looked):
        one = Growing(len(data), LIMITS)
        at = 0
        for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            one.feed(memoryview(data)[at:end])
            at = end
        assert one.missing == 0
        return one.value()


def whole(data: bytes) -> Any:
    return msgpack.unpackb(data, **LIMITS)


@given(values, st.lists(st.integers(0, 10**6), max_size=20), st.integers(0, 20), st.integers(0, 30))
def test_however_it_is_cut_it_is_the_same(value: Any, cuts: list[int], large: int, looked: int) -> None:
    for data in (pack(value), longest(value)):
        assert grown(data, cuts, large, looked) == value


@given(st.binary(max_size=80), st.lists(st.integers(0, 10**6), max_size=8), st.integers(0, 8), st.integers(0, 30))
def test_what_is_no_value_is_refused(data: bytes, cuts: list[int], large: int, looked: int) -> None:
    """Or it is what msgpack says, never anything else."""
    try:
        expected = whole(data)
    except REFUSED:
        with pytest.raises(REFUSED):
            grown(data, cuts, large, looked)
        return
    try:
        assert repr(grown(data, cuts, large, looked)) == repr(expected)
    except REFUSED:
        assert bytes([MARK]) in data, "it was one"


@given(values, st.data())
def test_a_value_that_was_tampered_with_is_that_or_refused(value: Any, data: st.DataObject) -> None:
    packed = bytearray(longest([value, b"some bytes that stand apart", value]))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    test_what_is_no_value_is_refused.hypothesis.inner_test(bytes(packed), [7, 50], 8, 20)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "forged",
    [
        [msgpack.ExtType(MARK, bytes(4)), b"x" * 100],
        [b"x" * 100, msgpack.ExtType(MARK, bytes(4))],
        [b"x" * 100, msgpack.ExtType(MARK, b"\0\0\0\1")],
        [b"x" * 100, msgpack.ExtType(MARK, b"1")],
        [msgpack.ExtType(MARK, bytes(4))],
    ],
)
def test_a_peer_cannot_forge_what_stands_for_bytes(forged: list[Any]) -> None:
    """It would have the same bytes twice, or those of another place."""
    data = b"".join([b"\xdd", len(forged).to_bytes(4, "big"), *map(longest, forged)])
    with pytest.raises(ValueError, match="not ours"):
        grown(data, [3, 50, 100], 10)


def test_large_bytes_are_ready_when_the_last_of_them_is() -> None:
    """What stands around them is all that is left to decode."""
    parts = [bytes([number]) * (LARGE + number) for number in range(1, 4)]
    data = pack([1, 2, [parts[0], "text", [parts[1]], {"key": parts[2]}]])
    one = Growing(len(data), LIMITS)
    for at in range(0, len(data), 1000):
        one.feed(data[at : at + 1000])

    assert one._large == parts
    assert len(one._rest) < 40
    assert one.value() == [1, 2, [parts[0], "text", [parts[1]], {"key": parts[2]}]]


def test_bytes_that_would_not_fit_take_no_memory() -> None:
    """Whatever length is said: no more is kept than comes."""
    one = Growing(1000, LIMITS)
    with pytest.raises(ValueError, match="beyond the end"):
        one.feed(b"\xc6\xff\xff\xff\xff" + bytes(100))
