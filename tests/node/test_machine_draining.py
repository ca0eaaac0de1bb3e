"""A node that drains takes no work, hands over what it has, and is not missed when it ends."""

from __future__ import annotations

from typing import Any

from p2pgrid.node import events as e
from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _submitted(world: GridWorld, node: GridNode, count: int, seconds: float) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, count, lambda _: Task(seconds), detach=True)


def _asked(world: GridWorld, node: GridNode, **arguments: Any) -> Any:
    client = Client(node, 90 + world.rng.randrange(1 << 20), b"")
    client.connect()
    client.ask("drain", **arguments)
    assert world.run(lambda: bool(client.answers or client.errors), 10)
    return (list(client.answers.values()) or client.errors)[0]


def test_a_node_that_drains_is_free_of_everything() -> None:
    """Also the one that took the job; what runs there ends there, and nothing runs twice."""
    world = GridWorld(1)
    nodes = world.grid(4)
    one = _submitted(world, nodes[1], 300, 0.2)
    assert world.run(lambda: sum(one.delivered.values()) > 40, 60)

    assert _asked(world, nodes[1])["draining"]
    assert world.run(lambda: nodes[1].machine.draining.state()["running"] == 0, 5)
    began = sum(world.runs.values())
    nodes[1].clients.clear()
    nodes[1].handle(e.ClientGone(1, goodbye=False))  # as long as a program reads here, its job stays
    assert world.run(lambda: _asked(world, nodes[1], look=True)["drained"], 60), nodes[1].machine.draining.state()
    assert JOB not in nodes[1].machine.keeping.jobs
    assert began < 300
    others = [node for node in nodes if node is not nodes[1]]
    assert world.run(lambda: all(node.machine.keeping.jobs[JOB].ended for node in others), 60)
    assert {node.machine.keeping.jobs[JOB].state for node in others} == {"done"}
    assert sum(world.runs.values()) <= 304
    assert not nodes[1].machine.running.busy()


def test_another_node_is_drained_by_name_and_called_back() -> None:
    """It takes work again."""
    world = GridWorld(2)
    nodes = world.grid(3)
    assert _asked(world, nodes[0], target="n2")["name"] == "n2"
    assert nodes[2].machine.parts.draining
    one = _submitted(world, nodes[0], 40, 0.2)
    assert world.run(lambda: one.ended, 60)
    assert "n2" not in {node for node, _ in one.places.values()}

    assert not _asked(world, nodes[0], target="n2", off=True)["draining"]
    client = Client(nodes[1], 7, b"t" * 16)
    client.connect()
    two = client.submit(b"K" * 16, 60, lambda _: Task(0.2))
    assert world.run(lambda: two.ended, 60)
    assert "n2" in {node for node, _ in two.places.values()}


def test_it_stops_by_itself_when_it_has_nothing_more() -> None:
    world = GridWorld(3)
    nodes = world.grid(3)
    one = _submitted(world, nodes[0], 100, 0.2)
    assert world.run(lambda: sum(one.delivered.values()) > 20, 60)
    _asked(world, nodes[2], stop=True)

    assert world.run(lambda: nodes[2].stopped is not None, 60)
    assert world.run(lambda: one.ended, 60)
    assert sum(world.runs.values()) <= 102


def test_a_node_that_is_alone_says_so() -> None:
    world = GridWorld(4)
    nodes = world.grid(1)
    _submitted(world, nodes[0], 4, 0.2)
    world.run(lambda: False, 3)
    state = _asked(world, nodes[0])
    assert state["alone"]
    assert _asked(world, nodes[0], target="nobody")["code"] == "not-found"
    assert _asked(world, nodes[0], deadline="soon")["code"] == "usage"
