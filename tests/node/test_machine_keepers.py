"""No owner to lose: the node that took a job dies, and others go on with it (DESIGN §7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld


def _submitted(world: GridWorld, node: GridNode, count: int, seconds: float, **how: Any) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(b"J" * 16, count, lambda _: Task(seconds), **{"detach": True, **how})


def _record(node: GridNode) -> Any:
    return node.machine.keeping.jobs.get(b"J" * 16)


def _served_by(world: GridWorld) -> list[str]:
    return [
        name
        for name, node in world.nodes.items()
        if node.alive and (kept := _record(node)) is not None and kept.serving
    ]


def _is_over(node: GridNode) -> bool:
    kept = _record(node)
    return kept is not None and kept.ended


def _wait(world: GridWorld, seconds: float) -> None:
    world.run(lambda: False, seconds)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_node_of_a_small_grid_has_a_copy(count: int) -> None:
    world = GridWorld(count)
    nodes = world.grid(count)
    one = _submitted(world, nodes[0], 50, 0.05)

    assert world.run(lambda: one.ended, 60)
    assert world.run(lambda: all(_is_over(node) for node in nodes), 10), "the end was not heard everywhere"
    digests = {_record(node).rows.digest() for node in nodes}
    assert len(digests) == 1
    assert all(_record(node).done.size == 50 for node in nodes)


@pytest.mark.parametrize("seed", range(8))
def test_the_accepting_node_dies_and_the_job_ends(seed: int) -> None:
    world = GridWorld(seed)
    nodes = world.grid(5)
    one = _submitted(world, nodes[1], 200, 0.2)
    assert world.run(lambda: sum(one.delivered.values()) > 40, 60)

    nodes[1].crash(with_disk=world.rng.random() < 0.5, reset=world.rng.random() < 0.5)
    others = [node for node in nodes if node is not nodes[1]]
    assert world.run(lambda: all(_is_over(node) for node in others), 120), [
        (node.name, _record(node) and _record(node).done.size) for node in others
    ]
    assert all(_record(node).state == "done" and _record(node).done.size == 200 for node in others)
    assert len(_served_by(world)) == 1
    assert sum(world.runs.values()) <= 200 + 40


def test_it_comes_back_and_serves_again() -> None:
    world = GridWorld(11)
    nodes = world.grid(4)
    one = _submitted(world, nodes[1], 400, 0.2)
    assert world.run(lambda: sum(one.delivered.values()) > 40, 60)
    nodes[1].crash(reset=True)
    assert world.run(lambda: len(_served_by(world)) == 1, 20)
    assert _served_by(world) != ["n1"]
    _wait(world, 2)

    nodes[1].start()
    assert world.run(lambda: _served_by(world) == ["n1"], 20), _served_by(world)
    assert world.run(lambda: all(_is_over(node) for node in nodes), 120)
    assert sum(world.runs.values()) <= 400 + 40


def test_a_forgotten_job_stays_forgotten() -> None:
    """Everywhere, also at a node that was off and comes back with its old disk; whoever reads it is told."""
    world = GridWorld(12)
    nodes = world.grid(4)
    one = _submitted(world, nodes[0], 400, 0.5)
    reader = Client(nodes[2], 2, b"r" * 16)
    reader.connect()
    read = reader.read(b"J" * 16)
    assert world.run(lambda: sum(one.delivered.values()) > 20, 60)
    nodes[3].crash()
    _wait(world, 3)

    asker = Client(nodes[1], 3, b"")
    asker.connect()
    asker.ask("forget", target=(b"J" * 16).hex())
    assert world.run(lambda: bool(asker.answers), 10)
    assert world.run(lambda: read.reason == "forgotten", 5), (read.state, read.reason)
    assert world.run(lambda: not any(_record(node) for node in nodes[:3]), 5)
    ran = sum(world.runs.values())
    nodes[3].start()
    assert world.run(lambda: _record(nodes[3]) is None, 20)
    _wait(world, 20)
    assert sum(world.runs.values()) == ran
    assert not any(_record(node) for node in nodes)


def test_a_copy_is_given_up_where_others_have_it() -> None:
    """Six hold a record; a node that is no keeper any more lets go once those have all that it has."""
    world = GridWorld(13)
    nodes = world.grid(6)
    one = _submitted(world, nodes[0], 60, 0.05)
    assert world.run(lambda: one.ended, 60)
    assert world.run(lambda: all(_is_over(node) for node in nodes), 10)
    for number in range(4):
        world.join(f"late{number}", "n0")
    everybody = list(world.nodes.values())

    def settled() -> bool:
        return sum(_record(node) is not None for node in everybody) == 6

    assert world.run(lambda: sum(node.sees("alive") for node in everybody) == 100, 30)
    assert world.run(settled, 60), [node.name for node in everybody if _record(node) is not None]
    assert len({_record(node).rows.digest() for node in everybody if _record(node) is not None}) == 1
    assert len(_served_by(world)) == 1
