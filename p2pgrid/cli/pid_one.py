"""The first process of a container, where a node runs without anybody above it.

Whatever loses its parent becomes a child of process 1, which has to take notice of its end, or it stays as a zombie;
and process 1 gets no signal that it has no handler for. So a node that finds itself to be process 1 forks: the child is
the node, and what stays here passes signals on and buries the dead. It imports nothing and takes no memory of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

PASSED_ON = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
FROM_TERMINAL = 128
"""SI_KERNEL: it went to the whole foreground group, the node included."""
KILLED = 128


def stand_aside() -> None:
    """Return in the process that is to be the node: at once, unless this is process 1."""
    if os.getpid() != 1 or not hasattr(signal, "sigwaitinfo"):
        return
    ours = PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    node = os.fork()
    if node == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _serve(node, ours)


def _serve(node: int, ours: frozenset[signal.Signals]) -> NoReturn:
    sys.stdin.close()
    while True:
        came = signal.sigwaitinfo(ours)
        if came.si_signo != signal.SIGCHLD:
            if came.si_code != FROM_TERMINAL:
                os.kill(node, came.si_signo)
            continue
        ended = _bury(node)
        if ended is not None:
            os._exit(ended)  # whatever is left goes with us


def _bury(node: int) -> int | None:
    """Take notice of all that have ended; return the exit code of the node if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == node:
            ended = os.waitstatus_to_exitcode(status)
            code = KILLED - ended if ended < 0 else ended
