"""What the node sends to a session, frame by frame: results, ends, acknowledgements, refusals, answers, prints.

All of it happens in the reader's thread, which never waits for the grid. What few sessions need is imported when the
first of it comes: what maps large results, what shows prints.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from p2pgrid.client.receiver import FAILED, Segment, size_of, unopened
from p2pgrid.client.requests import Requests
from p2pgrid.core import messages
from p2pgrid.core.errors import GridError, TaskCancelled, error_from_wire
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import LARGE
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import Frame, pack

if TYPE_CHECKING:
    from p2pgrid.client.arrivals import Arrivals
    from p2pgrid.client.prints import Prints
    from p2pgrid.client.session import Session


class Incoming:
    """Hands on what comes to whoever expects it."""

    def __init__(
        self,
        session: "Session",
        requests: Requests,
        give_up: Callable[[GridError], None],
        *,
        flags: Callable[[], str],
        unpickles: bool,
    ) -> None:
        """`give_up` ends the session; `flags` and `unpickles`: as of `Finder` and `Grid`."""
        self._session = session
        self._requests = requests
        self._give_up = give_up
        self._flags = flags
        self._unpickles = unpickles
        self._prints: Prints | None = None
        self._arrivals: Arrivals | None = None

    def take(self, one: Frame) -> None:
        """Take in one frame. Raises whatever a frame does that is not what it should be."""
        body = one.body
        match one.kind:
            case messages.RESULT:
                self._take_results(body[0], body[1])
            case messages.ACK:
                self._take_ack(body[0], body[1], body[2])
            case messages.STATE:
                if self._arrivals is None or not self._arrivals.after(body[0], partial(self._ended, *body)):
                    self._ended(*body)
            case messages.CANCELLED:
                # Somebody else did that: to whoever waits it is how these tasks ended.
                error = pack(encode_exception(TaskCancelled(f"a task of {job_name(body[0])} was cancelled")))
                spans = RangeSet.from_flat(body[1])
                cancelled: list[Segment] = [(i, i + 1, FAILED, error, "", 0) for lo, hi in spans for i in range(lo, hi)]
                for receiver in self._session.ledger.of(body[0]):
                    receiver.results(cancelled)
            case messages.ANSWER:
                self._requests.answered(one.id, body, None)
            case messages.ERROR:
                said = error_from_wire(body["code"], body["message"], body.get("next", ""))
                if one.id:
                    self._requests.answered(one.id, None, said)
                else:
                    # It refused a frame that is nobody's request: whatever that frame said is lost.
                    self._give_up(said)
            case messages.REFUSED:
                self._take_refusal(body)
            case messages.PRINTED:
                self._take_prints(*body[:5])
            case messages.NOTICE:
                print(f"p2pgrid: {body[1]}", file=sys.stderr)

    def _ended(self, job: bytes, state: str, reason: str) -> None:
        for receiver in self._session.ledger.of(job):
            receiver.ended(state, reason)

    def _take_results(self, job: bytes, segments: list[Any]) -> None:
        if not self._unpickles:
            self._session.consumed(job, sum(map(size_of, segments)))
            for receiver in self._session.ledger.of(job):
                receiver.results(self._here(job, unopened(segments)))
            return
        self._deliver(job, self._here(job, segments))

    def _here(self, job: bytes, segments: list[Any]) -> list[Any]:
        """Return the results that are here; large ones may have to be mapped first."""
        for segment in segments:  # not `any`: it runs for every result
            if segment[2] == LARGE:
                break
        else:
            return segments
        if self._arrivals is None:
            from p2pgrid.client.arrivals import Arrivals

            self._arrivals = Arrivals(self._session.sharing(), self._deliver)
        return self._arrivals.sort_out(job, segments)

    def _deliver(self, job: bytes, segments: list[Any]) -> None:
        if not segments:
            return
        receivers = self._session.ledger.receivers.get(job)
        if receivers is None:
            size = sum(map(size_of, segments))
        elif len(receivers) == 1:
            size = receivers[0].results(segments)
        else:
            for receiver in list(receivers):
                receiver.results(segments)
            # Several watch one job: nobody may hold the others up.
            size = sum(map(size_of, segments))
        if size:
            self._session.consumed(job, size)

    def _take_prints(self, job: bytes, node: str, lines: list[Any], more: int, said: list[Any]) -> None:
        if lines or more:
            if self._prints is None:
                from p2pgrid.client.prints import Prints

                self._prints = Prints(self._flags())
            self._prints.took(job, node, lines, more)
        if said:
            for receiver in self._session.ledger.of(job):
                receiver.said(node, said)

    def _take_ack(self, job: bytes, what: str, lo: int) -> None:
        upload = self._session.ledger.uploads.get(job)
        if upload is None:
            return
        with self._session.lock:
            durable = self._session.ledger.acknowledged(upload, what, lo)
        for future in durable:
            future.set_result(None)

    def _take_refusal(self, body: list[Any]) -> None:
        job, what, lo, why = body
        error = error_from_wire(why["code"], why["message"], why.get("next", ""))
        upload = self._session.ledger.uploads.get(job)
        hi = None
        if upload is not None:
            with self._session.lock:
                hi = self._session.ledger.refused(upload, what, lo, error)
        for receiver in self._session.ledger.of(job):
            receiver.lost(error, 0 if hi is None else lo, hi)

    def close(self) -> None:
        """Show what is held back; nothing more comes."""
        if self._prints is not None:
            self._prints.close()
