"""How work is shared out: all nodes end together, owners get their turns, and what a lost node held runs elsewhere."""

from __future__ import annotations

import random

import pytest

from p2pgrid.core import chains
from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, encode_batch
from p2pgrid.node import events as e
from tests.node.desk import JOB, Desk, batch, sends
from tests.node.driver import CODE, UNION, Client, Faults, Node, Task, World
from tests.node.test_machine_members import FACTS, granted, keeper, waiting, want

SHARED = b"j" * 16


def pareto(seed: int, count: int, total_s: float, alpha: float = 2.0) -> list[float]:
    """Return uneven durations that add up to `total_s`."""
    rng = random.Random(seed)
    drawn = [rng.paretovariate(alpha) for _ in range(count)]
    return [total_s * one / sum(drawn) for one in drawn]


def three_nodes(seed: int, latency_s: float) -> tuple[World, list[Node], Client]:
    """Return three one-slot nodes that know each other, and a client of the first."""
    world = World(seed, Faults(delay_s=(0.8 * latency_s, 1.2 * latency_s), ordered=True))
    nodes = [world.add(f"n{i}", slots=1) for i in range(3)]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    return world, nodes, client


@pytest.mark.parametrize(("latency_s", "limit", "seeds"), [(0.001, 1.08, 10), (0.025, 1.15, 4)])
def test_uneven_tasks_end_together(latency_s: float, limit: float, seeds: int) -> None:
    """400 Pareto tasks, 20 s in all, on three one-slot nodes: near the ideal, and each node does its part."""
    for seed in range(seeds):
        seconds = pareto(seed, 400, 20.0)
        world, nodes, client = three_nodes(seed, latency_s)
        start = world.now
        one = client.submit(SHARED, 400, lambda i, s=seconds: Task(s[i]))  # type: ignore[misc]
        assert world.run(lambda one=one: one.ended, 100)  # type: ignore[misc]
        kept = nodes[0].machine.keeping.jobs[SHARED]
        done = dict.fromkeys(("n0", "n1", "n2"), 0.0)
        for made, results in kept.record.results.items():
            done[made.node] += sum(seconds[results.lo : results.hi])

        assert world.now - start <= limit * 20.0 / 3, f"seed {seed}"
        assert min(done.values()) >= 0.2 * 20.0, f"seed {seed}: {done}"
        assert max(world.runs.values()) == 1


def test_a_member_is_given_no_more_than_it_would_queue() -> None:
    """By the rate its results showed; one task per free slot while that is unknown."""
    desk = keeper(30)
    (first,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 1], 2, 0.0, 0.5])), m.P_GRANT)
    assert granted(first) == [0, 1]
    entry = [JOB, [5, 1], 1, [[0, 2, 0, [b"a", b"b"]]], [], 0.1]
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]), e.PeerSent("p", m.P_RESULTS, [entry]))
    (second,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 2], 2, 0.0, 0.5])), m.P_GRANT)

    assert len(granted(second)) == 10


def test_a_member_is_given_a_second_of_a_long_job_at_once() -> None:
    """By the rate its own results showed: fewer requests; less towards the end."""
    given = []
    for count in (100_000, 400, 60):
        desk = keeper(count)
        desk.do(e.PeerSent("p", m.P_WANT, [[5, 1], 2, 0.0, 0.5]))
        entry = [JOB, [5, 1], 1, [[0, 2, 0, [b"a", b"b"]]], [], 0.02]
        desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]), e.PeerSent("p", m.P_RESULTS, [entry]))
        (second,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 2], 2, 0.0, 0.1])), m.P_GRANT)
        given.append(len(granted(second)) * 0.01 / 2)

    assert given == pytest.approx([1.2, 0.6, 0.085], abs=0.02)


def test_the_last_tasks_leave_one_by_one() -> None:
    """Half a member's share of what is left at most, however much it would like to have."""
    desk = keeper(64)
    desk.do(e.PeerUp("q", FACTS))
    want(desk)
    entry = [JOB, [5, 1], 1, [[0, 1, 0, [b"a"]]], [], 0.001]
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]), e.PeerSent("p", m.P_RESULTS, [entry]))
    sizes = []
    for number in range(2, 40):
        for grant in sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, number], 1, 0.0, 100.0])), m.P_GRANT):
            desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, number], 1]))
            sizes.append(len(granted(grant)))

    assert sizes[:4] == [16, 12, 9, 7]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-3:] == [1, 1, 1]


def test_a_grant_carries_a_bounded_amount_of_inputs() -> None:
    """Four MiB, and at least one task; the rest stays in the pool."""
    desk = Desk(slots=0)
    desk.join()
    desk.submit(1, close=False)
    big = [b"x" * (1 << 20)] * 20
    desk.say(m.INPUT, [JOB, 1, 21, _calls(big)])
    desk.sync()
    desk.do(e.PeerUp("p", {**FACTS, "slots": 30}))
    (grant,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 1], 30, 0.0, 9.0])), m.P_GRANT)

    assert granted(grant) == [0, 1, 2, 3]
    assert waiting(desk) == [(4, 21)]


def _calls(data: list[bytes]) -> bytes:
    return encode_batch([CODE], [{}], [(len(data), 0, 0, CALLS, data)])


def test_a_node_serves_its_keepers_in_turns() -> None:
    """1000 tasks of one node and 10 of another at a shared holder: the ten do not wait for the thousand."""
    world = World(2, Faults(ordered=True))
    big, small = world.add("big", slots=0), world.add("small", slots=0)
    world.add("holder", slots=1)
    clients = [Client(big, 1, b"b" * 16), Client(small, 2, b"s" * 16)]
    for client in clients:
        client.connect()
    world.run(lambda: False, 1)
    many = clients[0].submit(b"B" * 16, 1000, lambda _: Task(0.05))
    world.run(lambda: len(many.got) > 20, 60)
    start, had = world.now, len(many.got)
    few = clients[1].submit(b"S" * 16, 10, lambda _: Task(0.05))

    assert world.run(lambda: few.ended, 100)
    assert world.now - start < 2.5 * 10 * 0.05 + 0.5
    assert len(many.got) > had + 5
    assert world.run(lambda: many.ended, 100)


@pytest.mark.parametrize("reset", [True, False])
def test_what_a_lost_node_held_runs_elsewhere(reset: bool) -> None:  # noqa: FBT001
    """Within two seconds of a reset, six when it just falls silent; nothing is lost or doubled."""
    for seed in range(5):
        world, nodes, client = three_nodes(seed, 0.001)
        begun: dict[int, float] = {}

        def task(index: int, world: World = world, begun: dict[int, float] = begun) -> Task:
            begun[index] = world.now
            return Task(0.5)

        one = client.submit(SHARED, 60, task)
        world.run(lambda: False, 3.2 + 0.1 * seed)
        lost = [i for i in range(60) if i in nodes[0].machine.leases.holders["n1"].covered.get(SHARED, ())]
        world.faults.reset_seen = 1.0 if reset else 0.0
        nodes[1].crash()
        died = world.now

        assert lost
        assert world.run(lambda one=one: one.ended, 100)  # type: ignore[misc]
        assert set(one.got) == set(range(60))
        first_again = min(begun[i] for i in lost) - died
        assert first_again <= (2.0 if reset else 6.0)
        assert max(one.delivered.values()) == 1


def test_a_suspect_gets_no_new_work() -> None:
    """It is told nothing and granted nothing, until it is no suspect any more."""
    desk = keeper()
    desk.machine.parts.suspects.add("p")
    assert sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 1], 2, 0.0])), m.P_NONE) == [[[5, 1]]]
    assert sends(desk.wait(3), m.P_WORK) == []
    desk.machine.parts.suspects.discard("p")

    assert sends(desk.wait(1.5), m.P_WORK) == [[]]


def test_a_member_without_the_right_to_work_gets_none() -> None:
    """Its requests are refused, its claims and results count for nothing, and that is said once."""
    desk = Desk(slots=0)
    desk.join()
    desk.submit(4)
    desk.sync()
    out = desk.do(e.PeerUp("p", FACTS, None, chains.SUBMIT))
    assert sends(out, m.P_WORK) == []
    for number in (1, 2):
        out += desk.do(
            e.PeerSent("p", m.P_WANT, [[5, number], 2, 0.0]),
            e.PeerSent("p", m.P_CLAIM, [5, number, 1.0, [[JOB, [0, 2], []]]]),
            e.PeerSent("p", m.P_RESULTS, [[JOB, [5, number], 1, [[0, 1, 0, [b"forged"]]]]]),
        )

    assert [body[0] for body in sends(out, m.P_NONE)] == [[5, 1], [5, 2]]
    assert waiting(desk) == [(0, 4)]
    assert not desk.machine.keeping.jobs[JOB].done
    assert len([one for one in out if isinstance(one, e.Log)]) == 3
    desk.do(e.PeerRoles("p", chains.SUBMIT | chains.WORK))
    assert len(sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 3], 2, 0.0])), m.P_GRANT)) == 1


def test_work_of_a_member_without_the_right_to_submit_is_not_taken() -> None:
    """Nothing is acknowledged: it takes its tasks back."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS, None, chains.WORK))
    grant = [[7, 1], JOB, "j", [[0, 2, 1]], [[CODE, UNION]], [[0, 2, batch(0, 2)]]]
    out = desk.do(e.PeerSent("k", m.P_GRANT, grant), e.PeerSent("k", m.P_GRANT, grant))

    assert sends(out, m.P_GRANT_ACK) == []
    assert desk.machine.pool.works == {}
    assert len([one for one in out if isinstance(one, e.Log)]) == 1
