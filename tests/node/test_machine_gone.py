"""A job that only a dead node had: an honest answer at once; and one that is about to be taken over: patience."""

from __future__ import annotations

import pytest

from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _submitted(node: GridNode, seconds: float = 0.05) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, 30, lambda _: Task(seconds), detach=True)


def _alone_with_it(seed: int) -> tuple[GridWorld, list[GridNode]]:
    """A grid in which only the node that took a job keeps it."""
    world = GridWorld(seed)
    nodes = [world.join(f"n{i}", *(["n0"] if i else []), keeps=i == 0) for i in range(3)]
    assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 10)
    one = _submitted(nodes[0])
    assert world.run(lambda: one.ended, 30)
    world.run(lambda: False, 3.0)
    return world, nodes


@pytest.mark.parametrize("dead_s", [30.0, 200.0])
@pytest.mark.parametrize("target", [JOB.hex(), "last"])
def test_who_asks_for_what_only_a_dead_node_had_is_told_at_once(target: str, dead_s: float) -> None:
    world, nodes = _alone_with_it(1)
    nodes[0].crash(reset=False)
    world.run(lambda: False, dead_s)
    client = Client(nodes[1], 5, b"")
    client.connect()
    client.ask("show", target=target, within=10.0)
    read = client.read(JOB)

    assert world.run(lambda: bool(client.errors) and bool(read.state), 2.0), (client.errors, read.state)
    assert "n0" in client.errors[0]["message"]
    assert (read.state, "n0" in read.reason) == ("unknown", True)


def test_it_is_found_again_when_that_node_is_back() -> None:
    world, nodes = _alone_with_it(2)
    nodes[0].crash(reset=False)
    world.run(lambda: False, 30.0)
    nodes[0].known = ("n1", "n2")
    nodes[0].start()
    assert world.run(lambda: nodes[1].sees("alive") == 3, 30)
    client = Client(nodes[1], 5, b"")
    client.connect()
    read = client.read(JOB)

    assert world.run(lambda: read.ended, 10)
    assert len(read.got) == 30


@pytest.mark.parametrize("seed", range(4))
def test_what_others_keep_is_waited_for(seed: int) -> None:
    """Asked at any moment after its node was killed, by a reader at a node without a copy."""
    world = GridWorld(seed)
    nodes = [world.join(f"n{i}", *(["n0"] if i else []), keeps=i < 3) for i in range(4)]
    assert world.run(lambda: all(node.sees("alive") == 4 for node in nodes), 10)
    one = _submitted(nodes[0], 0.5)
    assert world.run(lambda: len(one.got) > 4, 30)
    nodes[0].crash(with_disk=False, reset=seed % 2 == 0)
    asked = []
    for number in range(12):
        world.run(lambda: False, 1.3)
        client = Client(nodes[3], 10 + number, b"")
        client.connect()
        client.ask("show", target=JOB.hex(), within=10.0)
        asked.append((client, client.read(JOB)))

    assert world.run(lambda: all(client.answers and read.ended for client, read in asked), 60), [
        (client.errors, read.state) for client, read in asked
    ]
    assert all(len(read.got) == 30 for _, read in asked)
