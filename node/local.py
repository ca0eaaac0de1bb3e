"""The Unix socket that programs of this machine use: HELLO first, then frames of `core.messages` both ways.

One task per client waits for its socket; what it reads is cut into frames, and all frames of one read are delivered
together. Replies are collected per client (`reply`) and leave inline, without blocking, once per lot (`flush`); a
second task exists only while a client's socket is full.

Rules: this file decides nothing beyond who may talk. Whoever breaks the protocol loses the connection, the node never.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, PeerError, VersionMismatch, error_to_wire
from p2pgrid.core.locate import NODE_FILE, node_file, socket_of
from p2pgrid.core.wire import VERSION, Frame, Splitter, frame
from p2pgrid.node.config import prepare_runtime_dir
from p2pgrid.node.events import ClientGone, ClientJoined, ClientSent, Event, Log, Reply

READ_BYTES = 64 * 1024
"""Below malloc's mmap threshold: a larger buffer costs three system calls and page faults per read."""
SOCKET_BUFFER_BYTES = 1024 * 1024
OUT_BYTES_MAX = 512 * 1024 * 1024
"""Unsent bytes a client may leave lying before it is dropped: one largest result and as much again."""
PRINTS_BYTES_MAX = 256 * 1024
"""A client that has more to read than that is shown no more lines of tasks: nothing of them is owed."""
CLIENTS_MAX = 512
WORKERS_MAX = 1024
"""Connections of our own workers, besides."""
HELLO_WITHIN_S = 10.0
TAKE_OVER_S = 10.0
STARTING_S = 2.0
SESSION_BYTES = 16
GATHER_MAX = 512
"""Buffers per sendmsg; the kernel takes up to 1024."""

_PEERCRED = struct.Struct("3i")


@dataclass(slots=True, eq=False)
class Client:
    """One connection. `out` holds what the socket did not take yet; `sent` bytes of its first piece are gone."""

    number: int
    sock: socket.socket
    worker: Callable[[], int] | None = None
    """Says which worker's process it is, if it is one."""
    joined: bool = False
    goodbye: bool = False
    open: bool = True
    blocked: bool = False
    sent: int = 0
    size: int = 0
    out: deque[bytes] = field(default_factory=deque)

    def push(self) -> bool:
        """Send what the socket takes. Returns False if something is left. Raises OSError if the client is gone."""
        while self.out:
            first = self.out[0]
            try:
                if self.sent:
                    taken = self.sock.send(memoryview(first)[self.sent :])
                elif len(self.out) == 1:
                    taken = self.sock.send(first)
                else:
                    taken = self.sock.sendmsg([self.out[i] for i in range(min(len(self.out), GATHER_MAX))])
            except BlockingIOError:
                return False
            self.size -= taken
            taken += self.sent
            while self.out and taken >= len(self.out[0]):
                taken -= len(self.out.popleft())
            self.sent = taken
        return True


class LocalServer:
    """The listening socket and its clients.

    Attributes:
        refused: how many connections were dropped because they broke the protocol or were not allowed.
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Sequence[Event]], None],
        log: Callable[[Log], None],
        room: Callable[[], Awaitable[None] | None] = lambda: None,
    ) -> None:
        """Remember. `room` is asked after each read: None, or something to await before more is read."""
        self.path = path
        self.refused = 0
        self.on_gone: Callable[[int], None] | None = None
        """Who else is told that a client is gone, by its number."""
        self._deliver = deliver
        self._log = log
        self._room = room
        self._listener: socket.socket | None = None
        self._clients: dict[int, Client] = {}
        self.dirty: dict[int, Client] = {}
        """Clients that something is queued for."""
        self._last = 0
        self._nursery: trio.Nursery | None = None

    def listen(self) -> None:
        """Open the socket; clients may connect from now on, and are answered by `serve`.

        The caller holds the lock of the directory, so a socket file that lies here belongs to a node that was killed.

        Raises:
            GridError: the folder belongs to somebody else or cannot be written.
        """
        prepare_runtime_dir(self.path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            listener.bind(str(self.path))
            self.path.chmod(0o600)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise GridError(
                f"the socket {self.path} cannot be opened: {error.strerror or error}",
                next="set XDG_RUNTIME_DIR to a folder of your own",
                code="directory-unusable",
            ) from error
        listener.setblocking(False)  # noqa: FBT003 - its only form
        self._listener = listener

    def close(self) -> None:
        """Close the socket and every connection, and remove the socket file."""
        for client in list(self._clients.values()):
            self._end(client)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                self.path.unlink()

    # ---- effects ----------------------------------------------------------------------------------------------------

    def reply(self, effect: Reply) -> None:
        """Queue one frame; it leaves with the next `flush`. A client that is gone gets nothing."""
        client = self._clients.get(effect.client)
        if client is None or (effect.kind == m.PRINTED and client.size > PRINTS_BYTES_MAX):
            return
        data = frame(effect.kind, effect.body, effect.id)
        client.out.append(data)
        client.size += len(data)
        self.dirty[client.number] = client

    def send_descriptor(self, number: int, data: bytes, fd: int) -> None:
        """Give a file descriptor to a client that has been sent nothing else since it was greeted."""
        client = self._clients.get(number)
        if client is None:
            return
        if client.out:
            self._drop(client, "it asked for a descriptor among other things")
            return
        try:
            socket.send_fds(client.sock, [data], [fd])
        except OSError:
            self._shut(client)

    def flush(self) -> None:
        """Send what was queued, one system call per client unless its socket is full."""
        dirty, self.dirty = self.dirty, {}
        for client in dirty.values():
            try:
                if not client.open or (not client.blocked and client.push()):
                    continue
            except OSError:  # it is gone; its reader sees the end as well and reports it
                self._shut(client)
                continue
            if client.size > OUT_BYTES_MAX:
                self._drop(client, "it does not read what it asked for")
            elif not client.blocked:
                assert self._nursery is not None
                client.blocked = True
                self._nursery.start_soon(self._drain, client)

    async def drained(self, within_s: float) -> None:
        """Wait until every client has what it was sent, at most so long."""
        with trio.move_on_after(within_s):
            while any(client.blocked for client in self._clients.values()):  # noqa: ASYNC110 - once, at the end
                await trio.sleep(0.01)

    # ---- serving ----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Accept clients until cancelled."""
        assert self._listener is not None
        listener = self._listener
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, _ = listener.accept()
                except OSError as error:  # out of file descriptors, or the client has already gone
                    if not isinstance(error, BlockingIOError):
                        self._log(Log("warning", f"a program could not connect: {error.strerror or error}"))
                        await trio.sleep(0.1)
                    continue
                sock.setblocking(False)  # noqa: FBT003 - its only form
                self._accept(sock, nursery)

    def _accept(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        stranger = _stranger(sock)
        if stranger is not None or len(self._clients) >= CLIENTS_MAX:
            self.refused += 1
            why = f"{CLIENTS_MAX} programs are connected" if stranger is None else f"it runs as user {stranger}"
            self._log(Log("warning", f"refused a program on the local socket: {why}"))
            sock.close()
            return
        self._welcome(sock, nursery, None)

    def adopt(self, sock: socket.socket, worker: Callable[[], int]) -> None:
        """Take in the connection of a process of this node's own: a task of that worker uses the grid."""
        if self._nursery is None or len(self._clients) >= CLIENTS_MAX + WORKERS_MAX:
            sock.close()
            return
        sock.setblocking(False)  # noqa: FBT003 - its only form
        self._welcome(sock, self._nursery, worker)

    def _welcome(self, sock: socket.socket, nursery: trio.Nursery, worker: Callable[[], int] | None) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._last += 1
        client = Client(self._last, sock, worker)
        self._clients[client.number] = client
        nursery.start_soon(self._serve_client, client)

    async def _serve_client(self, client: Client) -> None:
        try:
            with trio.move_on_after(HELLO_WITHIN_S) as patience:
                await self._read(client, patience)
            if patience.cancelled_caught:
                self._drop(client, "it did not say HELLO")
        except PeerError as error:
            self._drop(client, str(error))
        finally:
            self._end(client)
            if client.joined:
                self._deliver([ClientGone(client.number, client.goodbye)])
            if self.on_gone is not None:
                self.on_gone(client.number)

    async def _read(self, client: Client, patience: trio.CancelScope) -> None:
        splitter = Splitter()
        sock, number = client.sock, client.number
        while client.open and not client.goodbye:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            frames = splitter.feed(data)
            if not frames:
                continue
            events: list[Event] = []
            if not client.joined:
                joined = self._hello(client, frames.pop(0))
                if joined is None:
                    return
                events.append(joined)
                patience.deadline = float("inf")
            for version, kind, id_, body in frames:
                if kind == m.GOODBYE:
                    client.goodbye = True
                    break
                if version != VERSION:
                    raise PeerError(f"a frame of version {version}")
                events.append(ClientSent(number, kind, id_, body))
            self._deliver(events)
            wait = self._room()
            if wait is not None:
                await wait

    def _hello(self, client: Client, first: Frame) -> ClientJoined | None:
        """Check the first frame; a client of another version is told so before it loses the connection."""
        if first.kind != m.HELLO:
            raise PeerError("it did not begin with HELLO")
        body = first.body if isinstance(first.body, dict) else {}
        if first.version != VERSION or body.get("v") != VERSION:
            error = VersionMismatch(f"this node speaks version {VERSION}, the program version {body.get('v')!r:.20}")
            client.out.append(frame(m.ERROR, dict(error_to_wire(error))))
            with contextlib.suppress(OSError):
                client.push()
            self.refused += 1
            self._log(Log("warning", f"refused a program on the local socket: {error.message}"))
            return None
        match body:
            case {"session": bytes(session), "pid": int(pid), "program": str(program)} if _is_session(session):
                client.joined = True
                worker = None if client.worker is None else client.worker()
                return ClientJoined(client.number, session, program[:256], pid, worker)
        raise PeerError("a HELLO without session, pid and program")

    async def _drain(self, client: Client) -> None:
        """Send the rest as the client takes it."""
        try:
            while client.open:
                await trio.lowlevel.wait_writable(client.sock)
                if client.push():
                    return
        except (OSError, trio.ClosedResourceError):
            self._shut(client)
        finally:
            client.blocked = False

    # ---- ends -------------------------------------------------------------------------------------------------------

    def drop(self, number: int, why: str) -> None:
        """End a connection whose frames cannot be understood."""
        client = self._clients.get(number)
        if client is not None:
            self._drop(client, why)

    def _drop(self, client: Client, why: str) -> None:
        if client.open:
            self.refused += 1
            self._log(Log("warning", f"dropped a program on the local socket: {why}"))
        self._shut(client)

    @staticmethod
    def _shut(client: Client) -> None:
        """Let the reader of this client see the end; it cleans up."""
        client.open = False
        client.out.clear()
        client.size = client.sent = 0
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)

    def _end(self, client: Client) -> None:
        client.open = False
        self._clients.pop(client.number, None)
        self.dirty.pop(client.number, None)
        if client.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(client.sock)
            client.sock.close()


def _is_session(session: bytes) -> bool:
    return len(session) in (0, SESSION_BYTES)


def _stranger(sock: socket.socket) -> int | None:
    """Return the user of the other side if it is neither this one nor root. Where it cannot be asked, modes guard."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return None if uid in (0, os.geteuid()) else uid


# ---- one node per directory ------------------------------------------------------------------------------------------


class DirectoryLock:
    """The right to be the node of a directory, held until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._fd = -1

    def take(self) -> bool:
        """Try to get it. Returns whether it is ours. Raises OSError if the folder cannot be written."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.pwrite(self._fd, f"{os.getpid():<10}".encode(), 0)
        return True

    def release(self) -> None:
        """Give it back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def in_use(self) -> GridError:
        """Return the error that says who holds it."""
        try:
            pid = self._path.read_text().strip()
        except OSError:
            pid = ""
        name = node_file(self._path.parent).get("name", "that is starting")
        return GridError(
            f"{self._path.parent} is in use by node {name} (pid {pid or 'unknown'})",
            next=f"talk to it: p2pgrid status --dir {self._path.parent}; or start another: p2pgrid node --dir DIR",
            code="directory-in-use",
        )


def ask_to_stop(path: Path, within_s: float) -> bool:
    """Ask the node behind a socket to stop, if it is an embedded one. Returns whether it agreed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(sock), contextlib.suppress(OSError, PeerError):
        sock.settimeout(within_s)
        sock.connect(str(path))
        hello = {"v": VERSION, "session": b"", "pid": os.getpid(), "program": "p2pgrid node"}
        sock.sendall(frame(m.HELLO, hello))
        splitter = Splitter()
        while data := sock.recv(READ_BYTES):
            for answer in splitter.feed(data):
                match answer.kind, answer.body:
                    case m.WELCOME, {"embedded": True}:
                        sock.sendall(frame(m.REQUEST, ["stop", {}], 1))
                    case m.ANSWER, _:
                        return True
                    case _:
                        return False
    return False


def take_directory(lock: DirectoryLock, folder: Path, *, embedded: bool) -> None:
    """Become the node of the directory. One that a program started for itself is asked to make room.

    Raises:
        GridError: another node has it.
    """
    if lock.take():
        return
    # Whoever holds the lock may be just starting; then its socket is not there yet, or is that of an earlier life.
    patience = time.monotonic() + (0.0 if embedded else STARTING_S)
    while (path := socket_of(folder)) is None and time.monotonic() < patience:
        time.sleep(0.02)
    if embedded or path is None or not ask_to_stop(path, TAKE_OVER_S):
        raise lock.in_use()
    patience = time.monotonic() + TAKE_OVER_S
    while not lock.take():
        if time.monotonic() > patience:
            raise lock.in_use()
        time.sleep(0.02)


def write_node_file(folder: Path, said: dict[str, Any]) -> None:
    """Say where this node is to be found, in a file that is there whole or not at all."""
    path = folder / NODE_FILE
    fresh = path.with_name(f".{NODE_FILE}.new")
    fresh.write_text(json.dumps(said) + "\n")
    fresh.replace(path)
