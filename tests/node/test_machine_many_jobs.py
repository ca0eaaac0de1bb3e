"""What a node does for one job does not grow with the number of jobs that it keeps (counted, not timed)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.core.record import Spec, State
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from p2pgrid.node.kept import DONE, Kept
from p2pgrid.node.replicas import Replicas
from tests.node.driver import UNIX_0, Client, Task
from tests.node.grid_world import GridNode, GridWorld

KEPT = 300
NEW = 10


def _ended(nodes: list[GridNode], node: GridNode, number: int) -> None:
    """Give a node the copy of a job that has ended, served by one of all."""
    owner = nodes[number % len(nodes)].name
    spec = Spec("map", "", b"s" * 16, UNIX_0 + number, 1e7, owner=owner.encode(), detach=True)
    job = number.to_bytes(16, "big")
    kept = node.machine.keeping.begin(job, spec, spec.packed(), serving=owner == node.name)
    kept.server, kept.copied, kept.state = owner, True, DONE
    kept.record.closed, kept.record.state = 0, State.FINISHED
    rows = [("spec", spec.packed()), ("close", pack(0)), ("state", pack([DONE, ""]))]
    for row in [e.Row(job, kind, b"", meta, b"") for kind, meta in rows]:
        kept.rows.put(row)
        node.disk[job, row.kind, b""] = row
    node.machine.keeping.changed(kept)


def _counted(monkeypatch: pytest.MonkeyPatch, kept: int) -> int:
    """Return how often a job was looked at while ten more came and ended."""
    world = GridWorld(1)
    nodes = world.grid(3)
    for node in nodes:
        for number in range(kept):
            _ended(nodes, node, number)
        node.machine.parts.regrouped = True
    world.run(lambda: False, 30.0)
    looks: Counter[str] = Counter()

    def counting(name: str, old: Callable[..., Any]) -> Callable[..., Any]:
        def count(self: Replicas, one: Kept) -> Any:
            looks[name] += 1
            return old(self, one)

        return count

    with monkeypatch.context() as patch:
        for name in ("first", "_unlevel"):
            patch.setattr(Replicas, name, counting(name, getattr(Replicas, name)))
        client = Client(nodes[0], 1, b"s" * 16)
        client.connect()
        for number in range(NEW):
            one = client.submit(b"new-%012d" % number, 5, lambda _: Task(0.05), detach=True)
            assert world.run(lambda: one.ended, 30)  # noqa: B023
    assert len(nodes[1].machine.keeping.jobs) == kept + NEW
    return looks.total()


def test_a_new_job_is_no_reason_to_look_at_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = _counted(monkeypatch, 0), _counted(monkeypatch, KEPT)
    # Once a second or so all are looked at while something is under way; else only what has changed.
    assert many < few + 3 * KEPT * 4, (few, many)
    assert many < NEW * KEPT, (few, many)


def test_an_idle_grid_looks_at_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    world = GridWorld(2)
    nodes = world.grid(3)
    for node in nodes:
        for number in range(KEPT):
            _ended(nodes, node, number)
        node.machine.parts.regrouped = True
    world.run(lambda: False, 30.0)

    def fail(*_: object) -> None:
        pytest.fail("a job was looked at though nothing has happened")

    monkeypatch.setattr(Replicas, "group", fail)
    world.run(lambda: False, 120.0)
