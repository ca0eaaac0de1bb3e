"""Tasks that wait for others, in the simulator: layers across jobs and nodes, while nodes crash and frames are lost."""

from __future__ import annotations

import pytest

from p2pgrid.core.deps import TaskId
from p2pgrid.simulations import World, scenario
from p2pgrid.simulations.running import run_seed


@pytest.mark.parametrize("seed", [1, 13, 28, 44, 90])
def test_seeds_that_found_something(seed: int) -> None:
    """A lost answer, an owner that was away before anybody heard of its job, a job that ended before all was read."""
    outcome = run_seed(scenario.load("dependencies"), seed)

    assert not outcome.failed, outcome.row()


def test_a_task_gets_what_those_it_needs_have_returned() -> None:
    """Jobs of two programs at two nodes; the second job has to wait for the first."""
    world = World(seed=1)
    nodes = world.grid(3)
    first = world.client(nodes[0]).submit(40, 0.2)
    second = world.client(nodes[1]).submit(20, 0.1, needs=lambda i: [TaskId(first.job, i), TaskId(first.job, 39 - i)])

    assert world.run(lambda: first.ended and second.ended, 60)
    assert (second.state, len(second.got), second.wrong) == ("done", 20, [])
