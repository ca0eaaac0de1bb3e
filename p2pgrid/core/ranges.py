"""Sets of task indices as sorted half-open intervals, and maps from them: what records and pools are made of.

A job of 10⁶ tasks that runs in order is a handful of intervals, never 10⁶ objects.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")
Span = tuple[int, int]


class RangeSet:
    """A set of non-negative integers kept as disjoint, non-adjacent intervals [lo, hi)."""

    __slots__ = ("_hi", "_lo", "size")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._lo: list[int] = []
        self._hi: list[int] = []
        self.size = 0
        for lo, hi in spans:
            self.add(lo, hi)

    @classmethod
    def from_flat(cls, flat: Iterable[int]) -> RangeSet:
        """Return the set written as [lo, hi, lo, hi, …]. Raises ValueError if it is not."""
        numbers = list(flat)
        if len(numbers) % 2:
            msg = "an odd number of bounds"
            raise ValueError(msg)
        spans = list(zip(numbers[::2], numbers[1::2], strict=True))
        if any(not 0 <= lo < hi for lo, hi in spans):
            msg = "bounds that are not 0 <= lo < hi"
            raise ValueError(msg)
        return cls(spans)

    def flat(self) -> list[int]:
        """Return [lo, hi, lo, hi, …]."""
        return [bound for span in zip(self._lo, self._hi, strict=True) for bound in span]

    def __iter__(self) -> Iterator[Span]:
        return iter(list(zip(self._lo, self._hi, strict=True)))

    def __len__(self) -> int:
        return len(self._lo)

    def __bool__(self) -> bool:
        return bool(self._lo)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._lo == other._lo and self._hi == other._hi

    def __hash__(self) -> int:
        return hash((tuple(self._lo), tuple(self._hi)))

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._lo, index) - 1
        return at >= 0 and index < self._hi[at]

    def __repr__(self) -> str:
        return "RangeSet(" + " ".join(f"{lo}-{hi}" for lo, hi in self) + ")"

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        new = RangeSet()
        new._lo = self._lo.copy()
        new._hi = self._hi.copy()
        new.size = self.size
        return new

    def first(self) -> Span | None:
        """Return the first interval, or None."""
        return (self._lo[0], self._hi[0]) if self._lo else None

    def last(self) -> Span | None:
        """Return the last interval, or None."""
        return (self._lo[-1], self._hi[-1]) if self._lo else None

    def add(self, lo: int, hi: int) -> int:
        """Add [lo, hi); return how many indices are new."""
        if lo >= hi:
            return 0
        los, his = self._lo, self._hi
        if not his or lo > his[-1]:
            los.append(lo)
            his.append(hi)
            self.size += hi - lo
            return hi - lo
        if lo == his[-1]:  # in order: the usual case, and the hot one
            his[-1] = hi
            self.size += hi - lo
            return hi - lo
        left = bisect_left(his, lo)
        right = bisect_right(los, hi)
        had = 0
        if left < right:
            had = sum(min(his[i], hi) - max(los[i], lo) for i in range(left, right))
            lo, hi, wanted = min(lo, los[left]), max(hi, his[right - 1]), hi - lo
        else:
            wanted = hi - lo
        los[left:right] = [lo]
        his[left:right] = [hi]
        self.size += wanted - had
        return wanted - had

    def discard(self, lo: int, hi: int) -> int:
        """Remove [lo, hi); return how many indices were there."""
        los, his = self._lo, self._hi
        left = bisect_right(his, lo)
        right = bisect_left(los, hi)
        if lo >= hi or left >= right:
            return 0
        if right - left == 1 and los[left] >= lo:
            a, b = los[left], his[left]
            if b <= hi:
                del los[left], his[left]
                self.size -= b - a
                return b - a
            los[left] = hi
            self.size -= hi - a
            return hi - a
        gone = sum(min(his[i], hi) - max(los[i], lo) for i in range(left, right))
        keep = []
        if los[left] < lo:
            keep.append((los[left], lo))
        if his[right - 1] > hi:
            keep.append((hi, his[right - 1]))
        los[left:right] = [a for a, _ in keep]
        his[left:right] = [b for _, b in keep]
        self.size -= gone
        return gone

    def update(self, other: Iterable[Span]) -> int:
        """Add all intervals of `other`; return how many indices are new."""
        return sum(self.add(lo, hi) for lo, hi in other)

    def difference_update(self, other: Iterable[Span]) -> int:
        """Remove all intervals of `other`; return how many indices were there."""
        return sum(self.discard(lo, hi) for lo, hi in other)

    def __or__(self, other: RangeSet) -> RangeSet:
        new = self.copy()
        new.update(other)
        return new

    def __sub__(self, other: RangeSet) -> RangeSet:
        # Walks the own intervals only: most often a few tasks are asked about, and `other` is all that was ever done.
        return RangeSet(gap for lo, hi in self for gap in other.missing(lo, hi))

    def within(self, lo: int, hi: int) -> list[Span]:
        """Return the parts of [lo, hi) that are in the set."""
        if not self._hi or lo >= self._hi[-1]:
            return []
        if lo >= hi:
            return []
        left = bisect_right(self._hi, lo)
        right = bisect_left(self._lo, hi)
        return [(max(self._lo[i], lo), min(self._hi[i], hi)) for i in range(left, right)]

    def missing(self, lo: int, hi: int) -> list[Span]:
        """Return the parts of [lo, hi) that are not in the set."""
        gaps = []
        for a, b in self.within(lo, hi):
            if lo < a:
                gaps.append((lo, a))
            lo = b
        if lo < hi:
            gaps.append((lo, hi))
        return gaps

    def __and__(self, other: RangeSet) -> RangeSet:
        new = RangeSet()
        few, many = (self, other) if len(self._lo) <= len(other._lo) else (other, self)
        for lo, hi in few:
            for a, b in many.within(lo, hi):
                new.add(a, b)
        return new

    def __ge__(self, other: RangeSet) -> bool:
        """Whether every index of `other` is here."""
        return all(not self.missing(lo, hi) for lo, hi in other)

    def take(self, count: int) -> list[Span]:
        """Remove and return the first `count` indices as intervals."""
        taken: list[Span] = []
        while count > 0 and self._lo:
            lo, hi = self._lo[0], min(self._hi[0], self._lo[0] + count)
            taken.append((lo, hi))
            count -= hi - lo
            self.discard(lo, hi)
        return taken


class RangeMap(Generic[V]):
    """A piecewise constant partial map from indices to values; joined pointwise by the `combine` it was made with.

    If `combine` is commutative, associative and idempotent, so is the join of such maps.
    """

    __slots__ = ("_combine", "_hi", "_lo", "_value")

    def __init__(self, combine: Callable[[V, V], V]) -> None:
        self._combine = combine
        self._lo: list[int] = []
        self._hi: list[int] = []
        self._value: list[V] = []

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(list(zip(self._lo, self._hi, self._value, strict=True)))

    def __len__(self) -> int:
        return len(self._lo)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeMap) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "RangeMap(" + " ".join(f"{lo}-{hi}:{value}" for lo, hi, value in self) + ")"

    def get(self, index: int) -> V | None:
        """Return the value at `index`, or None."""
        at = bisect_right(self._lo, index) - 1
        return self._value[at] if at >= 0 and index < self._hi[at] else None

    def join(self, lo: int, hi: int, value: V) -> None:
        """Combine `value` into every index of [lo, hi)."""
        if lo >= hi:
            return
        if not self._hi or lo > self._hi[-1] or (lo == self._hi[-1] and value != self._value[-1]):
            self._lo.append(lo)
            self._hi.append(hi)
            self._value.append(value)
            return
        # Everything that overlaps or touches is cut into pieces, combined and coalesced again.
        left = bisect_left(self._hi, lo)
        right = bisect_right(self._lo, hi)
        pieces: list[tuple[int, int, V]] = []
        at = lo
        for a, b, old in zip(self._lo[left:right], self._hi[left:right], self._value[left:right], strict=True):
            if a < lo:
                pieces.append((a, min(b, lo), old))
            if at < a:
                pieces.append((at, min(a, hi), value))
            if max(a, lo) < min(b, hi):
                pieces.append((max(a, lo), min(b, hi), self._combine(old, value)))
            if b > hi:
                pieces.append((max(a, hi), b, old))
            at = max(at, min(b, hi))
        if at < hi:
            pieces.append((at, hi, value))
        pieces.sort(key=lambda piece: piece[0])
        merged: list[tuple[int, int, V]] = []
        for a, b, v in pieces:
            if merged and merged[-1][1] == a and merged[-1][2] == v:
                merged[-1] = (merged[-1][0], b, v)
            else:
                merged.append((a, b, v))
        self._lo[left:right] = [a for a, _, _ in merged]
        self._hi[left:right] = [b for _, b, _ in merged]
        self._value[left:right] = [v for _, _, v in merged]

    def within(self, lo: int, hi: int) -> list[tuple[int, int, V]]:
        """Return the pieces of [lo, hi) that have a value."""
        if lo >= hi:
            return []
        left = bisect_right(self._hi, lo)
        right = bisect_left(self._lo, hi)
        return [(max(self._lo[i], lo), min(self._hi[i], hi), self._value[i]) for i in range(left, right)]

    def alike(self, lo: int, hi: int) -> int:
        """Return up to where, at most `hi`, all indices from `lo` have the same value, or none."""
        at = bisect_right(self._lo, lo) - 1
        if at >= 0 and lo < self._hi[at]:
            return min(hi, self._hi[at])
        return min(hi, self._lo[at + 1]) if at + 1 < len(self._lo) else hi

    def update(self, other: Iterable[tuple[int, int, V]]) -> None:
        """Join every piece of `other`."""
        for lo, hi, value in other:
            self.join(lo, hi, value)
