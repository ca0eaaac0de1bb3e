"""A wire that takes its time: two TUN devices in two network namespaces, and this process, which carries the packets.

    python -m tests.system.far_wire NETNS ADDRESS NETNS ADDRESS DEVICE MBIT_S DELAY_MS [firewall]

What `tc` does with netem where the kernel has it, and the test machines' has not. Each direction is a link of that rate
with a queue of QUEUE_S in front, then the delay. With `firewall` the second machine is behind one: TCP connections
that the first begins are dropped without a word, as most routers at home do. Prints `ready`; ends when its standard
input does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 1500
QUEUE_S = 0.1
LOT = 64
IPV4, TCP, SYN, ACK = 4, 6, 0x02, 0x10


class Direction:
    """Packets from one device to the other."""

    def __init__(self, source: int, sink: int, bytes_s: float, delay_s: float, *, firewall: bool = False) -> None:
        self.source = source
        self._firewall = firewall
        self._sink = sink
        self._bytes_s = bytes_s
        self._delay_s = delay_s
        self._sent_s = 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Take in what the source has; what finds the queue full is lost."""
        for _ in range(LOT):
            try:
                packet = os.read(self.source, MTU + 100)
            except (BlockingIOError, OSError):
                return
            if self._firewall and begins_a_connection(packet):
                continue
            now = time.monotonic()
            begins = max(now, self._sent_s)
            if begins - now < QUEUE_S:
                self._sent_s = begins + len(packet) / self._bytes_s
                self._under_way.append((self._sent_s + self._delay_s, packet))

    def give(self) -> float:
        """Hand over what is due; return in how many seconds the next is."""
        while self._under_way:
            wait_s = self._under_way[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            with suppress(OSError):  # the device is down: the wire is cut
                os.write(self._sink, self._under_way.popleft()[1])
        return 1.0


def begins_a_connection(packet: bytes) -> bool:
    """Say whether this is the first packet of a TCP connection (RFC 9293): SYN without ACK, over IPv4."""
    head = (packet[0] & 0xF) * 4
    return packet[0] >> 4 == IPV4 and packet[9] == TCP and packet[head + 13] & (SYN | ACK) == SYN


def device(netns: str, name: str, address: str) -> int:
    """Make a TUN device in a namespace and return its descriptor; this process stays in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{netns}", "rb") as file:  # noqa: PTH123 - a namespace is no file of ours
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    for words in (["addr", "add", f"{address}/24", "dev", name], ["link", "set", name, "mtu", str(MTU), "up"]):
        subprocess.run(["ip", *words], check=True)
    return fd


def main() -> None:
    """Carry packets until nobody wants them any more."""
    near_ns, near_address, far_ns, far_address, name, mbit_s, delay_ms, *firewall = sys.argv[1:]
    near = device(near_ns, f"{name}a", near_address)
    far = device(far_ns, f"{name}b", far_address)
    link = float(mbit_s) * 1e6 / 8, float(delay_ms) / 1e3
    ways = [Direction(near, far, *link, firewall=bool(firewall)), Direction(far, near, *link)]
    with selectors.DefaultSelector() as selector:
        for way in ways:
            selector.register(way.source, selectors.EVENT_READ, way)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select(min(way.give() for way in ways)):
                if key.data is None:
                    return
                key.data.take()


if __name__ == "__main__":
    main()
