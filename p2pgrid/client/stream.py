"""The results of one job as they arrive, kept packed until somebody takes them.

The reader thread puts, one consumer takes. No lock: a dict and a deque are each changed by one operation, and the
condition is only touched while somebody waits.
"""

import contextlib
import threading
import time
import weakref
from collections import deque
from typing import Any, NamedTuple, Protocol

from p2pgrid.client.bars import Bar
from p2pgrid.client.receiver import FAILED, Segment, failure, size_of, values, why_none
from p2pgrid.client.session import Session
from p2pgrid.core import inside
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.errors import TaskCancelled
from p2pgrid.core.prints import PRINTS, PROGRESS, Said
from p2pgrid.core.ranges import RangeSet

HELD_STEP_BYTES = 1 << 20
"""Results that wait for one before them, after which that one is asked for; well below any window."""


class Feed(Protocol):
    """Whoever sends the inputs of the job."""

    exhausted: bool
    sent: int
    """How many tasks it has sent."""

    def all(self) -> None:
        """Send all that is left."""


class Part(NamedTuple):
    """Results of the tasks [lo, hi); they begin at position `skip` of the outcome that brought them."""

    lo: int
    hi: int
    shape: int
    data: Any
    skip: int
    node: str
    attempt: int
    size: int
    """Bytes for which the node gets credit once this is taken."""

    def values(self) -> list[Any]:
        """Return the values; raises what the task raised, or what unpickling raises."""
        if self.shape == FAILED:
            raise failure(self.data)
        return values(self.shape, self.data, self.skip, self.skip + self.hi - self.lo)


class Stream:
    """Results of one job on their way from the reader thread to one consumer; a `Receiver`."""

    def __init__(self, session: Session, job: bytes, *, mine: bool, ordered: bool = True, stable: bool = False) -> None:
        """Expect a job that is, or is about to be, watched."""
        self.detach = False
        self.feed: Feed | None = None
        """What still feeds the job, where its inputs have no known end."""
        self.job = job
        self.had = RangeSet()
        self.mine = mine
        self.show = PRINTS if mine else 0
        self.stable = stable
        self.bar: Bar | None = None
        self.state = ""
        self.reason = ""
        self.at = 0
        """The next task to be taken (ordered), or how many were taken."""
        self.keeper: weakref.ref[Any] | None = None
        """Whoever may still take results; once gone, they are thrown away."""
        self._session = session
        self._ordered = ordered
        self._error: Exception | None = None
        self._parts: dict[int, Part] = {}
        self._queue: deque[Part] = deque()
        self._open_handed = False
        self._arrived = threading.Condition()
        self._waiting = 0
        self._held_bytes = 0
        """Of results that wait for one before them."""
        self._said = (-1, 0)
        """For which one the node was asked last, and how many bytes waited then."""
        self._done = self._failed = 0
        self._wakers: list[Any] = []

    def interrupted(self, before: int | None) -> None:
        """Cancel the map, if the interrupted cell has started it."""
        if before is None and self.mine and not self.detach:
            self.stop(cancel=True)

    # ---- for the reader thread ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the job ended and all of it is here."""
        return bool(self.state) or self._error is not None

    def results(self, segments: list[Segment]) -> int:
        """Keep results; a task counts once, its first result wins."""
        consumed = 0
        unwanted = self._nobody_takes()
        for segment in segments:
            lo, hi, shape, data, node, attempt = segment
            fresh = self.had.missing(lo, hi)
            self.had.add(lo, hi)
            size = size_of(segment)
            if self._open_handed or unwanted or fresh != [(lo, hi)]:
                consumed += size
                size = 0
            for a, b in () if unwanted else fresh:
                part = Part(a, b, shape, data, a - lo, node, attempt, size)
                if self._ordered:
                    self._parts[a] = part
                    self._held_bytes += size
                else:
                    self._queue.append(part)
            if self.bar is not None:
                self._move(self.bar, segment, fresh)
        self._wake()
        if self._waiting or self._wakers:
            self._say_what_is_missing()
        return consumed

    def _say_what_is_missing(self) -> None:
        """What is here may fill the window, and the next one would never come."""
        at, (last, before) = self.at, self._said
        if self._held_bytes >= (before if at == last else 0) + HELD_STEP_BYTES and at not in self._parts:
            self._said = at, self._held_bytes
            self._session.starves(self.job, at)

    def follow(self, bar: Bar) -> None:
        """Show on a bar how far it is."""
        self.bar = bar
        self.show |= PROGRESS

    def _move(self, bar: Bar, segment: Segment, fresh: list[tuple[int, int]]) -> None:
        self._done += sum(hi - lo for lo, hi in fresh)
        self._failed += segment[2] == FAILED and bool(fresh)
        if self.feed is not None and self.feed.exhausted:
            bar.grew(self.feed.sent)
        bar.over(segment[0], segment[1])
        bar.moved(self._done, self._failed)

    def said(self, node: str, said: list[Any]) -> None:
        """Show what tasks say of their progress."""
        if self.bar is not None:
            for one in said:
                self.bar.said(node, Said(*one))

    def _end_bar(self) -> None:
        bar, self.bar = self.bar, None
        if bar is not None:
            bar.ended()

    def ended(self, state: str, reason: str) -> None:
        """Take the end of the job."""
        self.reason = reason
        self.state = state
        if state == "unknown" and self._error is None:  # a node that refused a job does not know it; it has said why
            self._error = why_none(self.job, state, reason)
        self._end_bar()
        self._wake()
        self._session.remove(self, ended=True)

    def lost(self, error: Exception, lo: int = 0, hi: int | None = None) -> None:
        """Give up: whoever waits is told."""
        self._error = error
        self._end_bar()
        self._wake()

    def _nobody_takes(self) -> bool:
        return self.keeper is not None and self.keeper() is None

    def _wake(self) -> None:
        if self._waiting:
            with self._arrived:
                self._arrived.notify_all()
        with contextlib.suppress(IndexError):  # the reader's thread and the consumer's may both be here
            while self._wakers:
                self._wakers.pop().set_result(None)

    # ---- for the consumer --------------------------------------------------------------------------------------------

    def take(self) -> Part | None:
        """Return the next results that are here, in order of index or of arrival, or None."""
        if self._ordered:
            part = self._parts.pop(self.at, None)
            if part is None:
                return None
            self.at = part.hi
            self._held_bytes -= part.size
        else:
            if not self._queue:
                return None
            part = self._queue.popleft()
            self.at += part.hi - part.lo
        if part.size and not self.state:
            self._session.consumed(self.job, part.size)
        return part

    def over(self) -> bool:
        """Say whether nothing is left and nothing will come.

        Raises:
            Exception: the grid cannot say any more what became of the next task.
        """
        if self._has_next():
            return False
        if self._error is not None:
            raise self._error
        if not self.state:
            return False
        # The state comes after all results: look again, for they may have come between the first look and this one.
        if self._has_next():
            return False
        if self.state == "cancelled":
            error = why_none(self.job, self.state, self.reason)
            assert isinstance(error, TaskCancelled)
            raise error
        return True

    def _has_next(self) -> bool:
        return self.at in self._parts if self._ordered else bool(self._queue)

    def wait(self, deadline: float | None) -> None:
        """Wait until something new may be there. Raises TimeoutError after `deadline` (monotonic)."""
        self._session.may_wait()
        self._say_what_is_missing()
        self._waiting += 1
        try:
            if inside.host is None:
                self._block(deadline)
                return
            from p2pgrid.client.waiting import waiting

            left_s = None if deadline is None else deadline - time.monotonic()
            first = self.at if self._ordered else 0
            with waiting([(self.job, first, TASKS_MAX - 1)], self._is_news, left_s):
                self._block(deadline)
        finally:
            self._waiting -= 1

    def _is_news(self) -> bool:
        return self._has_next() or self.idle

    def _block(self, deadline: float | None) -> None:
        with self._arrived:
            while not self._is_news():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._arrived.wait(left)

    def call_when_new(self, waker: Any) -> None:
        """Set the result of the future `waker` once something new may be there."""
        self._wakers.append(waker)
        self._say_what_is_missing()
        if self._has_next() or self.idle:
            self._wake()

    def let_all_come(self) -> None:
        """Take results without bound from now on: the client is about to leave and waits for the end of the job."""
        if self._open_handed or self.idle:
            return
        if self.feed is not None and not self.feed.exhausted:
            if self.at:
                # Somebody has begun to take and stopped: nobody wants the rest of what may have no end.
                self.stop(cancel=True)
                return
            self.feed.all()
        self._open_handed = True
        held = sum(part.size for part in [*self._parts.values(), *self._queue])
        self._session.consumed(self.job, held)

    def stop(self, *, cancel: bool) -> None:
        """Expect nothing more; `cancel` what still runs."""
        if self.idle:
            return
        self.state = "cancelled"
        self._end_bar()
        self._session.remove(self, cancel=cancel)
        self._wake()
