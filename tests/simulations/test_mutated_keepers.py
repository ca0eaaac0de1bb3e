"""Keepers of records that are broken on purpose, each in one rule: the simulator has to notice it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from p2pgrid.core.record import BatchId
from p2pgrid.node.copying import Copying
from p2pgrid.node.listing import Listing
from p2pgrid.node.reading import Readers
from p2pgrid.node.replicas import Replicas
from tests.simulations.broken import barks, passes

READERS = """
[grid]
nodes = 5
slots = [1, 2]
owners = 1
[run]
storm_s = 40
deadline_s = 120
[[work]]
kind = "readers"
tasks = [40, 80]
seconds = 2.0
fickle = 1.0
at_s = 0.5
wait_s = 1
least_s = 60
[[fault]]
kind = "part"
every_s = 8
lasts_s = 20
"""
"""Both halves of a grid run tasks that return another value each time; who reads after that gets what was sealed."""
COPIES = """
[grid]
nodes = 9
owners = 1
[run]
storm_s = 25
deadline_s = 120
[[work]]
kind = "map"
jobs = 3
tasks = [10, 60]
seconds = 0.3
at_s = 0.5
[[fault]]
kind = "crash"
every_s = 15
lasts_s = 4
reset = 1.0
[[fault]]
kind = "disk-slow"
every_s = 5
lasts_s = 5
"""
"""More nodes than copies: who has stood in for one that was away lets go."""
OWNERS = """
[grid]
nodes = 5
slots = 2
owners = 1
speculate = false
[run]
storm_s = 30
deadline_s = 120
[[work]]
kind = "map"
jobs = 3
tasks = [20, 60]
seconds = 1.5
at_s = 0.5
every_s = 6
[[fault]]
kind = "crash"
every_s = 10
lasts_s = 5
owners = true
share = 0.2
[expect]
executions = [1.0, 1.12]
"""
"""The node that took the jobs dies and comes back; what others run meanwhile is not to be run again."""
FORGET = """
[grid]
nodes = 4
owners = 1
[run]
storm_s = 40
deadline_s = 120
copies_s = 60
[[work]]
kind = "forget"
jobs = 4
tasks = [2, 20]
seconds = 0.1
at_s = 0.5
every_s = 5
[[fault]]
kind = "crash"
every_s = 12
lasts_s = 10
old = 1.0
"""
"""Jobs are forgotten while nodes come back with old images of their disks."""


@pytest.mark.parametrize("text", [READERS, COPIES, OWNERS, FORGET], ids=["readers", "copies", "owners", "forget"])
def test_keepers_as_they_are_pass(text: str) -> None:
    """What barks at the mutants below does not bark at them."""
    passes(text, range(2))


def test_seals_that_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two results of a task every copy would give the one with the smaller name, whatever readers were given."""

    def chosen(kept: Any, missing: Any) -> Iterable[tuple[BatchId, int]]:
        left = missing.copy()
        for _, batch, size in sorted(kept.order, key=lambda one: one[1]):
            results = kept.record.results[batch]
            if left.within(results.lo, results.hi):
                left.discard(results.lo, results.hi)
                yield batch, size

    monkeypatch.setattr(Readers, "_chosen", staticmethod(chosen))

    assert "for who submitted it" in barks(READERS, first=9).what


def test_a_copy_that_is_dropped_before_all_keepers_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five others may have it; but nobody has said so."""
    monkeypatch.setattr(Copying, "has_all", lambda *_: True)

    assert barks(COPIES).invariant == "I9 nobody drops what others lack"


def test_a_first_in_rank_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holders claim it would hand out again."""
    monkeypatch.setattr(Replicas, "_listen", lambda self, kept, now: self.succession.serve(kept, now))

    assert barks(OWNERS).what.startswith("executions is ")


def test_an_old_disk_without_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was forgotten would come back with whoever was away."""
    monkeypatch.setattr(Listing, "forgotten", lambda *_: False)
    monkeypatch.setattr(Listing, "bury", lambda *_: None)

    assert barks(FORGET).invariant == "L7 what was forgotten stays so"
