"""What tasks print, as their client sees it: `heron#17 what it printed`, as it comes, errors on stderr.

At most so many lines a second, then one that says how many more there were and where they are. Records of `logging`
go to the logger of that name here, if logging is set up in this program, and are printed otherwise.

Rule: a terminal or pipe that nobody reads holds up no result. The reader thread writes only what can be written at
once; the rest waits, as long as there is little of it, for a thread of its own.
"""

import contextlib
import select
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO

from p2pgrid.core.ids import job_name
from p2pgrid.core.prints import ERR, Line, Throttle, level_name

WAITING_MAX = 1000
"""Lines that wait for somebody to read; more are counted."""
MORE_AFTER_S = 1.0
IDLE_S = 5.0
LEAVE_S = 1.0
WARNING = 30
"""Where logging is not set up, Python too shows records from this level on."""

_Entry = tuple[str, Line]


class Prints:
    """The lines of all tasks of one session."""

    def __init__(self, flags: str) -> None:
        """Show lines; `flags` is what a command needs to reach the node."""
        self._flags = flags
        self._throttle = Throttle()
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._more: dict[bytes, int] = {}
        self._more_due_s = 0.0
        self._thread: threading.Thread | None = None
        self._closing = False

    def took(self, job: bytes, node: str, lines: list[Any], more: int) -> None:
        """Show lines of tasks that ran at `node`; there were `more`. For the reader thread: it does not block."""
        now = time.monotonic()
        with self._changed:
            passed = self._throttle.admit(len(lines), now)
            for line in lines[:passed]:
                entry = (node, Line(*line))
                if not self._waiting and not entry[1].level and _is_free(_stream(entry[1])):
                    _show(entry)
                elif len(self._waiting) < WAITING_MAX:
                    self._waiting.append(entry)
                else:
                    more += 1
            more += len(lines) - passed
            if more:
                if not self._more:
                    self._more_due_s = now + MORE_AFTER_S
                self._more[job] = self._more.get(job, 0) + more
            if self._waiting or self._more:
                self._work()

    def close(self) -> None:
        """Show what waits, for a moment; nothing comes after it."""
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(LEAVE_S)

    def _work(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="p2pgrid-prints", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                entry, more = self._next()
                if entry is None and not more:
                    self._thread = None
                    return
            if entry is not None:
                _show(entry)
                with self._changed:
                    self._waiting.popleft()  # only now: until then whoever comes later waits behind it
            for job, count in more.items():
                name = job_name(job)
                _write(sys.stderr, f"… {count:,} more: p2pgrid logs {name}{self._flags}\n")

    def _next(self) -> tuple[_Entry | None, dict[bytes, int]]:
        """Wait for what is to be shown next; nothing: it has been quiet for a while."""
        until = time.monotonic() + IDLE_S
        while True:
            if self._waiting:
                return self._waiting[0], {}
            now = time.monotonic()
            if self._more and (self._closing or now >= self._more_due_s):
                more, self._more = self._more, {}
                return None, more
            if self._closing or (not self._more and now >= until):
                return None, {}
            self._changed.wait((self._more_due_s if self._more else until) - now)


def _stream(line: Line) -> TextIO:
    return sys.stderr if line.stream == ERR else sys.stdout


def _is_free(stream: TextIO | None) -> bool:
    """Whether a line can be written at once; what is no file (a notebook, a buffer) takes anything."""
    try:
        fd = stream.fileno()  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _show(entry: _Entry) -> None:
    node, line = entry
    who = f"{node}#{line.task}"
    if line.level:
        _record(who, line)
    else:
        _write(_stream(line), f"{who} {line.text}\n")


def _record(who: str, line: Line) -> None:
    logging = sys.modules.get("logging")
    if logging is not None:
        logger = logging.getLogger(line.logger)
        if logger.hasHandlers():
            if logger.isEnabledFor(line.level):
                text = f"{who} {line.text}"
                record = logger.makeRecord(line.logger, line.level, who, 0, text, (), None)
                with contextlib.suppress(Exception):  # the user's own handler, in a thread that others need
                    logger.handle(record)
            return
    if line.level >= WARNING:
        _write(sys.stderr, f"{who} {level_name(line.level)}:{line.logger}:{line.text}\n")


def _write(stream: TextIO | None, text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none: nobody is to see it
        stream.write(text)  # type: ignore[union-attr]
        stream.flush()  # type: ignore[union-attr]
