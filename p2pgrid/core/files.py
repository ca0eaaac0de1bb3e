"""`File`: a file as an argument or as a result of a task.

As an argument it arrives as a path of the node that runs the task, where its content is; what a task returns arrives as
a `File` whose content waits to be saved. On the way it is its name and its bytes.

Rule: standard library only: tasks use it in interpreters that have nothing installed.
"""

from __future__ import annotations

import errno
import mmap
import pickle
import shutil
from pathlib import Path
from typing import Any

from p2pgrid.core.errors import GridError

BUFFERS = 5
"""The protocol of pickle from which on it knows buffers."""
MAPPED_FROM = 1 << 20
"""Bytes of a file from which on its content is mapped, not read."""


class File:
    """A file: by its path where it lies, or by its content where it came by the grid.

    Attributes:
        name: the last part of its path, under which it arrives.
    """

    def __init__(self, path: Any) -> None:
        """Name a file. In a task it may be written later, before the task ends.

        Raises:
            FileNotFoundError: there is none.
            IsADirectoryError: it is a folder.
        """
        self._path: Path | None = Path(path).absolute()
        self._content: Any = None
        self.name = self._path.name
        if self._path.is_dir():
            msg = f"{path} is a folder: pass a File for each file in it, or one archive of it (shutil.make_archive)"
            raise IsADirectoryError(msg)
        if _in_task:
            _in_task[0].named(self)
        elif not self._path.exists():
            raise FileNotFoundError(errno.ENOENT, "there is no such file to pass", str(path))

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None if it came by the grid."""
        return self._path

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self._bytes())

    def read_bytes(self) -> bytes:
        """Return its content."""
        return bytes(self._bytes())

    def save(self, path: Any) -> Path:
        """Write it to `path` (into it, under its own name, if that is a folder); return where it is then."""
        target = Path(path)
        if target.is_dir():
            target /= self.name
        if self._content is None and self._path is not None:
            shutil.copyfile(self._path, target)
            return target
        beside = target.with_name(f".{target.name}.part")
        try:
            beside.write_bytes(self._bytes())
            beside.replace(target)  # whoever looks sees the whole file or none
        finally:
            beside.unlink(missing_ok=True)
        return target

    def hold(self) -> None:
        """Take in the content: the file is about to go."""
        if self._content is None and self._path is not None and self._path.is_file():
            self._content = self._bytes()

    def _bytes(self) -> Any:
        if self._content is not None:
            return self._content
        if self._path is None:
            return b""
        if not self._path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file was written", self.name)
        with self._path.open("rb") as file:
            if self._path.stat().st_size < MAPPED_FROM:
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Travel as name and content, beside the pickle where that is possible."""
        content = self._bytes()
        return arrived, (self.name, pickle.PickleBuffer(content) if protocol >= BUFFERS else bytes(content))

    def __repr__(self) -> str:
        where = "by the grid" if self._path is None else str(self._path)
        return f"<File {self.name}, {where}>"


class Receiver:
    """Who takes in files, in a process that runs tasks."""

    def arrived(self, name: str, content: Any) -> Path:
        """Write an argument where the task finds it; return its path."""
        raise NotImplementedError

    def named(self, file: File) -> None:
        """A task names a file that it may return."""
        raise NotImplementedError


_in_task: list[Receiver] = []


def provide(receiver: Receiver) -> None:
    """Say who takes in files in this process: a worker child."""
    _in_task[:] = [receiver]


def arrived(name: str, content: Any) -> Any:
    """Return what a file that was sent is here: a path in a task, a File to be saved elsewhere."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise GridError(f"a file called {name!r:.80} cannot be received", next="give it a plain name")
    if _in_task:
        return _in_task[0].arrived(name, content)
    file = File.__new__(File)
    file.name = name
    file._path = None  # noqa: SLF001 - one of our own
    file._content = content  # noqa: SLF001
    return file


def _rounded(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.0f} {unit}"
    return f"{size} B"


def left_behind(index: int, left: list[tuple[str, int]], more: int) -> str:
    """Return the line about files that a task left, name and size of some of them."""
    told = ", ".join(f"{name} ({_rounded(size)})" for name, size in left)
    others = f" and {more} more" if more else ""
    return f"task {index} left {told}{others} uncollected: return pg.File({left[0][0]!r})"
