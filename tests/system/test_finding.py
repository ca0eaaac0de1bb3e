"""Nobody is told an address twice: members find each other by the invite, the LAN, and whom they have met."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.grids import Node, Nodes, wait
from tests.system.uneven import shared_by
from tests.system.wires import ADDRESSES, Room, WhyNot, Wire
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

EIGHT = "abcdefgh"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        yield nodes


@pytest.fixture
def room() -> Iterator[Room]:
    try:
        with Room() as room:
            yield room
    except WhyNot as reason:
        pytest.skip(str(reason))


def gone_for_good(node: Node) -> None:
    node.kill()
    shutil.rmtree(node.dir)


def see_the_same(nodes: Nodes, names: str) -> None:
    """Every running node's `members --json` shows these alive, by the same ids."""
    alive = {each.id for each in nodes.all if each.name in names}
    assert len(alive) == len(names)
    for node in (each for each in nodes.all if each.runs):

        def shows(node: Node = node) -> bool:
            shown = json.loads(node.command("members", "--json").stdout)["members"]
            return {each["id"] for each in shown if each["status"] == "alive"} == alive

        wait(shows, SOON_S, f"{node.name} shows them")


def all_signed(nodes: Nodes) -> None:
    """Wait until nobody depends on the inviter for an admin's signature."""
    for node in nodes.all:
        wait(node.invite, SOON_S, f"{node.name} may invite")


def test_the_inviter_is_gone_and_its_invite_still_lets_in(nodes: Nodes) -> None:
    """One that was made when all eight were there names others too; nobody announces anything here."""
    a, *_ = nodes.grid(EIGHT)
    nodes.wait_all_alive()
    all_signed(nodes)
    invite = a.invite()
    gone_for_good(a)

    started = time.monotonic()
    nodes.node("i").start(invite)
    nodes.wait_all_alive()
    print(f"the ninth is known to all {time.monotonic() - started:.1f} s after its start")
    nodes.wait_all_see({"a": "dead"})
    see_the_same(nodes, "bcdefghi")
    for node in nodes.all[1:]:
        wait(lambda node=node: node.network()["dht"]["table"] >= 1, SOON_S, f"{node.name} knows peers of the DHT")  # type: ignore[misc]
    print({node.name: node.network()["dht"] for node in nodes.all[1:]})


def test_the_lan_leads_where_the_invite_does_not(nodes: Nodes, room: Room) -> None:
    """One invite for all, made when its maker was alone and so naming nobody else; then that one is gone for good."""

    def node(name: str) -> Node:
        return nodes.node(name, netns=room.name, listen=f"{ADDRESSES[0]}:0", mdns=True)

    a, *others = [node(name) for name in EIGHT]
    invite = a.start().invite()
    for other in others:
        other.spawn(invite)
    for other in others:
        other.wait_ready()
    nodes.wait_all_alive()
    all_signed(nodes)
    gone_for_good(a)

    started = time.monotonic()
    node("i").start(invite)
    nodes.wait_all_alive()
    print(f"the ninth is known to all {time.monotonic() - started:.1f} s after its start")
    nodes.wait_all_see({"a": "dead"})
    see_the_same(nodes, "bcdefghi")


def test_another_grid_on_the_lan_is_named_and_left_alone(nodes: Nodes, room: Room) -> None:
    one, other, silent = (
        nodes.node(name, netns=room.name, listen=f"{ADDRESSES[0]}:0", mdns=name != "silent")
        for name in ("one", "other", "silent")
    )
    one.start()
    other.start()
    silent.start()
    theirs = other.status()["grid"]["name"]
    wait(lambda: one.network()["other_grids"] == [theirs], SOON_S, "one has heard of the other's grid")
    wait(
        lambda: f"other grids on this LAN: {theirs}" in one.log() + other.log() or other.network()["other_grids"],
        SOON_S,
        "",
    )
    assert silent.network()["other_grids"] == []
    assert theirs in one.command("status").stdout
    assert [set(each.view()) for each in (one, other, silent)] == [{"one"}, {"other"}, {"silent"}]


def reachable(node: Node) -> str:
    return str(node.network()["reachable"])


def test_a_node_behind_a_firewall(nodes: Nodes) -> None:
    """It can only dial out: it says so, everybody knows it, and it works, submits and collects all the same."""
    try:
        with Wire(firewall=True) as wire:
            near, far = (
                nodes.node(name, netns=netns, listen=f"{address}:0")
                for name, netns, address in zip(("near", "far"), wire.names, ADDRESSES, strict=True)
            )
            near.start()
            far.start(near.invite())
            nodes.wait_all_alive()
            wait(lambda: reachable(far) == f"outbound only (firewall? open tcp {far.port})", SOON_S, "far knows")
            wait(lambda: reachable(near) == "yes", SOON_S, "near is reached")
            wait(
                lambda: known_reachable(near) == known_reachable(far) == {"near": True, "far": False},
                SOON_S,
                "all know",
            )
            assert "outbound only" in near.command("members").stdout
            assert "reachable: outbound only (firewall? open tcp" in far.log()
            assert "reachable: yes" in near.log()
            assert "reachable: yes" in near.command("status").stdout
            assert far.addresses[0].startswith(f"/ip4/{ADDRESSES[1]}/")
            for node in (near, far):
                with node.grid() as session:
                    shared_by(session, {"near", "far"}, 100, 4.0)
            assert [node.network()["refused"] for node in (near, far)] == [0, 0]
    except WhyNot as reason:
        pytest.skip(str(reason))


def known_reachable(node: Node) -> dict[str, object]:
    return {each["name"]: each["facts"].get("reachable") for each in node.members()}
