"""One worker child as the daemon sees it: the process, its socket, its page and its output file.

`Child.spawn` must be called in the daemon's main thread: the child asks to die with the *thread* that made it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from p2pgrid.core.errors import PeerError
from p2pgrid.core.messages import (
    W_BLOB,
    W_BLOBS,
    W_CODE,
    W_DONE,
    W_LET_GO,
    W_NEED,
    W_PLACE,
    W_READY,
    W_RUN,
    W_TREE,
)
from p2pgrid.core.prints import PRINTS, PROGRESS, Said
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.threads import THREADS, threads_for
from p2pgrid.core.wire import Frame, Splitter, frame
from p2pgrid.node import page as shared
from p2pgrid.node.events import Event, Outcome, Run, WorkerDied, WorkerDone, WorkerPrinted, WorkerReady
from p2pgrid.node.page import Page
from p2pgrid.node.reaper import MARK, kill_group
from p2pgrid.node.worker_recent import CODES_MAX, Recent
from p2pgrid.node.workers_output import WorkerOutput, anonymous_file
from p2pgrid.node.workers_trees import folder_of

RECV = 1 << 16
"""Below malloc's mmap threshold: larger buffers cost three more system calls per read."""
JOIN_MAX = 1 << 18
"""Frames are sent together up to this size; larger ones go alone, uncopied."""
REPORT_FIELDS = 7
SOCKET_BUFFER = 1 << 20
"""A grain's results or a blob in one go: else each side waits for the other in slices of 200 KiB."""
OUTPUT_KEPT = 64 * 1024
LOGS_EVERY_S = 5.0
"""How often what a task printed so far is handed on while it runs."""

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from p2pgrid.node.worker import main; main(sys.argv[2:])"

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why we kill a child: cause and detail of WorkerDied, and the task it is about."""

    cause: str
    detail: str
    running: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child is made from."""

    worker: int
    title: str  # for people who read `ps`
    python: Path
    packages: Path
    home: Path
    mark: str
    trees: Path
    """Where source trees are."""
    place: int = 0
    """Of its interpreter, among those of the node."""


class Child:
    """A process from its birth to its burial. It has no tasks of its own: the pool waits for its descriptors."""

    def __init__(self, birth: Birth) -> None:
        """Spawn the process. Raises OSError where the interpreter cannot be started."""
        self.worker = birth.worker
        self.birth = birth
        self.tree: bytes | None = None
        """The source tree it serves."""
        self.threads: int | None = None
        """How many threads numerical libraries have in it, from its first run on."""
        self.replaced = False
        """Another child has taken its slot: nobody need hear of its end."""
        self.vacated = trio.Event()
        """Its slot is free for another: it was replaced, or it is buried."""
        self.last_words = ""
        self.mark = birth.mark
        self.ready = False
        self.runs: dict[int, Run] = {}
        self.last_run = 0
        self.verdict: Verdict | None = None
        self._codes: Recent[bytes, None] = Recent(CODES_MAX)
        self._blobs: Recent[tuple[bytes, bytes], None] = Recent(W_BLOBS)
        self._taken: dict[int, RangeSet] = {}
        self._splitter = Splitter()
        self.asks: list[Frame] = []
        """What it said about objects, for whoever keeps them."""
        self.blocked = trio.Event()  # set while the socket is full
        self._out: deque[bytes | memoryview] = deque()
        self.shown: dict[int, int] = {}
        """What of each run somebody watches: PRINTS, PROGRESS."""
        self._said: dict[int, Said] = {}
        self._logs_due_s = 0.0
        self.output = WorkerOutput(birth.home, lambda run: bool(self.shown.get(run, 0) & PRINTS))
        page_fd = anonymous_file("p2pgrid-page", birth.home)
        os.ftruncate(page_fd, shared.SIZE)
        self.page = Page(page_fd)
        self.page.clear()
        self.starts: dict[tuple[int, int], float] = {}
        """When tasks began that wait, and below which others run."""
        self.door, their_door = socket.socketpair()
        """Brings sockets by which its tasks speak with the daemon."""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(0)
        self.door.settimeout(0)
        for end in (self.sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        try:
            files = self.output.out_fd, self.output.err_fd
            self.process = _spawn(birth, (theirs.fileno(), *files, page_fd, their_door.fileno()))
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()
            their_door.close()
            os.close(page_fd)

    # ---- to the child ---------------------------------------------------------------------------------------------

    def queue(self, run: Run) -> None:
        """Queue a run, before it the functions and blobs that the child does not have."""
        assert self.serves(run)
        self.runs[run.run] = run
        if run.inside is not None:
            self.starts.setdefault(run.inside, self.page.floats[shared.START])
        self.show(run.run, run.context.get("show", 0))
        self.last_run = max(self.last_run, run.run)
        self.threads = _threads(run)
        if run.tree is not None and self.tree is None:
            self._queue_tree(run.tree, run.codes)
        fns = list(dict.fromkeys(segment.fn for segment in run.segments))
        assert len(fns) <= CODES_MAX, "a run may not name more functions than a child keeps"
        # A code that is sent can push out another that this run needs and the child still had: look again.
        while missing := [fn for fn in fns if fn not in self._codes]:
            for fn in missing:
                self._codes.put(fn, None)
                self._out.append(frame(W_CODE, [fn, run.codes[fn]]))
        self._codes.touch(segment.fn for segment in run.segments)
        kept = self._queue_blobs(run)
        segments = [s._replace(data=None) if s.key and s.key in kept else s for s in run.segments]
        self._blobs.touch((run.job, segment.key) for segment in segments if segment.key and segment.data is None)
        self._out.append(frame(W_RUN, [run.run, run.job, run.context, segments, run.inside]))

    def serves(self, run: Run) -> bool:
        """Whether this child can take the run: by its interpreter, its source tree, and its number of threads."""
        return (
            run.python == self.birth.place
            and (run.tree is None or self.tree in (None, run.tree))
            and self.threads in (None, _threads(run))
        )

    def _queue_tree(self, tree: bytes, codes: Mapping[bytes, bytes]) -> None:
        """Bind the child to a source tree; its files travel where they are not on this disk yet."""
        self.tree = tree
        folder = folder_of(self.birth.trees, tree)
        self._out.append(frame(W_TREE, [tree, str(folder), None if folder.is_dir() else codes.get(tree)]))

    def _queue_blobs(self, run: Run) -> Mapping[bytes, bytes]:
        """Queue the packed lists of a run, as many as a child keeps; the others travel inside their segments."""
        packed: dict[bytes, Any] = {segment.key: segment.data for segment in run.segments if segment.key}
        kept = dict(list(packed.items())[:W_BLOBS])
        while missing := [key for key in kept if (run.job, key) not in self._blobs]:
            for key in missing:
                self._blobs.put((run.job, key), None)
                self._out.append(frame(W_BLOB, [run.job, key, kept[key]]))
        return kept

    def push(self) -> bool:
        """Send what is queued without blocking; return whether all of it left."""
        while self._out:
            data = self._next()
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                self._out.appendleft(data)
                return False
            except OSError:  # it died; whoever waits for its end tells what is lost
                self._out.clear()
                return True
            if sent < len(data):
                self._out.appendleft(memoryview(data)[sent:])
        return True

    def _next(self) -> bytes | memoryview:
        first = self._out.popleft()
        if not self._out or len(first) + len(self._out[0]) > JOIN_MAX:
            return first
        parts, size = [first], len(first)
        while self._out and size + len(self._out[0]) <= JOIN_MAX:
            parts.append(self._out.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def hand(self, data: bytes, fd: int) -> bool:
        """Send a frame with a descriptor, after all that is queued; return whether that is possible now."""
        if self._out:
            return False
        try:
            sent = socket.send_fds(self.sock, [data], [fd])
        except BlockingIOError:
            return False
        except OSError:  # it died
            return True
        if sent < len(data):
            self._out.append(memoryview(data)[sent:])
        return True

    def tell(self, data: bytes) -> None:
        """Queue a frame that is no run."""
        self._out.append(data)

    def recall(self) -> None:
        """Ask for all that is not started."""
        self.page.recall(self.last_run)

    def take_back(self) -> list[Event]:
        """Some time after a recall: what the child will not start any more, though a long task keeps it from saying so.

        Safe because of the order of writes and reads that `node/page.py` explains; what the child gives back itself
        later is told once.
        """
        running = self.running()
        if running is None or self.page.words[shared.MANY]:
            return []
        current, index = running
        events: list[Event] = []
        for number, run in self.runs.items():
            if not current <= number <= self.page.words[shared.RECALL]:
                continue
            taken = self._taken.setdefault(number, RangeSet())
            spans = RangeSet()
            behind = number != current
            for segment in run.segments:
                if behind:
                    spans.add(segment.lo, segment.hi)
                elif segment.lo <= index < segment.hi:
                    spans.add(index + 1, segment.hi)
                    behind = True
            spans.difference_update(taken)
            if spans:
                taken.update(spans)
                events.append(WorkerDone(self.worker, number, (), final=False, returned=list(spans), busy_s=0.0))
        return events

    def end_input(self) -> None:
        """Let the child end after the runs it has."""
        with contextlib.suppress(OSError):  # it is dead already
            self.sock.shutdown(socket.SHUT_WR)

    def condemn(self, verdict: Verdict | None) -> None:
        """Kill the child and its group; the first verdict counts."""
        self.verdict = self.verdict or verdict
        kill_group(self.process.pid)

    # ---- from the child -------------------------------------------------------------------------------------------

    def receive(self) -> list[Event] | None:
        """Read once, without blocking; return the events, None at the end. Raises PeerError on garbage."""
        data = self._recv()
        if data == b"":
            return None
        return self._events(data) if data else []

    def drain(self) -> list[Event]:
        """Return the events of what a dead child had sent. Raises PeerError on garbage."""
        events: list[Event] = []
        while data := self._recv():
            events += self._events(data)
        return events

    def _events(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for received in self._splitter.feed(data):
            event = self._event(received)
            if event is not None:
                events += self._printed()  # what a task printed goes before what became of it
                events.append(event)
        return events

    def _recv(self) -> bytes | None:
        """Return what has come: None if nothing yet, b"" if nothing will."""
        try:
            return self.sock.recv(RECV)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def _event(self, received: Frame) -> Event | None:
        kind, body = received.kind, received.body
        if kind == W_DONE and type(body) is list and len(body) == REPORT_FIELDS:
            return self._report(*body)
        if kind == W_READY and isinstance(body, dict) and isinstance(body.get("pid"), int):
            self.ready = True
            return WorkerReady(self.worker)
        if kind in (W_NEED, W_LET_GO, W_PLACE):
            self.asks.append(received)
            return None
        raise PeerError("a worker sent something that is no report")

    def _report(self, run: Any, done: Any, final: Any, returned: Any, busy_s: Any, logs: Any, unfit: Any) -> WorkerDone:
        # Spelled out, not matched as a pattern: it runs for every grain.
        right = type(done) is type(returned) is type(logs) is list and type(final) is bool and type(busy_s) is float
        if not right or type(unfit) is not str or run not in self.runs:
            raise PeerError("a worker sent something that is no report")
        back = [_pair(entry, int, int) for entry in returned]
        outcomes = [_outcome(entry) for entry in done]
        self.output.tasks_ended(self.page.words)
        captured = self.output.logs(run, outcomes, final=final)
        if final:
            inside = self.runs.pop(run).inside
            if inside is not None and all(one.inside != inside for one in self.runs.values()):
                self.starts.pop(inside, None)
            self.shown.pop(run, None)
            self._said.pop(run, None)
            taken = self._taken.pop(run, None)
            if taken:
                back = list(RangeSet(back) - taken)
        return WorkerDone(self.worker, run, outcomes, final, back, busy_s, captured, unfit)

    # ---- its output and its end -----------------------------------------------------------------------------------

    def show(self, run: int, what: int) -> None:
        """Note what somebody watches of a run."""
        self.shown[run] = what if self.runs[run].context.get("prints", True) else what & ~PRINTS

    def look(self, now: float) -> list[Event]:
        """Return what is new of running tasks: lines and progress if somebody watches, now and then their logs."""
        running = self.running()
        wanted = self.shown.get(running[0], 0) if running is not None else 0
        due = now >= self._logs_due_s
        self.output.look(running, watched=due or bool(wanted & PRINTS))
        events = self._printed()
        if wanted & PROGRESS and running is not None:
            events += self._progress(*running)
        if due:
            self._logs_due_s = now + LOGS_EVERY_S
            for run, index, text in self.output.logs_so_far():
                if run in self.runs:
                    events.append(WorkerPrinted(self.worker, run, logs=[(index, text)]))
        return events

    def _printed(self) -> list[Event]:
        return [WorkerPrinted(self.worker, run, lines, more) for run, lines, more in self.output.printed()]

    def step_down(self) -> None:
        """Leave the slot to another, and end: it has nothing to do."""
        assert not self.runs, "a child with runs was replaced"
        self.replaced = True
        self.vacated.set()
        self.condemn(None)

    def _progress(self, run: int, index: int) -> list[Event]:
        progress = self.page.progress()
        if progress is None:
            return []
        said = Said(index, progress.done, -1.0 if progress.total is None else progress.total, progress.text)
        if self._said.get(run) == said:
            return []
        self._said[run] = said
        return [WorkerPrinted(self.worker, run, progress=[said])]

    def obituary(self) -> list[Event]:
        """Return what is to be said of a process that ended: its last lines, and how it ended."""
        code = self.process.wait()
        running = self.running()
        self.output.last_look(running)
        if self.verdict is not None:
            cause, detail = self.verdict.cause, self.verdict.detail
            running = self.verdict.running or running
        elif code >= 0:
            cause, detail = "exit", f"exited with code {code}"
        else:
            cause, detail = "signal", f"killed by signal {_signal_name(-code)}"
        run, index = running or (None, None)
        words = self.output.last_words(running, OUTPUT_KEPT)
        left = self.output.logs_left()
        return [*self._printed(), WorkerDied(self.worker, run, index, cause, detail, words, left)]

    def running(self) -> tuple[int, int] | None:
        """Return (run, index) of the task it works on; None between runs and before the first."""
        running = self.page.running()
        return running if running is not None and running[0] in self.runs else None

    def visitor(self) -> socket.socket | None:
        """Return a socket that a task has passed by the door; None if there is none yet. Raises OSError at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.door, 1, 1)
        except BlockingIOError:
            return None
        if not data:
            raise OSError(errno.EPIPE, "the child has closed its door")
        return socket.socket(fileno=fds[0]) if fds else None

    def close(self) -> None:
        """Let go of the descriptors."""
        self.sock.close()
        self.door.close()
        self.page.close()
        self.output.close()


def _threads(run: Run) -> int:
    return threads_for(run.context.get("cpu", 1))


def _outcome(entry: Any) -> Outcome:
    if type(entry) is list and len(entry) == len(Outcome._fields):
        lo, hi, shape, data = entry
        if type(lo) is type(hi) is type(shape) is int:
            return Outcome(lo, hi, shape, data)
    raise PeerError("a worker sent something that is no outcome")


def _pair(entry: Any, first: type[A], second: type[B]) -> tuple[A, B]:
    match entry:
        case [a, b] if isinstance(a, first) and isinstance(b, second):
            return a, b
    raise PeerError("a worker sent something that is no pair")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def _spawn(birth: Birth, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [birth.python, "-P", "-c", _BOOT, birth.packages, *map(str, fds), str(os.getpid()), birth.title],
        stdin=subprocess.DEVNULL,
        stdout=fds[1],
        stderr=fds[2],
        pass_fds=fds,
        cwd=birth.home,
        env=_environment(birth.mark),
        process_group=0,
    )


def _environment(mark: str) -> dict[str, str]:
    # Our own settings go, secrets above all (P2PGRID_JOIN, P2PGRID_NODE_JOIN): a task runs strangers' code.
    kept = {name: text for name, text in os.environ.items() if not name.startswith("P2PGRID_") or name == "P2PGRID_DIR"}
    return kept | dict.fromkeys(THREADS, "1") | {MARK: mark}
