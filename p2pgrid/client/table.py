"""Futures of one job by the index of their task, and how results decide them."""

import pickle
from concurrent.futures import Future as PlainFuture
from concurrent.futures._base import FINISHED
from typing import Any

from p2pgrid.client.future import Future, births
from p2pgrid.client.receiver import FAILED, PICKLES, Segment, failure, size_of, values, why_none
from p2pgrid.client.session import Session
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import LARGE
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.ref import Ref


class FutureTable:
    """The undecided futures of one job: a `Receiver` for the session and `Tasks` for its futures."""

    mine = False
    show = 0
    stable = False

    def __init__(self, session: Session, job: bytes) -> None:
        """Start empty."""
        self.id = self.job = job
        self.session = session
        self.had = RangeSet()
        self.futures: dict[int, Future] = {}

    def interrupted(self, before: int | None) -> None:
        """Cancel nothing: these are tasks of somebody else's job."""

    # ---- Receiver ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether every future is decided."""
        return not self.futures

    def results(self, segments: list[Segment]) -> int:
        """Decide the futures of these tasks."""
        size = 0
        for segment in segments:
            lo, hi, shape, data, node, attempt = segment
            self.had.add(lo, hi)
            size += size_of(segment)
            place = (node, attempt)
            if shape == PICKLES:
                self._decide_each(lo, data, place)
            elif shape == FAILED:
                future = self.futures.pop(lo, None)
                if future is not None:
                    future.decide(None, failure(data), place)
            elif shape == LARGE:
                self._decide_large(lo, data, place)
            else:
                self._decide_packed(lo, hi, data, place)
        return size

    def _decide_each(self, lo: int, data: list[bytes], place: tuple[str, int]) -> None:
        take = self.futures.pop
        loads = pickle.loads
        ready: list[Future] = []
        for index, one in enumerate(data, lo):
            future = take(index, None)
            if future is None:
                continue
            if one:
                try:
                    future._result = loads(one)  # noqa: SLF001 - `decide`, written out: it runs 100,000 times a second
                except BaseException as error:  # noqa: BLE001 - unpickling runs the user's code, in the thread of all
                    future.decide(None, error, place)
                    continue
            future._place = place  # noqa: SLF001
            ready.append(future)
        watched: list[Future] = []
        with births:
            for future in ready:
                if future._guard is None:  # noqa: SLF001
                    future._state = FINISHED  # noqa: SLF001
                else:
                    watched.append(future)
        for future in watched:
            future.announce(FINISHED)

    def _decide_large(self, index: int, data: Any, place: tuple[str, int]) -> None:
        future = self.futures.pop(index, None)
        if future is None:
            return
        try:
            value = data.value()
        except BaseException as error:  # noqa: BLE001 - as above
            future.decide(None, error, place)
        else:
            future.decide(value, None, place)

    def _decide_packed(self, lo: int, hi: int, data: bytes, place: tuple[str, int]) -> None:
        wanted = [index for index in range(lo, hi) if index in self.futures]
        if not wanted:
            return
        error: BaseException | None = None
        got: list[Any] = []
        try:
            got = values(1, data, 0, hi - lo)
        except BaseException as unreadable:  # noqa: BLE001 - as above
            error = unreadable
        for index in wanted:
            future = self.futures.pop(index, None)
            if future is not None:
                future.decide(None if error else got[index - lo], error, place)

    def said(self, node: str, said: list[Any]) -> None:
        """Nobody sees a bar of single calls."""

    def ended(self, state: str, reason: str) -> None:
        """Decide what is left: nothing more comes."""
        self.lost(why_none(self.job, state, reason))

    def lost(self, error: Exception, lo: int = 0, hi: int | None = None) -> None:
        """Decide the futures of [lo, hi) with an error."""
        for index in [index for index in list(self.futures) if lo <= index and (hi is None or index < hi)]:
            future = self.futures.pop(index, None)
            if future is not None:
                future.decide(None, error, None)

    # ---- Tasks -------------------------------------------------------------------------------------------------------

    def take(self, index: int) -> bool:
        """Give the caller the right to decide a future."""
        return self.futures.pop(index, None) is not None

    def cancel_task(self, index: int) -> None:
        """Cancel a task of somebody's job by its name."""
        self.session.about("cancel", f"{self.job.hex()}/{index}")

    def durable(self, index: int) -> "PlainFuture[None]":
        """What is known by its id is on a node's disk."""
        known: PlainFuture[None] = PlainFuture()
        known.set_result(None)
        return known

    def awaited(self) -> None:
        """Hold nothing back."""

    def may_wait(self) -> None:
        """Raise RuntimeError in the reader thread."""
        self.session.may_wait()

    def ask(self, verb: str, index: int) -> dict[str, Any]:
        """Ask the node about one task."""
        return self.session.about(verb, f"{self.job.hex()}/{index}")

    def put(self, value: object) -> Ref:
        """Give a value to the grid."""
        return self.session.sharing().put(value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {job_name(self.job)}: {len(self.futures)} undecided>"
