"""Objects in bytes: what goes in comes out, as read-only views where it lies, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.errors import PeerError
from p2pgrid.core.objects import ALIGN_BYTES, load, serialise
from p2pgrid.core.wire import pack

DTYPES = ["u1", "i2", "<f4", ">f8", "c16", "?", "S3", "U2", "M8[ns]", [("a", "i4"), ("b", "f8")], "V5", "O"]


def written(value: object) -> memoryview:
    done = serialise(value)
    place = memoryview(bytearray(done.size))
    done.write_into(place)
    assert bytes(place) == done.joined()
    return place


def with_header(header: object, tail: bytes = b"") -> memoryview:
    packed = pack(header)
    return memoryview(len(packed).to_bytes(4, "big") + packed + tail)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(np.prod(shape, dtype=int))
    if dtype.hasobject:
        flat = np.array([None, *range(size)], dtype=object)[1:]
    else:
        raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
        raw = raw if dtype.kind not in "bU" else bytes(len(raw))
        flat = np.frombuffer(raw, dtype) if size else np.empty(0, dtype)
    array = flat.reshape(shape)
    match draw(st.sampled_from(["C", "F", "transposed", "strided", "backwards", "writeable"])):
        case "F":
            array = np.asfortranarray(array)
        case "transposed":
            array = array.T
        case "strided" if array.ndim:
            array = array[::2]
        case "backwards" if array.ndim:
            array = array[..., ::-1]
        case "writeable":
            array = array.copy()
    return array


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        if not isinstance(b, np.ndarray) or a.shape != b.shape:
            return False
        kind = a.dtype.newbyteorder("=")  # what NumPy pickles by itself (strided, dates) comes back in our byte order
        if kind.hasobject:
            return bool(kind == b.dtype and a.tolist() == b.tolist())
        return bool(kind == b.dtype.newbyteorder("=") and a.astype(kind).tobytes() == b.astype(kind).tobytes())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


plain = st.none() | st.integers() | st.text(max_size=9) | st.binary(max_size=100)
values = st.recursive(
    plain | arrays(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(values)
@settings(max_examples=100, deadline=None)
def test_what_goes_in_comes_out(value: object) -> None:
    """Arrays of every order and type, nested, empty, and values without any buffer."""
    assert same(value, load(written(value)))


@given(values)
@settings(max_examples=50, deadline=None)
def test_cut_short_it_is_refused(value: object) -> None:
    """An object says how long it is."""
    place = written(value)
    for size in {0, 1, 4, len(place) // 2, len(place) - 1}:
        with pytest.raises((PeerError, EOFError, pickle.UnpicklingError)):
            load(place[:size])


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_damaged_table_never_reaches_beyond_the_object(junk: bytes, at: int, byte: int) -> None:
    """Any damage of header and table either does nothing or is refused."""
    place = written([np.arange(40), np.arange(3.0)])
    place[at % 40] = byte
    for data in (place, memoryview(junk)):
        with contextlib.suppress(PeerError):
            load(data, lambda _, buffers: buffers)


@pytest.mark.parametrize(
    "header",
    [
        [0, 0, []], [2, 0, []], [1, 5, []], [1, -1, []], [1, 0], [1, 0, [64]], [1, 0, [64, 1000]], [1, 0, [65, 1]],
        [1, 0, [128, 8, 64, 8]], [1, 0, [64, -1]], [1, 0, ["a", 1]], [1, 0, [-64, 0]], {}, None, [1.0, 0, []],
    ],
)  # fmt: skip
def test_malformed_headers(header: object) -> None:
    """Each is refused before anything is unpickled."""
    with pytest.raises(PeerError):
        load(with_header(header, bytes(200)[: 200 if header == [1, 0, [64, 1000]] else 0]))


def test_views_are_read_only_aligned_and_where_the_object_lies() -> None:
    """No array is copied, and none can be written to, however small."""
    large, small, order = np.arange(100_000.0), np.arange(3), np.asfortranarray(np.ones((7, 9)))
    place = written({"a": large, "b": [small, order]})
    start = np.frombuffer(place, np.uint8).ctypes.data

    value = load(place)

    for array in (value["a"], *value["b"]):
        assert not array.flags.writeable
        assert (array.ctypes.data - start) % ALIGN_BYTES == 0
        assert 0 <= array.ctypes.data - start < len(place)
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    assert value["b"][1].flags.f_contiguous


def test_large_buffers_are_not_copied_when_serialised() -> None:
    """Parts are views of the value: arrays, and byte strings inside the pickle too."""
    array, text = np.zeros(1 << 20, np.uint8), bytes(1 << 20)
    done = serialise([array, text])

    array[5] = 7

    assert any(part is text for part in done.parts)
    assert next(part for part in done.parts if len(part) == 1 << 20 and part is not text)[5] == 7


def test_as_long_as_a_value_lives_its_place_does() -> None:
    """The mapping ends with the last view."""

    class Place(bytearray):
        pass

    place = Place(written(np.arange(1000)))
    alive = weakref.ref(place)
    value = load(memoryview(place))
    del place
    gc.collect()
    assert alive() is not None

    assert value[999] == 999
    del value
    gc.collect()
    assert alive() is None


def test_many_buffers_share_one_object() -> None:
    """Ten thousand small arrays, each with its own entry."""
    value = [np.full(2, i) for i in range(10_000)]

    assert same(value, load(written(value)))


def test_buffers_beyond_the_limit_travel_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost."""
    monkeypatch.setattr("p2pgrid.core.objects.BUFFERS_MAX", 2)
    value = [np.arange(i) for i in range(5)]

    assert same(value, load(written(value)))
