"""Source trees: a program's own modules as they travel with its functions.

    tree = msgpack ["tree", [[path, executable, bytes], …]]   sorted by path; `/` between parts, all below the root
    id   = the first half of the BLAKE3 of that                  `core.batch.content_id`

Equal files under equal names are one tree, wherever and whenever they were packed: neither times nor owners are in it.

Rule: nothing here touches a disk. What is read here comes from any member and is only ever looked at in a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

TREE_BYTES_MAX = 20 * 1024 * 1024
"""What all files of a tree may hold together."""
FILES_MAX = 20_000
PATH_LENGTH_MAX = 1024
TRAVELLING_BYTES_MAX = TREE_BYTES_MAX + FILES_MAX * 256
"""A tree with the names of its files."""


class File(NamedTuple):
    """One file of a tree."""

    path: str
    executable: bool
    data: bytes


def pack_tree(files: Iterable[File]) -> bytes:
    """Return a tree as it travels."""
    return pack(["tree", [list(file) for file in sorted(files)]])


def read_tree(packed: bytes) -> list[File]:
    """Return the files of a tree. Raises PeerError unless all of them stay inside it."""
    match unpack(packed):
        case ["tree", list(entries)] if len(entries) <= FILES_MAX:
            return [_file(entry) for entry in entries]
    raise PeerError("a malformed source tree")


def _file(entry: Any) -> File:
    match entry:
        case [str(path), bool(executable), bytes(data)] if len(path) <= PATH_LENGTH_MAX:
            parts = path.split("/")
            if "\0" not in path and "\\" not in path and not any(part in ("", ".", "..") for part in parts):
                return File(path, executable, data)
    raise PeerError("a source tree with a file outside of it")
