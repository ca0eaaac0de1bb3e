"""Whom a node dials on the LAN's word, and where it looks when nobody is connected."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pgrid.node.lan import Found, Notice, tag_of
from p2pgrid.node.network import Network
from p2pgrid.node.seeking import ADDRESSES_TRIED_MAX, ENOUGH, MEETING_MAX, NEAR_TRIED_MAX, OTHERS_TOLD_MAX, Seeker

GRID, OTHER = bytes(32), bytes([1] * 32)


class Node:
    """Stands in for a network; whom it would dial is in `met`."""

    def __init__(self, members: int = 0, saved: int = 0) -> None:
        self.members = {f"member{number}": None for number in range(members)}
        self.known: set[str] = set()
        self.is_moving = False
        self.trustees = SimpleNamespace(lost=False)
        self.identity = SimpleNamespace(id="me")
        self.charter = SimpleNamespace(
            grid=GRID, saved_peers=lambda: [(f"saved{number}", ["/ip4/10.9.9.9/tcp/1"]) for number in range(saved)]
        )
        self.rng = random.Random(1)
        self.woken = 0
        self.met: list[str] = []
        self.logged: list[str] = []
        self.seeker = Seeker(cast("Network", self), ["/ip4/10.0.0.1/tcp/1/p2p/inviter"])

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def log(self, text: str) -> None:
        self.logged.append(text)

    def wake(self) -> None:
        self.woken += 1

    def is_known(self, peer: str) -> bool:
        return peer in self.known

    def soon(self, _work: Callable[..., Any], found: Found) -> None:
        self.met.append(found.peer)

    def hear(self, peer: str, grid: bytes = GRID, host: str = "10.1.2.3", name: str = "blue-otter") -> None:
        found = Found(peer, Notice(tag_of(grid), name, 9471, (host,) if host else ()))
        self.seeker.lan.found[peer] = found
        self.seeker.heard(found)


def test_a_node_that_has_nobody_looks_again() -> None:
    node = Node()
    node.hear("a")
    node.hear("stranger", OTHER)
    node.hear("nowhere", host="")
    node.seeker.heard(Found("gone", None))
    assert (node.woken, node.met) == (1, [])
    assert node.seeker._known() == ["/ip4/10.0.0.1/tcp/1/p2p/inviter", "/ip4/10.1.2.3/tcp/9471/p2p/a"]


def test_a_member_that_nobody_has_told_of_is_met() -> None:
    """Halves of a grid on one LAN may have lost each other; who is known is dialled by the machine's will."""
    node = Node(members=1)
    node.known = {"b"}
    for peer in "aab":
        node.hear(peer)
    node.hear("stranger", OTHER)
    assert (node.woken, node.met) == (0, ["a"])


@pytest.mark.parametrize("busy", ["moving", "lost", "enough"])
def test_who_has_other_worries_dials_nobody(busy: str) -> None:
    node = Node(members=ENOUGH if busy == "enough" else 1)
    node.is_moving = busy == "moving"
    node.trustees.lost = busy == "lost"
    node.hear("a")
    assert (node.woken, node.met) == (0, [])


def test_a_lan_that_lies_takes_neither_time_nor_place_from_others() -> None:
    node = Node(members=1)
    for number in range(100):
        node.hear(f"fake{number}")
    assert len(node.met) == MEETING_MAX
    alone = Node(saved=100)
    for number in range(100):
        alone.hear(f"fake{number}")
    known = alone.seeker._known()
    assert len(known) == ADDRESSES_TRIED_MAX
    assert known[0].endswith("inviter")
    assert sum("fake" in address for address in known) == NEAR_TRIED_MAX
    assert known != alone.seeker._known(), "the next round tries others"


def test_other_grids_are_named_once_those_that_come_later_as_they_come() -> None:
    """In one line after a look around, then in a line each; ours never, and not as many as somebody may invent."""
    node = Node()
    node.hear("stranger", OTHER, name="red-hen")
    node.hear("a")
    assert node.logged == []
    node.seeker.looked_around()
    node.hear("stranger", OTHER, name="red-hen", host="10.1.2.4")
    node.hear("newcomer", bytes([2] * 32), name="wet-owl")
    assert node.logged == [
        f"other grids on this LAN: {name}; to be in one: p2pgrid join INVITE" for name in ("red-hen", "wet-owl")
    ]
    for number in range(3, 200):
        node.seeker.lan.found.clear()
        node.hear("liar", bytes([number] * 32), name=f"fake-{number}")
    assert len(node.logged) == OTHERS_TOLD_MAX


def test_whom_one_met_in_a_former_life_is_missed_until_heard_of() -> None:
    """Nodes that were started again on both sides of a cut would never meet: each side has somebody."""
    node = Node(members=1, saved=3)
    node.known = {"saved0"}
    drawn = {address for _ in range(50) for address in node.seeker._missed()}
    assert drawn == {f"/ip4/10.9.9.9/tcp/1/p2p/saved{number}" for number in (1, 2)}
    node.known |= {"saved1", "saved2"}
    assert node.seeker._missed() == []
    alone, moving = Node(saved=3), Node(members=1, saved=3)
    moving.is_moving = True
    assert alone.seeker._missed() == moving.seeker._missed() == []
