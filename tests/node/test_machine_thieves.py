"""Grids whose pool was emptied early: idle nodes steal, all end together, and an idle grid is silent."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pgrid.core import messages as m
from tests.node.driver import Client, Faults, Node, Task, World
from tests.node.grid_world import GridWorld
from tests.node.test_machine_storm import storm

SHARED = b"j" * 16
EARLY: dict[str, Any] = {"queue_s": 1e6, "guided": 0.2, "speculate": False}
"""Whoever asks second gets all that is left."""
STEALS = range(m.P_STEAL, m.P_LIFELINE + 1)


def five_nodes(seed: int, speeds: list[float], faults: Faults | None = None) -> tuple[World, list[Node], Client]:
    """Return five two-slot nodes that know each other, and a client of the first."""
    world = World(seed, faults or Faults(ordered=True))
    nodes = [world.add(f"n{i}", speed=speed, **EARLY) for i, speed in enumerate(speeds)]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    return world, nodes, client


def uneven(seed: int, count: int = 500, scale: float = 0.1) -> list[float]:
    """Return durations between a half and one and a half of `scale`."""
    rng = random.Random(seed)
    return [scale * (0.5 + rng.random()) for _ in range(count)]


@pytest.mark.parametrize(
    ("speeds", "limit"), [([1.0] * 5, 1.1), ([1.0, 0.5, 0.25, 0.75, 0.5], 1.15)], ids=["equal", "unequal"]
)
def test_an_emptied_pool_ends_near_the_ideal(speeds: list[float], limit: float) -> None:
    """Without stealing it takes four to five times as long. Nothing runs twice."""
    for seed in range(10):
        seconds = uneven(seed)
        world, nodes, client = five_nodes(seed, speeds)
        start = world.now
        one = client.submit(SHARED, 500, lambda i, s=seconds: Task(s[i]))  # type: ignore[misc]
        assert world.run(lambda one=one: one.ended, 100)  # type: ignore[misc]

        assert world.now - start <= limit * sum(seconds) / 2 / sum(speeds), f"seed {seed}"
        assert sum(node.machine.parts.counts["stolen"] for node in nodes) > 0
        moves = nodes[0].machine.parts.moves.counts(SHARED).values()
        assert sum(counts.get("stolen", 0) for counts in moves) > 0
        assert max(world.runs.values()) == 1
        assert set(one.got) == set(range(500))


def test_tasks_inside_a_worker_are_stolen_too() -> None:
    """A grain of what was taken for short tasks: they are long, and one worker has dozens of them."""
    world, _, client = five_nodes(3, [1.0] * 5)
    start = world.now
    one = client.submit(SHARED, 130, lambda i: Task(0.0005 if i < 30 else 1.0))

    assert world.run(lambda: one.ended, 200)
    assert world.now - start <= 11.0


@pytest.mark.parametrize("seed", range(6))
def test_lost_doubled_and_late_frames_cost_time_alone(seed: int) -> None:
    """Every result right, and once."""
    faults = Faults(loss=0.1, duplicate=0.2, slow=0.1, slow_s=3.0)
    world, nodes, client = five_nodes(seed, [1.0] * 5, faults)
    one = client.submit(SHARED, 200, lambda i: Task(uneven(seed, 200, 0.2)[i]))
    assert world.run(lambda: one.ended, 300)
    world.run(lambda: False, 20)

    assert set(one.got) == set(range(200))
    assert max(one.delivered.values()) == 1
    for node in nodes:
        assert not [work.name for work in node.machine.pool.works.values() if work.keeper is not None]
        assert not node.machine.victim.hands


@pytest.mark.parametrize("dying", ["victim", "thief", "both"])
def test_nodes_that_die_in_a_hand_over(dying: str) -> None:
    """Just after the first hand-overs: what they held runs elsewhere, nothing is lost, nothing is delivered twice."""
    for seed in range(5):
        world, nodes, client = five_nodes(seed, [1.0] * 5)
        one = client.submit(SHARED, 200, lambda _: Task(0.2))
        wanted = 1 + seed % 3
        assert world.run(lambda world=world, wanted=wanted: world.sent[m.P_HANDED] >= wanted, 60)  # type: ignore[misc]
        victims = [n for n in nodes[1:] if n.machine.victim.hands]
        thieves = [n for n in nodes[1:] if n not in victims and n.machine.parts.counts["stolen"]]
        assert victims
        assert thieves
        for node in {"victim": victims, "thief": thieves, "both": victims + thieves}[dying]:
            node.crash()
        assert world.run(lambda one=one: one.ended, 300)  # type: ignore[misc]

        assert set(one.got) == set(range(200))
        assert max(one.delivered.values()) == 1
        assert one.state == "done"


def test_an_idle_grid_asks_nobody() -> None:
    """After a job, nothing is asked for in a minute, and little is said at all."""
    world = GridWorld(5)
    nodes = world.grid(5, **EARLY)
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    one = client.submit(SHARED, 100, lambda _: Task(0.1))
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 10)
    world.sent.clear()
    world.run(lambda: False, 60)

    assert [world.sent[kind] for kind in STEALS] == [0] * 5
    assert world.sent[m.P_WANT] == world.sent[m.P_CLAIM] == 0
    assert sum(world.sent.values()) <= 5 * 5 * 60


def test_nodes_that_can_do_nothing_ask_ever_less() -> None:
    """One holds ten tasks of a minute that only it may run: the others look a few times, and then less often."""
    world = World(4, Faults(ordered=True))
    holder = {"slots": 1, "resources": {"gpu": 1}}
    nodes = [world.add("n0", slots=0), world.add("n1", **holder, **EARLY), *(world.add(f"n{i}") for i in range(2, 6))]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    one = client.submit(SHARED, 12, lambda i: Task(0.01 if i == 0 else 60.0), options={"resources": {"gpu": 1}})
    world.run(lambda: False, 60)
    before = sum(world.sent[kind] for kind in STEALS) + world.sent[m.P_WANT]
    world.run(lambda: False, 300)
    more = sum(world.sent[kind] for kind in STEALS) + world.sent[m.P_WANT] - before

    assert more / 4 / 300 <= 0.5
    assert world.run(lambda: one.ended, 1000)


@pytest.mark.parametrize("seed", [206, 213, 223])
def test_a_storm_of_thieves(seed: int) -> None:
    """As the other storms, but whoever asks first holds nearly all."""
    storm(seed, queue_s=1e6, guided=0.3)
