"""What the tasks of one worker child print, as its daemon reads it: whose it is, its last 64 KiB, lines for watchers.

The child appends to two files and marks whose it is (`core.prints`, `node/worker_output.py`); here it is read, whenever
tasks ended, ten times a second while somebody watches, now and then otherwise, and once more when the child has died.
What was read is cut out of the files, so that a task which prints for days fills no memory.

Rule: however much a task prints, a look costs milliseconds: of a flood the middle is passed over.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fcntl import F_GETFL, F_SETFL, fcntl
from pathlib import Path
from typing import NamedTuple

from p2pgrid.core.prints import ERR, KEEP, LINE_MAX, MARK, MARK_BYTES_MAX, MARK_END, OUT, TOKEN_BYTES, Line, level_name
from p2pgrid.node.events import Outcome
from p2pgrid.node.page import ERR_SIZE, OUT_SIZE

READ_MAX = 4 << 20
"""Bytes of one file that one look takes in; of more, the last of them."""
BEHIND_MAX = 256 << 10
"""Bytes that may wait while nobody watches."""
CUT_BYTES = 1 << 20
"""Bytes that were read and are still in the file."""
LINES_MAX = 64
"""Lines of one run in one lot; more are counted."""
HELD_MAX = 32 << 20
"""Bytes of tasks that have not ended; of more, those of the first of them are forgotten."""
TEXT_OVERHEAD = 512
LOGGER_MAX = 100

Task = tuple[int, int]
"""Run and index."""


class _Mark(NamedTuple):
    """A mark: where in the files what it says begins, and where in its own file its bytes end."""

    out: int
    err: int
    file: int
    end: int
    what: str
    task: Task | None
    level: int
    logger: str


class _Text:
    """What one task has printed and is not handed on."""

    __slots__ = ("changed", "partial", "tail")

    def __init__(self) -> None:
        self.tail = bytearray()
        self.partial = {OUT: b"", ERR: b""}
        self.changed = False

    def add(self, data: bytes) -> None:
        self.tail += data
        self.changed = True
        if len(self.tail) > 2 * KEEP:
            del self.tail[:-KEEP]


class Printed(NamedTuple):
    """Lines of one run since the last look, and how many more there were."""

    run: int
    lines: list[Line]
    more: int


class WorkerOutput:
    """The two files of one child, and what was read of them."""

    def __init__(self, folder: Path, watched: Callable[[int], bool]) -> None:
        """Make the files; where there is no memory for that, in `folder`. `watched` says whose lines are wanted now."""
        token = secrets.token_hex(TOKEN_BYTES // 2).encode()
        self._token = MARK + token + b";"
        self.out_fd, self.err_fd = anonymous_file("p2pgrid-output", folder), anonymous_file("p2pgrid-errors", folder)
        for fd in (self.out_fd, self.err_fd):
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_APPEND)
            os.write(fd, token + b"\n")
        self._at = {OUT: len(token) + 1, ERR: len(token) + 1}
        self._cut = {OUT: 0, ERR: 0}
        self._watched = watched
        self._order = (OUT, ERR)
        """Between two marks: first the file that the first of them is in."""
        self._owner: Task | None = None
        self._unclaimed: deque[tuple[int, bytes]] = deque()
        self._unclaimed_bytes = 0
        self._texts: dict[Task, _Text] = {}
        self._held = 0
        self._lines: dict[int, list[Line]] = {}
        self._more: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the files."""
        os.close(self.out_fd)
        os.close(self.err_fd)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def tasks_ended(self, page: memoryview[int]) -> None:
        """Read what tasks wrote that have ended, if they wrote anything."""
        if page[OUT_SIZE] > self._at[OUT] or page[ERR_SIZE] > self._at[ERR]:
            self._read(last=False)

    def look(self, running: Task | None, *, watched: bool) -> None:
        """Read what has come so far: all of it if somebody watches, else if it is much."""
        behind = sum(self._sizes()) - self._at[OUT] - self._at[ERR]
        if behind > (0 if watched else BEHIND_MAX):
            self._read(last=False)
            if running is not None and self._owner is None and self._unclaimed:
                self._claim(running)
                self._owner = running

    def last_look(self, running: Task | None) -> None:
        """Read what is left: the child is dead."""
        self._read(last=True)
        if running is not None:
            self._claim(running)

    def _sizes(self) -> tuple[int, int]:
        return os.fstat(self.out_fd).st_size, os.fstat(self.err_fd).st_size

    def _read(self, *, last: bool) -> None:
        # The errors' size is taken second: whatever a mark in the first file says of it is there by then.
        sizes = self._sizes()
        data = {OUT: self._bytes(OUT, sizes[0]), ERR: self._bytes(ERR, sizes[1])}
        start = dict(self._at)
        marks, out_end = self._marks(OUT, data[OUT], sizes[0], last=last)
        more_marks, err_end = self._marks(ERR, data[ERR], out_end, last=last)
        ends = {OUT: out_end, ERR: err_end}
        marks = sorted(marks + more_marks, key=lambda mark: mark.out + mark.err)

        def text(file: int, upto: int) -> bytes:
            lo = self._at[file]
            upto = min(max(upto, lo), ends[file])
            self._at[file] = upto
            return data[file][lo - start[file] : upto - start[file]]

        record: _Mark | None = None
        for mark in marks:
            before = {file: text(file, mark.out if file == OUT else mark.err) for file in self._order}
            if record is not None:
                self._record(record, before.pop(record.file))
                record = None
            for file, more in before.items():
                self._wrote(file, more)
            self._at[mark.file] = max(self._at[mark.file], mark.end)
            self._order = (mark.file, OUT + ERR - mark.file)
            if mark.what == "r":
                record = mark
            elif mark.what == "e":
                if mark.task is not None:
                    self._claim(mark.task)
                self._owner = None
            else:
                self._owner = mark.task
        for file in self._order:
            rest = text(file, ends[file])
            if record is not None and record.file == file:
                self._record(record, rest)
            else:
                self._wrote(file, rest)
            self._cut_out(file)

    def _bytes(self, file: int, size: int) -> bytes:
        """Return what is new in a file; of a flood the end."""
        fd, at = self.out_fd if file == OUT else self.err_fd, self._at[file]
        if size - at > READ_MAX:
            at = self._at[file] = size - READ_MAX // 4
            data = os.pread(fd, size - at, at)
            skipped = data.find(b"\n") + 1  # not from within a line, or a mark
            self._at[file] += skipped
            return data[skipped:]
        return os.pread(fd, size - at, at) if size > at else b""

    def _marks(self, file: int, data: bytes, out_end: int, *, last: bool) -> tuple[list[_Mark], int]:
        """Return the marks in new bytes of a file, and up to where these can be taken in."""
        base = self._at[file]
        found: list[_Mark] = []
        at = data.find(self._token)
        while at >= 0:
            stop = data.find(MARK_END, at, at + MARK_BYTES_MAX)
            if stop < 0:
                if last or len(data) - at > MARK_BYTES_MAX:
                    break
                return found, base + at  # its end has not come yet
            mark = _read_mark(data[at + len(self._token) : stop], file, base + at, base + stop + 1)
            if mark is not None:
                if file == ERR and mark.out > out_end and not last:
                    return found, base + at  # what was written before it was not read yet
                found.append(mark)
            at = data.find(self._token, stop)
        if not last:
            cut = data.rfind(MARK, max(0, len(data) - len(self._token) + 1))
            if cut >= 0 and self._token.startswith(data[cut:]):
                return found, base + cut
        return found, base + len(data)

    def _cut_out(self, file: int) -> None:
        """Give the memory of what was read back."""
        done = self._at[file]
        if done - self._cut[file] < CUT_BYTES:
            return
        fd = self.out_fd if file == OUT else self.err_fd
        if sys.platform == "linux":
            _punch(fd, self._cut[file], done)
            self._cut[file] = done
        elif os.fstat(fd).st_size == done:  # whoever writes at this moment loses that
            os.ftruncate(fd, TOKEN_BYTES + 1)
            self._at[file], self._cut[file] = TOKEN_BYTES + 1, 0

    # ---- sorting -----------------------------------------------------------------------------------------------------

    def _wrote(self, file: int, data: bytes) -> None:
        if not data:
            return
        if self._owner is not None:
            self._add(self._owner, file, data)
            return
        self._unclaimed.append((file, data))
        self._unclaimed_bytes += len(data)
        while self._unclaimed_bytes > 2 * KEEP and len(self._unclaimed) > 1:
            self._unclaimed_bytes -= len(self._unclaimed.popleft()[1])

    def _claim(self, task: Task) -> None:
        """What nobody noted is this task's."""
        for file, data in self._unclaimed:
            self._add(task, file, data)
        self._unclaimed.clear()
        self._unclaimed_bytes = 0

    def _text(self, task: Task) -> _Text:
        text = self._texts.get(task)
        if text is None:
            text = self._texts[task] = _Text()
            self._held += TEXT_OVERHEAD
        return text

    def _keep(self, task: Task, data: bytes) -> _Text:
        text = self._text(task)
        before = len(text.tail)
        text.add(data)
        self._held += len(text.tail) - before
        while self._held > HELD_MAX and len(self._texts) > 1:
            self._pop(next(iter(self._texts)))
        return text

    def _pop(self, task: Task) -> _Text:
        text = self._texts.pop(task)
        self._held -= len(text.tail) + TEXT_OVERHEAD
        return text

    def _add(self, task: Task, file: int, data: bytes) -> None:
        text = self._keep(task, data[-KEEP:])
        if not self._watched(task[0]):
            return
        whole, newline, rest = data.rpartition(b"\n")
        if not newline:
            text.partial[file] = (text.partial[file] + data)[-LINE_MAX:]
            return
        lines = (text.partial[file] + whole).split(b"\n")
        text.partial[file] = rest[-LINE_MAX:]
        have = self._lines.setdefault(task[0], [])
        room = max(LINES_MAX - len(have), 0)
        have += [Line(task[1], file, _shown(line)) for line in lines[:room]]
        self._more[task[0]] = self._more.get(task[0], 0) + max(len(lines) - room, 0)

    def _record(self, mark: _Mark, data: bytes) -> None:
        if mark.task is None:
            return
        self._keep(mark.task, f"{level_name(mark.level)}:{mark.logger}:".encode() + data[-KEEP:])
        if not self._watched(mark.task[0]):
            return
        have = self._lines.setdefault(mark.task[0], [])
        if len(have) < LINES_MAX:
            text = data.decode(errors="replace").rstrip("\n")[:LINE_MAX]
            have.append(Line(mark.task[1], mark.file, text, mark.level, mark.logger))
        else:
            self._more[mark.task[0]] = self._more.get(mark.task[0], 0) + 1

    # ---- handing on --------------------------------------------------------------------------------------------------

    def logs(self, run: int, outcomes: Sequence[Outcome], *, final: bool) -> list[tuple[int, bytes]]:
        """Take out what the tasks printed that have ended; with the last of a run, whatever is left of it."""
        if not self._texts:
            return []
        over = [
            task for task in self._texts
            if task[0] == run and (final or any(outcome.lo <= task[1] < outcome.hi for outcome in outcomes))
        ]  # fmt: skip
        return [(task[1], self._taken(task)) for task in over]

    def logs_left(self) -> list[tuple[int, int, bytes]]:
        """Take out what all tasks printed: run, index and text."""
        return [(*task, self._taken(task)) for task in list(self._texts)]

    def logs_so_far(self) -> list[tuple[int, int, bytes]]:
        """Return what running tasks printed, those of which there is more than last time."""
        out = []
        for task, text in self._texts.items():
            if text.changed:
                text.changed = False
                out.append((*task, bytes(text.tail[-KEEP:])))
        return out

    def _taken(self, task: Task) -> bytes:
        text = self._pop(task)
        for file, rest in text.partial.items():
            if rest and self._watched(task[0]):
                self._lines.setdefault(task[0], []).append(Line(task[1], file, _shown(rest)))
        if self._owner == task:
            self._owner = None
        return bytes(text.tail[-KEEP:])

    def printed(self) -> Iterator[Printed]:
        """Take out the lines for those who watch."""
        if self._lines:
            lines, self._lines = self._lines, {}
            more, self._more = self._more, {}
            for run, some in lines.items():
                yield Printed(run, some, more.get(run, 0))

    def last_words(self, task: Task | None, most: int) -> str:
        """Return the end of what a task printed, or of what nobody claims."""
        text = self._texts.get(task) if task is not None else None
        data = bytes(text.tail) if text is not None else b"".join(data for _, data in self._unclaimed)
        return data[-most:].decode(errors="replace").strip()


def _read_mark(data: bytes, file: int, at: int, end: int) -> _Mark | None:
    """Return a mark, read; None if it is none: a task could have written it."""
    try:
        other, what, run, index, level, logger = data.decode().split(";")
        task = (int(run), int(index)) if run else None
        out, err = (at, int(other)) if file == OUT else (int(other), at)
        return _Mark(out, err, file, end, what, task, int(level or 0), logger[:LOGGER_MAX])
    except ValueError:
        return None


def _shown(line: bytes) -> str:
    """Return a line as it is shown: of what overwrites itself (a bar) the last."""
    return line.rstrip(b"\r").rpartition(b"\r")[2][: 4 * LINE_MAX].decode(errors="replace")[:LINE_MAX]


def anonymous_file(name: str, folder: Path) -> int:
    """Return the descriptor of a new file that has no name and goes with its last user."""
    if sys.platform == "linux":
        return os.memfd_create(name)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


_PUNCH_HOLE_KEEP_SIZE = 3


def _punch(fd: int, lo: int, hi: int) -> None:
    """Give back the memory behind [lo, hi) of a file, whose size stays."""
    libc = ctypes.CDLL(None)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(lo), ctypes.c_int64(hi - lo))
