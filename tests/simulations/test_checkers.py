"""Each checker barks when what it guards is broken, and is quiet when it is not (others: test_mutations)."""

from __future__ import annotations

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.chains import OBSERVE
from p2pgrid.node.leases import Leases
from p2pgrid.node.members import Members
from p2pgrid.node.parts import Parts
from p2pgrid.simulations import World, running
from p2pgrid.simulations.checkers import Safety
from p2pgrid.simulations.checks_of_copies import must_be_copied
from p2pgrid.simulations.filming import Film
from p2pgrid.simulations.node import Node
from p2pgrid.simulations.running import Less, Run
from p2pgrid.simulations.scenario import parse
from p2pgrid.simulations.world import Violation
from tests.simulations.broken import barks, passes, renew

TWICE = """
[grid]
nodes = 4
owners = 1
[run]
storm_s = 10
[[work]]
kind = "map"
tasks = 80
at_s = 0.5
[[fault]]
kind = "weather"
duplicate = 0.3
optional = false
"""
REVOKED = """
[grid]
nodes = 5
owners = 1
[run]
storm_s = 30
[[work]]
kind = "map"
tasks = 200
seconds = 0.5
at_s = 0.5
[[fault]]
kind = "revoke"
every_s = 5
"""


def kept_grid() -> tuple[World, list[Node], bytes]:
    """Return a grid of four that has run a job, and the job."""
    world = World(1)
    nodes = world.grid(4)
    job = world.client(nodes[0]).submit(20, 0.05)
    assert world.run(lambda: job.ended, 30)
    must_be_copied(world, 30)
    return world, nodes, job.job


@pytest.mark.parametrize("text", [TWICE, REVOKED], ids=["twice", "revoked"])
def test_the_machine_as_it_is_passes(text: str) -> None:
    passes(text, range(2))


def test_a_question_that_is_answered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: a keeper that does not remember what it has answered grants again, and something else."""
    monkeypatch.setattr(Leases, "answered", lambda *_: None)

    assert barks(TWICE).invariant == "I6 a grant has one owner"


def test_work_for_who_must_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: a node that does not heed what it hears of others' roles gives them work."""
    monkeypatch.setattr(Members, "roles_changed", lambda *_: None)
    monkeypatch.setattr(Parts, "may", lambda *_: True)

    assert barks(REVOKED).invariant == "I8 no work without the role"


def test_a_cancel_of_who_may_only_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """I10: a request of a member with the role `observe` alone is refused, unless nobody looks at roles."""

    def ask() -> World:
        world = World(1)
        nodes = world.grid(3)
        looker = world.join(nodes[0], roles=OBSERVE)
        Safety(world)
        job = world.client(nodes[0]).submit(200, 0.5)
        assert world.run(lambda: world.agreed() and job.durable, 30)
        world.network.send(looker, "n0", m.P_ASK, [[looker.machine.holding._incarnation, 1], "cancel",
                                                   {"target": job.job.hex()}])  # fmt: skip
        world.pause(2)
        return world

    assert ask().jobs[0].state == ""
    monkeypatch.setattr("p2pgrid.node.inquiries.may", lambda *_: True)
    with pytest.raises(Violation, match="I10 who may only look changes nothing"):
        ask()


def test_a_copy_too_few() -> None:
    """L4: a node that should keep a record and has let it go, without a word to anybody."""
    world, nodes, job = kept_grid()
    machine = nodes[2].machine
    machine.keeping.jobs.pop(job)

    with pytest.raises(Violation, match=r"L4 as many copies as there should be: .* is at n0, n1, n3; 4 nodes"):
        must_be_copied(world, 5)


def test_copies_that_differ() -> None:
    """L2: a row that one copy lost."""
    world, nodes, job = kept_grid()
    rows = nodes[2].machine.keeping.jobs[job].rows
    key = rows.keys_of("result")[0]
    before = len(rows)
    row = nodes[2].disk.rows[job, "result", key]
    rows.put(row._replace(value=None))

    assert len(rows) == before - 1
    with pytest.raises(Violation, match="L2 copies are alike"):
        must_be_copied(world, 5)


def test_values_that_nobody_can_read() -> None:
    """L5: all disks but one lose the same values."""
    world, nodes, _ = kept_grid()
    for node in nodes[1:]:
        assert node.disk.damage(1.0)

    with pytest.raises(Violation, match=r"L5 every value is on two disks: .* can be read at 1 of 4"):
        must_be_copied(world, 5)


def test_who_waits_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario that cannot end is stopped at its virtual deadline, and says where the first missing task is."""
    monkeypatch.setattr(Leases, "lapse", renew)
    text = """
[grid]
nodes = 3
owners = 1
slots = 1
speculate = false
[run]
storm_s = 5
deadline_s = 60
[[work]]
kind = "map"
tasks = 40
seconds = 1.0
at_s = 0.5
[[fault]]
kind = "crash"
every_s = 2
gone = 1.0
reset = 0.0
"""
    outcome = next(
        one for one in (Run(parse("mine", text), seed, Less()).outcome() for seed in range(20)) if one.failed
    )

    assert outcome.invariant == "L1 every job ends"
    assert "of 40 results missing" in outcome.what
    assert "is covered at n0 by n" in outcome.what
    assert outcome.virtual_s < 5 + 60 + running.MEET_S


def test_a_run_does_the_same_when_it_is_filmed() -> None:
    """The picture of a run is of that run: filming draws nothing and changes nothing."""

    def digest(*, filmed: bool) -> str:
        run = Run(parse("mine", TWICE), 3, Less())
        film = Film(run.world) if filmed else None
        outcome = run.outcome()
        if film is not None:
            bars = list(film.bars())
            assert len(bars) == sum(sum(one.runs.values()) for one in run.world.truths.values())
            assert all(bar.ended_s >= bar.began_s for bar in bars)
            assert max(copies for seen in film.copies.values() for _, copies in seen) == 4
            assert sum(rate for _, rate in film.rates()) > 0
        return outcome.digest

    assert digest(filmed=False) == digest(filmed=True)
