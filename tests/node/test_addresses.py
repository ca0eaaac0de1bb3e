"""Where a node listens and what it advertises: read, chosen, remembered; bound on loopback only."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.core.errors import ExitCode, GridError
from p2pgrid.node import addresses
from p2pgrid.node.addresses import ADDRESSES_MAX, advertised, described, listen, read_advertise, read_listen

HERE = [
    ("lo", "127.0.0.1"),
    ("lo", "::1"),
    ("eth0", "192.168.1.20"),
    ("eth0", "fd00::20"),
    ("eth0", "fe80::1"),
    ("docker0", "172.17.0.1"),
    ("br-0a1b2c", "172.18.0.1"),
    ("veth12", "10.1.1.1"),
    ("virbr0", "192.168.122.1"),
]
EVERYWHERE = ["/ip4/0.0.0.0/tcp/9471", "/ip6/::/tcp/9471"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.168.1.20:9000", "/ip4/192.168.1.20/tcp/9000"),
        ("[fd00::20]:9000", "/ip6/fd00::20/tcp/9000"),
        ("[FD00:0::20]:9000", "/ip6/fd00::20/tcp/9000"),
        ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/tcp/0"),
        ("/ip6/::/tcp/9471", "/ip6/::/tcp/9471"),
        ("/ip4/127.0.0.1/tcp/9/p2p/12D3KooW", "/ip4/127.0.0.1/tcp/9"),
        ("localhost:0", "/ip4/127.0.0.1/tcp/0"),
    ],
)
def test_listen_is_read(text: str, expected: str) -> None:
    """A multiaddr or HOST:PORT, IPv6 in brackets."""
    assert read_listen(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "9471", ":9471", "host", "1.2.3.4", "1.2.3.4:", "1.2.3.4:70000", "fd00::20:9000", "[fd00::20]", "1.2.3.4:-1",
     "example.org:9471", "/ip4/fd00::20/tcp/1", "/ip6/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4/tcp/70000",
     "/ip4/1.2.3.4/tcp/1/ws", "1.2.3.4:９４７１", "/dns/example.org/tcp/1", "[::1]:1 [::1]:2"],
)  # fmt: skip
def test_what_is_no_address_to_listen_on(text: str) -> None:
    """Each is refused with a sentence that quotes it."""
    with pytest.raises(ValueError, match=r"."):
        read_listen(text)


def test_a_name_can_be_advertised() -> None:
    """A machine with a name in the DNS need not know its address."""
    assert read_advertise("grid.example.org:9471") == "/dns/grid.example.org/tcp/9471"


def test_wildcards_become_the_addresses_of_this_machine() -> None:
    """Without loopback, link-local addresses and the bridges of containers; IPv4 first."""
    assert advertised(EVERYWHERE, HERE) == ("/ip4/192.168.1.20/tcp/9471", "/ip6/fd00::20/tcp/9471")


def test_loopback_is_advertised_when_there_is_nothing_else() -> None:
    """A machine without a network is still a grid for its own processes."""
    assert advertised(EVERYWHERE, HERE[:2]) == ("/ip4/127.0.0.1/tcp/9471", "/ip6/::1/tcp/9471")


def test_a_bridge_is_advertised_when_there_is_only_loopback_besides() -> None:
    """A laptop on a train: the containers on it are machines, too."""
    here = [("lo", "127.0.0.1"), ("docker0", "172.17.0.1")]
    assert advertised(EVERYWHERE, here) == ("/ip4/172.17.0.1/tcp/9471",)
    assert advertised(["/ip4/127.0.0.1/tcp/9471"], here) == ("/ip4/127.0.0.1/tcp/9471",)


def test_who_listens_on_loopback_only_says_so() -> None:
    """No address of the network leads there."""
    assert advertised(["/ip4/127.0.0.1/tcp/5"], HERE) == ("/ip4/127.0.0.1/tcp/5",)


def test_a_given_bridge_is_believed() -> None:
    """Only wildcards leave bridges out: who names an address means it."""
    assert advertised(["/ip4/172.17.0.1/tcp/5"], HERE) == ("/ip4/172.17.0.1/tcp/5",)


def test_advertise_replaces_them() -> None:
    """Port 0 stands for the one we listen on."""
    expected = ("/ip4/203.0.113.7/tcp/9471", "/dns/a.example.org/tcp/80")

    assert advertised(EVERYWHERE, HERE, ["/ip4/203.0.113.7/tcp/0", "/dns/a.example.org/tcp/80"]) == expected


def test_not_more_than_a_peer_would_dial() -> None:
    """A machine with a hundred addresses names the first."""
    many = [("eth0", f"10.0.0.{n}") for n in range(1, 101)]

    assert len(advertised(EVERYWHERE, many)) == ADDRESSES_MAX


def test_what_people_read() -> None:
    """As in the banner."""
    assert described(advertised(EVERYWHERE, HERE)) == "tcp 9471 on 192.168.1.20, fd00::20"


def test_a_chosen_port_is_remembered(tmp_path: Path) -> None:
    """It is tried again at the next start; taken, another is chosen and remembered instead."""
    asked = ["/ip4/127.0.0.1/tcp/0"]
    first = listen(asked, tmp_path)
    first.close()
    second = listen(asked, tmp_path)
    third = listen(asked, tmp_path)  # while the second has it
    second.close()
    third.close()
    fourth = listen(asked, tmp_path)
    fourth.close()

    assert first.addresses == second.addresses != third.addresses == fourth.addresses


def test_a_port_that_was_asked_for_and_is_taken(tmp_path: Path) -> None:
    """Exit code 2, and the line names it; what was opened before is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        with pytest.raises(GridError, match=rf"127\.0\.0\.1:{port}: another program listens there") as caught:
            listen([f"/ip4/127.0.0.1/tcp/{free}", f"/ip4/127.0.0.1/tcp/{port}"], tmp_path)

    assert caught.value.exit_code == ExitCode.WRONG
    listen([f"/ip4/127.0.0.1/tcp/{free}"], tmp_path).close()


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    """The line says that this machine has none such."""
    with pytest.raises(GridError, match="this machine has no such address"):
        listen(["/ip4/203.0.113.7/tcp/9471"], tmp_path)


def test_an_embedded_node_is_for_this_machine(tmp_path: Path) -> None:
    """Loopback, any port."""
    listening = listen([], tmp_path, loopback=True)
    (address,) = listening.addresses
    listening.close()

    assert address.startswith("/ip4/127.0.0.1/tcp/")
    assert listening.loopback


@pytest.fixture
def nobody_listens(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands in for the kernel: says which ports are taken and whether there is IPv6; opens on loopback."""

    def arrange(taken: set[int], *, ipv6: bool = True) -> None:
        class Sock:
            def __init__(self, port: int) -> None:
                self.port = port or 40000

            def getsockname(self) -> tuple[str, int]:
                return "", self.port

            def close(self) -> None:
                pass

        def bound(host: str, port: int) -> Sock:
            if ":" in host and not ipv6:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6")
            if port in taken:
                raise OSError(errno.EADDRINUSE, "taken")
            return Sock(port)

        monkeypatch.setattr(addresses, "_bound", bound)

    return arrange


def test_the_default(tmp_path: Path, nobody_listens: Callable[..., None]) -> None:
    """Both kinds of addresses, one port."""
    nobody_listens(set())

    assert listen([], tmp_path).addresses == ("/ip4/0.0.0.0/tcp/9471", "/ip6/::/tcp/9471")


def test_the_default_is_taken(tmp_path: Path, nobody_listens: Callable[..., None]) -> None:
    """The next of ten, and from then on that one, although the default is free again."""
    nobody_listens({9471, 9472})
    first = listen([], tmp_path).addresses
    nobody_listens(set())

    assert first == listen([], tmp_path).addresses == ("/ip4/0.0.0.0/tcp/9473", "/ip6/::/tcp/9473")


def test_all_ten_are_taken(tmp_path: Path, nobody_listens: Callable[..., None]) -> None:
    """Then any port is better than none."""
    nobody_listens(set(range(9471, 9481)))

    assert listen([], tmp_path).addresses == ("/ip4/0.0.0.0/tcp/40000", "/ip6/::/tcp/40000")


def test_a_machine_without_ipv6(tmp_path: Path, nobody_listens: Callable[..., None]) -> None:
    """The default does not fail for it."""
    nobody_listens(set(), ipv6=False)

    assert listen([], tmp_path).addresses == ("/ip4/0.0.0.0/tcp/9471",)


def test_a_damaged_memory_is_no_obstacle(tmp_path: Path) -> None:
    """It costs no more than the old port."""
    (tmp_path / addresses.LISTEN_FILE).write_text('{"v": 1, "ports": [')
    listening = listen(["/ip4/127.0.0.1/tcp/0"], tmp_path)
    listening.close()

    assert len(listening.addresses) == 1
