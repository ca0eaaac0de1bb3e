"""The daemon's end of the reaper: start it, tell it the process groups of the workers, start it again if it dies."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import Self

import trio

from p2pgrid.node import reaper

END_S = 1.0


class Reaper:
    """`with Reaper(token) as r:`; at the end it kills whatever carries the token and goes."""

    def __init__(self, token: str) -> None:
        """Kill by this token, a part of the mark of every worker of this daemon."""
        self._token = token
        self._groups: dict[int, None] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its pipe: it kills what is left, which is nothing after an orderly end, and goes."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def add(self, pgid: int) -> None:
        """Watch over a process group."""
        self._groups[pgid] = None
        self._say(f"+{pgid}\n")

    def remove(self, pgid: int) -> None:
        """The group is gone; its number may soon be somebody else's."""
        self._groups.pop(pgid, None)
        self._say(f"-{pgid}\n")

    def _start(self) -> None:
        # A session of its own: no Ctrl-C of the daemon's terminal reaches it, and its output goes nowhere, so that
        # nobody who reads the daemon's streams waits for it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, self._token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={"PATH": os.defpath},
        )

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:  # somebody killed it
            self._process.stdin.close()
            self._process.wait()
            self._start()
            for pgid in self._groups:
                self._process.stdin.write(f"+{pgid}\n".encode())


async def ended(process: subprocess.Popen[bytes]) -> None:
    """Return when a child process has ended; it stays a zombie, so its number is nobody else's yet (on Linux)."""
    if sys.platform == "linux":
        fd = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
    else:
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
