"""What comes to the loop from other threads, and how the loop ends for a bug found where nobody can catch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import trio

from p2pgrid.node import events as e
from p2pgrid.node.banner import Talk


class Arrivals:
    """The way from the journal's threads to the loop. `hear` and `crashed` may be called in any thread, once bound."""

    def __init__(self, talk: Talk, deliver: Callable[[Sequence[e.Event]], None]) -> None:
        self._talk = talk
        self._deliver = deliver
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        self._failed = trio.Event()

    def bind(self, token: trio.lowlevel.TrioToken) -> None:
        """Name the loop."""
        self._token = token

    def hear(self, events: Sequence[e.Event], logs: Sequence[e.Log]) -> None:
        """Hand events to the loop and have these lines logged."""
        self._soon(self._arrive, events, logs)

    def crashed(self, error: BaseException) -> None:
        """End the loop with an exception."""
        self._soon(self.fail, error)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._token is not None, "a thread before the loop"
        with contextlib.suppress(trio.RunFinishedError):  # the journal flushes when the loop has ended
            self._token.run_sync_soon(call, *arguments)

    def _arrive(self, events: Sequence[e.Event], logs: Sequence[e.Log]) -> None:
        try:
            for entry in logs:
                self._talk.log(entry)
            self._deliver(events)
        except BaseException as error:  # noqa: BLE001 - trio takes what is raised here for a bug of its own
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the loop with an exception; called in the loop's own thread."""
        self._failure = error
        self._failed.set()

    async def raise_failures(self) -> None:
        """Wait for a failure and raise it, in the nursery that ends by it."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure
