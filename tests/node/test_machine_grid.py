"""Ten machines on a bad network: nothing lost, nothing doubled."""

from __future__ import annotations

from functools import partial

import pytest

from tests.node.driver import Client, Faults, Node, Submitted, Task, World

JOBS_PER_SEED = 100
SEEDS = range(10)


def _tasks(world: World, kind: str) -> object:
    scale = world.rng.choice([0.002, 0.02, 0.2])
    seed = world.rng.random()

    def task(index: int) -> Task:
        draw = hash((seed, index)) % 1000 / 1000
        seconds = scale * (0.2 + 2 * draw)
        if kind == "poison" and index == 3:
            return Task(seconds, "crash")
        if kind == "stumble" and draw < 0.05:
            return Task(seconds, "crash", times=1)
        if kind == "raise" and draw < 0.1:
            return Task(seconds, "raise")
        return Task(seconds)

    return task


def _weather(world: World, node: Node) -> None:
    """Crash a worker node again and again, with its disk or without, and start it later."""

    def crash() -> None:
        if node.alive:
            node.crash(with_disk=world.rng.random() < 0.7)
            world.at(world.rng.uniform(0.5, 15), node.start)
        world.at(world.rng.expovariate(1 / 20), crash)

    world.at(world.rng.expovariate(1 / 20), crash)


def _check(world: World, submitted: Submitted, kind: str) -> None:
    expected = set(range(submitted.count))
    assert set(submitted.got) == expected, f"{expected - set(submitted.got)} lost"
    assert all(count == 1 for count in submitted.delivered.values()), "a result was delivered twice"
    failed = {i for i, (shape, _) in submitted.got.items() if shape == 2}
    wanted = {3} if kind == "poison" and submitted.count > 3 else set()
    if kind == "raise":
        wanted = {i for i in expected if world.tasks[submitted.job](i).outcome == "raise"}
    assert failed == wanted
    assert submitted.state == ("failed" if wanted else "done")


@pytest.mark.parametrize("seed", SEEDS)
def test_random_jobs_end_right_though_worker_nodes_crash(seed: int) -> None:
    """10 nodes, 100 jobs a seed, 10 seeds: loss, duplication, reordering, seven of the nodes crash and come back."""
    world = World(seed)
    faults = world.faults
    faults.loss = world.rng.choice([0.0, 0.05, 0.2])
    faults.duplicate = world.rng.choice([0.0, 0.1])
    faults.slow = world.rng.choice([0.0, 0.1])
    nodes = [world.add(f"n{i}", slots=world.rng.choice([1, 2, 4])) for i in range(10)]
    for node in nodes[3:]:
        _weather(world, node)
    clients = [Client(node, i + 1, bytes([i]) * 16) for i, node in enumerate(nodes[:3])]
    for client in clients:
        client.connect()
    submitted: list[tuple[Submitted, str]] = []

    def submit(number: int) -> None:
        kind = world.rng.choice(["plain", "plain", "plain", "stumble", "raise", "poison"])
        job = number.to_bytes(4, "big") + world.rng.randbytes(12)
        count = world.rng.choice([1, 5, 40, 300])
        packed = world.rng.random() < 0.5
        client = world.rng.choice(clients)
        submitted.append((client.submit(job, count, _tasks(world, kind), packed=packed), kind))  # type: ignore[arg-type]

    for number in range(JOBS_PER_SEED):
        world.at(world.rng.uniform(0, 60), partial(submit, number))

    ended = world.run(lambda: len(submitted) == JOBS_PER_SEED and all(s.ended for s, _ in submitted), 3600)

    assert ended, f"seed {seed}: {sum(not s.ended for s, _ in submitted)} jobs hang"
    for one, kind in submitted:
        _check(world, one, kind)
    remote = sum(world.sent.values())
    assert remote > 0


@pytest.mark.parametrize("seed", range(20))
def test_accepting_node_resumes_its_jobs_from_disk(seed: int) -> None:
    """The node that keeps the jobs crashes at random moments; its client comes back; done tasks are not run again."""
    world = World(1000 + seed, Faults(loss=0.05, duplicate=0.05))
    nodes = [world.add(f"n{i}") for i in range(world.rng.choice([1, 4]))]
    client = Client(nodes[0], 1, b"c" * 16)
    client.connect()
    one = client.submit(b"j" * 16, 300, lambda _: Task(0.05), packed=seed % 2 == 0)
    crashes = 5

    def crash() -> None:
        nodes[0].crash()

        def back() -> None:
            nodes[0].start()
            client.connect()

        world.at(world.rng.uniform(0.1, 3), back)

    for number in range(crashes):
        world.at(4.0 * number + world.rng.uniform(0, 1.0), crash)

    assert world.run(lambda: one.ended, 600), f"seed {seed} hangs"
    assert set(one.got) == set(range(300))
    assert one.state == "done"
    again = sum(world.runs.values()) - 300
    # Per crash: what ran (8 slots with their grains) and what was in the last group commit.
    assert again <= crashes * 60


def test_one_grid_shares_the_work() -> None:
    """Four equal nodes end a job in about a quarter of the time."""
    world = World(3)
    nodes = [world.add(f"n{i}") for i in range(4)]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    start = world.now
    one = client.submit(b"j" * 16, 1000, lambda _: Task(0.02))

    assert world.run(lambda: one.ended, 100)
    assert world.now - start < 1.15 * 1000 * 0.02 / 8
    assert max(world.runs.values()) == 1


def test_an_idle_grid_is_silent() -> None:
    """When there is no work no steal request, claim or offer is sent."""
    world = World(4)
    nodes = [world.add(f"n{i}") for i in range(4)]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(b"j" * 16, 100, lambda _: Task(0.02))
    world.run(lambda: one.ended, 100)
    world.run(lambda: False, 10)
    before = sum(world.sent.values())
    world.run(lambda: False, 60)

    assert sum(world.sent.values()) == before
