"""The reaper: kills what a daemon leaves behind when it vanishes, even by kill -9. One small process per daemon.

The daemon names process groups on our stdin (`+pgid`, `-pgid`, a line each). When that pipe ends, so has the daemon:
the groups still listed are killed, and then every process that carries the daemon's mark in its environment, wherever
it went (a task's own `setsid` leaves the group, not the mark). Run as a script by an isolated interpreter without
site-packages; only os, sys, signal and time may be imported: this process stays as long as the daemon does.
"""

import os
import signal
import sys
import time

MARK = "P2PGRID_WORKER_OF"
PASSES_MAX = 50
"""Looks at /proc: a fork bomb may grow a new process while we look at the old ones."""


STARTING_PASSES_MAX = 10
STARTING_PAUSE_S = 0.002
"""Further looks when a process was just being executed: it shows no environment for that moment."""


def marked(token: str) -> list[int]:
    """Return the processes whose environment says that they belong to a worker of `token` (Linux; elsewhere none)."""
    return _look(token)[0]


def _look(token: str) -> tuple[list[int], bool]:
    """Return the processes with that mark, and whether any process was in the middle of its exec: it may be one."""
    mark = f"\0{MARK}={token}".encode()
    found = []
    starting = False
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:  # noqa: PTH208, PTH112 - pathlib is large
        if not name.isdigit():
            continue
        try:
            environment = _read(f"/proc/{name}/environ")
            if mark in b"\0" + environment:
                found.append(int(name))
            elif not environment and not starting:
                starting = _starting(name)
        except OSError:  # it ended, or it is another user's
            continue
    return found, starting


def _starting(name: str) -> bool:
    """Return whether a process that showed no environment has a program all the same, and was being executed.

    It had no arguments yet either, or has its environment by now. What was started with `env -i` has arguments only;
    zombies and the kernel's threads have no program (`OSError`).
    """
    os.readlink(f"/proc/{name}/exe")  # noqa: PTH115
    return not _read(f"/proc/{name}/cmdline") or bool(_read(f"/proc/{name}/environ"))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def kill_group(pgid: int) -> None:
    """Kill a process group, if there is anything left of it."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone; or macOS, which says so of a group of zombies
        return


def kill_marked(token: str) -> None:
    """Kill every process with that mark, and those they start meanwhile."""
    waited = 0
    for _ in range(PASSES_MAX):
        left, starting = _look(token)
        if not left and (not starting or waited == STARTING_PASSES_MAX):
            return
        if not left:
            waited += 1
            time.sleep(STARTING_PAUSE_S)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def main(token: str) -> None:
    """Read until the daemon is gone, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, None] = {}
    for line in sys.stdin.buffer:
        pgid = int(line[1:])
        if line[:1] == b"+":
            groups[pgid] = None
        else:
            groups.pop(pgid, None)
    for pgid in groups:
        kill_group(pgid)
    kill_marked(token)


if __name__ == "__main__":
    main(sys.argv[1])
