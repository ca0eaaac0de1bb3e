"""A blocking link to the node of this machine: one connection, one request at a time.

The command line asks and goes; it needs no threads, no session and no reconnecting, so it has none of the client's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pgrid.client.discovery import _directory_for_here
from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, NodeGone, NoNode, PeerError, VersionMismatch, error_from_wire
from p2pgrid.core.locate import default_dirs, socket_of
from p2pgrid.core.wire import VERSION, Frame, Splitter, frame

TIMEOUT_S = 10.0
ROUNDS_S = 5.0
"""How long after the end of all patience a node may take to say that nobody knows a job."""
RECEIVE_BYTES = 256 * 1024
NO_SESSION = b""


class Link:
    """A connection that was greeted.

    Attributes:
        welcome: what the node said of itself (WELCOME).
        dir: the directory it was found in.
    """

    def __init__(self, sock: socket.socket, directory: Path) -> None:
        """Take over a connected socket."""
        self._sock = sock
        self._splitter = Splitter()
        self._frames: list[Frame] = []
        self._asked = 0
        self.dir = directory
        self.welcome: dict[str, Any] = {}

    @property
    def socket(self) -> socket.socket:
        """The socket, for what comes over it that is no frame."""
        self._sock.settimeout(TIMEOUT_S)
        return self._sock

    def greet(self, program: str) -> None:
        """Say HELLO.

        Raises:
            VersionMismatch: the node speaks another version of the local protocol.
            GridError: it refuses us.
        """
        hello = {"v": VERSION, "session": NO_SESSION, "pid": os.getpid(), "program": program}
        first = self._exchange(m.HELLO, hello, 0)
        if first.kind != m.WELCOME or not isinstance(first.body, dict) or first.body.get("v") != VERSION:
            raise VersionMismatch(f"the node in {self.dir} speaks another version of the local protocol")
        self.welcome = first.body

    def about(self, verb: str, target: str, **arguments: Any) -> dict[str, Any]:
        """As `ask`, about jobs: the node asks whom it can reach for some seconds before it knows none."""
        patience_s = TIMEOUT_S + ROUNDS_S
        return self.ask(verb, within_s=patience_s, target=target, within=TIMEOUT_S, **arguments)

    def ask(self, verb: str, *, within_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request; `within_s` is for what takes a node longer than TIMEOUT_S.

        Raises:
            GridError: the node's own error, or `timed-out`.
            NodeGone: it ended meanwhile.
        """
        self._asked += 1
        answer = self._exchange(m.REQUEST, [verb, arguments], self._asked, within_s)
        if answer.kind != m.ANSWER or not isinstance(answer.body, dict):
            raise VersionMismatch(f"the node in {self.dir} gave an answer to {verb!r} that is none")
        return answer.body

    def send(self, kind: int, body: Any) -> None:
        """Send a frame that is no question."""
        self._sock.settimeout(TIMEOUT_S)
        try:
            self._sock.sendall(frame(kind, body))
        except OSError as error:
            raise NodeGone("", f"the node in {self.dir} ended: {error.strerror}") from error

    def next_frames(self, timeout_s: float | None) -> list[Frame]:
        """Return the frames that come next, at least one.

        Raises:
            TimeoutError: none came in that time.
            NodeGone: the node ended.
            GridError: the node refused something.
        """
        frames, self._frames = self._frames, []
        try:
            while not frames:
                self._sock.settimeout(None if timeout_s is None else max(timeout_s, 0.001))
                data = self._sock.recv(RECEIVE_BYTES)
                if not data:
                    raise NodeGone("", f"the node in {self.dir} ended")
                frames = self._splitter.feed(data)
        except TimeoutError:
            raise
        except PeerError as error:
            raise VersionMismatch(f"what listens for {self.dir} does not speak as a node does: {error}") from error
        except OSError as error:
            raise NodeGone("", f"the node in {self.dir} ended: {error.strerror}") from error
        for one in frames:
            if one.kind == m.ERROR and not one.id:
                raise _told(one.body)
        return frames

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the node closes the connection; False if it has not in that time."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                if not self._sock.recv(RECEIVE_BYTES):
                    return True
            except TimeoutError:
                break
            except OSError:
                return True
        return False

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Self:
        """Use it in a `with`: leaving closes it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def _exchange(self, kind: int, body: Any, id_: int, within_s: float | None = None) -> Frame:
        """Send one frame and return what answers it; frames for nobody are passed over."""
        patience = TIMEOUT_S if within_s is None else within_s
        deadline = time.monotonic() + patience
        try:
            self._sock.settimeout(patience)
            self._sock.sendall(frame(kind, body, id_))
            while True:
                while self._frames:
                    found = self._frames.pop(0)
                    if found.kind == m.ERROR and found.id in (0, id_):
                        raise _told(found.body)
                    if found.id == id_:
                        return found
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = self._sock.recv(RECEIVE_BYTES)
                if not data:
                    raise NodeGone("", f"the node in {self.dir} ended before it answered")
                self._frames = self._splitter.feed(data)
        except TimeoutError as error:
            raise GridError(
                f"the node in {self.dir} did not answer within {patience:g} s",
                code="timed-out",
                next="try again; if it stays silent: p2pgrid stop, p2pgrid node",
            ) from error
        except PeerError as error:
            raise VersionMismatch(f"what listens for {self.dir} does not speak as a node does: {error}") from error
        except OSError as error:
            raise NodeGone("", f"the node in {self.dir} ended before it answered: {error.strerror}") from error


def open_link(directory: Path | None, program: str = "p2pgrid", places: Sequence[Path] | None = None) -> Link:
    """Connect to the node in `directory`, or to the first that is found in `places`: those where a program would look.

    Raises:
        NoNode: none runs there.
    """
    if directory is not None:
        places = [directory]
    elif places is None:
        places = places_here()
    for place in places:
        link = _try(place)
        if link is not None:
            try:
                link.greet(program)
            except BaseException:
                link.close()
                raise
            return link
    if directory is not None:
        raise NoNode(f"no node runs in {directory}", next=f"p2pgrid node --dir {directory}")
    raise NoNode(f"no node runs here (looked in {', '.join(map(str, places))})", next="p2pgrid node")


def places_here() -> Sequence[Path]:
    """Return where `Grid()` looks: the usual directories, and that of the node a program in this folder has started."""
    if os.environ.get("P2PGRID_DIR"):
        return default_dirs()[:1]
    return [*default_dirs(), _directory_for_here()]


def _try(place: Path) -> Link | None:
    path = socket_of(place)
    if path is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(TIMEOUT_S)
        sock.connect(str(path))
    except OSError:  # a node that was killed leaves a path nobody answers at
        sock.close()
        return None
    return Link(sock, place)


def _told(body: Any) -> GridError:
    match body:
        case {"code": str(code), "message": str(message), **rest}:
            return error_from_wire(code, message, str(rest.get("next", "")))
    return VersionMismatch("the node refused without a reason that we understand")
