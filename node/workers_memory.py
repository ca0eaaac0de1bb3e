"""How much memory a worker and what it started hold for themselves (Linux; elsewhere it counts as 0: no limit).

Mapped objects, shared by all workers, must not count: that is why limits look here and RLIMIT_AS is not used.
"""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
DESCENDANTS_MAX = 64
"""Processes looked at per worker and tick."""


def total_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE


def roughly(pid: int) -> int:
    """Return private memory of a process and its descendants: cheap, and too high where forks share pages."""
    return sum(_resident(member) for member in _family(pid))


def exactly(pid: int) -> int:
    """Return the same with pages that forks share counted once. Costs milliseconds: for the moment before a kill."""
    return sum(_proportional(member) for member in _family(pid))


def _family(pid: int) -> list[int]:
    """Return `pid` and what its main threads started, as far as it is still attached to it."""
    family = [pid]
    for member in family:  # grows while we walk
        if len(family) >= DESCENDANTS_MAX:
            break
        family += [int(child) for child in _read(f"/proc/{member}/task/{member}/children").split()]
    return family


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if fields else 0


def _proportional(pid: int) -> int:
    size = 0
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        name, _, rest = line.partition(":")
        if name in ("Pss_Anon", "SwapPss"):
            size += int(rest.split()[0]) * 1024
    return size


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it ended meanwhile, or there is no /proc
        return ""
