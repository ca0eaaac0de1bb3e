"""A node that follows a script: it speaks the local protocol over a real socket and runs tasks in its own thread.

What a test asserts is what the client said (`heard`) and what it makes of what it is told.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import socket
import threading
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, ITEMS, decode_batch
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import Frame, Splitter, frame, pack, unpack
from p2pgrid.node.worker_program import Program
from tests.waiting import SOON_S


class ScriptedNode:
    """Listens in a directory; runs tasks at once unless told to hold them (`runs = False`)."""

    def __init__(self, directory: Path, *, slots: int = 2, runs: bool = True, acks: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.dir = directory
        self.slots = slots
        self.runs = runs
        self.acks = acks
        self.heard: list[Frame] = []
        self.answers: dict[str, Any] = {}
        self.on_frame: Callable[[Frame], None] | None = None
        self.journal: dict[bytes, dict[int, Any]] = {}
        self.inputs: dict[bytes, dict[int, tuple[int, bytes]]] = {}
        self.functions: dict[bytes, Callable[..., Any]] = {}
        self.closed: dict[bytes, int] = {}
        self.watched: set[bytes] = set()
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> ScriptedNode:
        path = self.dir / "s"
        path.unlink(missing_ok=True)
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        (self.dir / "node.json").write_text(json.dumps({"pid": 1, "socket": str(path), "id": "n", "name": "n0"}))
        self._threads = []
        self._begin(self._accept, listener)
        return self

    def _begin(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=(sock,), daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        (self.dir / "node.json").unlink(missing_ok=True)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # a thread in accept() does not notice that it is closed
            self._listener.close()
            self._threads[0].join(SOON_S)  # it accepts nobody any more
        self.cut()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(SOON_S)
                assert not thread.is_alive(), "a thread of the scripted node does not end"

    def cut(self) -> None:
        """Lose every connection."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def kinds(self) -> list[int]:
        return [one.kind for one in self.heard]

    def wait_for(self, ready: Callable[[], bool], timeout_s: float = SOON_S) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, timeout_s), self.kinds()

    def send(self, kind: int, body: Any, id_: int = 0) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError), self._sending:  # a large frame of the test, an answer of the node
                sock.sendall(frame(kind, body, id_))

    def release(self) -> None:
        """Run what was held."""
        self.runs = True
        for job, batches in list(self.inputs.items()):
            for lo, (hi, data) in sorted(batches.items()):
                self._run(job, lo, hi, data)
            self._end(job)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        splitter = Splitter()
        while True:
            try:
                data = sock.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            for one in splitter.feed(data):
                self.heard.append(one)  # before the answer, after which a test looks at what was heard
                self._take(one)
                with self._changed:
                    self._changed.notify_all()
                if self.on_frame is not None:
                    self.on_frame(one)

    def _take(self, one: Frame) -> None:
        body = one.body
        match one.kind:
            case m.HELLO:
                self.send(
                    m.WELCOME,
                    {
                        "v": 1, "id": "id", "name": "n0", "grid": "blue-otter", "slots": self.slots, "nodes": 1,
                        "version": "0.1.0", "python": [3, 11], "embedded": False, "pid": 1,
                    },
                )  # fmt: skip
            case m.OPEN:
                self.journal.setdefault(body[0], {})
                self._ack(body[0], "spec", 0)
            case m.CODE:
                self.functions[body[1]] = _function(body[2])
                self._ack(body[0], "code", 0)
            case m.INPUT:
                job, lo, hi, data = body
                new = lo not in self.inputs.setdefault(job, {})
                self.inputs[job][lo] = (hi, data)
                self._ack(job, "input", lo)
                if self.runs and new:
                    self._run(job, lo, hi, data)
                    self._end(job)
            case m.CLOSE:
                self.closed[body[0]] = body[1]
                self._ack(body[0], "close", 0)
                self._end(body[0])
            case m.WATCH:
                self.watched.add(body[0])
                self._catch_up(body[0], RangeSet.from_flat(body[1]))
            case m.CANCEL:
                self._ack(body[0], "cancel", 0)
                if body[1] is None:
                    self.send(m.STATE, [body[0], "cancelled", ""])
            case m.REQUEST:
                answer = self.answers.get(body[0])
                if isinstance(answer, dict) and "code" in answer:
                    self.send(m.ERROR, answer, one.id)
                elif answer is not None:
                    self.send(m.ANSWER, answer, one.id)

    def _catch_up(self, job: bytes, had: RangeSet) -> None:
        for index, segment in sorted(self.journal.get(job, {}).items()):
            if index not in had:
                self.send(m.RESULT, [job, [segment]])
        self._end(job)

    def _ack(self, job: bytes, what: str, lo: int) -> None:
        if self.acks:
            self.send(m.ACK, [job, what, lo])

    def _end(self, job: bytes) -> None:
        count = self.closed.get(job)
        if count is not None and sum(s[1] - s[0] for s in self.journal[job].values()) >= count and job in self.watched:
            self.send(m.STATE, [job, "done", ""])

    def _run(self, job: bytes, lo: int, hi: int, data: bytes) -> None:
        batch = decode_batch(lo, hi, data)
        segments = []
        for run in batch.runs:
            fn = self.functions[run.fn]
            if run.shape == CALLS:
                calls = [pickle.loads(one) if one else ((), {}) for one in run.data]
            elif run.shape == ITEMS:
                calls = [((item,), {}) for item in pickle.loads(run.data)]
            else:
                calls = [(tuple(item), {}) for item in pickle.loads(run.data)]
            segments += _called(fn, calls, run.lo, packed=run.shape != CALLS)
        for segment in segments:
            self.journal[job][segment[0]] = segment
        self.send(m.RESULT, [job, segments])


def _called(fn: Callable[..., Any], calls: list[Any], lo: int, *, packed: bool) -> list[Any]:
    segments: list[Any] = []
    values: list[Any] = []
    start = lo
    for index, (args, kwargs) in enumerate(calls, lo):
        try:
            values.append(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a task may raise anything
            segments += _segment(start, values, packed=packed)
            segments.append([index, index + 1, 2, pack(encode_exception(error)), "n0", 1])
            start, values = index + 1, []
    return segments + _segment(start, values, packed=packed)


def _segment(lo: int, values: list[Any], *, packed: bool) -> list[Any]:
    if not values:
        return []
    if packed:
        return [[lo, lo + len(values), 1, pickle.dumps(values, 5), "n0", 1]]
    data = [b"" if value is None else pickle.dumps(value, 5) for value in values]
    return [[lo, lo + len(values), 0, data, "n0", 1]]


def _function(union: bytes) -> Any:
    match unpack(union):
        case ["pickle", _, data, *_]:
            return pickle.loads(data)
        case ["exec", argv, None]:
            return Program(argv, "")
        case ["import", name, _]:
            module, _, qualname = name.partition(":")
            return attrgetter(qualname)(importlib.import_module(module))
    return None  # a source tree
