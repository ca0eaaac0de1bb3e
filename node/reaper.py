"""The reaper: kills what a daemon leaves behind when it vanishes, even by kill -9. One small process per daemon.

The daemon names process groups on our stdin (`+pgid`, `-pgid`, a line each). When that pipe ends, so has the daemon:
the groups still listed are killed, and then every process that carries the daemon's mark in its environment, wherever
it went (a task's own `setsid` leaves the group, not the mark). Run as a script by an isolated interpreter without
site-packages; only os, sys and signal may be imported: this process stays as long as the daemon does.
"""

import os
import signal
import sys

MARK = "P2PGRID_WORKER_OF"
PASSES_MAX = 50
"""Looks at /proc: a fork bomb may grow a new process while we look at the old ones."""


def marked(token: str) -> list[int]:
    """Return the processes whose environment says that they belong to a worker of `token` (Linux; elsewhere none)."""
    mark = f"\0{MARK}={token}".encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:  # noqa: PTH208, PTH112 - pathlib is large
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                environment = b"\0" + file.read()
        except OSError:  # it ended, or it is another user's
            continue
        if mark in environment:
            found.append(int(name))
    return found


def kill_group(pgid: int) -> None:
    """Kill a process group, if there is anything left of it."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone; or macOS, which says so of a group of zombies
        return


def kill_marked(token: str) -> None:
    """Kill every process with that mark, and those they start meanwhile."""
    for _ in range(PASSES_MAX):
        left = marked(token)
        if not left:
            return
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
