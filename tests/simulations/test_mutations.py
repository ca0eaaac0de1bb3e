"""Machines that are broken on purpose: the simulator has to notice each, within so many seeds.

A checker that never barks proves nothing. Each mutation takes out one rule that the protocols rest on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Record
from p2pgrid.node.keeping import Keeping
from p2pgrid.node.leases import Leases
from p2pgrid.node.liveness import Liveness
from p2pgrid.node.replicas import Replicas
from p2pgrid.node.stealing import Victim
from p2pgrid.simulations.running import run_seed
from p2pgrid.simulations.scenario import parse
from tests.simulations.broken import barks, renew

HARSH = """
[grid]
nodes = 5
slots = [1, 2]
owners = 1
speculate = false
[run]
storm_s = 15
deadline_s = 120
agree_s = 90
idle_s = 700
[[work]]
kind = "map"
jobs = 2
tasks = [20, 120]
seconds = 0.2
spread = "uneven"
at_s = 0.5
every_s = 3
[[fault]]
kind = "crash"
every_s = 12
reset = [0.0, 1.0]
gone = 1.0
share = 0.5
[[fault]]
kind = "weather"
loss = 0.1
duplicate = 0.05
"""
LOSSY = (
    HARSH[: HARSH.index("[[fault]]")]
    + """
[[fault]]
kind = "weather"
loss = 0.2
optional = false
"""
)
"""Nobody dies here, so that leases that never lapse do no harm by themselves."""
OWNERS = HARSH.replace("gone = 1.0", "owners = true\nlasts_s = 4\noptional = false")
"""Nodes that took jobs are killed as well; all come back."""


@pytest.mark.parametrize("seed", range(3))
def test_the_machine_as_it_is_passes(seed: int) -> None:
    """What barks at mutants does not bark at the machine."""
    outcome = run_seed(parse("mutation", HARSH), seed)

    assert not outcome.failed, f"{outcome.invariant}: {outcome.what}"


def test_claims_that_never_lapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead node held would wait for it for ever."""
    monkeypatch.setattr(Leases, "lapse", renew)

    assert barks(HARSH).invariant == "L1 every job ends"


def test_a_hand_over_without_acknowledgement_and_no_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range whose hand-over is lost would be nobody's: the victim forgot it, the keeper believes it is held."""
    monkeypatch.setattr(Leases, "lapse", renew)
    hand: Callable[..., Any] = Victim.hand

    def forget(self: Victim, peer: str, rid: Any, *rest: Any) -> None:
        hand(self, peer, rid, *rest)
        self.settled(peer, rid, rest[-1], taken=True)

    claim: Callable[..., Any] = Leases.claim

    def ignore(self: Leases, peer: str, *rest: Any, **more: Any) -> Any:
        holder = self.holders.get(peer)
        before = {} if holder is None else {job: held.copy() for job, held in holder.covered.items()}
        found = claim(self, peer, *rest, **more)
        holder = self.holders.get(peer)
        if holder is not None:
            for job, held in before.items():
                holder.covered.setdefault(job, RangeSet()).update(held)
        return None if found is None else []

    monkeypatch.setattr(Victim, "hand", forget)
    monkeypatch.setattr(Leases, "claim", ignore)

    assert barks(LOSSY).invariant == "L1 every job ends"


def test_a_merge_that_drops_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that one of two copies has would be gone."""
    join: Callable[..., Any] = Record.join

    def drop(self: Record, other: Record) -> Record:
        before = dict(self.results)
        join(self, other)
        if before:
            self.results = before
        return self

    monkeypatch.setattr(Record, "join", drop)

    assert "two copies" in barks(HARSH).what


def test_a_detector_that_never_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead would be taken for alive."""
    monkeypatch.setattr(Liveness, "_accuse", lambda *_: [])

    assert barks(HARSH).invariant == "L3 membership agrees"


def test_a_promise_before_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acknowledgement that leaves before the disk has it may be broken by a crash."""
    marked: Callable[..., Any] = Keeping._mark

    def mark(self: Keeping, kept: Any, mark_: Any, row: Any, ack: Any) -> Any:
        return [*marked(self, kept, mark_, row, ack), ack]

    monkeypatch.setattr(Keeping, "_mark", mark)

    assert barks(HARSH).invariant == "a promise after Stored"


def test_keepers_that_never_promote_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens, and goes on listening, serves nobody."""
    monkeypatch.setattr(Replicas, "_consider", lambda *_: None)

    assert barks(OWNERS).invariant == "L1 every job ends"


def test_keepers_as_they_are_pass() -> None:
    """What barks at that mutant does not bark at the machine."""
    outcome = run_seed(parse("mutation", OWNERS), 0)

    assert not outcome.failed, f"{outcome.invariant}: {outcome.what}"
