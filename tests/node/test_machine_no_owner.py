"""Jobs in a grid any node of which is killed, frozen or cut off, the one that took them included (DESIGN §7)."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from tests.node.driver import Client, Task, value_of
from tests.node.grid_world import GridNode, GridWorld

STORM_S = 90.0


def _weather(world: GridWorld, nodes: list[GridNode], node: GridNode, end_s: float) -> None:
    """Kill, freeze and isolate one node, again and again, until the storm is over; some disks always stay."""

    def keeps_disk() -> bool:
        lost = [one for one in nodes if getattr(one, "wiped_s", -100.0) > world.now - 40.0]
        wipe = not lost and world.rng.random() < 0.4
        if wipe:
            node.wiped_s = world.now  # type: ignore[attr-defined]
        return not wipe

    def strike() -> None:
        if world.now > end_s:
            return None
        away = sum(not one.alive or one.frozen is not None for one in nodes)
        if node.frozen is not None or not node.alive or away > len(nodes) // 2:
            return again()
        world.strike(node, keeps_disk)
        return again()

    def again() -> None:
        world.at(world.rng.expovariate(1 / 15), strike)

    again()


def storm(seed: int, count: int = 6, jobs: int = 8, **config: Any) -> tuple[int, int]:
    """Run one seed; return how many tasks there were and how many executions."""
    world = GridWorld(seed)
    nodes = [
        world.join(f"n{i}", *(["n0"] if i else []), slots=world.rng.choice([1, 2, 4]), **config) for i in range(count)
    ]
    assert world.run(lambda: all(node.sees("alive") == count for node in nodes), 10.0)
    for node in nodes:
        node.known = tuple(one.name for one in nodes if one is not node)  # saved peers
    end_s = world.now + STORM_S
    for node in nodes:
        _weather(world, nodes, node, end_s)
    submitted: dict[bytes, int] = {}
    clients = 0
    while len(submitted) < jobs:
        world.run(lambda: False, world.rng.uniform(1, 8))
        able = [node for node in nodes if node.alive and node.frozen is None]
        if not able:
            continue
        clients += 1
        client = Client(world.rng.choice(able), 1000 + clients, bytes([clients]) * 16)
        client.connect()
        tasks = world.rng.choice([1, 20, 100, 300])
        scale = world.rng.choice([0.01, 0.1, 1.0]) if tasks < 300 else 0.1
        job = bytes([100 + clients]) * 16

        def task(index: int, scale: float = scale) -> Task:
            return Task(scale * (0.2 + index % 7 / 4))

        one = client.submit(job, tasks, task, detach=True, packed=world.rng.random() < 0.5)
        # It was said to be durable: from now on its client may go.
        if world.run(lambda: ("close", 0) in one.acks, 40.0):  # noqa: B023
            submitted[job] = tasks

    world.run(lambda: world.now > end_s + 26.0, STORM_S + 60.0)  # the last frozen one thaws

    def over(node: GridNode, job: bytes) -> bool:
        kept = node.machine.keeping.jobs.get(job)
        return node.alive and kept is not None and kept.ended

    def settled() -> bool:
        return all(over(node, job) for node in nodes for job in submitted)

    assert world.run(settled, STORM_S + 600.0), [
        (job, tasks, [_told(node, job) for node in nodes])
        for job, tasks in submitted.items()
        if not all(over(node, job) for node in nodes)
    ]
    for job, tasks in submitted.items():
        _agreed(world, nodes, job, tasks)
    world.run(lambda: False, 20.0)
    for node in nodes:
        assert not node.machine.running.busy(), f"{node.name} still runs something"
        assert not node.machine.pool.ready(), f"{node.name} still has something ready"
        assert not node.dropped, f"{node.name} dropped {node.dropped}"
    return sum(submitted.values()), sum(world.runs[job, i] for job, n in submitted.items() for i in range(n))


def _agreed(world: GridWorld, nodes: list[GridNode], job: bytes, tasks: int) -> None:
    """Check that all copies say the same, and one node answers for the job."""
    records = [node.machine.keeping.jobs[job] for node in nodes]
    assert {kept.state for kept in records} == {"done"}, [(kept.state, kept.reason) for kept in records]
    assert all(kept.done.size == tasks for kept in records)
    assert world.run(lambda: len({kept.rows.digest() for kept in records}) == 1, 60), "they differ"
    world.run(lambda: False, 1.0)
    for node in nodes:
        values(node, job, tasks)
    assert world.run(lambda: sum(kept.serving for kept in records) == 1, 30.0), [_told(node, job) for node in nodes]


def _told(node: GridNode, job: bytes) -> Any:
    kept = node.machine.keeping.jobs.get(job)
    if kept is None:
        return node.name
    first = node.machine.replicas.first(kept)
    return node.name, kept.state, kept.done.size, kept.total, kept.serving, kept.listening, first, kept.server


def values(node: GridNode, job: bytes, tasks: int) -> None:
    """Check every value of a copy on disk."""
    kept = node.machine.keeping.jobs[job]
    for batch, results in kept.record.results.items():
        row = node.disk[job, "result", pack(batch)]
        shape, data = unpack(row.value or b"")
        for i in range(results.lo, results.hi):
            value = data[i - results.lo] if shape == 0 else unpack(data)[i - results.lo]
            assert value == value_of(job, i)
    assert kept.done.size == tasks


@pytest.mark.parametrize("seed", range(6))
def test_a_storm_over_everybody(seed: int) -> None:
    tasks, runs = storm(seed)
    assert runs <= 2 * tasks + 100


def test_the_end_is_told_after_results_that_another_keeper_had() -> None:
    """Its node can run nothing and was cut off; all the results come at once, as rows of the keeper that went on."""
    world = GridWorld(4)
    idle = world.join("n0", slots=0)
    busy = world.join("n1", "n0", slots=2)
    assert world.run(lambda: idle.sees("alive") == busy.sees("alive") == 2, 20)
    client = Client(idle, 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 60, lambda _: Task(0.2), detach=True)
    assert world.run(lambda: len(one.got) > 10, 60)
    world.part([idle], [busy])
    assert world.run(lambda: busy.machine.keeping.jobs[b"J" * 16].ended, 120)
    world.run(lambda: False, 1)
    assert not one.ended
    rows = [[*row] for key, row in busy.disk.items() if key[:2] == (b"J" * 16, "result")]
    idle.handle(e.PeerSent("n1", m.P_ROWS, [1, rows]))

    assert world.run(lambda: one.ended, 60)
    assert set(one.got) == set(range(60))


@pytest.mark.parametrize("seed", range(4))
def test_what_a_reader_was_given_stands_when_another_result_comes(seed: int) -> None:
    """A keeper that lacks the latest results takes the job over and runs their tasks again: who has read is right."""
    world = GridWorld(seed)
    nodes = world.grid(3, slots=1)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 100, lambda _: Task(0.2), detach=True)
    assert world.run(lambda: len(one.got) > 20, 60)
    client.leave(goodbye=False)
    world.run(lambda: False, 1)
    reader = Client(nodes[2], 2, b"r" * 16)
    reader.connect()
    read = reader.read(b"J" * 16)
    world.part(nodes[:1], nodes[1:2])  # it gets no more rows
    world.run(lambda: False, 3)
    nodes[0].crash(with_disk=False, reset=True)
    world.part(nodes[1:2], nodes[2:])
    world.run(lambda: False, 15)
    world.heal()
    assert world.run(lambda: read.ended, 120)
    world.run(lambda: False, 30)
    for node in nodes[1:]:
        later = Client(node, 3, b"l" * 16)
        later.connect()
        again = later.read(b"J" * 16)
        assert world.run(lambda again=again: again.ended, 30)  # type: ignore[misc]
        assert again.places == read.places
    assert sum(world.runs[b"J" * 16, i] for i in range(100)) > 110, "nothing was run twice"


@pytest.mark.parametrize("slow_s", [3.0, 6.0, 12.0])
def test_a_reader_whose_question_is_answered_late(slow_s: float) -> None:
    """The node of the job is gone; its keepers have so much to do that they say nothing for a while. They have it."""
    world = GridWorld(2)
    nodes = [world.join(f"n{i}", *(["n0"] if i else []), slots=1) for i in range(9)]
    assert world.run(lambda: all(node.sees("alive") == 9 for node in nodes), 20.0)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 300, lambda _: Task(0.2), detach=True)
    assert world.run(lambda: one.ended, 60)
    stranger = next(node for node in nodes if b"J" * 16 not in node.machine.keeping.jobs)
    nodes[0].crash(with_disk=False, reset=True)
    for node in nodes[1:]:
        if node is not stranger:
            node.freeze()
            world.at(slow_s, node.thaw)
    world.run(lambda: "n0" not in stranger.machine.peers, 10)
    reader = Client(stranger, 2, b"r" * 16)
    reader.connect()
    read = reader.read(b"J" * 16, patience_s=10.0)

    assert world.run(lambda: read.ended, 120)
    assert (read.state, set(read.got)) == ("done", set(range(300)))
    assert set(read.delivered.values()) == {1}


def halves(seed: int) -> tuple[int, int]:
    """Cut fourteen nodes in two amid a job, a new job on each side; return how many tasks there were, how many runs."""
    world = GridWorld(seed)
    nodes = [world.join(f"n{i}", *(["n0"] if i else []), slots=1) for i in range(14)]
    assert world.run(lambda: all(node.sees("alive") == 14 for node in nodes), 20.0)
    world.rng.shuffle(nodes)
    left, right = nodes[:7], nodes[7:]
    jobs: dict[bytes, int] = {}

    def submit(node: GridNode, letter: bytes, tasks: int, seconds: float) -> None:
        client = Client(node, 1000 + len(jobs), letter * 16)
        client.connect()
        one = client.submit(letter * 16, tasks, lambda _: Task(seconds), detach=True)
        assert world.run(lambda: ("close", 0) in one.acks, 30.0), "never durable"
        jobs[letter * 16] = tasks

    submit(left[0], b"a", 200, world.rng.uniform(0.5, 2.0))
    world.run(lambda: False, world.rng.uniform(0.5, 5.0))
    world.part(left, right)
    world.run(lambda: False, world.rng.uniform(0.0, 8.0))
    submit(left[1], b"b", 50, 0.3)
    submit(right[1], b"c", 50, 0.3)
    if world.rng.random() < 0.5:
        left[0].crash(with_disk=world.rng.random() < 0.5)
        world.at(30.0, left[0].start)
        left[0].known = tuple(node.name for node in nodes if node is not left[0])
    world.run(lambda: False, 20.0)
    world.heal()
    world.run(lambda: False, 40.0)  # whoever was killed is back

    def over(job: bytes) -> bool:
        records = [kept for node in nodes if (kept := node.machine.keeping.jobs.get(job)) is not None]
        return bool(records) and all(kept.ended for kept in records)

    assert world.run(lambda: all(map(over, jobs)), 400.0), [
        (job[:1], [_told(node, job) for node in nodes]) for job in jobs
    ]
    assert world.run(lambda: all(node.sees("alive") == 14 for node in nodes), 120.0)
    for job, tasks in jobs.items():
        assert world.run(lambda job=job: _held(nodes, job) == 6, 120.0), (job[:1], [_told(node, job) for node in nodes])  # type: ignore[misc]
        holders = [node for node in nodes if job in node.machine.keeping.jobs]
        _agreed(world, holders, job, tasks)

    def listed() -> bool:
        lists = [{(one.job, one.standing.state) for one in node.machine.listing.list.jobs.values()} for node in nodes]
        return all(one == {(job, "done") for job in jobs} for one in lists)

    assert world.run(listed, 60.0), "they do not list the same jobs"
    return sum(jobs.values()), sum(world.runs[job, i] for job, n in jobs.items() for i in range(n))


def _held(nodes: list[GridNode], job: bytes) -> int:
    return sum(job in node.machine.keeping.jobs for node in nodes)


@pytest.mark.parametrize("seed", range(3))
def test_fourteen_nodes_cut_in_halves(seed: int) -> None:
    tasks, runs = halves(seed)
    assert runs <= 2 * tasks
