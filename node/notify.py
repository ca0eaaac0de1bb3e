"""Saying to a service manager that the node is ready, lives and stops: the protocol of sd_notify, without its library.

A datagram with `NAME=value` to the socket that `$NOTIFY_SOCKET` names. Nobody is asked and nobody answers, so nothing
here can fail or wait; without that variable nothing is said.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PINGS_PER_LIMIT = 3
"""How often the manager hears of us in the time after which it would start us anew."""
MICROSECONDS = 1_000_000


class Notifier:
    """The service manager, if there is one."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ, *, silent: bool = False) -> None:
        """Take what is meant for us out of the environment: no worker is to speak for the node.

        `silent`: this node belongs to a program, and what the environment says is meant for that.
        """
        place, limit, pid = (environment.pop(name, "") for name in VARIABLES)
        self._address = "" if silent else f"\0{place[1:]}" if place.startswith("@") else place
        is_ours = not pid or pid == str(os.getpid())
        self.ping_s: float | None = None
        """How often `lives` is to be called; None: nobody watches."""
        if self._address and is_ours and limit.isdigit() and int(limit) > 0:
            self.ping_s = int(limit) / MICROSECONDS / PINGS_PER_LIMIT

    def ready(self, status: str) -> None:
        """The node can be used; `status` is one line for people."""
        line = "".join(char if char.isprintable() else "·" for char in status)
        self._say(f"READY=1\nSTATUS={line}")

    def lives(self) -> None:
        """The loop turns."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The node ends in an orderly way."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)  # noqa: FBT003 - its only form
            out.sendto(text.encode(), self._address)
