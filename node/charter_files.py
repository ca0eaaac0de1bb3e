"""Files of a node about its grid that may be lost without losing the membership: read with care, written whole.

    {"v": 1, "grid": the grid's public key, …} in msgpack, mode 0600

Rule: a damaged file is set aside under `NAME.damaged` and told once; the node starts all the same, for what is in
these files comes back from the other members.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.identity import write_private

VERSION = 1
FILE_BYTES_MAX = 128 * 1024 * 1024
"""More than the fullest roster takes: what is written must be readable."""


class DamagedError(ValueError):
    """What a file holds is not what we write."""


def read_kept(path: Path, grid: bytes) -> dict[str, Any]:
    """Return what the file holds about this grid; {} if there is none, or it is about a grid that was left.

    Raises:
        DamagedError: it cannot be read, or is of another shape.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DamagedError(error.strerror or str(error)) from error
    if len(data) > FILE_BYTES_MAX:
        raise DamagedError("too long")
    try:
        kept = unpack(data)
    except PeerError as error:
        raise DamagedError(str(error)) from error
    match kept:
        case {"v": int(version), "grid": bytes(theirs)} if version == VERSION:
            return kept if theirs == grid else {}
        case {"v": int(version)}:
            raise DamagedError(f"written by another version ({version})")
    raise DamagedError("not what p2pgrid writes")


def write_kept(path: Path, grid: bytes, **fields: Any) -> None:
    """Write the file; it is on the disk when this returns.

    Raises:
        GridError: the directory cannot be used.
    """
    write_private(path, pack({"v": VERSION, "grid": grid, **fields}))


def aside_of(path: Path) -> Path:
    """Return where a damaged file is moved."""
    return path.with_name(f"{path.name}.damaged")


def set_aside(path: Path, why: object) -> str:
    """Move a damaged file out of the way, and return the line that tells it. Raises nothing."""
    aside = aside_of(path)
    try:
        path.replace(aside)
    except OSError as error:
        return f"{path} is damaged ({why}) and cannot be moved away ({error.strerror or error}); it is passed over"
    return f"{path} was damaged ({why}); it is now {aside.name}, and what it held is learned again from the grid"
