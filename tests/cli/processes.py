"""Real processes of a test: how they are started, found again and asserted to be gone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.waiting import SOON_S

MARK = "P2PGRID_TEST_MARK"
"""In the environment of all that a test starts, and of what that starts in turn."""
POLL_S = 0.02


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a machine where nothing of ours runs yet."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("P2PGRID_")}
    said = {"XDG_DATA_HOME": str(home / "data"), "TMPDIR": str(home), "P2PGRID_NODE_LISTEN": "127.0.0.1:0"}
    return {**ours, **said, MARK: str(home), "PYTHONUNBUFFERED": "1"}


def p2pgrid(home: Path, *words: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "p2pgrid", *words],
        cwd=home, env=environment(home), capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def alive(home: Path) -> list[str]:
    """Return the command lines of all processes that descend from this test."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            marked = f"{MARK}={home}".encode() in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
            if command and (marked or os.fsencode(home) in command) and int(folder.name) != os.getpid():
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def left(home: Path) -> list[str]:
    """Return those that live on; who ends after its parent, as a reaper does, has time for it."""
    until(lambda: not alive(home), SOON_S)
    return alive(home)


def until(true: Callable[[], bool], within_s: float) -> bool:
    """Wait until it is true; return whether it became so in time."""
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
