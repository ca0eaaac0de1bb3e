"""`results(stable=True)`: a result that such a reader has was sealed on two disks before (INTERFACE, DESIGN §7)."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _submitted(node: GridNode, count: int, seconds: float) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, count, lambda _: Task(seconds), detach=True)


def _reader(node: GridNode, number: int = 2) -> Submitted:
    client = Client(node, number, b"r" * 16)
    client.connect()
    return client.read(JOB, stable=True)


def _sealed(node: GridNode) -> RangeSet:
    """Return the tasks of which the result and its seal are on a node's disk."""
    rows = [row for row in node.disk.values() if row.job == JOB]
    results = RangeSet((lo, hi) for _, _, _, lo, hi, *_ in (unpack(row.meta) for row in rows if row.kind == "result"))
    return results & RangeSet(tuple(unpack(row.meta)[:2]) for row in rows if row.kind == "seal")


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_stable_reader_has_is_sealed_on_two_disks(seed: int, at: int) -> None:
    world = GridWorld(seed)
    nodes = world.grid(3)
    _submitted(nodes[0], 120, 0.1)
    read = _reader(nodes[at])
    seen = RangeSet()

    def is_over() -> bool:
        fresh = RangeSet((i, i + 1) for i in read.got) - seen
        if fresh:
            seen.update(fresh)
            disks = [_sealed(node) for node in nodes]
            for lo, hi in fresh:
                holders = sum(not (RangeSet([(lo, hi)]) - disk) for disk in disks)
                assert holders >= 2, f"{lo} to {hi} was given while it was sealed on {holders} disks"
        return read.ended

    assert world.run(is_over, 60)
    assert read.state == "done"
    assert set(read.got) == set(range(120))
    assert set(read.delivered.values()) == {1}


def test_it_waits_while_a_member_that_may_live_cannot_be_asked() -> None:
    """One disk is no promise; what any other reader is given at once comes when a second has it."""
    world = GridWorld(5)
    nodes = world.grid(2, slots=1)
    one = _submitted(nodes[0], 30, 0.1)
    read = _reader(nodes[0])
    assert world.run(lambda: len(read.got) > 3, 20)

    world.part(nodes[:1], nodes[1:])
    world.run(lambda: False, 1.0)
    before, plain = len(read.got), len(one.got)
    assert world.run(lambda: len(one.got) > plain + 3, 3), "nobody waits for a seal"
    assert len(read.got) == before
    world.heal()
    assert world.run(lambda: read.ended, 60)
    assert set(read.got) == set(range(30))


def test_a_grid_of_one_has_one_disk() -> None:
    world = GridWorld(6)
    (node,) = world.grid(1)
    _submitted(node, 30, 0.05)
    read = _reader(node)

    assert world.run(lambda: read.ended, 20)
    assert set(read.got) == set(range(30))
    assert not set(range(30)) - {i for lo, hi in _sealed(node) for i in range(lo, hi)}


def test_a_full_disk_delays_it_and_loses_nothing() -> None:
    world = GridWorld(7)
    (node,) = world.grid(1)
    _submitted(node, 30, 0.2)
    read = _reader(node)
    assert world.run(lambda: len(read.got) > 3, 20)
    node.disk_full = True
    world.run(lambda: False, 0.5)
    before = len(read.got)
    world.run(lambda: False, 3.0)
    assert len(read.got) == before
    node.disk_full = False

    assert world.run(lambda: read.ended, 60)
    assert set(read.got) == set(range(30))
    assert set(read.delivered.values()) == {1}


def test_a_seal_of_a_reader_at_another_keeper_reaches_all_copies() -> None:
    """A node that has a copy and does not serve it hands out results itself: what it seals the others hear."""
    world = GridWorld(8)
    nodes = world.grid(4)
    one = _submitted(nodes[0], 80, 0.2)
    assert world.run(lambda: ("close", 0) in one.acks, 20)
    nodes[0].clients[1].leave(goodbye=False)  # nobody reads it
    assert world.run(lambda: _record(nodes[0]).done.size > 10, 20)
    nodes[3].crash()  # what it held runs again: these tasks have two attempts
    assert world.run(lambda: _record(nodes[0]).ended and _record(nodes[2]).ended, 60)
    world.run(lambda: False, 3.0)
    assert not _rows(nodes[2], "seal")
    client = Client(nodes[2], 3, b"r" * 16)
    client.connect()
    read = client.read(JOB)
    assert world.run(lambda: read.ended, 10)

    assert world.run(lambda: bool(_rows(nodes[2], "seal")), 1.0), "nothing was to be sealed"
    assert world.run(lambda: len({frozenset(row.key for row in _rows(node, "seal")) for node in nodes[:3]}) == 1, 10.0)
    assert len({_record(node).rows.digest() for node in nodes[:3]}) == 1


def _record(node: GridNode) -> Any:
    return node.machine.keeping.jobs.get(JOB)


def _rows(node: GridNode, kind: str) -> list[e.Row]:
    return [row for row in node.disk.values() if row.job == JOB and row.kind == kind]
