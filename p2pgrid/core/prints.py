"""What tasks print, on its way from the process that runs them to whoever watches: words that all rooms share.

A worker child writes to two files that it shares with its daemon, one for each of its streams. *Marks* among what is
written say whose it is; they are the child's own and reach nobody:

    mark = 1E token ; size of the other file ; what ; run ; index ; level ; logger 1F

`what` is "p" (what follows, in both files, was written by that task), "r" (what follows in this file is the text of one
record of `logging`) or "e" (these tasks are over; what nobody claimed since the last "e" is the named one's). The size
of the other file puts what is in the two back into the order in which it was written.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from p2pgrid.core.errors import PeerError

TOKEN_BYTES = 16
"""At the start of each file, before a line end: what no task writes by chance."""
MARK, MARK_END = b"\x1e", b"\x1f"
MARK_BYTES_MAX = 512

OUT, ERR = 1, 2
"""The streams, as file descriptors number them."""

KEEP = 64 * 1024
"""Bytes kept of a task: the last ones."""
LINE_MAX = 4000
"""Characters of a line that are shown as it comes."""
LINES_PER_S = 50
"""Shown of a job; the rest is counted."""

PRINTS, PROGRESS = 1, 2
"""What a client that watches a job may want to see of its tasks while they run: bits."""


class Line(NamedTuple):
    """A line of a task, without its end. level: 0, or that of a record of `logging` with the name `logger`."""

    task: int
    stream: int
    text: str
    level: int = 0
    logger: str = ""


class Said(NamedTuple):
    """What a task said with `pg.progress`. total: negative, where it is not known."""

    task: int
    done: float
    total: float
    text: str


_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


def level_name(level: int) -> str:
    """Return what `logging` calls a level."""
    return _LEVELS.get(level, f"Level {level}")


class Throttle:
    """Lets so many pass in every second."""

    __slots__ = ("_left", "_most", "_since")

    def __init__(self, most: int = LINES_PER_S) -> None:
        self._most = self._left = most
        self._since = float("-inf")

    def admit(self, count: int, now: float) -> int:
        """Return how many of `count` may pass now; time in seconds, from anywhere."""
        if now - self._since >= 1.0:
            self._since, self._left = now, self._most
        passed = min(count, self._left)
        self._left -= passed
        return passed


class Lot(NamedTuple):
    """What tasks of a job printed at one node, as it travels between nodes; `logs` are to be kept, (index, text)."""

    job: bytes
    lines: list[Line]
    more: int
    said: list[Said]
    logs: list[tuple[int, bytes]]


ENTRIES_MAX = 256
"""Of each kind in one frame."""
LOGGER_MAX = 100
_JOB_BYTES = 16
_NUMBER_MAX = 1 << 62


def read_lot(body: Any) -> Lot:
    """Return the body of a P_PRINTED, read. Raises PeerError unless it is well formed."""
    try:
        job, lines, more, said, logs = body[:5]
        lot = Lot(
            job,
            [Line(*line) for line in lines],
            more,
            [Said(task, _real(done), _real(total), text) for task, done, total, text in said],
            [(index, bytes(memoryview(text))) for index, text in logs],
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise PeerError("malformed prints") from error
    right = (
        isinstance(job, bytes)
        and len(job) == _JOB_BYTES
        and max(len(lot.lines), len(lot.said), len(lot.logs)) <= ENTRIES_MAX
        and _is_number(more)
        and all(map(_is_line, lot.lines))
        and all(_is_number(one.task) and _is_text(one.text, LINE_MAX) for one in lot.said)
        and all(math.isfinite(one.done) and math.isfinite(one.total) for one in lot.said)
        and all(_is_number(index) and len(text) <= KEEP for index, text in lot.logs)
    )
    if not right:
        raise PeerError("malformed prints")
    return lot


def read_show(body: Any) -> tuple[bytes, int]:
    """Return the body of a P_SHOW, read. Raises PeerError unless it is well formed."""
    match body:
        case [bytes() as job, int() as what, *_] if len(job) == _JOB_BYTES and type(what) is int:
            return job, what & (PRINTS | PROGRESS)
    raise PeerError("a malformed word on who watches")


def _real(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(value)
    return float(value)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _NUMBER_MAX


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_line(line: Line) -> bool:
    return (
        _is_number(line.task)
        and line.stream in (OUT, ERR)
        and _is_text(line.text, LINE_MAX)
        and _is_number(line.level)
        and _is_text(line.logger, LOGGER_MAX)
    )
