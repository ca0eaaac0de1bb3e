"""The address space of an arena: which bytes are whose, as numbers only.

Places of 64 KiB and more are whole granules of 64 KiB, by best fit; smaller ones share a granule with others of their
class (1, 2, 4 … 32 KiB). A granule is a whole number of pages on every machine, so what nobody uses can be given back
to the system. Free granules are *warm* (the system has given memory for them, and touching them is cheap) or *cold*
(they are only numbers). Warm ones are taken first.

Address space costs nothing, memory does: an arena has several times as many addresses as it may use memory, so that
holes between long-lived objects never force anything to be moved, which objects that are mapped cannot be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

GRANULE_BYTES = 64 * 1024
SMALL_BYTES_MIN = 1024
SMALL_BYTES_MAX = GRANULE_BYTES // 2

Span = tuple[int, int]


class Place(NamedTuple):
    """Where an object lies. `cold`: no memory stands behind it yet."""

    offset: int
    room: int
    cold: bool

    @property
    def end(self) -> int:
        return self.offset + self.room


class Holes:
    """Disjoint free spans that never touch each other, found by size."""

    def __init__(self) -> None:
        self.total = 0
        self._ends: dict[int, int] = {}  # by begin
        self._begins: dict[int, int] = {}  # by end
        self._by_size: list[Span] = []  # (size, begin), sorted

    def __len__(self) -> int:
        return len(self._by_size)

    @property
    def largest(self) -> int:
        return self._by_size[-1][0] if self._by_size else 0

    def add(self, lo: int, hi: int) -> None:
        """Free [lo, hi), which touches no other span but joins those beside it."""
        if hi in self._ends:
            after = self._ends[hi]
            self._remove(hi, after)
            hi = after
        if lo in self._begins:
            before = self._begins[lo]
            self._remove(before, lo)
            lo = before
        self._ends[lo] = hi
        self._begins[hi] = lo
        insort(self._by_size, (hi - lo, lo))
        self.total += hi - lo

    def take(self, size: int) -> int | None:
        """Return the begin of `size` bytes that are taken from the smallest span they fit in, the lowest of equals."""
        at = bisect_left(self._by_size, (size, 0))
        if at == len(self._by_size):
            return None
        have, lo = self._by_size[at]
        self._remove(lo, lo + have)
        if have > size:
            self.add(lo + size, lo + have)
        return lo

    def take_some(self, most: int, *, top: bool) -> Span | None:
        """Return a span of at most `most` bytes, taken from the lowest (`top`: the highest) span."""
        if not self._ends or most <= 0:
            return None
        begin = (max if top else min)(self._ends)
        end = self._ends[begin]
        self._remove(begin, end)
        if end - begin <= most:
            return begin, end
        cut = end - most if top else begin + most
        self.add(*((begin, cut) if top else (cut, end)))
        return (cut, end) if top else (begin, cut)

    def _remove(self, lo: int, hi: int) -> None:
        del self._ends[lo], self._begins[hi]
        del self._by_size[bisect_left(self._by_size, (hi - lo, lo))]
        self.total -= hi - lo


class Space:
    """All addresses of one arena, [0, limit); at first all of them are cold."""

    def __init__(self, limit: int) -> None:
        self.limit = limit // GRANULE_BYTES * GRANULE_BYTES
        self.used = 0
        """Bytes given out, with what is lost to rounding."""
        self.warm = Holes()
        self.cold = Holes()
        self.cold.add(0, self.limit)
        self._slabs: dict[int, tuple[int, int]] = {}  # granule -> (slot size, bits of the free slots)
        self._with_room: dict[int, dict[int, None]] = {}  # slot size -> granules with a free slot

    def allocate(self, size: int) -> Place | None:
        """Return a place for `size` bytes, or None: no hole is large enough."""
        assert size > 0
        if size <= SMALL_BYTES_MAX:
            return self._slot(max(SMALL_BYTES_MIN, 1 << (size - 1).bit_length()))
        place = self._granules(-(-size // GRANULE_BYTES) * GRANULE_BYTES)
        if place is not None:
            self.used += place.room
        return place

    def _granules(self, room: int) -> Place | None:
        for holes in (self.warm, self.cold):
            lo = holes.take(room)
            if lo is not None:
                return Place(lo, room, holes is self.cold)
        return None

    def _slot(self, size: int) -> Place | None:
        granules = self._with_room.setdefault(size, {})
        cold = False
        if not granules:
            slab = self._granules(GRANULE_BYTES)
            if slab is None:
                return None
            cold = slab.cold
            self._slabs[slab.offset] = (size, (1 << GRANULE_BYTES // size) - 1)
            granules[slab.offset] = None
        granule = next(iter(granules))
        _, free = self._slabs[granule]
        bit = free & -free
        free ^= bit
        self._slabs[granule] = (size, free)
        if not free:
            del granules[granule]
        self.used += size
        return Place(granule + (bit.bit_length() - 1) * size, size, cold)

    def free(self, place: Place) -> None:
        """Take a place back; it is warm."""
        self.used -= place.room
        if place.room >= GRANULE_BYTES:
            self.warm.add(place.offset, place.end)
            return
        granule = place.offset // GRANULE_BYTES * GRANULE_BYTES
        size, free = self._slabs[granule]
        bit = 1 << (place.offset - granule) // size
        assert size == place.room and not free & bit  # noqa: PT018 - one fact: this slot was given out
        free |= bit
        if free == (1 << GRANULE_BYTES // size) - 1:
            del self._slabs[granule]
            self._with_room[size].pop(granule, None)
            self.warm.add(granule, granule + GRANULE_BYTES)
        else:
            self._slabs[granule] = (size, free)
            self._with_room[size][granule] = None

    # ---- warming and cooling: a span is nobody's while the shell works on it -----------------------------------------

    def take_cold(self, most: int) -> Span | None:
        """Return cold granules to be warmed, the lowest; say `warmed` or `cooled` when done."""
        return self.cold.take_some(most // GRANULE_BYTES * GRANULE_BYTES, top=False)

    def take_warm(self, most: int) -> Span | None:
        """Return warm granules to be given back to the system, the highest."""
        return self.warm.take_some(most // GRANULE_BYTES * GRANULE_BYTES, top=True)

    def warmed(self, span: Span) -> None:
        self.warm.add(*span)

    def cooled(self, span: Span) -> None:
        self.cold.add(*span)
