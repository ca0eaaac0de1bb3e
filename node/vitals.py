"""What the process of a node costs, and whether it stood still."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STALL_S = 2.0
"""Nobody looked for so long, although somebody looks every second: the process was stopped or the machine asleep."""


def boot_clock() -> float:
    """Return seconds that also pass while the machine is asleep, where the platform has such a clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Standstill:
    """Notices that the loop did not run: SIGSTOP, suspend, a machine that is far too busy."""

    def __init__(self, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._seen = clock()

    def look(self) -> float:
        """Return how long the loop stood still, up to a second too much; 0 if it did not. Asked often."""
        now = self._clock()
        gap = now - self._seen
        self._seen = now
        return gap if gap > STALL_S else 0.0


def costs() -> dict[str, Any]:
    """Return pid, memory and open files of this process, as far as the platform tells."""
    page = os.sysconf("SC_PAGE_SIZE")
    statm = _proc("statm")
    return {
        "pid": os.getpid(),
        "rss": int(statm.split()[1]) * page if statm else None,
        "pss": _pss(),
        "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()) if statm else None,
    }


def _proc(name: str) -> str:
    try:
        return Path("/proc/self", name).read_text()
    except OSError:
        return ""


def _pss() -> int | None:
    for line in _proc("smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
