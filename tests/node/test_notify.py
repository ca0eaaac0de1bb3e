"""What a service manager hears of a node, and what workers do not inherit."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.node.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Listens as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_it_says_what_was_asked_for(manager: socket.socket) -> None:
    """Ready, alive a third of the limit apart, stopping; and the environment is clean."""
    said = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    environment = {**said, "HOME": "/"}
    notifier = Notifier(environment)
    notifier.ready("node a\nb")
    notifier.lives()
    notifier.stopping()

    heard = [manager.recv(1000) for _ in range(3)]
    assert heard == ["READY=1\nSTATUS=node a·b".encode(), b"WATCHDOG=1", b"STOPPING=1"]
    assert notifier.ping_s == 10
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("said", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}])
def test_a_watch_that_is_not_ours(manager: socket.socket, said: dict[str, str]) -> None:
    """It watches another process, or nothing that can be understood."""
    given = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000", **said}
    assert Notifier(given).ping_s is None


def test_an_abstract_socket() -> None:
    """As in containers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"p2pgrid-test-{os.getpid()}"
        sock.bind(f"\0{name}")
        sock.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).lives()
        assert sock.recv(1000) == b"WATCHDOG=1"


def test_nobody_there(tmp_path: Path) -> None:
    """Nothing fails; and an embedded node keeps silent."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
    Notifier({}).lives()
    given = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"}
    assert Notifier(given, silent=True).ping_s is None
    assert given == {}
