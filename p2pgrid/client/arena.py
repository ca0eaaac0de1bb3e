"""The arena of the node on this machine, as the client gets it: a descriptor over a Unix socket, then a mapping.

The socket is one of its own and carries nothing else, so the reader of frames never has to look for descriptors.
"""

from __future__ import annotations

import os
import socket

from p2pgrid.core.errors import PeerError
from p2pgrid.core.mapped import HANDED_BYTES, Mapped, read_handed


def take_over(stream: socket.socket) -> Mapped:
    """Return the arena that the node at the other end hands over. Raises PeerError: it did not; OSError: no memory."""
    data, fds, _, _ = socket.recv_fds(stream, HANDED_BYTES, 1)
    try:
        if len(fds) != 1:
            raise PeerError("no descriptor was handed over")
        return Mapped(fds[0], read_handed(data))
    finally:
        for fd in fds:
            os.close(fd)
