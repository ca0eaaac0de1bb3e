"""`Results`: what `map` returns, an iterator in order (or in order of arrival) that is also an async iterator.

The loop over the values of a list runs in C (`itertools.chain`); Python code runs once per list of results.
"""

import itertools
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future as PlainFuture
from types import TracebackType
from typing import Any, Self

from p2pgrid.client.feed import Feed
from p2pgrid.client.future import until_done
from p2pgrid.client.session import Session
from p2pgrid.client.stream import Stream
from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import job_name


class _Taker:
    """Takes lists of values from a stream; while one lives, results are kept.

    It feeds the inputs of an unsized map as far ahead as the buffer allows.
    """

    def __init__(self, stream: Stream, feed: Feed | None, buffer: int, deadline: float | None, *, owned: bool) -> None:
        self.stream = stream
        self.feed = feed
        self._buffer = buffer
        self._deadline = deadline
        self.started = False
        self._owned = owned

    def __del__(self) -> None:
        """Once somebody took something, nobody can take the rest any more."""
        if self.started:
            self.stop()

    def stop(self) -> None:
        """Expect nothing more, and cancel what still runs if it is our own."""
        self.stream.stop(cancel=self._owned)

    def lists(self) -> Iterator[list[Any]]:
        """Yield lists of values. However this ends, what is not needed any more is cancelled."""
        self.started = True
        try:
            while not self.stream.over():
                self._top_up()
                part = self.stream.take()
                if part is not None:
                    yield part.values()
                elif not self._may_feed():
                    self.stream.wait(self._deadline)
        finally:
            self.stop()

    def _may_feed(self) -> bool:
        feed = self.feed
        # The same bound as below: where nothing is sent, somebody waits.
        return feed is not None and not feed.exhausted and feed.sent < self.stream.at + self._buffer // 2 + 1

    def _top_up(self) -> None:
        if self.feed is not None and self._may_feed():
            self.feed.some(self.stream.at + self._buffer)

    async def next_list(self) -> list[Any] | None:
        """Return the next list of values, or None at the end."""
        self.started = True
        while not self.stream.over():
            self._top_up()
            part = self.stream.take()
            if part is not None:
                return part.values()
            if not self._may_feed():
                waker: PlainFuture[None] = PlainFuture()
                self.stream.call_when_new(waker)
                await until_done(waker, None if self._deadline is None else self._deadline - time.monotonic())
        return None


class Results:
    """The results of a map, in the order of its inputs (`imap_unordered`: as they come).

    Never iterated, it is only a job that runs; dropping it cancels nothing. Once iterated, closing or dropping it, or
    leaving its `with`, cancels the rest. What a task raised is raised where its value would be.
    """

    def __init__(
        self,
        session: Session,
        job: bytes,
        stream: Stream,
        feed: Feed | None,
        *,
        buffer: int,
        timeout: float | None,
        owned: bool = True,
    ) -> None:
        """Read `stream`. Made by the grid only."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._job = job
        self._session = session
        self._taker = _Taker(stream, feed, buffer, deadline, owned=owned)
        # The stream shall keep results only for as long as somebody may ask for them. The loop of a `for` statement
        # holds the chain and nothing else, so it is the taker, which the chain holds, that counts.
        stream.keeper = weakref.ref(self._taker)
        self._lists: Iterator[list[Any]] = self._taker.lists()
        self._values: Iterator[Any] = itertools.chain.from_iterable(self._lists)
        self._leftover: Iterator[Any] = iter(())

    @property
    def id(self) -> str:
        """The name of the job: `calm-river-42`."""
        return job_name(self._job)

    def __iter__(self) -> Iterator[Any]:
        """Return the iterator over the rest; there is one for all who ask."""
        return self._values

    def __next__(self) -> Any:
        """Return the next value."""
        return next(self._values)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return this, an async iterator over the rest."""
        return self

    async def __anext__(self) -> Any:
        """Return the next value; other tasks of the event loop run meanwhile."""
        for value in self._leftover:
            return value
        try:
            values = await self._taker.next_list()
        except BaseException:
            self._taker.stop()
            raise
        if values is None:
            raise StopAsyncIteration
        self._leftover = iter(values)
        return next(self._leftover)

    def close(self) -> None:
        """Cancel what has not been taken."""
        self._lists.close()  # type: ignore[attr-defined]
        self._taker.stop()

    def wait_for_all(self) -> None:
        """Wait until all of it has run, without taking any."""
        stream = self._taker.stream
        stream.let_all_come()
        self._session.wait(lambda: stream.idle, None)

    async def aclose(self) -> None:
        """Cancel what has not been taken."""
        self.close()

    def __enter__(self) -> Self:
        """Leaving the `with` cancels what has not been taken."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Cancel what has not been taken, if anything was."""
        if kind is not None or self._taker.started:
            self.close()

    def _repr_html_(self) -> str:
        """Show in a notebook how the job stands; takes no result."""
        from p2pgrid.client.job import shown_as_html

        return shown_as_html(self._session, "Results of", self._job.hex(), repr(self))

    def __repr__(self) -> str:
        return f"<Results of {self.id}, {self._taker.stream.at} taken>"

    def __reduce__(self) -> Any:
        """Refuse to be pickled."""
        msg = "Results cannot be an argument: pass list(results)"
        raise TypeError(msg)


class NoResults(Results):
    """The results of a map over nothing, for which no job is opened."""

    def __init__(self) -> None:
        """Be empty."""
        self._lists = iter(())
        self._values = iter(())
        self._leftover = iter(())

    @property
    def id(self) -> str:
        """There is no job."""
        msg = "a map over nothing has no job"
        raise GridError(msg, next="give it items")

    async def __anext__(self) -> Any:
        """End at once."""
        raise StopAsyncIteration

    def close(self) -> None:
        """Do nothing."""

    def wait_for_all(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Do nothing."""

    def _repr_html_(self) -> str:
        return "&lt;Results of nothing&gt;"

    def __repr__(self) -> str:
        return "<Results of nothing>"
