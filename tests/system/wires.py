"""Two machines' worth of network on one: two network namespaces with a wire between them.

At once it is a veth pair that `tc` (tbf) slows down; with a delay or a firewall it is `far_wire`. Needs root, iproute2,
and a kernel with veth and tbf, or TUN; whoever lacks one of them is told which (`WhyNot`). Nothing outside the two
namespaces is touched, and nothing can leave them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
BURST = "64kb"
QUEUE = "100ms"
"""How long a packet may wait for its turn; beyond, it is dropped, as a home router does."""


class WhyNot(Exception):
    """It cannot be done on this machine; the message says what is missing."""


class Wire:
    """Two machines and the wire between them; a context manager.

    Attributes:
        names: of the namespaces; machine 0 has ADDRESSES[0].
        firewall: machine 1 is behind one: it can dial and is never reached.
    """

    def __init__(self, mbit_s: float = 50, delay_ms: float = 0, *, firewall: bool = False) -> None:
        self.mbit_s = mbit_s
        self.delay_ms = delay_ms
        self.firewall = firewall
        self.names = (f"p2pgrid{os.getpid()}a", f"p2pgrid{os.getpid()}b")
        self._devices = (f"pg{os.getpid()}a", f"pg{os.getpid()}b")
        self._carrier: subprocess.Popen[bytes] | None = None

    def cut(self) -> None:
        """Pull the plug at machine 1: it sees that its network is down, machine 0 hears nothing any more."""
        _run("ip", "-n", self.names[1], "link", "set", self._devices[1], "down")

    def heal(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", self._devices[1], "up")

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise WhyNot("network namespaces want root")
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                raise WhyNot(f"there is no `{tool}` (iproute2)")
        try:
            self._lay()
        except BaseException:
            self._remove()
            raise
        return self

    def _lay(self) -> None:
        for name in self.names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        if self.delay_ms or self.firewall:
            self._lay_far()
        else:
            self._lay_near()

    def _lay_near(self) -> None:
        near, far = self._devices
        _run("ip", "-n", self.names[0], "link", "add", near, "type", "veth", "peer", "name", far)
        _run("ip", "-n", self.names[0], "link", "set", far, "netns", self.names[1])
        for name, device, address in zip(self.names, self._devices, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")
            slow = ["rate", f"{self.mbit_s}mbit", "burst", BURST, "latency", QUEUE]
            _run("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", *slow)

    def _lay_far(self) -> None:
        ends = [word for pair in zip(self.names, ADDRESSES, strict=True) for word in pair]
        link = [self._devices[0].removesuffix("a"), str(self.mbit_s), str(self.delay_ms)]
        link += ["firewall"] if self.firewall else []
        self._carrier = subprocess.Popen(
            [sys.executable, "-m", "tests.system.far_wire", *ends, *link],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._carrier.stdout is not None
        if self._carrier.stdout.readline() != b"ready\n":
            raise WhyNot(f"TUN devices: {self._carrier.communicate()[1].decode().strip()[-200:]}")

    def _remove(self) -> None:
        if self._carrier is not None:
            self._carrier.kill()
            self._carrier.communicate()
        for name in self.names:
            with suppress(WhyNot):
                _run("ip", "netns", "del", name)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._remove()


class Room:
    """A network namespace with a wire in it that leads nowhere: who speaks to everybody there speaks to himself.

    Attributes:
        name: of the namespace; its machine is ADDRESSES[0].
    """

    def __init__(self) -> None:
        self.name = f"p2pgrid{os.getpid()}r"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise WhyNot("network namespaces want root")
        if shutil.which("ip") is None:
            raise WhyNot("there is no `ip` (iproute2)")
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "-n", self.name, "link", "set", "lo", "up")
            _run("ip", "-n", self.name, "link", "add", "pg0", "type", "veth", "peer", "name", "pg1")
            _run("ip", "-n", self.name, "addr", "add", f"{ADDRESSES[0]}/24", "dev", "pg0")
            for device in ("pg0", "pg1"):
                _run("ip", "-n", self.name, "link", "set", device, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def _remove(self) -> None:
        with suppress(WhyNot):
            _run("ip", "netns", "del", self.name)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._remove()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise WhyNot(f"`{' '.join(words)}`: {done.stderr.strip()}")
