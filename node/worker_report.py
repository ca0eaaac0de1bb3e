"""What the worker child tells the daemon about a run, and when: not per task, but not too late either.

A report leaves 20 ms after the last one, at the end of the task that runs then: what is finished is not lost when a
later task of the same run kills the process, and the daemon still gets thousands of trivial tasks in one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from p2pgrid.core.large import LARGE
from p2pgrid.core.messages import W_DONE
from p2pgrid.core.segments import Outcome
from p2pgrid.core.wire import frame
from p2pgrid.node import worker_results as results

INTERVAL_S = 0.02
BYTES_MAX = 32 * 1024 * 1024
"""A report that holds more leaves at once; with one value of 256 MiB it still fits in a frame."""


class Report:
    """What is finished and not sent yet, of one run."""

    def __init__(self, run: int, send: Callable[[bytes], None], encode: results.Values) -> None:
        """Report on `run` through `send`."""
        self.encoded = encode.encoded
        self._packed = encode.packed
        self._run = run
        self._send = send
        self._sent_at = monotonic()
        self._bytes = 0
        self._outcomes: list[Outcome] = []
        # Adjacent tasks that are not an Outcome yet: from _lo on, either pickles, or values that are pickled together
        # when they leave. One of the two lists is empty.
        self._lo = 0
        self._pickles: list[bytes] = []
        self._values: list[Any] = []
        self.busy_s = 0.0

    def returned(self, index: int, data: bytes | results.Placed) -> None:
        """Task `index` returned this (`encoded`)."""
        if type(data) is results.Placed:
            self._close_range()
            self._outcomes.append(Outcome(index, index + 1, LARGE, data.data))
            return
        if not self._pickles or self._lo + len(self._pickles) != index:
            self._close_range()
            self._lo = index
        self._pickles.append(data)  # type: ignore[arg-type]
        self._grow(len(data))

    def values(self, lo: int, values: list[Any]) -> None:
        """Tasks [lo, lo + len(values)) returned these."""
        if not self._values or self._lo + len(self._values) != lo:
            self._close_range()
            self._lo = lo
        self._values += values

    def failed(self, index: int, data: bytes) -> None:
        """Task `index` raised this (`results.failure`)."""
        self._close_range()
        self._outcomes.append(Outcome(index, index + 1, results.FAILED, data))
        self._grow(len(data))

    def send_if_due(self, now: float) -> None:
        """Send what there is if the last report is old enough."""
        if now - self._sent_at > INTERVAL_S:
            self._leave(final=False, returned=(), unfit="")
            self._sent_at = now

    def flush(self) -> None:
        """Send what there is, before a task that waits."""
        if self._outcomes or self._pickles or self._values:
            self._leave(final=False, returned=(), unfit="")

    def finish(self, returned: Sequence[tuple[int, int]], unfit: str = "") -> None:
        """End the run: send the rest, and what is given back."""
        self._leave(final=True, returned=returned, unfit=unfit)

    def _close_range(self) -> None:
        """Make outcomes of the adjacent tasks noted so far."""
        if self._pickles:
            self._outcomes.append(Outcome(self._lo, self._lo + len(self._pickles), results.CALLS, self._pickles))
            self._pickles = []
        elif self._values:
            values, self._values = self._values, []
            for outcome in self._packed(self._lo, values):
                self._outcomes.append(outcome)
                self._grow(len(outcome.data[0]) if outcome.shape == results.CALLS else len(outcome.data))

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > BYTES_MAX:
            self._leave(final=False, returned=(), unfit="")

    def _leave(self, *, final: bool, returned: Sequence[tuple[int, int]], unfit: str) -> None:
        self._close_range()
        # The time that a task waits for others is taken off before the time it took is put on.
        busy_s, rest_s = max(self.busy_s, 0.0), min(self.busy_s, 0.0)
        body = [self._run, self._outcomes, final, returned, busy_s, (), unfit]
        self._outcomes, self.busy_s, self._bytes = [], rest_s, 0
        self._send(frame(W_DONE, body))
