"""What keepers promise each other when connections end, disks are lost, and members lie (DESIGN §7)."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from tests.node.driver import UNIX_0, Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _submitted(world: GridWorld, node: GridNode, count: int, seconds: float, **how: Any) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, count, lambda _: Task(seconds), **{"detach": True, **how})


def _record(node: GridNode) -> Any:
    return node.machine.keeping.jobs.get(JOB)


@pytest.mark.parametrize("lasts_s", [1.0, 4.0, 7.0])
def test_what_was_submitted_during_a_cut_is_promised_after_it(lasts_s: float) -> None:
    """Its rows reach the other keeper by comparison, not in a frame of their own: that counts as well."""
    world = GridWorld(1)
    nodes = world.grid(2)
    world.part([nodes[0]], [nodes[1]])
    world.broken(frozenset(("n0", "n1")))
    one = _submitted(world, nodes[0], 20, 0.05)
    world.run(lambda: False, lasts_s)
    world.heal()
    assert world.run(lambda: ("close", 0) in one.acks, 30), one.acks
    assert _record(nodes[1]) is not None
    assert not nodes[0].machine.replicas.copying.waiting


@pytest.mark.parametrize("away_s", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("reset", [False, True])
def test_a_node_that_returns_with_an_empty_disk_gets_its_job_back(away_s: float, reset: bool) -> None:  # noqa: FBT001
    world = GridWorld(2)
    nodes = world.grid(3)
    for node in nodes:
        node.known = tuple(one.name for one in nodes if one is not node)
    one = _submitted(world, nodes[0], 100, 0.3)
    assert world.run(lambda: sum(one.delivered.values()) > 10, 30)
    nodes[0].crash(with_disk=False, reset=reset)
    for pair in [pair for pair in world.links if not reset and "n0" in pair]:  # seen at once, and not refused again
        world.lost(pair, sorted(pair - {"n0"}), reset=False)
    world.run(lambda: False, away_s)
    nodes[0].start()
    assert world.run(lambda: all((k := _record(node)) is not None and k.ended for node in nodes), 120), [
        (k := _record(node)) and (k.done.size, k.serving, k.server) for node in nodes
    ]


def test_what_is_said_again_waits_for_the_other_keeper_as_well() -> None:
    """A client that lost its connection says it all again; that it is on one disk is no news."""
    world = GridWorld(3)
    nodes = world.grid(2)
    world.part([nodes[0]], [nodes[1]])
    world.broken(frozenset(("n0", "n1")))
    one = _submitted(world, nodes[0], 20, 0.05)
    world.run(lambda: False, 0.5)
    client = nodes[0].clients[1]
    client.leave(goodbye=False)
    client.connect()
    world.run(lambda: False, 0.5)
    assert [ack for ack in one.acks if ack[0] in ("input", "close")] == []
    world.heal()
    assert world.run(lambda: {("input", 0), ("close", 0)} <= set(one.acks), 30), one.acks


def test_a_keeper_whose_disk_is_full_has_no_copy() -> None:
    """What it could not write it does not say to have; it says that it keeps nothing, and nobody waits for it."""
    world = GridWorld(4)
    nodes = world.grid(2)
    nodes[1].disk_full = True
    one = _submitted(world, nodes[0], 20, 0.05)
    assert world.run(lambda: {("input", 0), ("close", 0)} <= set(one.acks), 30), one.acks
    assert nodes[1].machine.neighbours.view is not None
    assert nodes[1].machine.neighbours.view.card.facts["keeps"] is False
    assert (JOB, "close", pack(20)) not in nodes[1].disk
    nodes[1].disk_full = False
    assert world.run(lambda: (JOB, "close", pack(20)) in nodes[1].disk, 90)


def test_a_keeper_that_had_no_room_for_a_while_is_told_what_it_missed() -> None:
    """Seed 572 of `menu`: it was level, was told nothing while it kept nothing, and was called level afterwards."""
    world = GridWorld(5)
    nodes = world.grid(3)
    one = _submitted(world, nodes[0], 40, 1.0)
    assert world.run(lambda: len(one.got) > 3, 30)
    world.run(lambda: False, 0.4)  # nothing ends now
    assert len({_record(node).rows.digest() for node in nodes}) == 1
    nodes[2].disk_full = True
    other = Client(nodes[2], 2, b"t" * 16)
    other.connect()
    other.submit(b"K" * 16, 1, lambda _: Task(0.1))
    assert world.run(lambda: not nodes[2].machine.neighbours.view.card.facts["keeps"], 0.3)  # type: ignore[union-attr]
    nodes[2].disk_full = False
    assert world.run(lambda: one.ended, 120)

    def digests() -> set[Any]:
        return {(record := _record(node)) and record.rows.digest() for node in nodes}

    assert world.run(lambda: None not in digests() and len(digests()) == 1, 240)
    assert _record(nodes[2]).done.size == 40


GARBAGE = b"no batch of inputs"
VALUE = pack([0, [b"v", b"w"]])
HUGE = 2**64 - 1
LIES: dict[str, tuple[str, bytes, bytes, bytes]] = {
    "inputs that are none": ("input", bytes(8), pack([2, content_id(GARBAGE)]), GARBAGE),
    "a range without an end": ("input", bytes(8), pack([HUGE, content_id(GARBAGE)]), GARBAGE),
    "an attempt after all others": ("attempt", b"x", pack([0, 50, HUGE]), b""),
    "an end of a later version": ("state", b"x", pack(["paused", "", 1]), b""),
    "an end that is none": ("state", b"x", pack(["running", ""]), b""),
    "a seal of a later version": ("seal", b"x", pack([0, 2, ["n2", 1, 1], 5]), b""),
    "an expiry beyond all dates": ("expiry", b"x", pack(1e308), b""),
    "a result under another's name": (
        "result", b"other", pack(["n2", 1, 1, 0, 2, False, 1, content_id(VALUE), False, 4]), VALUE
    ),
    "a result with a name that is no text": (
        "result", pack(["n2", 1, 1]), pack(["n2", 1, 1, 0, 2, False, 1, content_id(VALUE), False, 4, {}]), VALUE
    ),
    "an object that is none": ("refs", b"x", pack([b"x", -1, [], False]), b""),
    "another spec": ("spec", b"x", Spec("map", "", b"t" * 16, UNIX_0, 60.0, owner=b"n2").packed(), b""),
    "a kind of a later version": ("later", b"x", b"", b""),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_no_row_of_a_member_ends_a_node(lie: str) -> None:
    """Neither at once nor when it is taken over or read again at a restart; the job ends well."""
    world = GridWorld(5)
    nodes = world.grid(3)
    one = _submitted(world, nodes[0], 60, 0.3)
    world.run(lambda: False, 1.0)
    for node in nodes[:2]:
        node.handle(e.PeerSent("n2", m.P_ROWS, [77, [[JOB, *LIES[lie]]]]))
    nodes[2].crash()
    world.run(lambda: False, 2.0)
    nodes[0].crash()
    world.run(lambda: False, 5.0)
    nodes[0].start()
    assert world.run(lambda: all(_record(node).ended for node in nodes[:2]), 60)
    assert {_record(node).state for node in nodes[:2]} == {"done"}
    assert set(one.got) <= set(range(60))


def test_no_row_of_a_member_is_about_the_node_itself() -> None:
    """It keeps its incarnation in the journal, beside the jobs."""
    world = GridWorld(6)
    nodes = world.grid(2)
    nobody = bytes(16)
    spec = Spec("map", "", b"t" * 16, UNIX_0, 60.0, owner=b"n1").packed()
    rows = [[nobody, "spec", b"", spec, b""], [nobody, "life", b"incarnation", pack(2**62), b""]]
    nodes[0].handle(e.PeerSent("n1", m.P_ROWS, [77, rows]))
    world.run(lambda: False, 1.0)
    assert (nobody, "spec", b"") in nodes[0].disk
    assert (nobody, "life", b"incarnation") not in nodes[0].disk
