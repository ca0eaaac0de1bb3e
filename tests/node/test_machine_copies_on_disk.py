"""A keeper counts what is on its disk: what could not be written is asked for later, what is missing is hoped for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from p2pgrid.core.shapes import FAILURE
from p2pgrid.node import events as e
from p2pgrid.node.rows import LOCAL, Rows
from tests.node.driver import Client, Submitted, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"J" * 16


def _submitted(node: GridNode, count: int, seconds: float) -> Submitted:
    client = Client(node, 1, b"s" * 16)
    client.connect()
    return client.submit(JOB, count, lambda _: Task(seconds), detach=True)


def _record(node: GridNode) -> Any:
    return node.machine.keeping.jobs[JOB]


def _on_disk(node: GridNode) -> bytes:
    """Return the digest of what is really there."""
    rows = Rows()
    for (job, kind, _), row in node.disk.items():
        if job == JOB and kind not in LOCAL:
            rows.put(row)
    return rows.digest()


@pytest.mark.parametrize("full", ["n0", "n1"])
def test_what_a_full_disk_did_not_take_is_no_part_of_a_copy(full: str) -> None:
    """No digest counts it, nothing rests on it; when the disk takes rows again, all of them get there."""
    world = GridWorld(3)
    nodes = world.grid(3)
    one = _submitted(nodes[0], 300, 0.1)
    assert world.run(lambda: sum(one.delivered.values()) > 30, 60)
    node = world.nodes[full]
    node.disk_full = True
    world.run(lambda: False, 4.0)

    assert _record(node).rows.digest() == _on_disk(node)
    assert sum(one.delivered.values()) > 60
    if full == "n1":
        assert not nodes[0].machine.replicas.copying.has_all("n1", JOB)
    node.disk_full = False
    assert world.run(lambda: one.ended, 60)
    copies = [(_record(one), one) for one in nodes]
    assert world.run(lambda: len({kept.rows.digest() for kept, _ in copies}) == 1, 30)
    assert world.run(lambda: all(kept.rows.digest() == _on_disk(one) for kept, one in copies), 5)
    assert one.state == "done"
    assert not any(shape == FAILURE for shape, _ in one.got.values())


def test_inputs_that_the_new_keeper_lacks_are_waited_for() -> None:
    """The one who has them is away: their tasks do not fail, they run when it is back."""
    world = GridWorld(5)
    nodes = world.grid(2, slots=1)
    one = _submitted(nodes[0], 60, 0.3)
    assert world.run(lambda: sum(one.delivered.values()) > 10, 60)
    world.run(lambda: False, 1.0)
    lacking = [key for key in nodes[1].disk if key[1] in ("code", "input")]
    assert lacking
    nodes[1].damaged.update(lacking)
    nodes[0].crash(reset=True)
    assert world.run(lambda: _record(nodes[1]).serving, 20)
    world.run(lambda: False, 30.0)

    assert not _record(nodes[1]).ended
    assert not _record(nodes[1]).failed
    nodes[0].start()
    assert world.run(lambda: _record(nodes[0]).ended and _record(nodes[1]).ended, 120)
    assert _record(nodes[1]).state == "done"


def test_inputs_that_nobody_has_are_lost() -> None:
    """All members are there and none has them: the tasks fail soon, nobody waits for ever."""
    world = GridWorld(6)
    nodes = world.grid(2, slots=1)
    one = _submitted(nodes[0], 60, 0.3)
    assert world.run(lambda: sum(one.delivered.values()) > 10, 60)
    world.run(lambda: False, 1.0)
    for node in nodes:
        node.crash(reset=True)
    for node in nodes:
        for key in [key for key in node.disk if key[1] == "input"]:
            node.damaged.add(key)
        node.start()

    assert world.run(lambda: all(_record(node).ended for node in nodes), 60)
    assert _record(nodes[0]).state == "failed"
    assert _record(nodes[0]).done.size == 60


def test_what_was_about_to_be_said_of_a_copy_is_not_said() -> None:
    """A digest that waits for earlier rows is dropped when these do not get to the disk."""
    world = GridWorld(7)
    nodes = world.grid(2)
    _submitted(nodes[0], 10, 5.0)
    assert world.run(lambda: JOB in nodes[1].machine.keeping.jobs, 20)
    world.run(lambda: False, 1.0)
    kept, keeping = _record(nodes[0]), nodes[0].machine.keeping
    token, _ = keeping.store([e.Row(JOB, "attempt", b"k", b"m", b"")])
    nodes[0].machine.out.clear()
    nodes[0].machine.replicas._say("n1", [kept], asks=True)
    waiting = next(one.token for one in nodes[0].machine.out if isinstance(one, e.Store))
    before = kept.rows.digest()

    keeping.store_failed(token, "no space left on the disk")

    assert kept.rows.digest() != before
    assert keeping.stored(waiting) == []
    assert keeping.must_write_again


def _reader(node: GridNode) -> Submitted:
    client = Client(node, 5, b"r" * 16)
    client.connect()
    return client.read(JOB)


def _has_300(read: Submitted) -> bool:
    return read.ended and read.state == "done" and sorted(read.delivered.values()) == [1] * 300


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_holds_up_nobody_who_reads_elsewhere(*, before: bool) -> None:
    """What it does not take the other keepers get all the same: they tell it, and have it when that node is gone."""
    world = GridWorld(7)
    nodes = world.grid(3)
    one = _submitted(nodes[0], 300, 0.1)
    assert world.run(lambda: sum(one.delivered.values()) > 30, 60)
    early = _reader(nodes[2])
    if before:
        world.part([nodes[0]], [nodes[2]])
        world.broken(frozenset(("n0", "n2")))
    nodes[0].disk_full = True
    world.run(lambda: False, 2.0)
    world.heal()

    assert world.run(lambda: _has_300(early), 60), (len(early.delivered), early.state)
    late = _reader(nodes[1])
    assert world.run(lambda: _has_300(late), 10)
    assert all(_record(node).done.size == 300 for node in nodes[1:])
    nodes[0].crash(with_disk=True, reset=True)
    world.run(lambda: False, 10.0)
    last = _reader(nodes[1])
    assert world.run(lambda: _has_300(last), 10)


@pytest.mark.parametrize("early", [True, False])
def test_who_reads_at_a_full_disk_reads_what_others_have(*, early: bool) -> None:
    """The copy there goes no further; whoever reads it is told the rest by the node that serves the job."""
    world = GridWorld(8)
    nodes = world.grid(3)
    one = _submitted(nodes[0], 300, 0.1)
    assert world.run(lambda: sum(one.delivered.values()) > 30, 60)
    read = _reader(nodes[1]) if early else None
    nodes[1].disk_full = True
    if read is None:
        assert world.run(lambda: one.ended, 60)
        read = _reader(nodes[1])

    assert world.run(lambda: _has_300(read), 60), (len(read.delivered), read.state)
    assert _record(nodes[1]).done.size < 300


def test_what_a_full_disk_did_not_take_is_sent_to_a_keeper_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 22 of `smoke`: while another keeper was not level, all of it was queued again with each row thereafter."""
    world = GridWorld(9)
    nodes = world.grid(3)
    one = _submitted(nodes[0], 300, 0.1)
    assert world.run(lambda: sum(one.delivered.values()) > 30, 60)
    copying = nodes[0].machine.replicas.copying
    is_level, push = copying.is_level, copying.push
    pushed: Counter[tuple[str, str, bytes]] = Counter()

    def counted(peer: str, rows: Sequence[e.Row], *rest: Any) -> None:
        pushed.update((peer, row.kind, row.key) for row in rows)
        push(peer, rows, *rest)

    monkeypatch.setattr(copying, "is_level", lambda peer, job: peer != "n2" and is_level(peer, job))
    monkeypatch.setattr(copying, "push", counted)
    nodes[0].disk_full = True
    world.run(lambda: False, 5.0)

    assert sum(peer == "n1" for peer, _, _ in pushed) > 100
    assert max(count for (peer, _, _), count in pushed.items() if peer == "n1") <= 2
