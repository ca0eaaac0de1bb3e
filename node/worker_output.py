"""What tasks print, in the worker child, and whose line it is.

File descriptors 1 and 2 are one append-only file that child and daemon share: so the output of subprocesses is caught
too, and the daemon can read the last lines of a child that was killed. After each lot of tasks `settle` takes out what
was added and says whose it is. Python's own writes note the task that writes (`_Stream`); what arrives by other ways
(a C library, a subprocess) belongs to the task that ran.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

KEEP = 64 * 1024
"""Bytes kept per task: the last ones."""


class _Stream(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr` of a task; what a task does to it must not reach the next one."""

    def __init__(self, fd: int, note: Callable[[], None]) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._note = note

    def write(self, text: str, /) -> int:
        self._note()
        return super().write(text)

    def close(self) -> None:
        self.flush()

    def detach(self) -> io.BufferedIOBase:  # type: ignore[override]  # typeshed says BinaryIO
        raise io.UnsupportedOperation("the output of a task stays with its worker")


class Output:
    """The shared file and the two streams on it."""

    def __init__(self, fd: int, owner: Callable[[], int | None]) -> None:
        """Take `fd`, the shared file, as this process's output; `owner` names the task that writes."""
        self._fd = fd
        self._owner = owner
        self._marks: list[tuple[int, int]] = []  # (from this offset on, this task wrote)
        self._last: int | None = None
        self._truncate()
        self._open()

    def _open(self) -> None:
        self._out = _Stream(1, self._note)
        self._err = _Stream(2, self._note)
        sys.stdout, sys.stderr = self._out, self._err

    def _note(self) -> None:
        index = self._owner()
        if index != self._last:
            self._flush()
            self._last = index
            if index is not None:
                self._marks.append((os.lseek(self._fd, 0, os.SEEK_END), index))

    def _flush(self) -> None:
        self._out.flush()
        self._err.flush()

    def restore(self) -> bool:
        """Undo what a task did to the streams and the descriptors below them; return whether it had."""
        changed = False
        if self._out.closed or self._err.closed:  # by way of `sys.stdout.buffer`
            self._open()
            changed = True
        if sys.stdout is not self._out or sys.stderr is not self._err:
            sys.stdout, sys.stderr = self._out, self._err
            changed = True
        if not self._is_ours():
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
            changed = True
        return changed

    def _is_ours(self) -> bool:
        # The sizes tell, at a third of fstat's price: ours is never empty, a pipe or a closed descriptor has none, and
        # that of another file is another one.
        try:
            return os.lseek(1, 0, os.SEEK_END) == os.lseek(2, 0, os.SEEK_END) == os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            return False

    def _truncate(self) -> None:
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"\n")

    def settle(self, first: int) -> list[tuple[int, bytes]]:
        """Take out what was written since the last call, by task; `first` is the task that unmarked bytes belong to."""
        self._flush()
        size = os.lseek(self._fd, 0, os.SEEK_END)
        by_task: dict[int, bytes] = {}
        if size > 1:
            starts = [(1, first), *self._marks]
            ends = [at for at, _ in self._marks] + [size]
            for (lo, index), end in zip(starts, ends, strict=True):
                hi = min(end, size)  # the daemon may have cut the file meanwhile
                lo = max(lo, hi - KEEP)  # noqa: PLW2901
                if hi > lo:
                    by_task[index] = (by_task.get(index, b"") + os.pread(self._fd, hi - lo, lo))[-KEEP:]
            self._truncate()
        self._marks.clear()
        self._last = None
        return list(by_task.items())
