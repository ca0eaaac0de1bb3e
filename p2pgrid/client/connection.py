"""One connection to the node's socket: frames go out without blocking the caller, frames come in to one reader.

Nothing here knows what the frames mean, but HELLO and WELCOME.
"""

import contextlib
import socket
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pgrid.core.errors import GridError, PeerError, VersionMismatch, error_from_wire
from p2pgrid.core.messages import ERROR, HELLO, WELCOME
from p2pgrid.core.wire import VERSION, Frame, Splitter, frame

RECEIVE_BYTES = 1 << 16
BUFFER_BYTES = 1 << 20


class ConnectionLost(Exception):
    """Internal: the node closed the connection, died, or sent what is no frame."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a node says of itself when greeted."""

    id: str
    name: str
    grid: str
    slots: int
    nodes: int
    version: str
    python: tuple[int, ...]
    embedded: bool
    pid: int


class Connection:
    """A connected and greeted socket."""

    def __init__(self, sock: socket.socket, welcome: Welcome, splitter: Splitter, early: list[Frame]) -> None:
        """Take over a socket that has been greeted; made by `connect`."""
        self.welcome = welcome
        self._socket = sock
        self._splitter = splitter
        self._early = early
        # Reentrant for the writer thread: the garbage collector may run there and drop a map, which is cancelled then.
        self._lock = threading.RLock()
        self._outbox: deque[memoryview] = deque()
        self._unsent = threading.Event()
        self._writer: threading.Thread | None = None
        self._closed = False

    def send(self, data: bytes) -> None:
        """Send frames now, or as soon as the node takes them. A lost connection is noticed by the reader, not here."""
        with self._lock:
            if self._closed:
                return
            rest = memoryview(data)
            if not self._outbox:
                try:
                    rest = rest[self._socket.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    pass
                except OSError:
                    return
            if rest:
                self._outbox.append(rest)
                self._unsent.set()
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="p2pgrid-writer", daemon=True)
                    self._writer.start()

    def _write(self) -> None:
        """Send what did not fit into the socket; runs in its own thread, so that neither caller nor reader waits."""
        while self._unsent.wait():
            with self._lock:
                if self._closed:
                    return
                data = self._outbox[0]
            try:
                self._socket.sendall(data)
            except OSError:
                return
            with self._lock:
                self._outbox.popleft()
                if not self._outbox:
                    self._unsent.clear()

    def receive(self) -> list[Frame]:
        """Return the next frames, at least one. Raises ConnectionLost."""
        frames, self._early = self._early, []
        while not frames:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    raise ConnectionLost("the node closed the connection")
                frames = self._splitter.feed(data)
            except (OSError, PeerError) as error:
                raise ConnectionLost(str(error)) from error
        return frames

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for what is no frame."""
        return self._socket

    def is_over(self) -> bool:
        """Whether the node closed it, on a connection where nothing is to come."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def patience(self, timeout_s: float) -> None:
        """Let `receive` wait at most so long for each part of a frame; then it raises ConnectionLost."""
        self._socket.settimeout(max(timeout_s, 0.001))

    def drain(self, timeout_s: float) -> None:
        """Wait until all is sent, at most so long."""
        with self._lock:
            writer = self._writer if self._outbox else None
        if writer is not None:
            writer.join(timeout_s)

    def close(self) -> None:
        """Close the socket; a reader blocked in `receive` is woken."""
        with self._lock:
            self._closed = True
            self._unsent.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's copy of the descriptor only: after a fork the connection belongs to the parent."""
        self._socket.close()


def connect(path: Path, hello: dict[str, Any], timeout_s: float) -> Connection:
    """Connect to the socket at `path` and greet.

    Raises:
        OSError: nobody listens there.
        ConnectionLost: whoever listens did not greet back in time.
        GridError: the node refuses us.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return greet(sock, hello, timeout_s, f"what listens at {path}")


def greet(sock: socket.socket, hello: dict[str, Any], timeout_s: float, who: str) -> Connection:
    """Greet over a connected socket, which belongs to the connection from now on. Raises as `connect`."""
    try:
        sock.settimeout(timeout_s)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        sock.sendall(frame(HELLO, hello))
        splitter = Splitter()
        frames: list[Frame] = []
        while not frames:
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionLost("the node closed the connection instead of greeting")
            frames = splitter.feed(data)
        welcome = _welcome(frames[0])
        sock.settimeout(None)
        return Connection(sock, welcome, splitter, frames[1:])
    except (PeerError, TimeoutError) as error:
        sock.close()
        msg = f"{who} does not speak as a node does: {error}"
        raise ConnectionLost(msg) from error
    except BaseException:
        sock.close()
        raise


def _welcome(first: Frame) -> Welcome:
    match first:
        case Frame(kind=kind, body=dict() as body) if kind == WELCOME:
            if body.get("v") != VERSION:
                msg = f"the node speaks version {body.get('v')} of the local protocol, this program {VERSION}"
                raise VersionMismatch(msg)
            return Welcome(
                id=body["id"],
                name=body["name"],
                grid=body["grid"],
                slots=body["slots"],
                nodes=body["nodes"],
                version=body["version"],
                python=tuple(body["python"]),
                embedded=bool(body["embedded"]),
                pid=body["pid"],
            )
        case Frame(kind=kind, body=dict() as body) if kind == ERROR:
            raise error_from_wire(body["code"], body["message"], body.get("next", ""))
    msg = "the node did not greet"
    raise GridError(msg, code="version-mismatch", next="install the same version on both sides: p2pgrid --version")
