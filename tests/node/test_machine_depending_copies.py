"""Tasks that wait for tasks of a job of which this node has a copy that another node serves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.deps import TaskId
from p2pgrid.core.errors import ResultLost, TaskCancelled
from p2pgrid.core.failure import decode_exception
from p2pgrid.core.wire import unpack
from tests.node.driver import Client, Task
from tests.node.grid_world import GridWorld

JOB, OTHER = b"j" * 16, b"o" * 16


def waiting(world: GridWorld, first: Callable[[int], Task]) -> tuple[Client, Client]:
    """Three nodes with copies of a job of two tasks at the first, and one at the second that waits for each."""
    nodes = world.grid(3)
    one, two = Client(nodes[0], 1, b"s" * 16), Client(nodes[1], 2, b"t" * 16)
    for client in (one, two):
        client.connect()
    one.submit(JOB, 2, first, close=False)
    assert world.run(lambda: JOB in nodes[1].machine.keeping.jobs, 30)
    two.submit(OTHER, 2, lambda _: Task(0.05), needs=lambda index: [TaskId(JOB, index)])
    assert world.run(lambda: len(nodes[1].machine.depending.waits) == 2, 30)
    assert not nodes[1].machine.keeping.jobs[JOB].serving
    return one, two


@pytest.mark.parametrize("spans", [None, [0, 2]])
def test_what_is_cancelled_where_it_is_served_fails_those_that_wait_at_a_copy(spans: list[int] | None) -> None:
    """Seed 460 of `menu`: the copy heard that its job was cancelled, and who waited for its tasks did not."""
    world = GridWorld(1)
    one, two = waiting(world, lambda _: Task(1000.0))
    one.say(m.CANCEL, [JOB, spans])

    assert world.run(lambda: two.jobs[OTHER].ended, 60)
    for index in (0, 1):
        cause = decode_exception(unpack(two.jobs[OTHER].got[index][1])).__cause__
        assert type(cause) is TaskCancelled
    assert two.node.machine.depending.waits == {}


def test_the_end_of_a_job_that_comes_before_its_last_result_cancels_nobody() -> None:
    """The copy knows that the job is done, and not yet with which value."""
    world = GridWorld(1)
    one, two = waiting(world, lambda _: Task(1.0))
    machine = two.node.machine
    kept = machine.keeping.jobs[JOB]
    kept.state = "done"
    machine.depending.look(TaskId(JOB, 0), 10.0)

    assert TaskId(JOB, 0) in machine.depending.waits
    kept.state = "running"
    one.say(m.CLOSE, [JOB, 2])
    assert world.run(lambda: two.jobs[OTHER].ended, 60)
    assert two.jobs[OTHER].state == "done"


@pytest.mark.parametrize("others", [True, False])
def test_a_value_that_is_not_on_disk_here_is_had_from_another_node(others: bool) -> None:  # noqa: FBT001
    """Seed 262 of `menu`: a full disk lost a result that others had. Where nobody has it, who waits is told."""
    world = GridWorld(1)
    nodes = world.grid(3, keeps=others)
    one = Client(nodes[0], 1, b"s" * 16)
    one.connect()
    job = one.submit(JOB, 2, lambda _: Task(0.1), detach=True)
    assert world.run(lambda: job.ended, 60)
    world.run(lambda: False, 5.0)
    nodes[0].crash()
    world.run(lambda: False, 1.0)
    nodes[0].damaged.update(key for key in nodes[0].disk if key[1] == "result")
    nodes[0].start()
    two = Client(nodes[0], 2, b"t" * 16)
    two.connect()
    assert world.run(lambda: nodes[0].sees("alive") == 3, 30)
    other = two.submit(OTHER, 2, lambda _: Task(0.05), needs=lambda index: [TaskId(JOB, index)])

    assert world.run(lambda: other.ended, 120)
    assert other.state == ("done" if others else "failed")
    if not others:
        assert type(decode_exception(unpack(other.got[0][1])).__cause__) is ResultLost
