"""The results of a job on their way from the node to a verb: in order of index or of arrival, within a window.

What is held back, because a result before it is missing, counts as not taken in; the node hears which one is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from p2pgrid.cli.link import TIMEOUT_S, Link
from p2pgrid.cli.output import talk
from p2pgrid.cli.reading import text
from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.errors import NotFound, error_from_wire
from p2pgrid.core.large import LARGE, outcome_bytes
from p2pgrid.core.prints import PRINTS
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.shapes import FAILURE, PACKED, VALUES

CANCELLED = -1
"""A task that has no result and will have none: somebody cancelled it."""
HELD_STEP_BYTES = 1 << 20


class Part(NamedTuple):
    """Results of the tasks [lo, hi); they begin at position `skip` of `data`, in one of the shapes of an Outcome."""

    lo: int
    hi: int
    shape: int
    data: Any
    skip: int
    many: int
    """How many there are in `data`."""
    size: int
    """Bytes for which the node gets credit when this is taken in."""


class Parts:
    """All results of a job, or of some of its tasks."""

    def __init__(
        self, link: Link, job: bytes, span: Span | None, printed: Callable[[list[Any], int], None] | None = None
    ) -> None:
        """Expect them; nothing is asked for before somebody iterates.

        `printed` gets lines of tasks as they come (as in PRINTED), and how many were left out.
        """
        self._link = link
        self._printed = printed
        self._job = job
        self._span = span or (0, TASKS_MAX - 1)
        self._had = RangeSet([(0, self._span[0]), (self._span[1], TASKS_MAX - 1)])
        self.state = ""
        """Of the job, when it has ended; empty while it has not, although the tasks that are wanted have."""
        self.reason = ""

    def in_order(self) -> Iterator[Part]:
        """Yield results by index; what never came is passed over at the end."""
        held: dict[int, Part] = {}
        at, bytes_held, said = self._span[0], 0, HELD_STEP_BYTES
        for part in self.as_they_come(credit=False):
            held[part.lo] = part
            bytes_held += part.size
            while at in held:
                one = held.pop(at)
                at, said = one.hi, HELD_STEP_BYTES
                bytes_held -= one.size
                yield one
                self._got(one.size)
            if bytes_held >= said:
                said = bytes_held + HELD_STEP_BYTES
                self._got(0, at)
        for _, one in sorted(held.items()):
            yield one

    def as_they_come(self, *, credit: bool = True) -> Iterator[Part]:
        """Yield results in order of completion."""
        show = [] if self._printed is None else [PRINTS]
        self._link.send(m.WATCH, [self._job, self._had.flat(), TIMEOUT_S, *show])
        while not self.state and self._had.missing(*self._span):
            for one in self._link.next_frames(None):
                for part in self._of(one.kind, one.body):
                    yield part
                    if credit:
                        self._got(part.size)
        self._link.send(m.UNWATCH, [self._job])

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end of the job, or of the tasks, without any result in hand; False if it did not come."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._span[1] == TASKS_MAX - 1:
            self._had.add(0, TASKS_MAX - 1)
        self._link.send(m.WATCH, [self._job, self._had.flat(), TIMEOUT_S])
        try:
            while not self.state and (self._span[1] == TASKS_MAX - 1 or self._had.missing(*self._span)):
                left = None if deadline is None else deadline - time.monotonic()
                for one in self._link.next_frames(left):
                    self._got(sum(part.size for part in self._of(one.kind, one.body)))
        except TimeoutError:
            return False
        return True

    def _got(self, size: int, wanted: int | None = None) -> None:
        if (size or wanted is not None) and not self.state:
            self._link.send(m.GOT, [self._job, size, wanted])

    def _of(self, kind: int, body: Any) -> Iterator[Part]:
        if kind not in (m.RESULT, m.STATE, m.CANCELLED, m.NOTICE, m.REFUSED, m.PRINTED) or body[0] != self._job:
            return
        if kind == m.PRINTED:
            if self._printed is not None:
                self._printed(body[2], body[3])
        elif kind == m.RESULT:
            for entry in body[1]:
                yield from self._fresh(*entry[:4])
        elif kind == m.CANCELLED:
            for lo, hi in RangeSet.from_flat(body[1]):
                yield from self._fresh(lo, hi, CANCELLED, b"")
        elif kind == m.NOTICE:
            talk(f"p2pgrid: {body[1]}")
        elif kind == m.REFUSED:
            raise error_from_wire(text(body[3].get("code")), text(body[3].get("message")), text(body[3].get("next")))
        else:
            self.state, self.reason = body[1], body[2]
            if self.state == "unknown":
                raise NotFound(
                    f"the job cannot be read: {self.reason or 'nobody has it any more'}", next="p2pgrid jobs"
                )

    def _fresh(self, lo: int, hi: int, shape: int, data: Any) -> Iterator[Part]:
        size = outcome_bytes(shape, data)
        wanted = self._had.missing(lo, hi)
        self._had.add(lo, hi)
        if shape not in (VALUES, PACKED, FAILURE, LARGE, CANCELLED):
            raise NotFound(f"task {lo} has a result that this version cannot show", next="p2pgrid --version")
        if not wanted and size:
            self._got(size)
        for a, b in wanted:
            yield Part(a, b, shape, data, a - lo, hi - lo, size)
            size = 0
