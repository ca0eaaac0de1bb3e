"""`Job`: a job of the grid, by whomever it was submitted; it lives there and not here."""

import time
from collections.abc import Iterator
from typing import Any

from p2pgrid.client.future import Future
from p2pgrid.client.receiver import FAILED, failure
from p2pgrid.client.results import Results
from p2pgrid.client.session import Session
from p2pgrid.client.stream import Part, Stream
from p2pgrid.client.table import FutureTable
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.errors import GridError, NotFound
from p2pgrid.core.ids import job_name

ENDED = frozenset({"done", "failed", "cancelled", "abandoned"})
HTML_WITHIN_S = 2.0
BEYOND_ALL = TASKS_MAX - 1
"""Greater than the index of any task."""


class Job:
    """A job, by its id. Everything is asked when it is asked for; nothing is remembered but the names."""

    def __init__(self, session: Session, job: bytes, name: str = "") -> None:
        """Refer to a job that the grid knows. Made by `start`, `Grid.job` and `Grid.jobs`."""
        self._session = session
        self._job = job
        self._name = name

    @property
    def id(self) -> str:
        """Its name everywhere: `calm-river-42`."""
        return job_name(self._job)

    @property
    def hex(self) -> str:
        """All 128 bits of its id."""
        return self._job.hex()

    @property
    def name(self) -> str:
        """The name it was given, or an empty text."""
        return self._name

    @property
    def state(self) -> str:
        """`queued running done failed cancelled abandoned`."""
        return str(self._shown()["state"])

    @property
    def expires(self) -> float:
        """When the grid forgets it, in unix seconds."""
        return float(self._shown()["expires"])

    def progress(self) -> tuple[int, int, int | None]:
        """Return (done, failed, total); total is None while tasks may still be added."""
        shown = self._shown()
        return shown["done"], shown["failed"], shown["total"]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job ended, at most `timeout` seconds; say whether it did."""
        self._found(None)
        stream = Stream(self._session, self._job, mine=False)
        # All results count as had, so that only the end of the job is sent.
        stream.had.add(0, BEYOND_ALL)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._session.add(stream)
        try:
            while not stream.idle:
                stream.wait(deadline)
        except TimeoutError:
            return False
        finally:
            stream.stop(cancel=False)
        if stream.state not in ENDED:
            stream.over()
        return True

    def results(self, timeout: float | None = None, stable: bool = False) -> Results:  # noqa: FBT001, FBT002 - the contract's signature
        """Return the values in index order; raises at the first failed index.

        Args:
            timeout: seconds until TimeoutError; also how long an unknown id is asked for.
            stable: hand out only results that no crash can change any more: each is sealed, on the disks of two
                nodes (in a grid of one: of one) first. It takes some milliseconds longer.
        """
        self._found(timeout)
        stream = Stream(self._session, self._job, mine=False, stable=stable)
        results = Results(self._session, self._job, stream, None, buffer=0, timeout=timeout, owned=False)
        self._session.add(stream)
        return results

    def as_completed(self, timeout: float | None = None) -> Iterator[Future]:
        """Yield a decided future for each task as it ends."""
        self._found(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        stream = Stream(self._session, self._job, mine=False, ordered=False)
        table = FutureTable(self._session, self._job)
        self._session.add(stream)
        try:
            while not stream.over():
                part = stream.take()
                if part is None:
                    stream.wait(deadline)
                else:
                    yield from _decided(table, part)
        finally:
            stream.stop(cancel=False)

    def failed(self) -> list[Future]:
        """Return the futures of the tasks that have failed so far, in index order."""
        missing = self._shown()["failed"]
        failed: list[Future] = []
        if missing:
            for future in self.as_completed(self._session.timeout_s):
                if future.exception() is not None:
                    failed.append(future)
                    if len(failed) >= missing:
                        break
        return sorted(failed, key=lambda future: future.index)

    def cancel(self) -> int:
        """Cancel what is not done; return how many tasks that were."""
        return int(self._ask("cancel")["cancelled"])

    def explain(self) -> str:
        """Return why it is in its state, in words."""
        return "\n".join(self._ask("explain")["lines"])

    def logs(self) -> dict[int, str]:
        """Return what its tasks printed (the last 64 KiB of each), by index."""
        return {index: text.decode(errors="replace") for index, text in self._ask("logs")["logs"]}

    def keep_until(self, when: float) -> None:
        """Keep it until `when`, in unix seconds."""
        self._ask("keep", until=float(when))

    def forget(self) -> None:
        """Remove it and its results from the grid."""
        self._ask("forget")

    def _found(self, timeout: float | None) -> None:
        """Raise NotFound if nobody who can be reached in that time knows it."""
        self._ask("find", timeout)

    def _shown(self, timeout: float | None = None) -> dict[str, Any]:
        shown: dict[str, Any] = self._ask("show", timeout)["job"]
        return shown

    def _ask(self, verb: str, timeout: float | None = None, **arguments: object) -> dict[str, Any]:
        return self._session.about(verb, self.hex, timeout, **arguments)

    def _repr_html_(self) -> str:
        """Show in a notebook how it stands, as far as the node knows at once."""
        return shown_as_html(self._session, "Job", self.hex, repr(self))

    def __repr__(self) -> str:
        return f"<Job {self.id}{f' {self._name!r}' if self._name else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self._job == other._job

    def __hash__(self) -> int:
        return hash(self._job)


def _decided(table: FutureTable, part: Part) -> Iterator[Future]:
    place = (part.node, part.attempt)
    error: BaseException | None = None
    got: list[Any] = []
    if part.shape == FAILED:
        error = failure(part.data)
    else:
        try:
            got = part.values()
        except Exception as unreadable:  # noqa: BLE001 - unpickling runs the user's code
            error = unreadable
    for index in range(part.lo, part.hi):
        future = Future(table, index)
        future.decide(None if error else got[index - part.lo], error, place)
        yield future


def shown_as_html(session: Session, kind: str, job: str, otherwise: str) -> str:
    """Return a job as a notebook shows it; without an answer of the node, the text."""
    from p2pgrid.client import html

    try:
        return html.job(kind, session.about("show", job, HTML_WITHIN_S)["job"])
    except GridError:
        return html.plain(otherwise)


def find(session: Session, target: str, timeout_s: float) -> tuple[bytes, int | None]:
    """Return the job that `target` names, and its task if it names one. Raises NotFound."""
    found = session.about("find", target, timeout_s)
    return found["job"], found["lo"]


def future_of(session: Session, task_id: str) -> Future:
    """Return the future of a task by its id. Raises NotFound, never waits for what nobody knows."""
    job, index = find(session, task_id, session.timeout_s)
    if index is None:
        msg = f"{task_id!r} names a job, not a task"
        raise NotFound(msg, next=f"name a task: {task_id}/0")
    task = session.about("show", f"{job.hex()}/{index}")["task"]
    table = _OneTask(session, job, index)
    future = table.futures[index] = Future(table, index)
    if task["state"] == "cancelled":
        table.take(index)
        future.set_cancelled()
        return future
    session.add(table)
    return future


class _OneTask(FutureTable):
    """A future of somebody's task; stops watching once it is decided."""

    def __init__(self, session: Session, job: bytes, index: int) -> None:
        super().__init__(session, job)
        if index:
            self.had.add(0, index)
        self.had.add(index + 1, BEYOND_ALL)

    def results(self, segments: list[Any]) -> int:
        size = super().results(segments)
        if not self.futures:
            self.session.remove(self)
        return size
