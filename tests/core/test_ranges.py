"""Sets of ranges and maps from ranges, against the plain sets and dicts they stand for."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.ranges import RangeMap, RangeSet, Span

TOP = 40
spans = st.tuples(st.integers(0, TOP), st.integers(0, TOP))
some_spans = st.lists(spans, max_size=12)


def model(many: list[Span]) -> set[int]:
    """Return the set that spans stand for."""
    return {i for lo, hi in many for i in range(lo, hi)}


def check(ranges: RangeSet, expected: set[int]) -> None:
    """See that a RangeSet is in normal form and holds what it should."""
    pieces = list(ranges)
    assert {i for lo, hi in pieces for i in range(lo, hi)} == expected
    assert all(lo < hi for lo, hi in pieces)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(pieces)), "adjacent or overlapping intervals"
    assert ranges.size == len(expected)


@given(st.lists(st.tuples(st.booleans(), spans), max_size=40))
def test_adding_and_discarding_is_that_of_a_set(steps: list[tuple[bool, Span]]) -> None:
    """Both return how many indices they changed."""
    ranges = RangeSet()
    expected: set[int] = set()
    for adds, (lo, hi) in steps:
        part = set(range(lo, hi))
        if adds:
            assert ranges.add(lo, hi) == len(part - expected)
            expected |= part
        else:
            assert ranges.discard(lo, hi) == len(part & expected)
            expected -= part
        check(ranges, expected)


@given(some_spans, some_spans)
def test_operators_are_those_of_sets(a: list[Span], b: list[Span]) -> None:
    """Union, difference, intersection, inclusion and equality; the operands stay as they were."""
    one, two = RangeSet(a), RangeSet(b)

    check(one | two, model(a) | model(b))
    check(one - two, model(a) - model(b))
    check(one & two, model(a) & model(b))
    assert (one >= two) == (model(a) >= model(b))
    assert (one == two) == (model(a) == model(b))
    check(one, model(a))
    check(two, model(b))


@given(some_spans, spans)
def test_a_window_splits_into_what_is_within_and_what_is_missing(a: list[Span], window: Span) -> None:
    """`within` and `missing` are disjoint, in order, and make up the window."""
    ranges, (lo, hi) = RangeSet(a), window
    inside, gaps = ranges.within(lo, hi), ranges.missing(lo, hi)

    assert model(inside) == model(a) & set(range(lo, hi))
    assert model(gaps) == set(range(lo, hi)) - model(a)
    assert sorted(inside + gaps) == sorted(inside + gaps, key=lambda span: span[0])
    assert all(a < b for a, b in inside + gaps)


@given(some_spans, st.integers(0, 2 * TOP))
def test_taking_removes_the_first_indices(a: list[Span], count: int) -> None:
    """`take(n)` returns the n smallest indices and leaves the others."""
    ranges = RangeSet(a)
    expected = sorted(model(a))
    taken = ranges.take(count)

    assert [i for lo, hi in taken for i in range(lo, hi)] == expected[:count]
    check(ranges, set(expected[count:]))


@given(some_spans)
def test_the_flat_form_round_trips(a: list[Span]) -> None:
    """`flat` and `from_flat` are inverse; first, last, contains, hash and copy agree with the set."""
    ranges = RangeSet(a)
    again = RangeSet.from_flat(ranges.flat())

    assert again == ranges
    assert hash(again) == hash(ranges)
    assert ranges.copy() == ranges
    assert [i for i in range(TOP + 1) if i in ranges] == sorted(model(a))
    assert (ranges.first() or (None,))[0] == min(model(a), default=None)
    assert (ranges.last() or (None, 0))[1] == max(model(a), default=-1) + 1


@given(st.lists(st.integers(-3, 10), max_size=7))
def test_flat_bounds_that_are_no_ranges_are_refused(flat: list[int]) -> None:
    """An odd number of bounds, an empty or a negative interval raise ValueError, whatever else is there."""
    pairs = list(zip(flat[::2], flat[1::2], strict=False))
    good = len(flat) % 2 == 0 and all(0 <= lo < hi for lo, hi in pairs)
    try:
        ranges = RangeSet.from_flat(flat)
    except ValueError:
        assert not good
    else:
        assert good
        check(ranges, model(pairs))


joins = st.lists(st.tuples(spans, st.integers(0, 3)), max_size=20)


def join_all(many: list[tuple[Span, int]]) -> tuple[RangeMap[int], dict[int, int]]:
    """Return the map of these joins and its model."""
    ranges: RangeMap[int] = RangeMap(max)
    expected: dict[int, int] = {}
    for (lo, hi), value in many:
        ranges.join(lo, hi, value)
        for i in range(lo, hi):
            expected[i] = max(expected.get(i, 0), value)
    return ranges, expected


@given(joins)
def test_a_range_map_is_a_dict_joined_pointwise(many: list[tuple[Span, int]]) -> None:
    """Every index has the join of what was said of it; pieces are maximal."""
    ranges, expected = join_all(many)
    pieces = list(ranges)

    assert {i: v for lo, hi, v in pieces for i in range(lo, hi)} == expected
    assert [ranges.get(i) for i in range(TOP + 1)] == [expected.get(i) for i in range(TOP + 1)]
    for (_, hi, v), (lo, _, w) in itertools.pairwise(pieces):
        assert hi < lo or (hi == lo and v != w)


@given(joins, spans)
def test_windows_of_a_range_map(many: list[tuple[Span, int]], window: Span) -> None:
    """`within` cuts pieces to the window; `alike` says how far one value reaches."""
    ranges, expected = join_all(many)
    lo, hi = window
    inside = {i: v for a, b, v in ranges.within(lo, hi) for i in range(a, b)}

    assert inside == {i: v for i, v in expected.items() if lo <= i < hi}
    if lo < hi:
        far = lo
        while far < hi and expected.get(far) == expected.get(lo):
            far += 1
        assert ranges.alike(lo, hi) == far


@given(joins, joins)
def test_joining_maps_is_commutative_and_idempotent(a: list[tuple[Span, int]], b: list[tuple[Span, int]]) -> None:
    """The order of joins does not show, and a second time changes nothing."""
    one, _ = join_all([*a, *b])
    two, _ = join_all([*b, *a, *b])

    assert one == two
