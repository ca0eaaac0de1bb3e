"""The last tasks at slow members run a second time where slots are idle; the first result counts."""

from __future__ import annotations

import random
from statistics import median
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.doubling import _middle
from tests.node.desk import JOB, Desk, runs, sends, tasks
from tests.node.driver import Client, Faults, Task, World
from tests.node.test_machine_members import FACTS, granted, waiting

SHARED = b"j" * 16
MEMBERS = ("slow", "quick", "other")


def say(desk: Desk, peer: str, seq: int, held: list[int], running: list[int] | None = None) -> list[e.Effect]:
    """Let a member claim."""
    claims = [[JOB, held, running or []]] if held else []
    return desk.do(e.PeerSent(peer, m.P_CLAIM, [5, seq, 1.0, claims]))


def ask(desk: Desk, peer: str, number: int, free: int = 1) -> list[e.Effect]:
    """Let a member ask for work."""
    return desk.do(e.PeerSent(peer, m.P_WANT, [[5, number], free, 0.0, 0.1]))


def last_task(slots: int = 0, **config: Any) -> Desk:
    """Return a keeper all of whose tasks are done but one that `slow` has begun; its tasks take four times as long."""
    desk = Desk(slots=slots, **config)
    desk.join()
    desk.submit(4)
    desk.sync()
    for peer in MEMBERS:
        desk.do(e.PeerUp(peer, {**FACTS, "name": peer, "slots": 1}))
    for number, (peer, busy_s) in enumerate([("slow", 4.0), ("quick", 1.0), ("other", 1.0), ("slow", 0.0)]):
        (grant,) = sends(ask(desk, peer, number), m.P_GRANT)
        (task,) = granted(grant)
        desk.do(e.PeerSent(peer, m.P_GRANT_ACK, [[5, number], 1]))
        desk.now += busy_s
        if busy_s:
            entry = [JOB, [5, 100 + number], 1, [[task, task + 1, 0, [b"v"]]], [], busy_s]
            desk.do(e.PeerSent(peer, m.P_RESULTS, [entry]))
            desk.sync()
    say(desk, "slow", 1, [3, 4], [3, 4])
    desk.ready()  # only now
    return desk


def beats(desk: Desk, count: int) -> list[e.Effect]:
    """Let `slow` live and run on."""
    out: list[e.Effect] = []
    for _ in range(count):
        out += desk.wait(0.5)
        beat = desk.machine.leases.holders["slow"].version[1] + 1
        out += say(desk, "slow", beat, [3, 4], [3, 4])
    return out


def test_an_idle_member_is_told_when_a_task_may_be_copied() -> None:
    """Not before it has run for half as long again as is usual; then it is granted the same task."""
    desk = last_task()
    assert sends(ask(desk, "quick", 50), m.P_GRANT) == []
    assert sends(beats(desk, 2), m.P_WORK) == []
    told = [one.peer for one in beats(desk, 3) if isinstance(one, e.Send) and one.kind == m.P_WORK]
    assert told == ["quick"]
    (grant,) = sends(ask(desk, "quick", 51), m.P_GRANT)

    assert grant[3] == [[3, 4, 1, False]]
    assert sends(ask(desk, "other", 52), m.P_GRANT) == []  # one copy is enough
    name = desk.machine.keeping.jobs[JOB].name
    desk.do(e.PeerSent("quick", m.P_GRANT_ACK, [[5, 51], 1]))
    lines = desk.answer("explain", target=f"{name}/3")["lines"]
    assert any("task 3: running at" in line for line in lines)


@pytest.mark.parametrize("winner", ["slow", "quick"])
def test_the_first_result_counts_and_the_other_is_told_to_stop(winner: str) -> None:
    """Whichever it is."""
    desk = last_task()
    beats(desk, 5)
    ask(desk, "quick", 51)
    desk.do(e.PeerSent("quick", m.P_GRANT_ACK, [[5, 51], 1]))
    entry = [JOB, [5, 200], 1, [[3, 4, 0, [b"first"]]], [], 1.0]
    out = desk.do(e.PeerSent(winner, m.P_RESULTS, [entry]))
    dropped = {one.peer for one in out if isinstance(one, e.Send) and one.kind == m.P_DROP}

    assert dropped >= {"slow", "quick"} - {winner}
    assert desk.machine.keeping.jobs[JOB].state == "done"
    desk.do(e.PeerSent("slow" if winner == "quick" else "quick", m.P_RESULTS, [[JOB, [5, 201], 1, entry[3], [], 1.0]]))
    assert len(desk.machine.keeping.jobs[JOB].done) == 1


def test_an_idle_slot_of_the_keeper_runs_a_copy_itself() -> None:
    """And stops it when the member was quicker."""
    desk = last_task(slots=1)
    out = beats(desk, 6)
    (run,) = runs(out)
    assert tasks(run) == [3]
    entry = [JOB, [5, 200], 1, [[3, 4, 0, [b"v"]]], [], 1.0]
    out = desk.do(e.PeerSent("slow", m.P_RESULTS, [entry]))

    assert [(one.worker, list(one.spans or ())) for one in out if isinstance(one, e.Kill)] == [(0, [(3, 4)])]


@pytest.mark.parametrize("why", ["switched off", "no slower", "it took a node along"])
def test_what_is_not_copied(why: str) -> None:
    """By the setting; where all are equal; what is dangerous."""
    desk = last_task(speculate=why != "switched off")
    if why == "no slower":
        for known in desk.machine.members.granting.rates.by_fn.values():
            known.update(dict.fromkeys(known, 1.0))
    if why == "it took a node along":
        desk.do(e.PeerDown("slow", reset=True))
        desk.wait(3)
        desk.do(e.PeerUp("slow", {**FACTS, "slots": 1}))
        assert waiting(desk) == [(3, 4)]
        sends(ask(desk, "slow", 40), m.P_GRANT)
        desk.do(e.PeerSent("slow", m.P_GRANT_ACK, [[5, 40], 1]))
        say(desk, "slow", 9, [3, 4], [3, 4])
    ask(desk, "quick", 50)
    beats(desk, 20)

    assert sends(ask(desk, "quick", 51), m.P_GRANT) == []


def test_one_slow_node_of_five_holds_nobody_up() -> None:
    """Eight times as slow: at most a fifth over the ideal instead of two; little runs twice, no result comes twice."""
    for seed in range(5):
        rng = random.Random(seed)
        seconds = [0.5 + rng.random() for _ in range(100)]
        world = World(seed, Faults(ordered=True))
        nodes = [world.add(f"n{i}", speed=speed) for i, speed in enumerate([1.0, 1.0, 1.0, 1.0, 0.125])]
        client = Client(nodes[0], 1, b"s" * 16)
        client.connect()
        world.run(lambda: False, 1)
        start = world.now
        one = client.submit(SHARED, 100, lambda i, s=seconds: Task(s[i]))  # type: ignore[misc]
        assert world.run(lambda one=one: one.ended, 100)  # type: ignore[misc]

        assert world.now - start <= 1.2 * sum(seconds) / 2 / 4.125, f"seed {seed}"
        assert sum(world.runs.values()) - 100 <= 3
        assert max(one.delivered.values()) == 1
        world.run(lambda: False, 5)
        assert not any(node.machine.running.busy() for node in nodes)


@pytest.mark.parametrize("known", [[1.0], [1.0, 2.0], [0.5, 0.5, 3.0], [0.1, 0.2, 0.2, 7.0, 9.0]])
def test_what_is_usual_is_the_median_of_the_others(known: list[float]) -> None:
    """Found without sorting anew for each member that is left out."""
    assert _middle(known, None) == median(known)
    assert _middle([], None) is None
    for number, one in enumerate(known):
        others = known[:number] + known[number + 1 :]
        assert _middle(known, one) == (median(others) if others else None)
