"""Hearing that this machine's addresses or routes have changed: a cable, another Wi-Fi, a VPN, a resumed laptop.

Linux tells it on a netlink socket (rtnetlink(7)); nothing is asked for and what is said is not read, for whoever is
told looks for himself. Elsewhere, or where a sandbox forbids it, nobody hears anything and the look once a minute is
all there is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import trio

_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, and those of IPv6 (linux/rtnetlink.h)."""
_READ_BYTES = 65536
SETTLE_S = 0.5
"""One change is many messages, and the route comes after the address."""
SETTLE_MAX_S = 5.0
"""So late at most is it told, however long messages go on."""


def opened() -> socket.socket | None:
    """Return a socket on which something arrives whenever a route or an address changes; None: it cannot be had."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        made = socket.socket(family, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError:
        return None
    try:
        made.bind((0, _GROUPS))
    except OSError:
        made.close()
        return None
    return made


async def watch(changed: Callable[[], object], source: socket.socket | None) -> None:
    """Call `changed` whenever the machine's network has and has settled, until cancelled; closes the socket."""
    if source is None:
        return
    with trio.socket.from_stdlib_socket(source) as told:
        while await _heard(told):
            with trio.move_on_after(SETTLE_MAX_S):
                quiet = False
                while not quiet:
                    with trio.move_on_after(SETTLE_S) as pause:
                        await _heard(told)
                    quiet = pause.cancelled_caught
            changed()


async def _heard(told: trio.socket.SocketType) -> bool:
    """Wait for a message; one that was lost because there were too many counts as one. False: it is of no use."""
    try:
        return bool(await told.recv(_READ_BYTES))
    except OSError as error:
        return error.errno == errno.ENOBUFS
