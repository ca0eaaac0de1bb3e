"""Where tasks work, in the worker child: one folder, empty when a task starts; files that came as arguments lie beside.

    task/        the current folder of plain tasks, `pg.current().dir`
    tasks/17/    the folder of an `async def` task, which shares the process with others; made when it asks for it
    files/4/     a file that came as an argument, under its own name

A task that leaves nothing costs one system call: the folder's time of change is set back to a time that no file system
gives by itself, so whether anything was done in it is seen at once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from p2pgrid.core import current
from p2pgrid.core.files import File, Receiver, left_behind

UNTOUCHED_NS = 7_000_000_000
SHOWN_MAX = 3
"""Files left behind that are named."""
WALK_MAX = 1000


class Scratch(Receiver):
    """The folders of one child."""

    def __init__(self, base: str, look: memoryview[int], at: int) -> None:
        """Work below `base`; setting word `at` of the page ends a slice of fast tasks behind the one that runs."""
        self.here = os.path.join(base, "task")  # noqa: PTH118 - strings, here and below: this runs for every task
        self.folders = os.path.join(base, "tasks")  # noqa: PTH118
        self._files = os.path.join(base, "files")  # noqa: PTH118
        self._page, self._at = look, at
        self._count = 0
        self._arrived: dict[int | None, list[str]] = {}
        self._named: list[File] = []
        self.untouched = -1
        """When the current folder was changed last, if no task did anything in it."""
        self.used = False
        """Whether tasks have got files, named some, or made folders of their own."""
        self._reset()

    def _reset(self) -> None:
        os.makedirs(self.here, exist_ok=True)  # noqa: PTH103
        os.chdir(self.here)
        os.utime(".", ns=(UNTOUCHED_NS, UNTOUCHED_NS))
        self.untouched = os.stat(".").st_mtime_ns  # noqa: PTH116 - coarser than asked for, on some file systems

    # ---- files -------------------------------------------------------------------------------------------------------

    def arrived(self, name: str, content: Any) -> Path:
        """Write an argument into a folder of its own; it goes with the task."""
        self._count += 1
        self.used = True
        folder = os.path.join(self._files, str(self._count))  # noqa: PTH118
        os.makedirs(folder)  # noqa: PTH103
        self._arrived.setdefault(current.running_index(), []).append(folder)
        path = Path(folder, name)
        path.write_bytes(content)
        return path

    def taken(self, index: int | None) -> list[str]:
        """Return the folders of what has arrived for a task; whoever takes them removes them."""
        return self._arrived.pop(index, []) if self._arrived else []

    def named(self, file: File) -> None:
        """A task may return this: it is read before its folder is emptied."""
        self._named.append(file)
        self.own()

    def own(self) -> None:
        """The task that runs uses its folder: whatever comes next starts after it was emptied."""
        self.used = True
        self._page[self._at] = 1

    # ---- after each task ---------------------------------------------------------------------------------------------

    def tidy(self, index: int, *, shared: bool) -> tuple[bool, str]:
        """Remove what a task left; return whether there was anything, and a line about files nobody collected.

        `shared`: other tasks still run in the same current folder.
        """
        for folder in self.taken(index):
            shutil.rmtree(folder, ignore_errors=True)
        line = ""
        named = self._hold()
        if current.scratch_made:
            own = os.path.join(self.folders, str(index))  # noqa: PTH118
            if own in current.scratch_made:
                del current.scratch_made[own]
                line = self._left(own, index, named)
                shutil.rmtree(own, ignore_errors=True)
        if shared:
            return False, line
        self.used = bool(self._arrived or current.scratch_made)
        return True, self._sweep(index, named) or line

    def _hold(self) -> frozenset[str]:
        named, self._named = self._named, []
        for file in named:
            file.hold()
        return frozenset(os.path.realpath(file.path) for file in named if file.path is not None)

    def _left(self, folder: str, index: int, named: frozenset[str]) -> str:
        left: list[tuple[str, int]] = []
        more = 0
        for place, (where, folders, files) in enumerate(os.walk(folder)):
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            for name in sorted(files):
                path = os.path.join(where, name)  # noqa: PTH118
                if name.startswith(".") or os.path.realpath(path) in named:
                    continue
                if len(left) < SHOWN_MAX:
                    left.append((os.path.relpath(path, folder), os.lstat(path).st_size))
                else:
                    more += 1
            if place + more > WALK_MAX:
                break
        return left_behind(index, left, more) if left else ""

    def _sweep(self, index: int, named: frozenset[str]) -> str:
        os.makedirs(self.here, exist_ok=True)  # noqa: PTH103
        os.chdir(self.here)
        entries = os.listdir(".")  # noqa: PTH208
        line = self._left(self.here, index, named) if entries else ""
        for entry in entries:
            if os.path.isdir(entry) and not os.path.islink(entry):  # noqa: PTH112, PTH114
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.unlink(entry)  # noqa: PTH108
        if os.listdir("."):  # noqa: PTH208 - folders that it may not remove: the next task starts beside them
            self._count += 1
            self.here = os.path.join(os.path.dirname(self.here), f"task-{self._count}")  # noqa: PTH118, PTH120
        self._reset()
        return line
