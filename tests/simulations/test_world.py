"""The simulator's world: jobs end in it, nodes die in it and are missed, and a seed says everything."""

from __future__ import annotations

from p2pgrid.core import messages as m
from p2pgrid.simulations import Plan, World
from p2pgrid.simulations import truth as t


def test_a_job_outlives_two_deaths() -> None:
    """What a vanished and a killed node held runs elsewhere; every result comes once, and the dead are missed."""
    world = World(seed=1)
    nodes = world.grid(7, slots=2)
    job = world.client(nodes[0]).submit(500, 0.2)
    world.pause(2)
    nodes[3].crash(reset=False)
    nodes[4].crash(reset=True)

    assert world.run(lambda: job.ended, 60)
    assert job.state == "done"
    assert set(job.delivered.values()) == {1}
    assert len(job.got) == 500
    assert not job.wrong
    assert world.run(world.agreed, 30)
    assert nodes[0].sees()["n3"] == "dead"


def test_an_owner_comes_back_with_its_disk() -> None:
    """The job goes on from the journal, and its client gets the rest over a new connection."""
    world = World(seed=2)
    nodes = world.grid(4)
    job = world.client(nodes[0]).submit(300, 0.1, packed=True)
    assert world.run(lambda: job.durable and len(job.got) > 20, 30)
    nodes[0].crash(torn=True)
    world.at(5.0, nodes[0].start)

    assert world.run(lambda: job.ended, 120)
    assert len(job.got) == 300
    assert not job.wrong


def test_a_poisonous_task_fails_alone() -> None:
    """A task that kills its worker each time fails; the others do not."""
    world = World(seed=3)
    nodes = world.grid(3)
    job = world.client(nodes[0]).submit(20, lambda index: Plan(0.1, "crash" if index == 7 else "ok"))

    assert world.run(lambda: job.ended, 120)
    assert job.failed == [7]


def test_a_halved_grid_sees_its_halves() -> None:
    """Cut in two, each half takes the other for dead; mended, all see all."""
    world = World(seed=4)
    nodes = world.grid(6)
    for a in nodes[:3]:
        for b in nodes[3:]:
            world.network.cut(a, b)
            world.network.cut(b, a)
    world.pause(60)

    assert {status for name, status in nodes[0].sees().items() if name in ("n3", "n4", "n5")} == {"dead"}
    for a in nodes[:3]:
        for b in nodes[3:]:
            world.network.mend(a, b)
            world.network.mend(b, a)
    assert world.run(world.agreed, 120)


def test_the_same_seed_is_the_same_run() -> None:
    """And another is another."""

    def digest(seed: int) -> str:
        world = World(seed)
        job = world.client(world.grid(3)[0]).submit(50, 0.1)
        assert world.run(lambda: job.ended, 60)
        return world.digest()

    assert digest(5) == digest(5) != digest(6)


def test_one_task_does_not_wake_a_hundred_idle_nodes() -> None:
    """Of many idle nodes a few are told of a task, and one of them runs it; none of the others asks in vain."""
    world = World(seed=6)
    nodes = world.grid(40, slots=1)
    job = world.client(nodes[0]).submit(200, 1.0, at_once=False, batch=1)

    def one() -> None:
        job.more(job.sent + 1)
        if job.sent < job.count:
            world.at(0.1, one)

    one()
    world.pause(5)
    asked = world.network.sent[m.P_WANT]
    world.pause(10)

    assert world.network.sent[m.P_WANT] - asked < 100 * 6
    assert world.run(lambda: job.ended, 30)
    assert job.ended_s is not None
    assert job.ended_s - job.began_s < 200 * 0.1 + 3


def test_halves_that_were_started_again_during_a_cut_find_each_other() -> None:
    """Seed 127 of `menu`: each knew its own side only, and whoever has somebody dialled nobody else."""
    world = World(seed=3)
    nodes = world.grid(4)
    halves = nodes[:2], nodes[2:]
    for node in nodes:
        node.crash(reset=True)
    for one in halves[0]:
        for other in halves[1]:
            world.network.cut(one, other)
            world.network.cut(other, one)
    for node in nodes:
        node.start()
    assert world.run(lambda: all(len(node.links) == 1 for node in nodes), 60)
    world.pause(100.0)
    assert not world.agreed()
    for one in halves[0]:
        for other in halves[1]:
            world.network.mend(one, other)
            world.network.mend(other, one)

    assert world.run(world.agreed, 300.0)


def test_a_task_that_kills_its_nodes_takes_none_of_those_beside_it_along() -> None:
    """Seed 117 of `menu`: every node began the same four tasks, and all four were charged with each death."""
    world = World(seed=4)
    nodes = world.grid(2, slots=4)
    job = world.client(nodes[0]).submit(8, lambda i: Plan(0.5, t.NODE if i == 2 else t.OK))

    assert world.run(lambda: job.ended, 300)
    assert job.failed == [2]
    assert not job.wrong


def test_nodes_agree_when_each_sees_all_that_live() -> None:
    """Who did not know all when it was asked last is asked first; the answer is the same."""
    world = World(seed=3)
    nodes = world.grid(5)
    assert [node.sees_alive() for node in nodes] == [5] * 5
    nodes[2].crash(reset=False)
    assert not world.agreed()

    assert world.run(world.agreed, 60)
    for node in nodes[:2] + nodes[3:]:
        assert node.sees_alive() == 4 == sum(status == "alive" for status in node.sees().values())
