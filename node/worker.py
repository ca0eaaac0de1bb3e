"""The worker child's main: frames in, tasks run, frames out. Started by `node/workers.py`, one process per slot.

It blocks on one socket and holds no other; it has no keys. Neither trio nor libp2p nor anything else that is not in
the standard library is imported here but msgpack and cloudpickle, which the daemon puts on its path: the interpreter
of `--python` needs nothing installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # signal's own, without its enum: 50 ns, not 1.5 µs
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from p2pgrid.core import current, files, messages, ref
from p2pgrid.core.segments import Segment
from p2pgrid.core.threads import THREADS, threads_for
from p2pgrid.core.wire import Frame, Splitter, frame
from p2pgrid.node.page import INDEX, LOOK, NONE, RUN, START, Page, Progress
from p2pgrid.node.worker_functions import Functions, Items, Unfit, receive_in
from p2pgrid.node.worker_inside import Inside, below, put_aside
from p2pgrid.node.worker_output import Output
from p2pgrid.node.worker_recent import Recent
from p2pgrid.node.worker_report import Report
from p2pgrid.node.worker_results import Values
from p2pgrid.node.worker_scratch import Scratch
from p2pgrid.node.worker_tasks import Work, fail_all, run_segment, starter

if TYPE_CHECKING:
    from p2pgrid.core.objects import Serialised
    from p2pgrid.node.worker_objects import WorkerObjects

RECV = 1 << 16
NICE = 5
OOM_SCORE_ADJ = 500
LOADING_S = 60.0
"""Seconds that loading a function (its modules' imports) may take before they count as time of its first task."""
_PR_SET_PDEATHSIG = 1


class Worker:
    """One child: what it knows, and the loop."""

    def __init__(self, sock: socket.socket, door: socket.socket, page: Page, output: Output) -> None:
        """Serve the daemon at the other end of `sock`; the current folder is the one that tasks start in."""
        self._sock = sock
        self._page = page
        self._output = output
        self._base = str(Path.cwd())
        self._scratch = self._use(Scratch(self._base, page.words, LOOK))
        self._scratches: list[Scratch] = []
        """For tasks that run below others, by how deep they are."""
        self._environment = dict(os.environ)
        self._inside = Inside(door, sock, page, self)
        self._functions = Functions()
        self._blobs: Recent[tuple[bytes, bytes], Items] = Recent(messages.W_BLOBS)
        self._handlers = {number: getsignal(number) for number in signal.valid_signals()}
        self._forked: list[bool] = []
        self._threads = 1
        self._ran = False
        self._splitter = Splitter()
        self._later: deque[Frame] = deque()  # came while a task waited for an object
        self._objects: WorkerObjects | None = None
        ref.provide(self._value)
        os.register_at_fork(after_in_child=self._in_fork)

    def _in_fork(self) -> None:
        # Whatever a task forked must neither speak to the daemon nor keep the socket open after we are gone.
        self._forked.append(True)
        self._sock.close()
        self._inside.forked()

    @staticmethod
    def _use(scratch: Scratch) -> Scratch:
        """Let tasks work in these folders from now on."""
        current.own_folder[:] = [scratch.own]
        files.provide(scratch)
        receive_in(scratch)
        return scratch

    def serve(self) -> None:
        """Say that we are ready, and work until the daemon closes its end."""
        splitter, later = self._splitter, self._later
        self._sock.sendall(frame(messages.W_READY, {"pid": os.getpid(), "python": list(sys.version_info[:3])}))
        while data := self._sock.recv(RECV):
            later += splitter.feed(data)  # a task that waits takes from them as well
            while later:
                self._handle(later.popleft())

    def receive(self) -> None:
        """Read what has come while a task waits."""
        data = self._sock.recv(RECV)
        if not data:
            os._exit(1)  # the daemon is gone
        self._later += self._splitter.feed(data)

    def take_waiting(self, at: tuple[int, int]) -> bool:
        """Do the next thing that has come while task `at` waits; what is not to run below it is given back."""
        if not self._later:
            return False
        received = self._later.popleft()
        if received.kind == messages.W_RUN and received.body[4:] == [list(at)]:
            self._run_below(*received.body[:4])
        elif received.kind == messages.W_RUN:
            self._give_back(received.body[0], received.body[1], [Segment(*segment) for segment in received.body[3]])
        else:
            self._handle(received)
        return True

    def _give_back(self, number: int, job: bytes, segments: Sequence[Segment]) -> None:
        self._functions.touch([segment.fn for segment in segments])
        self._touch_blobs(job, segments)
        Report(number, self._sock.sendall, Values(None)).finish([(segment.lo, segment.hi) for segment in segments])

    def _run_below(self, number: int, job: bytes, context: Mapping[str, Any], segments: Sequence[Any]) -> None:
        """Run tasks below one that waits for them."""
        scratch, depth = self._scratch, self._inside.below
        with put_aside(self._page, self._output, self._environment):
            if depth == len(self._scratches):
                self._scratches.append(Scratch(os.path.join(self._base, f"below-{depth}"), self._page.words, LOOK))  # noqa: PTH118
            self._scratch = self._use(self._scratches[depth])
            os.chdir(self._scratch.here)
            self._inside.below += 1
            try:
                below(self._run, number, job, context, [Segment(*segment) for segment in segments])
            finally:
                self._inside.below -= 1
                self._scratch = self._use(scratch)

    def _shared(self) -> WorkerObjects:
        """Return what this child shares with others; the first time its modules are imported."""
        if self._objects is None:
            from p2pgrid.node.worker_objects import WorkerObjects  # noqa: PLC0415 - few tasks have Refs

            self._objects = WorkerObjects(self._sock, self._splitter, self._later)
        return self._objects

    def _value(self, id_: bytes, holders: tuple[str, ...]) -> Any:
        """Return what a Ref in arguments stands for."""
        return self._shared().value(id_, holders)

    def _store(self, value: Serialised, is_ref: bool) -> bytes:  # noqa: FBT001 - a Store of worker_results
        """Write a large value into the node's shared memory."""
        return self._shared().store(value, is_ref=is_ref)

    def _handle(self, received: Frame) -> None:
        match received.kind, received.body:
            case messages.W_CODE, [code_id, union]:
                self._functions.add(code_id, union)
            case messages.W_BLOB, [job, key, data]:
                self._blobs.put((job, key), Items(data))
            case messages.W_RUN, [number, job, _, segments, [_, _]]:  # below a task that does not wait any more
                self._give_back(number, job, [Segment(*segment) for segment in segments])
            case messages.W_RUN, [number, job, context, segments, *_]:
                self._run(number, job, context, [Segment(*segment) for segment in segments])
            case messages.W_TREE, [tree, folder, packed]:
                from p2pgrid.node.worker_trees import names_in, take_up  # noqa: PLC0415 - for those that have one

                self._functions.folder, self._functions.no_tree = folder, take_up(folder, packed)
                if not self._functions.no_tree:
                    self._inside.served = tree, names_in(folder)
            case messages.W_AT, _:
                pass  # whoever waited for it was interrupted
            case kind, _:
                raise AssertionError(f"the daemon sent a frame of kind {kind}")

    def _run(self, number: int, job: bytes, context: Mapping[str, Any], segments: Sequence[Segment]) -> None:
        self._functions.touch([segment.fn for segment in segments])
        self._touch_blobs(job, segments)
        values = Values(self._store, as_ref=context.get("keep") == "ref")
        report = Report(number, self._sock.sendall, values)
        attempt = int(context.get("attempt", 0))
        work = Work(self._page, self._output, report, self._scratch, self._forked, number, attempt, job)
        self._inside.reports.append(report)
        self._page.words[RUN] = number
        current.enter(self._context(job, context, attempt))
        self._limit_threads(context.get("cpu", 1))
        with _environment(context.get("env") or {}) as refused:
            returned, unfit = self._work_off(work, job, segments, refused)
            if self._objects is not None and self._objects.used():
                for items in self._blobs.values():
                    items.forget()
                self._objects.tell()  # before the results: whoever has them may put the next
            # Before the page is cleared: what pickles the values is the user's code, and a crash in it needs a culprit.
            report.finish(returned, unfit)
        self._inside.reports.pop()
        current.enter(None)
        self._page.clear()
        self._restore_signals()
        if self._objects is not None:
            self._objects.tell()

    def _touch_blobs(self, job: bytes, segments: Sequence[Segment]) -> None:
        self._blobs.touch((job, segment.key) for segment in segments if segment.key and segment.data is None)

    def _limit_threads(self, cpus: float) -> None:
        """Before the first task: let numerical libraries have as many threads as it asked for `cpu`s."""
        threads = threads_for(cpus)
        if threads != self._threads:
            assert not self._ran, "the daemon gives such a run to a fresh child"
            os.environ.update(dict.fromkeys(THREADS, str(threads)))
            self._environment = dict(os.environ)
            self._threads = threads
        self._ran = True

    def _work_off(
        self, work: Work, job: bytes, segments: Sequence[Segment], refused: Exception | None
    ) -> tuple[list[tuple[int, int]], str]:
        """Run the segments; return the ranges that were not started, and why this interpreter is unfit for them.

        `refused` is why the run cannot start: all its tasks fail with that.
        """
        rest = deque(segments)
        while rest:
            segment = rest.popleft()
            if refused is not None:
                fail_all(work, segment, refused)
                continue
            self._page.floats[START] = monotonic() + LOADING_S
            self._page.words[INDEX] = segment.lo  # loading the function runs the user's code, too
            if work.recalled():
                return [(segment.lo, segment.hi), *((s.lo, s.hi) for s in rest)], ""
            try:
                function = self._functions.load(segment.fn)
                self._page.floats[START] = monotonic()
                stopped, segment = run_segment(
                    work, segment, function, self._items(job, segment), lambda: self._next_async(work, job, rest)
                )
            except Unfit as unfit:
                at = segment.lo if unfit.at is None else unfit.at
                return [(at, segment.hi), *((s.lo, s.hi) for s in rest)], str(unfit)
            if stopped < segment.hi:
                return [(stopped, segment.hi), *((s.lo, s.hi) for s in rest)], ""
        return [], ""

    def _next_async(
        self, work: Work, job: bytes, rest: deque[Segment]
    ) -> tuple[Segment, Callable[[int], Any]] | None:  # fmt: skip
        """Take the next segment if its tasks are `async def` ones that can be started as they are."""
        if not rest:
            return None
        with contextlib.suppress(BaseException):  # whoever comes to it in its turn says what is wrong with it
            function = self._functions.load(rest[0].fn)
            if function.is_async and function.broken is None:
                call = starter(work, rest[0], function, self._items(job, rest[0]))
                return rest.popleft(), call
        return None

    def _items(self, job: bytes, segment: Segment) -> Items | None:
        if not segment.key:
            return None
        if segment.data is not None:
            return Items(segment.data)
        items = self._blobs.peek((job, segment.key))
        assert items is not None, "the daemon thinks we still have that blob"
        return items

    def _context(self, job: bytes, context: Mapping[str, Any], attempt: int) -> current.RunContext:
        words = self._page.words

        def index() -> int | None:
            running = words[INDEX]
            return None if running == NONE else running

        def say(by: int, done: float, total: float | None, text: str) -> None:
            self._page.say_progress(by, Progress(done, total, text))

        return current.RunContext(
            job=context.get("name") or context.get("job") or job.hex(),
            job16=job,
            attempt=attempt,
            node=context.get("node", ""),
            scratch=lambda: self._scratch.here,
            scratches=self._scratch.folders,
            index=index,
            say=say,
            nested=int(context.get("nested", 0)),
        )

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            if getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


def main(arguments: Sequence[str]) -> None:
    """Run as a worker child: socket, output files, page and door as descriptor numbers, the daemon's pid, a title."""
    sock_fd, out_fd, err_fd, page_fd, door_fd, daemon = (int(argument) for argument in arguments[:6])
    for fd in (sock_fd, out_fd, err_fd, page_fd, door_fd):
        os.set_inheritable(fd, False)  # noqa: FBT003 - the function's own signature
    _die_with(daemon, sock_fd)
    _be_modest()
    page = Page(page_fd)
    page.clear()

    def writes() -> tuple[int, int] | None:
        index = current.running_index()
        return None if index is None else (page.words[RUN], index)

    output = Output(out_fd, err_fd, writes, page.words)
    faulthandler.enable(file=2, all_threads=False)
    gc.collect()
    gc.freeze()  # what is loaded now lives as long as the child: the collector need not look at it again
    Worker(socket.socket(fileno=sock_fd), socket.socket(fileno=door_fd), page, output).serve()
    os._exit(0)  # not by way of the interpreter's end: it would wait for threads that a task left


@contextlib.contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[Exception | None]:
    """Add to the environment, and undo that and whatever tasks did to it; give the error if it cannot be set."""
    if not extra:
        yield None
        return
    before = dict(os.environ)
    refused: Exception | None = None
    try:
        os.environ.update(extra)
    except (TypeError, ValueError, OSError) as error:  # no text, a NUL in it, no name
        refused = error
    yield refused
    os.environ.clear()
    os.environ.update(before)


def _die_with(daemon: int, sock_fd: int) -> None:
    """Make sure that this process ends when the daemon does, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:  # it went before we asked
        os._exit(1)
    threading.Thread(target=_watch_daemon, args=(sock_fd,), daemon=True, name="p2pgrid-watch").start()


def _watch_daemon(sock_fd: int) -> None:
    """Kill the whole group when the other end of the socket is gone: a task may never come back to read it."""
    poll = select.poll()
    poll.register(sock_fd, 0)  # only POLLHUP and POLLERR, which need not be asked for
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def _be_modest() -> None:
    """Leave the machine to its owner, and no core files: they hold what the task knew."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no /proc (macOS), or not writable (a container)
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
