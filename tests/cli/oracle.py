"""A node that only answers: what it says to each request is given, whatever it was asked about."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any, Self

from p2pgrid.core import messages as m
from p2pgrid.core.wire import Frame, Splitter, frame

NODE_ID = "12D3KooWN2rvd8YkrhCzwfJ9F3JYTzYL7XnTFMHZwNQBrkPj4yvy"
WELCOME: dict[str, Any] = {
    "v": 1, "id": NODE_ID, "name": "quiet-fox", "grid": "blue-otter", "slots": 2, "nodes": 1, "version": "0.1.0",
    "python": [3, 11], "embedded": False, "pid": None,
}  # fmt: skip


class Oracle:
    """A socket, and answers by verb.

    Attributes:
        answers: with a key "code" it is sent as an ERROR; None hangs up; a verb that is absent is never answered.
        raw: answers that are sent as they are, whatever they are.
        heard: the requests, as [verb, arguments].
        frames: what follows a WATCH, as (kind, body).
        greeting: what is sent for a HELLO, as raw bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.raw: dict[str, Any] = {}
        self.heard: list[Any] = []
        self.frames: list[tuple[int, Any]] = []
        self.told: list[tuple[int, Any]] = []
        """What it was told besides requests."""
        self.hello: Any = None
        self.greeting = frame(m.WELCOME, WELCOME)
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        path = self.dir / "s"
        self._listener.bind(str(path))
        self._listener.listen()
        (self.dir / "node.json").write_text(json.dumps({"pid": 1, "socket": str(path)}), encoding="utf-8")
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        splitter = Splitter()
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                for one in splitter.feed(data):
                    if not self._hear(sock, one):
                        return

    def _hear(self, sock: socket.socket, one: Frame) -> bool:
        """Answer; return whether to stay on the line."""
        if one.kind == m.HELLO:
            self.hello = one.body
            sock.sendall(self.greeting)
            return True
        if one.kind != m.REQUEST:
            self.told.append((one.kind, one.body))
            if one.kind == m.WATCH:
                sock.sendall(b"".join(frame(kind, body) for kind, body in self.frames))
            return True
        self.heard.append(one.body)
        verb = one.body[0]
        if verb in self.raw:
            sock.sendall(frame(m.ANSWER, self.raw[verb], one.id))
            return True
        if verb not in self.answers:
            return True
        answer = self.answers[verb]
        if answer is not None:
            sock.sendall(frame(m.ERROR if "code" in answer else m.ANSWER, answer, one.id))
        return answer is not None and verb != "stop"
