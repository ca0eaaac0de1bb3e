"""How a node ends: by a signal, by a request, within its grace, and at last without anybody's leave.

The first signal begins the end, which is certain from then on, whatever hangs: the machine has the grace and a little
more to say that all is handed over, the process a little more than that. The second signal ends the node at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import trio

from p2pgrid.core.errors import ExitCode
from p2pgrid.node.banner import Talk

STOP_MARGIN_S = 3.0
"""After the grace: how long the machine may take to say Stopped before we end without it."""
HARD_MARGIN_S = 4.8
"""After the grace: how long the process may live at all, even on a disk that hangs."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """The end of a node, from the first word of it.

    Attributes:
        ended: nothing goes to the machine any more.
        code: what the process exits with.
    """

    def __init__(
        self, grace_s: float, talk: Talk, stop: Callable[[], None], fail: Callable[[BaseException], None]
    ) -> None:
        self.ended = False
        self.code = ExitCode.DONE
        self._grace_s = grace_s
        self._talk = talk
        self._stop = stop
        self._fail = fail
        self._begun = False
        self._stopped = trio.Event()

    def begin(self) -> None:
        """From now on the end is certain, whatever hangs."""
        if self._begun:
            return
        self._begun = True
        trio.lowlevel.spawn_system_task(self._give_up_later)
        hard = threading.Timer(self._grace_s + HARD_MARGIN_S, self._give_up_now)
        hard.daemon = True
        hard.start()

    def over(self) -> None:
        """All is handed over."""
        self.ended = True
        self._stopped.set()

    async def wait(self) -> None:
        """Return when it is over."""
        await self._stopped.wait()

    async def _give_up_later(self) -> None:
        await trio.sleep(self._grace_s + STOP_MARGIN_S)
        if not self._stopped.is_set():
            self._talk.line("warning: ended before all was handed over; what was promised is in the journal")
            self.over()

    def _give_up_now(self) -> None:
        self._talk.line("warning: the disk hangs; ended without waiting for it")
        os._exit(ExitCode.DONE)

    @contextlib.contextmanager
    def signals(self, token: trio.lowlevel.TrioToken, scope: trio.CancelScope) -> Iterator[None]:
        """Have each signal counted; trio's own receiver makes one of two that come in the same turn of the loop."""
        before = {
            number: signal.signal(number, lambda _number, _frame: token.run_sync_soon(self._on_signal, scope))
            for number in STOP_SIGNALS
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, scope: trio.CancelScope) -> None:
        if self._begun:
            self.ended = True
            self.code = ExitCode.INTERRUPTED
            scope.cancel()
            return
        try:
            self.begin()
            self._stop()
        except BaseException as error:  # noqa: BLE001 - trio takes what is raised here for a bug of its own
            self._fail(error)
