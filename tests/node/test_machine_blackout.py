"""All nodes lose power at once, and but one come back, slow to meet: what is on their disks counts before all else."""

from __future__ import annotations

import pytest

from tests.node.driver import Client, Faults, Task
from tests.node.grid_world import GridWorld
from tests.node.test_machine_no_owner import values

JOB = b"J" * 16
NODES, TASKS = 5, 400


@pytest.mark.parametrize(("seed", "greeting_s"), [(0, 0.0), (1, 0.0), (1, 8.0), (5, 8.0), (6, 8.0), (8, 8.0)])
def test_what_came_back_is_not_run_again(seed: int, greeting_s: float) -> None:
    """Who has just started goes on with nothing before it has met those it knew, also where that takes seconds."""
    world = GridWorld(seed)
    nodes = world.grid(NODES, slots=1)
    for node in nodes:
        node.known = tuple(one.name for one in nodes if one is not node)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    client.submit(JOB, TASKS, lambda _: Task(0.05), detach=True)

    def executions() -> int:
        return sum(world.runs[JOB, task] for task in range(TASKS))

    assert world.run(lambda: executions() >= TASKS // 2, 60)
    lost = nodes[seed % NODES]  # the one that took the job, and others
    for node in nodes:
        node.crash(with_disk=node is not lost, reset=True)
    world.greeting_s = greeting_s
    back = [node for node in nodes if node is not lost]
    for node in back:
        world.at(world.rng.uniform(1, 4), node.start)

    def is_whole() -> bool:
        found = [node.machine.keeping.jobs.get(JOB) for node in back]
        return all(kept is not None and kept.ended and kept.done.size == TASKS for kept in found)

    world.run(lambda: False, 5)
    assert world.run(is_whole, 120)
    world.run(lambda: False, 1)
    for node in back:
        values(node, JOB, TASKS)
    assert executions() - TASKS <= TASKS // 10, f"{executions() - TASKS} executed again"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_is_still_being_told_runs_nothing_again(seed: int) -> None:
    """Three come back on old disks while frames take most of a second: what ended meanwhile takes long to be heard."""
    world = GridWorld(seed, Faults(ordered=True))
    nodes = world.grid(6, slots=1)
    for node in nodes:
        node.known = tuple(one.name for one in nodes if one is not node)
    client = Client(nodes[2], 1, b"s" * 16)
    client.connect()
    client.submit(JOB, TASKS, lambda _: Task(0.1), detach=True)

    def executions() -> int:
        return sum(world.runs[JOB, task] for task in range(TASKS))

    assert world.run(lambda: executions() >= TASKS // 4, 60)
    gone = [nodes[2], *world.rng.sample([node for node in nodes if node is not nodes[2]], 2)]
    for node in gone:
        node.crash(with_disk=True, reset=True)
    left = [node for node in nodes if node.alive]
    assert world.run(lambda: all(node.machine.keeping.jobs[JOB].ended for node in left), 120)
    before = executions()
    world.faults.delay_s = (0.4, 0.8)
    for node in gone:
        world.at(world.rng.uniform(0, 4), node.start)

    def is_whole() -> bool:
        return all(node.machine.keeping.jobs[JOB].done.size == TASKS for node in nodes)

    world.run(lambda: False, 5)
    assert world.run(is_whole, 120)
    world.run(lambda: False, 10)
    assert executions() == before
