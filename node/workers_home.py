"""The folders and interpreters that workers live in; all we make is under the node's directory.

`python/` has links to the packages a child needs; it is in front of the child's path, so that `--python` needs nothing
installed. `scratch/` has one folder per worker: where its tasks start, and where their own folders are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import trio

from p2pgrid.core.errors import GridError

PACKAGES = ("p2pgrid", "msgpack", "cloudpickle")
OLDEST = (3, 11)
_ASK = "import sys; print(*sys.version_info[:3])"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One `--python`: where it is and what it calls itself."""

    path: Path
    version: tuple[int, int, int]


def link_packages(folder: Path) -> None:
    """Make `folder` hold links to exactly PACKAGES, as this process has them.

    Not the daemon's own path: it may hold a folder of the user's, whose modules would shadow the tasks' own, and a
    foreign interpreter must not meet packages that were built for another Python.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None, f"{name} runs in this process"
        assert spec.origin is not None, f"{name} has a file"
        link, target = folder / name, Path(spec.origin).parent
        if link.is_symlink() and link.readlink() == target:
            continue
        if link.is_dir() and not link.is_symlink():  # the directory was copied by something that follows links
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def fresh_home(scratch: Path, worker: int | str) -> Path:
    """Return the folder of a worker, empty."""
    home = (scratch / str(worker)).resolve()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    return home


async def ask_versions(paths: Sequence[Path]) -> list[Interpreter]:
    """Ask each interpreter for its version. Raises GridError (code "usage") where one is none, or too old."""
    return [await _ask(path) for path in paths]


async def _ask(path: Path) -> Interpreter:
    if path == Path(sys.executable):
        return Interpreter(path, sys.version_info[:3])
    try:
        answer = await trio.run_process([path, "-I", "-S", "-c", _ASK], capture_stdout=True, stderr=subprocess.DEVNULL)
        major, minor, micro = (int(part) for part in answer.stdout.split())
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise GridError(f"{path} is no Python: {error}", code="usage", next="name another: --python PATH") from error
    if (major, minor) < OLDEST:
        raise GridError(f"{path} is Python {major}.{minor}", code="usage", next="name one from 3.11 on: --python PATH")
    return Interpreter(path, (major, minor, micro))
