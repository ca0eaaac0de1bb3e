"""What is on its way through one session: the jobs that go out, who expects their results, and what is owed for both.

Sans-IO: it returns the frames that are to be sent. The session's lock is held whenever one of these is called, but for
those of the last section.
"""

from collections.abc import Iterator
from concurrent.futures import Future

from p2pgrid.client.receiver import Receiver
from p2pgrid.client.upload import Upload
from p2pgrid.core.errors import GridError
from p2pgrid.core.messages import GOT, UNWATCH, WATCH
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import frame

CREDIT_STEP_BYTES = 128 * 1024


class Ledger:
    """The jobs of a session.

    Attributes:
        kept: bytes of inputs that the node has not acknowledged.
    """

    def __init__(self, timeout_s: float) -> None:
        """Start with no job. `timeout_s`: how long the node may look for whoever keeps one."""
        self.kept = 0
        self.uploads: dict[bytes, Upload] = {}
        self.receivers: dict[bytes, list[Receiver]] = {}
        self._credit: dict[bytes, int] = {}
        self._timeout_s = timeout_s

    def open(self, upload: Upload) -> bytes:
        """Send a job of our own."""
        self.uploads[upload.job] = upload
        return upload.open()

    def expect(self, receiver: Receiver) -> bytes:
        """Have the results of a job come."""
        self.receivers.setdefault(receiver.job, []).append(receiver)
        return self._watch(receiver.job)

    def _watch(self, job: bytes) -> bytes:
        had: RangeSet | None = None
        show = 0
        for receiver in self.receivers[job]:
            had = receiver.had if had is None else had & receiver.had
            show |= receiver.show
        assert had is not None
        more = [show, True] if any(one.stable for one in self.receivers[job]) else [show] if show else []
        return frame(WATCH, [job, had.flat(), self._timeout_s, *more])

    def remove(self, receiver: Receiver, *, cancel: bool, ended: bool) -> bytes:
        """Expect nothing more for this receiver; `cancel` the job, if it is our own, unless it `ended`."""
        job, data = receiver.job, b""
        upload = self.uploads.get(job)
        if cancel and upload is not None:
            data += upload.cancel(None)
        receivers = self.receivers.get(job, [])
        if receiver in receivers:
            receivers.remove(receiver)
        if not receivers and self.receivers.pop(job, None) is not None:
            if not ended:
                data += frame(UNWATCH, [job])
            self._credit.pop(job, None)
        if not receivers and upload is not None and upload.over:
            del self.uploads[job]
        return data

    def cancel(self, job: bytes, flat: list[int] | None) -> bytes:
        """Cancel tasks of a job of our own, or all of it."""
        upload = self.uploads.get(job)
        return b"" if upload is None else upload.cancel(flat)

    def consumed(self, job: bytes, size: int) -> bytes:
        """Give the node credit for result bytes that were taken in."""
        total = self._credit.get(job, 0) + size
        self._credit[job] = 0 if total >= CREDIT_STEP_BYTES else total
        return frame(GOT, [job, total]) if total >= CREDIT_STEP_BYTES else b""

    def starves(self, job: bytes, index: int) -> bytes:
        """Have the result of a task come whatever is under way: the others here wait for it."""
        return frame(GOT, [job, self._credit.pop(job, 0), index])

    def acknowledged(self, upload: Upload, what: str, lo: int) -> list[Future[None]]:
        """Take in what the node has on disk; return what is durable now."""
        freed, durable = upload.acknowledged(what, lo)
        self.kept -= freed
        if upload.over and upload.job not in self.receivers:
            self.uploads.pop(upload.job, None)
        return durable

    def refused(self, upload: Upload, what: str, lo: int, error: GridError) -> int | None:
        """Take in what the node refuses; return the end of the tasks that are lost, None: of all."""
        freed, hi = upload.refused(what, lo)
        if hi is None:
            freed += upload.give_up(error)
        self.kept -= freed
        return hi

    def drop(self, job: bytes, why: GridError) -> None:
        """Know nothing more of a job of our own, whatever the node has not acknowledged."""
        upload = self.uploads.pop(job, None)
        if upload is not None:
            self.kept -= upload.give_up(why)

    def forget(self, upload: Upload) -> None:
        """Know nothing more of a job of our own, unless its results are expected."""
        if not self.receivers.get(upload.job):
            self.uploads.pop(upload.job, None)

    def again(self) -> Iterator[bytes]:
        """Yield all that a new connection has to be told."""
        self._credit.clear()
        for upload in self.uploads.values():
            yield upload.again()
        for job in self.receivers:
            yield self._watch(job)

    def clear(self) -> tuple[list[Upload], list[Receiver]]:
        """Give up everything; return who has to be told."""
        uploads, receivers = list(self.uploads.values()), self.all()
        self.uploads, self.receivers, self.kept = {}, {}, 0
        return uploads, receivers

    # ---- for anybody, at any time ------------------------------------------------------------------------------------

    def of(self, job: bytes) -> list[Receiver]:
        """Return who expects the results of a job."""
        return list(self.receivers.get(job, ()))

    def all(self) -> list[Receiver]:
        """Return who expects results of any job."""
        return [one for several in list(self.receivers.values()) for one in several]

    def mine(self) -> list[Receiver]:
        """Return the receivers of the jobs this client submitted."""
        return [one for one in self.all() if one.mine]

    @property
    def idle(self) -> bool:
        """Whether nothing of what this client submitted is still to come."""
        return all(receiver.idle for receiver in self.mine())

    @property
    def settled(self) -> bool:
        """Whether the node has all inputs on disk that were sent."""
        return all(upload.input_settled for upload in self.uploads.values())

    @property
    def cancels_settled(self) -> bool:
        """Whether the node has written down every cancellation."""
        return not any(upload.cancelling for upload in self.uploads.values())
