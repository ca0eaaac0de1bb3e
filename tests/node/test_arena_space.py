"""The address space of an arena: no byte is given out twice, and all come back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pgrid.node.arena_space import GRANULE_BYTES, SMALL_BYTES_MAX, Place, Space

LIMIT = 64 * GRANULE_BYTES


class AnySequence(RuleBasedStateMachine):
    """Allocations, frees, warming and cooling in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space(LIMIT + 5)
        self.places: list[Place] = []
        self.aside: list[tuple[int, int]] = []

    @rule(size=st.integers(1, SMALL_BYTES_MAX) | st.integers(1, LIMIT // 3))
    def allocate(self, size: int) -> None:
        place = self.space.allocate(size)
        if place is None:
            assert size > max(self.space.warm.largest, self.space.cold.largest) or size <= SMALL_BYTES_MAX
            return
        assert place.room >= size
        assert place.room < 2 * size or place.room <= 1024 or place.room - size < GRANULE_BYTES
        assert place.room > SMALL_BYTES_MAX or place.room < 2 * max(size, 1024)
        self.places.append(place)

    @precondition(lambda self: self.places)
    @rule(pick=st.integers(0, 10_000))
    def free(self, pick: int) -> None:
        self.space.free(self.places.pop(pick % len(self.places)))

    @rule(most=st.integers(0, LIMIT), cold=st.booleans())
    def set_aside(self, most: int, cold: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        span = self.space.take_cold(most) if cold else self.space.take_warm(most)
        if span is not None:
            assert span[1] - span[0] <= most
            self.aside.append(span)

    @precondition(lambda self: self.aside)
    @rule(warm=st.booleans())
    def put_back(self, warm: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        (self.space.warmed if warm else self.space.cooled)(self.aside.pop())

    @invariant()
    def nothing_overlaps(self) -> None:
        spans = sorted([(place.offset, place.end) for place in self.places] + self.aside)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= LIMIT)
        assert self.space.used == sum(place.room for place in self.places)

    def teardown(self) -> None:
        for place in self.places:
            self.space.free(place)
        for aside in self.aside:
            self.space.warmed(aside)
        assert self.space.used == 0
        assert self.space.warm.total + self.space.cold.total == LIMIT
        while (span := self.space.take_warm(LIMIT)) is not None:
            self.space.cooled(span)
        assert self.space.cold.largest == LIMIT


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_warm_places_are_taken_before_cold_ones() -> None:
    """What was used once is used again."""
    space = Space(LIMIT)
    first, second = space.allocate(3 * GRANULE_BYTES), space.allocate(GRANULE_BYTES)
    assert first is not None
    assert second is not None
    assert (first.offset, first.cold, second.offset) == (0, True, 3 * GRANULE_BYTES)
    space.free(first)

    again = space.allocate(2 * GRANULE_BYTES)

    assert again == Place(0, 2 * GRANULE_BYTES, cold=False)
    assert space.allocate(2 * GRANULE_BYTES) == Place(4 * GRANULE_BYTES, 2 * GRANULE_BYTES, cold=True)


def test_small_ones_share_a_granule() -> None:
    """A thousand small objects take as much as they need."""
    space = Space(LIMIT)
    places = [space.allocate(1000) for _ in range(64)]

    assert {place.offset // GRANULE_BYTES for place in places if place is not None} == {0}
    assert len({place.offset for place in places if place is not None}) == 64
    assert (more := space.allocate(1000)) is not None
    assert more.offset == GRANULE_BYTES
