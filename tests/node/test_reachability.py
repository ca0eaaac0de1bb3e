"""Being dialled back, on a clock of the test's own: who is asked, what is believed, for whom a node dials."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.node import events as e
from p2pgrid.node import reachability
from p2pgrid.node.network import Network
from p2pgrid.node.reachability import AGAIN_S, PATIENCE_S, RENEW_S, Reachability, allowed

OURS = "/ip4/192.168.1.20/tcp/9471"
NONCE = bytes(8)


class Node:
    """Stands in for a network; peers answer as `answers` says."""

    def __init__(self, **hosts: str) -> None:
        self.members = dict.fromkeys(hosts)
        self.hosts = hosts
        self.addresses: tuple[str, ...] = (OURS,)
        self.listening = SimpleNamespace(addresses=("/ip4/0.0.0.0/tcp/9471",))
        self.config = SimpleNamespace(advertise=())
        self.rng = random.Random(1)
        self.told: list[e.Event] = []
        self.logged: list[str] = []
        self.sent: list[tuple[str, int, Any]] = []
        self.dialled: list[str] = []
        self.relocated = 0
        self.answers: dict[str, tuple[list[str] | None, str]] = {}
        self.nursery: trio.Nursery
        self.reach = Reachability(cast("Network", self))

    def send(self, peer: str, kind: int, body: Any) -> None:
        self.sent.append((peer, kind, body))
        if kind == m.L_DIAL_ME and peer in self.answers:
            self.reach.frame(peer, m.L_DIALLED, [body[0], *self.answers[peer]])

    def host_of(self, peer: str) -> str:
        return self.hosts.get(peer, "")

    def known_at(self, peer: str) -> set[str]:
        return {f"/ip4/{self.hosts[peer]}/tcp/1"}

    async def answers_at(self, peer: str, address: str, within_s: float) -> bool:
        self.dialled.append(address)
        await trio.sleep(1)
        return address.endswith("/tcp/1")

    def later(self, event: e.Event) -> None:
        self.told.append(event)

    def log(self, text: str) -> None:
        self.logged.append(text)

    def soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.nursery.start_soon(work, *arguments)

    def relocate(self) -> None:
        self.relocated += 1

    def asked(self) -> list[str]:
        return [peer for peer, kind, _ in self.sent if kind == m.L_DIAL_ME]


@pytest.fixture(autouse=True)
def _interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [("lo", "127.0.0.1"), ("eth0", "192.168.1.20"), ("docker0", "172.17.0.1")]
    monkeypatch.setattr(reachability, "interfaces", lambda: here)


def run(node: Node, story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as node.nursery:
            node.nursery.start_soon(node.reach.run)
            await story()
            node.nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_first_who_reaches_it_is_enough() -> None:
    node = Node(a="192.168.1.21", b="192.168.1.22")
    node.answers = dict.fromkeys("ab", ([OURS], "192.168.1.20"))

    async def story() -> None:
        assert node.reach.text == "not yet known"
        node.reach.up()
        await trio.sleep(1)
        assert len(node.asked()) == 1
        assert node.reach.text == "yes"
        node.reach.up()
        await trio.sleep(2 * AGAIN_S)
        node.reach.minute()
        assert len(node.asked()) == 1
        await trio.sleep(RENEW_S)
        node.reach.minute()
        await trio.sleep(1)
        assert len(node.asked()) == 2

    run(node, story)
    assert node.told == [e.Reachable(yes=True)]
    assert node.logged == ["reachable: yes"]
    assert not node.relocated


def test_it_takes_three_to_think_that_nobody_reaches_it() -> None:
    node = Node(a="10.0.0.1", b="10.0.0.2", c="10.0.0.3", d="10.0.0.4")
    node.answers = dict.fromkeys("abcd", ([], "192.0.2.9"))

    async def story() -> None:
        for _ in range(5):
            node.reach.up()
        await trio.sleep(1)
        assert len(set(node.asked())) == len(node.asked()) == 3
        node.reach.up()
        await trio.sleep(AGAIN_S / 2)
        assert len(node.asked()) == 3
        node.answers = dict.fromkeys("abcd", ([OURS], "192.168.1.20"))
        await trio.sleep(AGAIN_S)

    run(node, story)
    assert node.told == [e.Reachable(yes=False), e.Reachable(yes=True)]
    assert node.logged[0] == "reachable: outbound only (firewall? open tcp 9471)"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.168.1.20", "172.17.0.1", ""])
def test_who_is_on_this_machine_is_not_asked(host: str) -> None:
    node = Node(a=host)

    async def story() -> None:
        node.reach.up()
        await trio.sleep(10 * AGAIN_S)

    run(node, story)
    assert not node.sent
    assert node.reach.yes is None


def test_a_node_on_loopback_asks_nobody() -> None:
    node = Node(a="10.0.0.1")
    node.addresses = ("/ip4/127.0.0.1/tcp/9471",)

    async def story() -> None:
        node.reach.up()
        await trio.sleep(AGAIN_S)

    run(node, story)
    assert not node.sent
    assert node.reach.text == "this machine only"


def test_who_has_no_time_is_asked_again() -> None:
    node = Node(a="10.0.0.1")
    node.answers = {"a": (None, "192.168.1.20")}

    async def story() -> None:
        node.reach.up()
        await trio.sleep(1)
        assert node.reach.yes is None
        node.answers = {"a": ([OURS], "192.168.1.20")}
        await trio.sleep(2 * AGAIN_S)
        assert node.reach.yes

    run(node, story)


@pytest.mark.parametrize(
    ("reached", "host", "advertise", "seen_as"),
    [
        (["/ip4/192.0.2.9/tcp/9471"], "192.0.2.9", (), ("/ip4/192.0.2.9/tcp/9471",)),
        (["/ip4/192.0.2.9/tcp/9471"], "192.0.2.9", (OURS,), ()),  # it was told what to say
        ([OURS], "192.0.2.9", (), ()),  # the router does not forward that port
        (["/ip4/192.0.2.9/tcp/22"], "192.0.2.9", (), ()),  # we do not listen there
        (["/ip4/192.0.2.7/tcp/9471"], "192.0.2.9", (), ()),
        (["/ip4/172.17.0.1/tcp/9471"], "172.17.0.1", (), ()),  # a bridge of our own
    ],
)
def test_what_others_see_is_advertised_if_it_leads_here(
    reached: list[str], host: str, advertise: tuple[str, ...], seen_as: tuple[str, ...]
) -> None:
    node = Node(a="10.0.0.1")
    node.config.advertise = advertise
    node.answers = {"a": (reached, host)}

    async def story() -> None:
        node.reach.up()
        await trio.sleep(1)

    run(node, story)
    assert node.reach.yes
    assert node.reach.seen_as == seen_as
    assert node.relocated == bool(seen_as)


def test_it_dials_for_others_not_too_often() -> None:
    node = Node(a="10.0.0.1")

    async def story() -> None:
        for _ in range(3):
            node.reach.frame("a", m.L_DIAL_ME, [NONCE, ["/ip4/10.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/22"]])
        await trio.sleep(2)
        assert node.sent == [
            ("a", m.L_DIALLED, [NONCE, None, "10.0.0.1"]),
            ("a", m.L_DIALLED, [NONCE, None, "10.0.0.1"]),
            ("a", m.L_DIALLED, [NONCE, ["/ip4/10.0.0.1/tcp/1"], "10.0.0.1"]),
        ]
        await trio.sleep(PATIENCE_S)
        node.reach.frame("a", m.L_DIAL_ME, [NONCE, []])
        await trio.sleep(2)
        assert node.sent[-1] == ("a", m.L_DIALLED, [NONCE, [], "10.0.0.1"])

    run(node, story)
    assert "/ip4/192.0.2.1/tcp/22" not in node.dialled


def test_whom_it_dials_for_others() -> None:
    """What they come from, and what their card says; never this machine for somebody elsewhere."""
    said = [OURS, "/ip4/192.0.2.1/tcp/9471", "/ip4/127.0.0.1/tcp/22", "/dns/example.org/tcp/80"]
    card = [OURS, "/ip4/127.0.0.1/tcp/22"]
    assert allowed(said, "203.0.113.5", card) == [
        "/ip4/203.0.113.5/tcp/9471", "/ip4/203.0.113.5/tcp/22", "/ip4/203.0.113.5/tcp/80", OURS,
    ]  # fmt: skip
    assert allowed([], "203.0.113.5", card) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (m.L_DIAL_ME, None),
        (m.L_DIAL_ME, [NONCE]),
        (m.L_DIAL_ME, [b"short", []]),
        (m.L_DIAL_ME, [NONCE, [OURS] * 9]),
        (m.L_DIAL_ME, [NONCE, [7]]),
        (m.L_DIAL_ME, [NONCE, ["nowhere"]]),
        (m.L_DIALLED, [NONCE, [], "nobody"]),
        (m.L_DIALLED, [NONCE, "x", "10.0.0.1"]),
        (m.L_DIALLED, [NONCE, ["nowhere"], "10.0.0.1"]),
    ],
)
def test_malformed_frames_cost_the_connection(kind: int, body: Any) -> None:
    with pytest.raises(PeerError):
        Node(a="10.0.0.1").reach.frame("a", kind, body)


def test_answers_to_nothing_are_nothing() -> None:
    node = Node(a="10.0.0.1")
    node.reach.frame("a", m.L_DIALLED, [NONCE, [OURS], "10.0.0.1"])
    assert node.reach.yes is None
