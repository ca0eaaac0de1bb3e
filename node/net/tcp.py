"""TCP as a node needs it: nobody is waited for longer than we say, and a port belongs to one process (S6, X2)."""

from __future__ import annotations

import fcntl
import logging
import socket
import termios
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from libp2p.utils.multiaddr_utils import extract_ip_from_multiaddr
from multiaddr import Multiaddr

DIAL_TIMEOUT_S = 5.0
"""One address, TCP alone."""
UNACKED_TIMEOUT_S = 10.0
"""Sent and not acknowledged for so long: the kernel ends the connection, and with it any write that is stuck (S4)."""
UNSENT_BYTES_MAX = 256 << 10
"""What a control frame can be stuck behind inside the kernel."""

# Linux names; a platform that lacks one goes without, and notices vanished peers by Yamux pings alone.
OPTIONS = (
    ("TCP_USER_TIMEOUT", int(UNACKED_TIMEOUT_S * 1000)),
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPINTVL", 2),
    ("TCP_KEEPCNT", 3),
    ("TCP_NOTSENT_LOWAT", UNSENT_BYTES_MAX),
)


log = logging.getLogger(__name__)


def tune(sock: Any) -> None:
    """S6: make the kernel give up on a machine that does not acknowledge, whether or not we send."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in OPTIONS:
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_address(stream: Any) -> str | None:
    """Return where a connection comes from; None when it is gone already. libp2p's own answer knows no IPv6."""
    try:
        return str(stream.stream.socket.getpeername()[0])
    except OSError:
        return None


def _socket_of(secured: Any) -> Any:
    """Return the socket below a secured connection; None when it cannot be found."""
    node = secured
    for name in ("conn", "read_writer", "read_write_closer", "stream", "stream", "socket"):
        node = getattr(node, name, None)
        if node is None:
            return None
    return node


def unacknowledged_bytes(secured: Any) -> int:
    """Return what the kernel has not yet got across; 0 also when the socket cannot be found or asked, or was closed."""
    sock = _socket_of(secured)
    try:
        number = sock.fileno() if sock is not None else -1
        answer = fcntl.ioctl(number, termios.TIOCOUTQ, b"\0" * 4) if number >= 0 else b""
    except OSError:
        return 0
    return int.from_bytes(answer, "little")


def remote_address(secured: Any) -> str:
    """Return where the other end of a secured connection is, as a multiaddr; empty when it is gone already."""
    try:
        host, port = _socket_of(secured).getpeername()[:2]
    except (OSError, AttributeError):
        return ""
    return f"/ip6/{host.partition('%')[0]}/tcp/{port}" if ":" in host else f"/ip4/{host}/tcp/{port}"


class GridListener(TCPListener):
    def __init__(self, handler_function: Any, opened: Mapping[str, socket.socket]) -> None:
        super().__init__(handler_function)
        self._opened = opened

    async def listen(self, maddr: Multiaddr) -> None:
        """X2: libp2p binds with SO_REUSEPORT (for hole punching); a second daemon would silently share the port."""
        opened = self._opened.get(str(maddr))
        if opened is not None:
            await self._serve(opened)
            return
        address = extract_ip_from_multiaddr(maddr) or "0.0.0.0"  # noqa: S104 - that is what the library does with None
        port = int(maddr.value_for_protocol("tcp") or 0)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise OpenConnectionError(f"cannot listen on {maddr}: {error.strerror or error}") from error
        await super().listen(maddr)

    async def _serve(self, opened: socket.socket) -> None:
        """Serve a socket that listens already: its port was chosen, and told, before libp2p was imported."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(opened))

        async def handle(stream: trio.SocketStream) -> None:
            try:
                await self.handler(TrioTCPStream(stream))
            except Exception as error:  # noqa: BLE001 - the border to strangers: who hung up meanwhile ends nothing else
                log.debug("inbound connection: %r", error)

        async with self._lifecycle_lock:
            if self._nursery is None:
                await self._spawn_background_task()
            await self._nursery.start(partial(trio.serve_listeners, handle, [listener]))
            self.listeners.append(listener)


class GridTCP(TCP):
    def __init__(self, opened: Mapping[str, socket.socket] | None = None) -> None:
        """`opened`: sockets that listen already, by their multiaddr."""
        super().__init__()
        self._opened = opened or {}

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> Any:
        """S6: the library leaves the time limit of a dial to the kernel, more than two minutes."""
        with trio.fail_after(DIAL_TIMEOUT_S):
            connection = await super()._dial_resolved(maddr, source)
        tune(connection.stream.stream.socket)
        return connection

    def create_listener(self, handler_function: Any) -> GridListener:
        async def handle(stream: Any) -> None:
            tune(stream.stream.socket)
            await handler_function(stream)

        return GridListener(handle, self._opened)
