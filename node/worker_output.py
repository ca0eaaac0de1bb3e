"""What tasks print, in the worker child, and whose line it is.

Descriptors 1 and 2 are two append-only files that child and daemon share: so the output of subprocesses is caught too,
and what a killed task had printed is not lost with it. The child only writes; it marks whose the lines are
(`core.prints`). Python's own writes note the task that writes (`_Stream`); what arrives by other ways (a C library, a
subprocess) belongs to the task that ran, which `settle` says after each lot of tasks. The daemon reads
(`node/workers_output.py`).

Records of `logging` keep their level: the root logger has a handler of ours. A task that sets up its own has its way,
and ours is silent.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from p2pgrid.core.prints import TOKEN_BYTES
from p2pgrid.node.page import ERR_SIZE, OUT_SIZE

Owner = tuple[int, int]
"""Run and index of a task."""


class _Stream(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr` of a task; what a task does to it must not reach the next one."""

    def __init__(self, fd: int, note: Callable[[_Stream], str]) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._note = note

    def write(self, text: str, /) -> int:
        mark = self._note(self)
        if mark:
            super().write(mark)
        return super().write(text)

    def close(self) -> None:
        self.flush()

    def detach(self) -> io.BufferedIOBase:  # type: ignore[override]  # typeshed says BinaryIO
        raise io.UnsupportedOperation("the output of a task stays with its worker")


class _Records(logging.Handler):
    """Takes the records that no handler of the task's own takes."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._root = logging.getLogger()
        self._config = logging.basicConfig

    def install(self) -> None:
        self._root.addHandler(self)
        self._root.setLevel(logging.INFO)  # the client decides what of it is shown
        logging.basicConfig = self._basic_config

    def _basic_config(self, **how: Any) -> None:
        # It does nothing where the root has a handler; and without arguments it is logging's own doing.
        if how:
            self._root.removeHandler(self)
        self._config(**how)

    def emit(self, record: logging.LogRecord) -> None:
        if self._root.handlers != [self]:
            return
        try:
            self._output.record(record.levelno, record.name, self.format(record))
        except Exception:  # noqa: BLE001 - as every handler: a format that does not fit its arguments fails no task
            self.handleError(record)


class Output:
    """The two shared files and the streams on them."""

    def __init__(
        self, out_fd: int, err_fd: int, owner: Callable[[], Owner | None], sizes: memoryview[int]
    ) -> None:  # fmt: skip
        """Take the shared files as this process's output; `owner` names the task that writes.

        `sizes` is the shared page, where the daemon sees how much there is.
        """
        self._out_fd, self._err_fd = out_fd, err_fd
        self._owner = owner
        self._page = sizes
        self._mark = "\x1e" + os.pread(out_fd, TOKEN_BYTES, 0).decode() + ";"
        self._last: tuple[Owner | None, _Stream] | None = None
        self._out_size = self._err_size = -1
        self._open()
        self._measure()
        _Records(self).install()

    def _open(self) -> None:
        self._out = _Stream(1, self._note)
        self._err = _Stream(2, self._note)
        sys.stdout, sys.stderr = self._out, self._err

    def _other(self, stream: _Stream) -> tuple[_Stream, int]:
        return (self._err, self._err_fd) if stream is self._out else (self._out, self._out_fd)

    def _note(self, stream: _Stream) -> str:
        """Return the mark that what is about to be written needs, if it needs one."""
        writes = (self._owner(), stream)
        if writes == self._last:
            return ""
        self._last = writes
        other, fd = self._other(stream)
        other.flush()
        run, index = writes[0] or ("", "")
        return f"{self._mark}{os.lseek(fd, 0, os.SEEK_END)};p;{run};{index};;\x1f"

    def record(self, level: int, logger: str, text: str) -> None:
        """Write a record of `logging`, whose level is not lost on the way."""
        stream, owner = self._err, self._owner()
        if sys.stderr is not stream or owner is None:  # a task that redirects its errors means its records as well
            sys.stderr.write(text + "\n")
            return
        stream.flush()
        self._out.flush()
        size = os.lseek(self._out_fd, 0, os.SEEK_END)
        name = "".join(letter for letter in logger if letter.isprintable() and letter != ";")[:100]
        what = f"{owner[0]};{owner[1]};{level};{name}"
        self._last = None
        after = f"{self._mark}{size};p;{owner[0]};{owner[1]};;"
        io.TextIOWrapper.write(stream, f"{self._mark}{size};r;{what}\x1f{text}\n{after}\x1f")
        stream.flush()

    def say(self, line: str) -> None:
        """Add a line of ours to what the task wrote."""
        self._err.flush()
        os.write(self._err_fd, f"{line}\n".encode())

    def settle(self, run: int, first: int) -> bool:
        """Write out what is held back, and undo what tasks did to streams and descriptors; return whether they had.

        What was written by ways that note nothing is task `first`'s.
        """
        damaged = False
        if self._out.closed or self._err.closed:  # by way of `sys.stdout.buffer`
            self._open()
            damaged = True
        if sys.stdout is not self._out or sys.stderr is not self._err:
            sys.stdout, sys.stderr = self._out, self._err
            damaged = True
        try:
            self._out.flush()
            self._err.flush()
            # No other file is as long as ours: for tasks that print nothing, two calls say that all is as it was.
            if os.lseek(1, 0, 2) == self._out_size and os.lseek(2, 0, 2) == self._err_size:
                return damaged
        except OSError:
            pass
        return self._settle(run, first) or damaged

    def _settle(self, run: int, first: int) -> bool:
        damaged = not (self._is_ours(1, self._out_fd) and self._is_ours(2, self._err_fd))
        if damaged:
            os.dup2(self._out_fd, 1)
            os.dup2(self._err_fd, 2)
            self._out.flush()
            self._err.flush()
        out, err = os.lseek(self._out_fd, 0, os.SEEK_END), os.lseek(self._err_fd, 0, os.SEEK_END)
        if (out, err) != (self._out_size, self._err_size):
            os.write(self._out_fd, f"{self._mark}{err};e;{run};{first};;\x1f".encode())
            self._last = None
            self._measure()
        return damaged

    @staticmethod
    def _is_ours(fd: int, ours: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.fstat(ours))
        except OSError:
            return False

    def _measure(self) -> None:
        self._out_size = os.lseek(self._out_fd, 0, os.SEEK_END)
        self._err_size = os.lseek(self._err_fd, 0, os.SEEK_END)
        self._page[OUT_SIZE], self._page[ERR_SIZE] = self._out_size, self._err_size
