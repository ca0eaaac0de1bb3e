"""Objects in the worker child: Refs in arguments become values in the node's shared memory, large results go there.

The child asks its daemon when it unpickles a Ref, or has a large value, and waits: the daemon answers when the object
is there, wherever it came from, or where there is room for it. Frames that come meanwhile are kept for later. The
memory's descriptor comes with the first answer.

Rule: imported by the first Ref or large result, not before; standard library, msgpack and core only.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, error_from_wire
from p2pgrid.core.large import KEY_BYTES, Large
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import Serialised, load
from p2pgrid.core.wire import Frame, Splitter, frame

RECV = 1 << 16


class WorkerObjects:
    """What one child has mapped."""

    def __init__(self, sock: socket.socket, splitter: Splitter, later: deque[Frame]) -> None:
        """Ask through `sock`; other frames that come meanwhile go to `later`."""
        self._sock = sock
        self._splitter = splitter
        self._later = later
        self._mapped: Mapped | None = None
        self._ended: deque[bytes] = deque()
        """Objects whose views ended; a finaliser may run anywhere, and does no more than this."""
        self._asked = 0
        self._values = 0
        self._told = 0
        self._thread = threading.get_ident()

    def value(self, id_: bytes, holders: tuple[str, ...]) -> Any:
        """Return the value of an object.

        Raises:
            ObjectLost: nobody has it any more.
            QuotaExceeded: this node has no room for it.
        """
        self.tell()
        _, offset, size, *_ = self._asked_for(m.W_NEED, id_, list(holders))
        self._values += 1
        ended = self._ended
        return load(self._memory().view(offset, size, lambda: ended.append(id_)))

    def store(self, value: Serialised, *, is_ref: bool) -> bytes:
        """Write a value to a place of its own; return the data of its outcome. Raises GridError: there is no room."""
        key = os.urandom(KEY_BYTES)
        self.tell()  # what is not looked at any more makes room for this
        _, offset, *_ = self._asked_for(m.W_PLACE, key, value.size)
        self._memory().write(offset, value)
        return Large(key, value.size, (), is_ref).packed()

    def _asked_for(self, kind: int, *what: Any) -> list[Any]:
        """Ask the daemon, and return its answer. Raises what it says is wrong."""
        if threading.get_ident() != self._thread:
            raise GridError("a Ref can be resolved in the task's own thread only", code="not-yet")
        self._asked += 1
        number = self._asked
        self._sock.sendall(frame(kind, [number, *what]))
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, RECV, 1)
            if not data:
                os._exit(1)  # the daemon is gone
            found = [one for one in map(self._sorted, self._splitter.feed(data)) if one is not None]
            for body in found:
                self._take(fds, body)
                if body[0] == number:
                    why = body[3]
                    if why is not None:
                        raise error_from_wire(why["code"], why["message"], why.get("next", ""))
                    return body

    def _sorted(self, one: Frame) -> list[Any] | None:
        if one.kind == m.W_AT:
            return list(one.body)
        self._later.append(one)
        return None

    def _take(self, fds: list[int], body: list[Any]) -> None:
        while fds:
            fd = fds.pop()
            try:
                self._mapped = self._mapped or Mapped(fd, body[4])
            finally:
                os.close(fd)

    def _memory(self) -> Mapped:
        if self._mapped is None:
            raise GridError("the node handed over no shared memory", code="no-shared-memory", next="p2pgrid status")
        return self._mapped

    def used(self) -> bool:
        """Whether any value was asked for since this was called last."""
        before, self._told = self._told, self._values
        return before != self._values

    def tell(self) -> None:
        """Say whose views ended."""
        ended: dict[bytes, int] = {}
        while self._ended:
            id_ = self._ended.popleft()
            ended[id_] = ended.get(id_, 0) + 1
        if ended:
            self._sock.sendall(frame(m.W_LET_GO, [[id_, times] for id_, times in ended.items()]))
