"""The page of memory that a worker child and its daemon share: what runs now, since when, and please stop.

    word  who     what
    0     child   number of the run it works on; 0: none
    1     child   index of the task it runs; NONE: none
    2     daemon  recall: tasks of runs up to this number that are not started are to be given back
    3     both    look: the daemon sets it to 1 when the child shall leave its innermost loop and look around, the
                  child takes it back
    4     child   start of the task, CLOCK_MONOTONIC seconds (float)
    5, 6  child   progress: done and total (float; NaN: no total)
    7     child   index of the task that said it: a task's progress ends with the task, and nobody has to wipe it
    8     child   length in bytes of the text that starts at word 9 (at most TEXT_MAX)
    80    child   1 while it runs several tasks at once (async): the index is then that of the oldest
    81    child   bytes in the file that takes its output (descriptor 1), when tasks ended last
    82    child   the same of its errors (descriptor 2)

A child always writes the index first and looks for a recall then; whoever recalls writes first and reads the index
then. So one of the two sees the other (Dekker), and the daemon may take back what lies behind the index although the
child is deep in a long task.

Each word is written whole (8 bytes, aligned), so a reader sees an old or a new value, never half of one; two words may
be of different moments, which all readers here can bear. Reading and writing costs some 20 ns, a system call 300: that
is why the page exists. Standard library only: the child's interpreter has nothing installed.
"""

from __future__ import annotations

import math
import mmap
from typing import NamedTuple

SIZE = 4096
NONE = (1 << 64) - 1
TEXT_MAX = 512

RUN, INDEX, RECALL, LOOK, START, DONE, TOTAL, SAID_BY, TEXT_LENGTH, TEXT = range(10)
MANY, OUT_SIZE, ERR_SIZE = 80, 81, 82


class Progress(NamedTuple):
    """What `pg.progress` said last."""

    done: float
    total: float | None
    text: str


class Page:
    """The page, as either side sees it. Hot loops use `words` and `floats` directly: an attribute call costs more."""

    __slots__ = ("_map", "floats", "words")

    def __init__(self, fd: int) -> None:
        """Map the page behind `fd`, a file of SIZE bytes."""
        self._map = mmap.mmap(fd, SIZE)
        self.words = memoryview(self._map).cast("Q")
        self.floats = memoryview(self._map).cast("d")

    def close(self) -> None:
        """Unmap; the page may not be used any more."""
        self.words.release()
        self.floats.release()
        self._map.close()

    def clear(self) -> None:
        """Say that nothing runs."""
        self.words[INDEX] = NONE
        self.words[RUN] = 0
        self.words[SAID_BY] = NONE

    def running(self) -> tuple[int, int] | None:
        """Return (run, index) of the task that runs, or None."""
        index = self.words[INDEX]
        return None if index == NONE else (self.words[RUN], index)

    def recall(self, run: int) -> None:
        """Ask for all that is not started, of runs up to `run`."""
        self.words[RECALL] = run
        self.words[LOOK] = 1

    def say_progress(self, index: int, progress: Progress) -> None:
        """Note how far the task is."""
        raw = progress.text.encode(errors="replace")[:TEXT_MAX]
        self.floats[DONE] = progress.done
        self.floats[TOTAL] = math.nan if progress.total is None else progress.total
        self._map[TEXT * 8 : TEXT * 8 + len(raw)] = raw
        self.words[TEXT_LENGTH] = len(raw)
        self.words[SAID_BY] = index

    def progress(self) -> Progress | None:
        """Return how far the running task said it is, None if it said nothing."""
        index = self.words[INDEX]
        if index == NONE or self.words[SAID_BY] != index:
            return None
        total = self.floats[TOTAL]
        length = min(self.words[TEXT_LENGTH], TEXT_MAX)
        text = self._map[TEXT * 8 : TEXT * 8 + length].decode(errors="replace")
        return Progress(self.floats[DONE], None if math.isnan(total) else total, text)
