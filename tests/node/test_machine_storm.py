"""Jobs in a grid whose nodes are killed, frozen and cut off from each other: every result right, and once.

The accepting nodes stay ("No owner to lose" takes that away); all others may come and go.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.node.driver import Client, Task
from tests.node.grid_world import GridNode, GridWorld

SEEDS = range(6)
STORM_S = 120.0


def _weather(world: GridWorld, node: GridNode, end_s: float) -> None:
    """Kill, freeze and isolate one node, again and again, until the storm is over."""

    def strike() -> None:
        if world.now > end_s or node.frozen is not None or not node.alive:
            return again()
        world.strike(node, lambda: world.rng.random() < 0.7)
        return again()

    def again() -> None:
        world.at(world.rng.expovariate(1 / 15), strike)

    again()


def storm(seed: int, jobs: int = 12, **config: Any) -> None:
    """Run one seed, with nodes of this configuration."""
    world = GridWorld(seed)
    slots = [world.rng.choice([1, 2, 4]) for _ in range(7)]
    nodes = [world.join(f"n{i}", *(["n0"] if i else []), slots=slots[i], **config) for i in range(7)]
    end_s = world.now + STORM_S
    for node in nodes[2:]:
        _weather(world, node, end_s)
    clients = [Client(node, i + 1, bytes([i]) * 16) for i, node in enumerate(nodes[:2])]
    for client in clients:
        client.connect()
    submitted = []
    for number in range(jobs):
        count = world.rng.choice([1, 20, 100, 300])
        scale = world.rng.choice([0.01, 0.1, 1.0]) if count < 300 else 0.1
        draw = world.rng.random()

        def task(index: int, scale: float = scale, draw: float = draw) -> Task:
            return Task(scale * (0.2 + hash((draw, index)) % 1000 / 500))

        job = bytes([number]) * 16
        submitted.append(world.rng.choice(clients).submit(job, count, task, packed=world.rng.random() < 0.5))
        pause_s = world.now + world.rng.uniform(0, 10)
        world.run(lambda pause_s=pause_s: world.now >= pause_s, 11.0)  # type: ignore[misc]

    assert world.run(lambda: all(one.ended for one in submitted), STORM_S + 900.0), [
        (one.job.hex()[:4], one.count, len(one.got)) for one in submitted if not one.ended
    ]
    for one in submitted:
        assert one.state == "done"
        assert set(one.got) == set(range(one.count))
        assert all(times == 1 for times in one.delivered.values()), "a result was delivered twice"
    assert world.run(lambda: all(node.sees("alive") == 7 for node in nodes), 120.0), [node.rows() for node in nodes]
    settled = world.now + 20
    world.run(lambda: world.now >= settled, 21.0)
    for node in nodes:
        assert not node.machine.running.busy(), f"{node.name} still runs something"
        assert not node.machine.pool.ready(), f"{node.name} still has something ready"
        assert not node.dropped, f"{node.name} dropped {node.dropped}"
        foreign = [work.name for work in node.machine.pool.works.values() if work.keeper is not None]
        assert not foreign, f"{node.name} still keeps inputs of {foreign}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm(seed: int) -> None:
    """Seven nodes, five of them in the storm, a dozen jobs, two minutes."""
    storm(seed)
