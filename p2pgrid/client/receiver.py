"""What arrives from the node for one job: the interface of whoever takes it, and how outcomes become values."""

import pickle
from typing import Any, Protocol

from p2pgrid.core.errors import GridError, NotFound, PeerError, ResultLost, TaskCancelled
from p2pgrid.core.failure import decode_exception, encode_exception
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import LARGE, read_large
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import pack, unpack

PICKLES, PACKED, FAILED = 0, 1, 2
"""Shapes of an outcome (`node.events.Outcome`); one of shape `core.large.LARGE` has a `client.arrivals.Arrived`."""

Segment = tuple[int, int, int, Any, str, int]
"""lo, hi, shape, data, node name, attempt: one element of a RESULT frame."""


class Receiver(Protocol):
    """Takes what the node sends about one job. Called by the reader thread only, without any lock held."""

    job: bytes
    had: RangeSet
    """The tasks whose results are here; a result that comes again is passed over."""
    show: int
    """What it wants to see of tasks while they run: core.prints, PRINTS and PROGRESS."""
    stable: bool
    """Whether it wants only results that are sealed on two disks."""
    mine: bool
    """Whether this client submitted the job and waits for it before it leaves."""

    @property
    def idle(self) -> bool:
        """Whether nothing more is expected."""

    def results(self, segments: list[Segment]) -> int:
        """Take results; return how many bytes of them are consumed already."""

    def said(self, node: str, said: list[Any]) -> None:
        """Take what tasks say of their progress."""

    def ended(self, state: str, reason: str) -> None:
        """Take the end of the job; nothing comes after it."""

    def interrupted(self, before: int | None) -> None:
        """Cancel what the interrupted cell of a notebook has submitted, and the caller waits for.

        `before`: how many tasks there were when it began; None: all of this is the cell's.
        """

    def lost(self, error: Exception, lo: int = 0, hi: int | None = None) -> None:
        """Give up the tasks [lo, hi) that have no result."""


def size_of(segment: Segment) -> int:
    """Return how many bytes of result a segment holds, as credit is counted."""
    data = segment[3]
    if segment[2] == LARGE and isinstance(data, bytes):
        return read_large(data).size
    return sum(map(len, data)) if isinstance(data, list) else len(data)


def failure(data: bytes) -> BaseException:
    """Return the exception in an outcome of shape FAILED."""
    try:
        return decode_exception(unpack(data))
    except PeerError as error:
        return GridError(f"an error that cannot be read: {error}", code="remote-error")


def values(shape: int, data: Any, lo: int, hi: int) -> list[Any]:
    """Return the values of an outcome from its position `lo` to `hi`; unpickling may raise what it wants."""
    if shape == LARGE:
        return [data.value()]
    if shape == PICKLES:
        loads = pickle.loads
        return [loads(one) if one else None for one in data[lo:hi]]
    packed: list[Any] = pickle.loads(data)
    return packed if lo == 0 and hi == len(packed) else packed[lo:hi]


def unopened(segments: list[Segment]) -> list[Segment]:
    """Return the outcomes with an error in place of every pickle: for a client that unpickles nothing."""
    error = pack(encode_exception(GridError(
        "the task has a value, and this Grid was made with unpickle='never'", code="not-unpickled",
        next="read it where you trust the workers of the grid: Grid(unpickle='members')",
    )))  # fmt: skip
    kept: list[Segment] = []
    for segment in segments:
        lo, hi, shape, data, node, attempt = segment
        if shape == FAILED or (shape == LARGE and read_large(data).is_ref):
            kept.append(segment)
            continue
        for i in range(lo, hi):
            if shape == PICKLES and not data[i - lo]:  # None travels as nothing
                kept.append((i, i + 1, PICKLES, [b""], node, attempt))
            else:
                kept.append((i, i + 1, FAILED, error, node, attempt))
    return kept


def why_none(job: bytes, state: str, reason: str) -> GridError:
    """Return the error of a task that has no result although its job ended in `state`."""
    name = job_name(job)
    match state:
        case "cancelled":
            return TaskCancelled(f"job {name} was cancelled" + (f": {reason}" if reason else ""))
        case "unknown":
            why = f"job {name} cannot be read: {reason}" if reason else f"no job {name} is known here"
            return NotFound(why, next="p2pgrid jobs lists what there is")
    return ResultLost(f"job {name} ended as {state} without a result of this task" + (f": {reason}" if reason else ""))
