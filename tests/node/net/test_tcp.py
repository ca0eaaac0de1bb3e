"""What is asked of sockets below libp2p's connections."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from p2pgrid.node.net.tcp import unacknowledged_bytes


def _secured(sock: socket.socket) -> Any:
    """A connection as libp2p layers it, over this socket."""
    found: Any = sock
    for name in ("socket", "stream", "stream", "read_write_closer", "read_writer", "conn"):
        found = SimpleNamespace(**{name: found})
    return found


def test_bytes_under_way_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(server.getsockname()) as sock:
            assert unacknowledged_bytes(_secured(sock)) == 0
            sock.setblocking(False)  # noqa: FBT003
            while True:
                try:
                    sock.send(b"x" * 65536)
                except BlockingIOError:
                    break

            assert unacknowledged_bytes(_secured(sock)) > 0


def test_a_closed_socket_has_nothing_under_way() -> None:
    """Both ends of a connection may go while a silent one is still looked at: that once ended the node."""
    sock = socket.socket()
    sock.close()

    assert unacknowledged_bytes(_secured(sock)) == 0
