"""Input batches: packed by runs, cut into what workers get, refused unless well formed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.batch import (
    CALLS,
    ITEMS,
    TUPLES,
    InputBatch,
    binding,
    content_id,
    decode_batch,
    encode_batch,
    pickled_function,
)
from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

IDS = [bytes([i]) * 16 for i in range(3)]
OPTS: list[dict[str, Any]] = [{}, {"retries": 2}, {"where": "arch == 'x'"}]


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[tuple[bytes, int, int, bytes]], bytes]:
    """Return (lo, per task what it is: function, options, shape, data), bytes."""
    lo = draw(st.integers(0, 1000))
    runs, expected = [], []
    for _ in range(draw(st.integers(1, 5))):
        count, fn, opt = draw(st.integers(1, 6)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
        shape = draw(st.sampled_from([CALLS, ITEMS, TUPLES]))
        data: Any = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        if shape != CALLS:
            data = pack(data)
        runs.append((count, fn, opt, shape, data))
        expected += [(IDS[fn], opt, shape, data[i] if shape == CALLS else unpack(data)[i]) for i in range(count)]
    return lo, expected, encode_batch(IDS, OPTS, runs)


def flat(batch: InputBatch, at: int, end: int) -> list[tuple[bytes, int, int, bytes]]:
    """Return per task of [at, end) what a worker would see."""
    seen = []
    for run in batch.runs:
        a, b = max(at, run.lo), min(end, run.hi)
        if a >= b:
            continue
        data, offset = run.cut(a, b)
        items = data if run.shape == CALLS else unpack(data)
        if run.shape == CALLS:
            assert offset == 0
            assert len(data) == b - a
        seen += [(run.fn, run.opts, run.shape, items[offset + i]) for i in range(b - a)]
    return seen


@given(batches(), st.integers(0, 30), st.integers(0, 30))
def test_any_cut_of_a_batch_has_the_right_tasks(
    made: tuple[int, list[tuple[bytes, int, int, bytes]], bytes], a: int, b: int
) -> None:
    """Function, options and arguments of every task are those it was packed with."""
    lo, expected, data = made
    batch = decode_batch(lo, lo + len(expected), data)

    assert (batch.lo, batch.hi) == (lo, lo + len(expected))
    assert flat(batch, lo, batch.hi) == expected
    assert flat(batch, lo + a, lo + b) == expected[a:b]


@given(batches(), st.integers(-3, 3))
def test_a_batch_must_have_as_many_tasks_as_it_says(
    made: tuple[int, list[tuple[bytes, int, int, bytes]], bytes], off: int
) -> None:
    """Another count is refused."""
    lo, expected, data = made
    if off:
        with pytest.raises(PeerError):
            decode_batch(lo, lo + len(expected) + off, data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=20) | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=30,
)  # fmt: skip


@given(anything, anything, anything | st.binary(max_size=60) | anything.map(pack))
def test_anything_else_is_a_peer_error_and_nothing_else(lo: Any, hi: Any, data: Any) -> None:
    """Whatever msgpack holds, and whatever the bounds are."""
    try:
        decode_batch(lo, hi, data)
    except PeerError:
        return
    raise AssertionError((lo, hi, data))


@given(batches(), st.data())
def test_a_batch_with_one_part_replaced_is_a_batch_or_a_peer_error(
    made: tuple[int, list[tuple[bytes, int, int, bytes]], bytes], data: st.DataObject
) -> None:
    """Damage of one element somewhere in a good batch raises nothing but PeerError."""
    lo, expected, packed = made
    value = copy.deepcopy(unpack(packed))
    place = value
    while True:
        at = data.draw(st.integers(0, len(place) - 1))
        if not isinstance(place[at], list) or not place[at] or data.draw(st.booleans()):
            place[at] = data.draw(anything)
            break
        place = place[at]
    try:
        batch = decode_batch(lo, lo + len(expected), pack(value))
    except PeerError:
        return

    assert sum(run.hi - run.lo for run in batch.runs) == len(expected)


@given(anything | anything.map(pack) | st.binary(max_size=40))
def test_a_function_that_is_none_of_the_union_is_refused(union: Any) -> None:
    """`binding` raises PeerError and nothing else."""
    with pytest.raises(PeerError):
        binding(union)


def test_functions_say_which_python_they_are_bound_to() -> None:
    """A pickled function is bound to a minor version, a named one is not."""
    assert binding(pickled_function(12, b"x")) == (12, None)
    assert binding(pack(["import", "m:f", None])) == (None, None)
    assert binding(pack(["name", "f"])) == (None, None)
    assert binding(pack(["exec", ["ls"], b"t" * 16])) == (None, b"t" * 16)


def test_content_ids_are_half_a_blake3() -> None:
    """The id of known bytes is known: other programs can compute it."""
    assert content_id(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc949"
