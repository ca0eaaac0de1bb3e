"""Source trees in the worker child: unpacked once per node, and in front of what is installed there.

A child serves one tree in its life. Where the tree is not on this node's disk yet, the child that is the first to need
it writes it there: the daemon looks into no file that came from elsewhere.

Rule: standard library and core only.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

from p2pgrid.core.errors import PeerError
from p2pgrid.core.tree import read_tree

READ_ONLY, READ_ONLY_EXECUTABLE = 0o444, 0o555
BEHIND_OURS = 1
"""Place in `sys.path`: the first is the folder with what a child itself consists of."""


def take_up(folder: str, packed: bytes | None) -> str:
    """Let modules be imported from the tree in `folder`, made of `packed` if it is not there; return why not, or ""."""
    place = Path(folder)
    try:
        if not place.is_dir():
            if packed is None:
                return "the source tree of the function did not arrive"
            _unpack(place, packed)
        os.utime(place)  # the daemon removes first what was used longest ago
        names = names_in(folder)
    except (OSError, PeerError) as error:
        return f"the source tree of the function cannot be unpacked: {error}"
    # What is installed here under the same names, and was imported by tasks that came without a tree, is not meant.
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.path.insert(BEHIND_OURS, folder)
    importlib.invalidate_caches()
    return ""


def names_in(folder: str) -> frozenset[str]:
    """Return the names of the modules that can be imported from the tree in a folder. Raises OSError."""
    return frozenset(entry.name.partition(".")[0] for entry in Path(folder).iterdir())


def _unpack(place: Path, packed: bytes) -> None:
    """Write a tree beside its place and move it there whole; another child may have been quicker."""
    files = read_tree(packed)
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        for file in files:
            target = beside / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
            # The files only: whoever wants to remove the node's directory need not change rights first.
            target.chmod(READ_ONLY_EXECUTABLE if file.executable else READ_ONLY)
        try:
            beside.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
