"""Tasks that kill their worker or their node are given up after as many ends as ever, whoever serves the job."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core.shapes import FAILURE
from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16
POISON = 7
COUNT = 40


def _grid(seed: int, count: int, task: Any) -> tuple[GridWorld, list[GridNode], Submitted]:
    world = GridWorld(seed)
    nodes = world.grid(count, slots=1)
    for node in nodes:
        node.known = tuple(other.name for other in nodes if other is not node)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    return world, nodes, client.submit(JOB, COUNT, task, detach=True)


def _record(node: GridNode) -> Any:
    return node.machine.keeping.jobs.get(JOB)


def _knowing(nodes: list[GridNode], ends: int) -> int:
    """Return how many know of so many ends of a worker by the task."""
    records = [kept for node in nodes if node.alive and (kept := _record(node)) is not None]
    return sum(kept.record.crashes(POISON, "w") >= ends for kept in records)


def _all_over(nodes: list[GridNode]) -> bool:
    return all(node.alive and (kept := _record(node)) is not None and kept.ended for node in nodes)


@pytest.mark.parametrize("with_disk", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_task_that_kills_its_workers_counts_on_across_take_overs(seed: int, with_disk: bool) -> None:  # noqa: FBT001
    """Whoever serves the job dies after each end of the worker; the next one knows what the task has done."""
    world, nodes, one = _grid(
        seed, 5, lambda index: Task(0.4, "crash") if index == POISON else Task(0.6 if index < 20 else 2.0)
    )
    assert world.run(lambda: ("close", 0) in one.acks, 10)
    for ends in (1, 2):
        assert world.run(lambda: _knowing(nodes, ends) >= 2, 60), f"{ends} ends of a worker are not on two disks"  # noqa: B023
        server = next(node for node in nodes if node.alive and _record(node) and _record(node).answers)
        server.crash(with_disk=with_disk, reset=True)
        world.at(25.0, server.start)

    assert world.run(lambda: _all_over(nodes), 300)
    records = [_record(node) for node in nodes]
    assert {kept.state for kept in records} == {"failed"}
    assert all(kept.failed.size == 1 and POISON in kept.failed for kept in records)
    assert all(kept.done.size == COUNT for kept in records)
    # Three ends; and one for each node that died while it ran there and could not tell.
    assert 3 <= world.runs[JOB, POISON] <= 5
    reader = Client(nodes[3], 5, b"r" * 16)
    reader.connect()
    read = reader.read(JOB)
    assert world.run(lambda: read.ended, 20)
    assert read.got[POISON][0] == FAILURE
    assert b"WorkerCrashed" in read.got[POISON][1]


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_task_that_kills_its_nodes_is_bounded_across_take_overs(seed: int, wiped: bool) -> None:  # noqa: FBT001
    """Each node that runs it dies, the one that serves the job first; none of the other tasks is lost with it."""
    kills: list[str] = []
    world, nodes, one = _grid(seed, 9, lambda index: Task(0.3, "kill") if index == POISON else Task(0.2))

    def killed(node: GridNode) -> None:
        kills.append(node.name)
        node.crash(with_disk=not wiped or node.name != "n0", reset=True)
        world.at(30.0, node.start)

    world.killed = killed  # type: ignore[assignment]
    assert world.run(lambda: ("close", 0) in one.acks, 10)

    def over() -> bool:
        records = [kept for node in nodes if (kept := _record(node)) is not None]
        return all(node.alive for node in nodes) and len(records) >= 5 and all(kept.ended for kept in records)

    assert world.run(over, 500), kills
    records = [kept for node in nodes if (kept := _record(node)) is not None]
    assert {kept.state for kept in records} == {"failed"}
    assert all(kept.failed.size == 1 and POISON in kept.failed for kept in records), kills
    ends = {len([one for one in kept.record.tries[POISON] if one.kind == "n"]) for kept in records}
    assert ends == {5}, f"one end was charged twice, or one too few: {ends}"
    # Of the first one nobody knows what it ran, if it dies before its claim has left.
    assert 5 <= len(kills) <= 7, kills
