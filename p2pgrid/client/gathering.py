"""Which files go along with modules of the program's own, and their contents as they were at one moment.

A package goes with all that is in its folder, data files too; of packages inside it those that are imported. A module
that is a single file goes alone. Left out is what `.gitignore` names (but never a module that is imported), what begins
with a dot, bytecode, and environments. Links are followed as long as they stay inside their package.

Rule: whatever is wrong is one line, and raised before anything is sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from p2pgrid.client.modules import Place, suffix_of
from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.tree import FILES_MAX, TREE_BYTES_MAX, File
from p2pgrid.core.units import format_size

if TYPE_CHECKING:
    import pathspec

LARGEST_SHOWN = 3
TRIES = 3
"""A file that changes while it is read is read again so often."""

_LEFT_OUT = frozenset({"__pycache__", "node_modules"})
_LEFT_OUT_SUFFIXES = (".pyc", ".pyo", ".egg-info", ".dist-info")
_IGNORE = ".gitignore"

Stamp = tuple[int, int, int]
"""Of a file: inode, size and time in nanoseconds."""


@dataclass
class Gathered:
    """What was found: files by their path in the tree, and the folders that were looked through, with their stamps."""

    files: dict[str, tuple[Path, Stamp]] = field(default_factory=dict)
    watched: dict[Path, Stamp | None] = field(default_factory=dict)
    """Folders, and files that say what is left out: when one of them changes, other files may belong to the tree."""
    bytes: int = 0


def gather(modules: Mapping[str, Place]) -> Gathered:
    """Return the files of modules and of their packages.

    Raises:
        QuotaExceeded: they are more than a tree may hold.
        NotSerializable: a link leads out of its package, or a file cannot be looked at.
    """
    gathering = _Gathering(modules)
    for name, place in sorted(modules.items()):
        gathering.module(name, place)
    for name, place in sorted(modules.items()):
        for folder in place.folders:
            gathering.package(name, folder)
    return gathering.done


def stamp_of(path: Path) -> Stamp | None:
    """Return by what a file or folder is known to be as it was; None: it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def contents(gathered: Gathered) -> list[File]:
    """Read all files. Raises NotSerializable: one of them changes, or cannot be read."""
    return [_read(name, path) for name, (path, _) in sorted(gathered.files.items())]


def _read(name: str, path: Path) -> File:
    try:
        for _ in range(TRIES):
            with path.open("rb") as file:
                before = os.fstat(file.fileno())
                data = file.read(TREE_BYTES_MAX + 1)
                after = os.fstat(file.fileno())
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) and len(
                data
            ) == after.st_size:
                return File(name, bool(after.st_mode & stat.S_IXUSR), data)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise NotSerializable(
        f"{path} changes while it is packed to go along with the job",
        next="try again when nobody writes to it, or name it in .gitignore if tasks need none of it",
    )


def _unreadable(path: Path, error: OSError) -> NotSerializable:
    return NotSerializable(
        f"{path} would go along with the job and cannot be read: {error.strerror or error}",
        next="make it readable, or name it in .gitignore if tasks need none of it",
    )


class _Gathering:
    """One walk over the folders of packages."""

    def __init__(self, modules: Mapping[str, Place]) -> None:
        self.done = Gathered()
        self._modules = modules
        self._ignored = _Ignored(self.done)
        self._sizes: list[tuple[int, Path]] = []
        self._home = Path.home()

    def module(self, name: str, place: Place) -> None:
        """Take the file of a module, whatever .gitignore says: it is imported."""
        if place.file is None:
            return
        parts = name.replace(".", "/")
        inside = f"{parts}/__init__" if place.is_package else parts
        self._take(f"{inside}{suffix_of(place.file)}", place.file)

    def package(self, name: str, folder: Path) -> None:
        """Take what is in the folder of a package."""
        if self._home == folder or self._home.is_relative_to(folder):
            return  # never a whole home folder: the modules in it that are imported, and no more
        root = _real(folder)
        top = _real(folder.parents[name.count(".") - 1]) if "." in name else root
        self._walk(name, name.replace(".", "/"), folder, (top, frozenset({root})))

    def _walk(self, package: str, inside: str, folder: Path, within: tuple[Path, frozenset[Path]]) -> None:
        self.done.watched[folder] = stamp_of(folder)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(folder, error) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _LEFT_OUT or entry.name.endswith(_LEFT_OUT_SUFFIXES):
                continue
            path = Path(entry.path)
            here = f"{inside}/{entry.name}"
            try:
                is_folder = entry.is_dir()
                if here in self.done.files or self._ignored(path, is_folder=is_folder):
                    continue
                if entry.is_symlink() and not self._may_follow(path, within, package):
                    continue
                if not is_folder:
                    if entry.is_file():  # a pipe or a socket is none
                        self._take(here, path)
                    continue
            except OSError as error:
                raise _unreadable(path, error) from error
            if (path / "__init__.py").exists() or (path / "pyvenv.cfg").exists():
                continue  # a package of its own goes if it is imported, and an environment never
            real = _real(path)
            if real not in within[1]:  # else a link that leads back to where we come from
                self._walk(package, here, path, (within[0], within[1] | {real}))

    @staticmethod
    def _may_follow(path: Path, within: tuple[Path, frozenset[Path]], package: str) -> bool:
        target = _real(path)
        if not target.is_relative_to(within[0]):
            raise NotSerializable(
                f"{path} is a link that leaves its package, to {target}",
                next=f"copy what {package} needs into it, or name the link in .gitignore if tasks need none of it",
            )
        return target.exists()

    def _take(self, inside: str, path: Path) -> None:
        if inside in self.done.files:
            return
        stamp = stamp_of(path)
        if stamp is None:
            return  # removed just now
        self.done.files[inside] = (path, stamp)
        self.done.bytes += stamp[1]
        self._sizes.append((stamp[1], path))
        if self.done.bytes > TREE_BYTES_MAX or len(self.done.files) > FILES_MAX:
            raise self._too_much()

    def _too_much(self) -> QuotaExceeded:
        tops = ", ".join(sorted({name.partition(".")[0] for name in self._modules}))
        largest = ", ".join(
            f"{path} ({format_size(size)})" for size, path in sorted(self._sizes, reverse=True)[:LARGEST_SHOWN]
        )
        return QuotaExceeded(
            f"the modules that go along with the job ({tops}) are more than {format_size(TREE_BYTES_MAX)} or "
            f"{FILES_MAX} files; the largest so far: {largest}",
            next="name what tasks do not need in .gitignore, or give data as an argument: grid.put(...)",
        )


class _Ignored:
    """Whether `.gitignore` files leave something out: those from the root of its repository down to it."""

    def __init__(self, gathered: Gathered) -> None:
        self._watched = gathered.watched
        self._home = Path.home()
        self._rules: dict[Path, list[tuple[Path, pathspec.GitIgnoreSpec]]] = {}

    def __call__(self, path: Path, *, is_folder: bool) -> bool:
        verdict = False
        for folder, spec in self._rules_for(path.parent):
            said = spec.check_file(f"{path.relative_to(folder).as_posix()}{'/' if is_folder else ''}").include
            verdict = verdict if said is None else said
        return verdict

    def _rules_for(self, folder: Path) -> list[tuple[Path, pathspec.GitIgnoreSpec]]:
        """Return the rules that hold in a folder, the outermost first."""
        known = self._rules.get(folder)
        if known is None:
            is_root = (folder / ".git").exists()
            if not is_root and folder in (folder.parent, self._home):
                known = []  # what stands in a home folder that is no repository is for other things
            else:
                known = [*([] if is_root else self._rules_for(folder.parent)), *self._own_rules(folder)]
            self._rules[folder] = known
        return known

    def _own_rules(self, folder: Path) -> Iterator[tuple[Path, pathspec.GitIgnoreSpec]]:
        file = folder / _IGNORE
        stamp = self._watched[file] = stamp_of(file)
        if stamp is None:
            return
        import pathspec  # 30 ms, for those who have such a file

        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield folder, pathspec.GitIgnoreSpec.from_lines(lines)
        except OSError as error:
            raise _unreadable(file, error) from error
        except ValueError as error:
            raise NotSerializable(
                f"{file} cannot be understood: {error}", next="mend the line that it names"
            ) from error


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
