"""`forget` and `cancel` return once that is on two disks; a tombstone outlives who was told to forget (DESIGN §7)."""

from __future__ import annotations

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError
from p2pgrid.node import events as e
from p2pgrid.node.burying import TOMBS_MAX, read_tombs
from tests.node.driver import UNIX_0, Client, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _kept(seed: int, count: int, seconds: float = 0.3) -> tuple[GridWorld, list[GridNode]]:
    """A grid in which the first node serves a job that all have copies of."""
    world = GridWorld(seed)
    nodes = world.grid(count)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(JOB, 100, lambda _: Task(seconds), detach=True)
    assert world.run(lambda: ("close", 0) in one.acks, 10)
    assert world.run(lambda: all(JOB in node.machine.keeping.jobs for node in nodes), 10)
    return world, nodes


def _ask(node: GridNode, verb: str, target: str) -> Client:
    client = Client(node, 7, b"")
    client.connect()
    client.ask(verb, target=target, within=10.0)
    return client


def _with(nodes: list[GridNode], kind: str) -> int:
    return sum(any(row.job == JOB and row.kind == kind for row in node.disk.values()) for node in nodes)


@pytest.mark.parametrize("target", [JOB.hex(), "last", "all"])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("verb", "kind"), [("forget", "tomb"), ("cancel", "cancel")])
def test_it_is_on_two_disks_when_it_returns(verb: str, kind: str, at: int, target: str) -> None:
    world, nodes = _kept(1, 3)
    client = _ask(nodes[at], verb, target)

    assert world.run(lambda: bool(client.answers or client.errors), 20)
    assert not client.errors
    assert _with(nodes, kind) >= 2
    (answer,) = client.answers.values()
    assert answer["forgotten" if verb == "forget" else "cancelled"] >= 1


def test_forget_waits_for_a_keeper_that_may_live() -> None:
    """And no longer: who is dead is not waited for."""
    world, nodes = _kept(2, 2)
    world.part(nodes[:1], nodes[1:])
    client = _ask(nodes[0], "forget", JOB.hex())
    world.run(lambda: False, 1.5)
    assert not client.answers
    world.heal()
    assert world.run(lambda: bool(client.answers), 20)
    assert _with(nodes, "tomb") == 2

    world, nodes = _kept(3, 2)
    nodes[1].crash(reset=False)
    client = _ask(nodes[0], "forget", JOB.hex())
    world.run(lambda: False, 1.5)
    assert not client.answers
    assert world.run(lambda: bool(client.answers), 30)


def test_a_grid_of_one_forgets_at_once() -> None:
    world, nodes = _kept(4, 1)
    client = _ask(nodes[0], "forget", JOB.hex())

    assert world.run(lambda: bool(client.answers), 1)
    assert _with(nodes, "tomb") == 1


def test_a_tombstone_outlives_the_node_that_was_told() -> None:
    """That node burns right after; who was off with its old disk still learns that the job is gone."""
    world, nodes = _kept(5, 3)
    nodes[2].crash()
    world.run(lambda: False, 12.0)
    client = _ask(nodes[0], "forget", JOB.hex())
    assert world.run(lambda: bool(client.answers), 10)
    nodes[0].crash(with_disk=False)
    nodes[1].crash()
    world.run(lambda: False, 20.0)
    nodes[2].known = ("n1",)
    nodes[1].start()
    nodes[2].start()
    assert world.run(lambda: all(JOB not in node.machine.keeping.jobs for node in nodes[1:]), 30)
    ran = sum(world.runs.values())
    world.run(lambda: False, 20.0)
    assert sum(world.runs.values()) == ran
    assert all(JOB in node.machine.listing.tombs for node in nodes[1:])


@pytest.mark.parametrize(
    "tombs", [5, [5], [[b"short", 1.0, 2.0]], [[JOB, -1.0, 2.0]], [[JOB, 1.0, 1e300]], [[JOB, 1.0]], [[]] * TOMBS_MAX]
)
def test_malformed_tombs_are_refused(tombs: object) -> None:
    with pytest.raises(GridError, match="malformed"):
        read_tombs(tombs)


def test_many_tombs_are_no_way_around_the_limit() -> None:
    """Too many at once are refused as a whole; a client's own request names jobs, never tombs."""
    with pytest.raises(GridError, match="malformed"):
        read_tombs([[JOB, 1.0, 2.0]] * (TOMBS_MAX + 1))
    world, nodes = _kept(6, 2)
    client = Client(nodes[0], 7, b"")
    client.connect()
    client.ask("forget", target="none-such-1", tombs=[[JOB, UNIX_0, UNIX_0 + 1e6]])
    assert world.run(lambda: bool(client.errors), 10)
    assert JOB in nodes[0].machine.keeping.jobs
    body = [[1, 1], "forget", {"tombs": [[b"x" * 16, 0.0, 1.0]]}]  # it has expired long ago
    nodes[1].hear(e.PeerSent("n0", m.P_ASK, body))
    assert b"x" * 16 not in nodes[1].machine.listing.tombs
