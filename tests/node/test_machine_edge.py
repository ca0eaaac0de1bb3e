"""Leaves: nodes of the preset `edge`, in a grid, in virtual time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from p2pgrid.node import events as e
from tests.node.driver import Client, Node, Task
from tests.node.grid_world import GridWorld

JOB = b"J" * 16


class CountingWorld(GridWorld):
    """Counts what a leaf says and hears, frames of all kinds."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.said = Counter[int]()
        """By kind."""

    def deliver(self, source: Node, effect: e.Send) -> None:
        if "leaf" in {source.name, effect.peer}:
            self.said[effect.kind] += 1
        super().deliver(source, effect)


def _wait(world: GridWorld, seconds: float) -> None:
    world.run(lambda: False, seconds)


def _rate(world: CountingWorld) -> float:
    before = sum(world.said.values())
    _wait(world, 600.0)
    return (sum(world.said.values()) - before) / 600.0


def _with_leaf(seed: int, count: int) -> tuple[CountingWorld, list[Any], Any]:
    world = CountingWorld(seed)
    nodes = world.grid(count)
    leaf = world.join("leaf", "n0", preset="edge")
    assert world.run(lambda: all(node.sees("alive") == count + 1 for node in [*nodes, leaf]), 30.0)
    return world, nodes, leaf


def test_an_idle_leaf_says_and_hears_little() -> None:
    """At most 0.3 messages a second in all, of whatever kind: before it had work and after."""
    world, nodes, leaf = _with_leaf(1, 9)
    _wait(world, 120.0)
    fresh = _rate(world)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(JOB, 40, lambda _: Task(1.0), detach=True)
    assert world.run(lambda: one.ended, 120.0)
    assert leaf.machine.running.done > 0
    _wait(world, 120.0)
    afterwards = _rate(world)
    print(f"a leaf among nine: {fresh:.2f}, after a job {afterwards:.2f} messages/s, said and heard")

    assert max(fresh, afterwards) <= 0.3


def test_a_leaf_keeps_no_record() -> None:
    """Not of others' jobs, though there are fewer nodes than there could be keepers; it works on them all the same."""
    world, nodes, leaf = _with_leaf(2, 3)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(JOB, 40, lambda _: Task(1.0), detach=True)
    assert world.run(lambda: one.ended, 120.0)
    assert world.run(lambda: all(JOB in node.machine.keeping.jobs for node in nodes), 30.0)

    assert leaf.machine.running.done > 0
    assert JOB not in leaf.machine.keeping.jobs
