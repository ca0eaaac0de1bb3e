"""Readers at one node of jobs at another: the same frames, each result once, whatever happens to the way between."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.chains import OBSERVE, WORK
from p2pgrid.node import events as e
from p2pgrid.node import relaying
from p2pgrid.node.kept import KeepingOptions
from p2pgrid.node.relaying import Relays
from tests.node.driver import Client, Faults, Submitted, Task, value_of
from tests.node.grid_world import GridNode, GridWorld

JOB = b"j" * 16
COUNT = 200


def _client(node: GridNode, number: int = 1) -> Client:
    client = Client(node, number, bytes([number]) * 16)
    client.connect()
    return client


def _asked(world: GridWorld, client: Client, verb: str, within_s: float = 10.0, **arguments: Any) -> Any:
    count = len(client.answers) + len(client.errors)
    client.ask(verb, **arguments)
    assert world.run(lambda: len(client.answers) + len(client.errors) > count, within_s), "no answer"
    return client.errors[-1] if client.errors else client.answers[max(client.answers)]


def _task(index: int) -> Task:
    return Task(0.02, "raise" if index % 50 == 7 else "ok")


def _grid(seed: int, count: int = 3, faults: Faults | None = None, **config: Any) -> tuple[GridWorld, list[GridNode]]:
    """Nodes that have met, on links that carry frames in order; nobody keeps copies of what others took."""
    world = GridWorld(seed, faults or Faults(ordered=True))
    return world, world.grid(count, keeps=False, **config)


def _is_whole(read: Submitted, own: Submitted, count: int = COUNT) -> None:
    """Every result once, the same as the reader at the accepting node was given, with the same places."""
    assert set(read.got) == set(range(count))
    assert set(read.delivered.values()) == {1}
    assert (read.got, read.places, read.state) == (own.got, own.places, own.state)


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_a_job_is_read_at_a_node_that_never_saw_it(moment: str) -> None:
    """From its first task, amid them and when it has long ended; failures, nodes and attempts are told as well."""
    world, nodes = _grid(1)
    owner, other = _client(nodes[0]), _client(nodes[2], 2)
    own = owner.submit(JOB, COUNT, _task)
    if moment != "before":
        assert world.run(lambda: len(own.got) > COUNT // 2 if moment == "amid" else own.ended, 60)
    read = other.read(JOB)

    assert world.run(lambda: read.ended and own.ended, 60)
    _is_whole(read, own)
    assert read.state == "failed"
    assert {node for node, _ in read.places.values()} >= {"n0", "n1"}
    assert not nodes[0].machine.relays.is_busy
    assert not nodes[2].machine.relays.is_busy


def test_results_come_as_they_are_made() -> None:
    """Not only at the end; and a reader that came later gets what there is at once."""
    world, nodes = _grid(2)
    owner, other = _client(nodes[0]), _client(nodes[1], 2)
    own = owner.submit(JOB, 12, lambda _: Task(1.0))
    read = other.read(JOB)
    assert world.run(lambda: len(own.got) == 6, 5.0)
    later = _client(nodes[2], 3).read(JOB)

    assert world.run(lambda: len(read.got) == 6 == len(later.got), 0.1)


def test_several_readers_at_one_node_are_given_everything_each() -> None:
    """One of them leaves amid: the others are not held up, and nothing is kept for it."""
    world, nodes = _grid(3)
    own = _client(nodes[0]).submit(JOB, COUNT, _task)
    readers = [_client(nodes[1], number) for number in (2, 3, 4)]
    reads = [reader.read(JOB) for reader in readers]
    assert world.run(lambda: len(own.got) > 50, 60)
    readers[0].leave(goodbye=True)

    assert world.run(lambda: own.ended and all(read.ended for read in reads[1:]), 60)
    for read in reads[1:]:
        _is_whole(read, own)
    assert len(reads[0].got) < COUNT
    assert not nodes[0].machine.relays.is_busy


@pytest.mark.parametrize(("lost", "twice"), [(m.RESULT, False), (m.STATE, False), (m.RESULT, True)])
def test_a_frame_that_was_lost_is_asked_for_after_half_a_minute(
    lost: int,
    twice: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 12 of `owner-never-returns`: the reader waited for it for ever; seed 0: one that came twice stood for it."""
    world, nodes = _grid(12)
    own = _client(nodes[0]).submit(JOB, COUNT, _task)
    assert world.run(lambda: own.ended, 60)
    told = Relays._told
    dropped: list[Any] = []

    def drop(self: Relays, peer: str, body: Any, now: float) -> None:
        if body[2] == lost and not dropped:
            dropped.append(body)
            return
        for _ in range(1 + twice):
            told(self, peer, body, now)

    monkeypatch.setattr(Relays, "_told", drop)
    for node in nodes:
        node.machine.relays._frames[m.P_TOLD] = node.machine.relays._told
    read = _client(nodes[2], 2).read(JOB)

    assert not world.run(lambda: read.ended, 25)
    assert world.run(lambda: read.ended, 10)
    _is_whole(read, own)
    assert dropped


def test_a_cut_between_reader_and_job_delivers_nothing_twice() -> None:
    """The connection is dead, a new one comes later: the reader goes on where it was."""
    world, nodes = _grid(4)
    own = _client(nodes[0]).submit(JOB, COUNT, lambda _: Task(0.2))
    read = _client(nodes[2], 2).read(JOB)
    assert world.run(lambda: len(read.got) > 20, 60)
    world.part([nodes[2]], [nodes[0]])
    world.run(lambda: False, 8.0)
    had = len(read.got)
    world.heal()

    assert world.run(lambda: own.ended and read.ended, 120)
    assert had < COUNT
    _is_whole(read, own)


def test_a_reader_waits_for_the_node_that_restarts() -> None:
    """With its disk; what was read before it died is not read again."""
    world, nodes = _grid(5)
    owner = _client(nodes[0])
    own = owner.submit(JOB, COUNT, lambda _: Task(0.1), detach=True)
    read = _client(nodes[1], 2).read(JOB, patience_s=30.0)
    assert world.run(lambda: len(read.got) > 50, 60)
    nodes[0].crash()
    world.run(lambda: False, 5.0)
    assert read.state == ""
    nodes[0].start()
    owner.connect()

    assert world.run(lambda: own.ended and read.ended, 120)
    assert set(read.got) == set(range(COUNT))
    assert set(read.delivered.values()) == {1}


def test_patience_ends_where_the_job_cannot_be_reached() -> None:
    """Its node is away for good: the reader is told who had it, and does not wait for ever."""
    world, nodes = _grid(6)
    own = _client(nodes[0]).submit(JOB, COUNT, lambda _: Task(1.0))
    read = _client(nodes[1], 2).read(JOB, patience_s=10.0)
    assert world.run(lambda: len(own.got) > 5, 60)
    nodes[0].crash(with_disk=False)
    began = world.now

    assert world.run(lambda: read.state == "unknown", 60)
    assert 9.5 < world.now - began < 12
    assert "n0" in read.reason


def test_a_node_that_lost_its_disk_does_not_have_the_job_any_more() -> None:
    """It is there again, and says so: nobody waits for what it once had."""
    world, nodes = _grid(7)
    _client(nodes[0]).submit(JOB, COUNT, lambda _: Task(1.0))
    read = _client(nodes[1], 2).read(JOB, patience_s=60.0)
    assert world.run(lambda: len(read.got) > 3, 60)
    nodes[0].crash(with_disk=False)
    world.run(lambda: False, 1.0)
    nodes[0].start()

    assert world.run(lambda: read.state == "unknown", 20)


def test_a_node_that_joined_later_reads_like_any_other() -> None:
    """And a client there finds the job by id, prefix and `last`."""
    world, nodes = _grid(8, 2)
    own = _client(nodes[0]).submit(JOB, COUNT, _task)
    assert world.run(lambda: own.ended, 60)
    late = world.join("late", "n1")
    client = _client(late, 2)
    for target in (JOB.hex(), JOB.hex()[:8], "last"):
        assert _asked(world, client, "find", target=target, within=10.0)["job"] == JOB
    read = client.read(JOB)

    assert world.run(lambda: read.ended, 10)
    _is_whole(read, own)


def test_a_reader_that_takes_nothing_in_is_sent_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rest when it does; the accepting node holds nothing for it but a cursor."""
    monkeypatch.setattr(relaying, "WINDOW_BYTES", 200)
    world, nodes = _grid(9)
    own = _client(nodes[0]).submit(JOB, COUNT, _task)
    other = _client(nodes[2], 2)
    other.slow = True
    read = other.read(JOB)
    assert world.run(lambda: own.ended, 60)
    world.run(lambda: False, 5)
    some = len(read.got)
    assert 0 < some < COUNT
    for _ in range(COUNT):
        other.take_in(JOB)
        world.run(lambda: False, 0.05)

    assert read.ended
    _is_whole(read, own)


@pytest.mark.parametrize("at", [0, 2])
def test_who_takes_results_in_order_gets_the_one_he_waits_for(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """His window is full of later ones, which he cannot take in before; at the accepting node and elsewhere."""
    monkeypatch.setattr(relaying, "WINDOW_BYTES", 200)
    world, nodes = _grid(19, keeping=KeepingOptions(window_bytes=200))
    own = _client(nodes[0]).submit(JOB, COUNT, lambda i: Task(5.0 if i % 40 == 0 else 0.01), batch=1)
    other = _client(nodes[at], 2)
    other.slow = True
    read = other.read(JOB)
    taken, most = 0, 0

    def take() -> None:
        nonlocal taken, most
        size = 0
        most = max(most, sum(index >= taken for index in read.got))
        while taken in read.got:
            size += len(value_of(JOB, taken))
            taken += 1
        other.say(m.GOT, [JOB, size, taken])
        world.at(0.05, take)

    take()

    assert world.run(lambda: read.ended and own.ended, 120)
    assert set(read.got) == set(range(COUNT))
    assert set(read.delivered.values()) == {1}
    assert most < COUNT // 2


def test_the_end_is_told_after_the_last_result() -> None:
    """Large frames take a stream of their own and come later than the small one that says it is over."""
    world, nodes = _grid(10, 2, Faults(ordered=True, rate=1e5))
    own = _client(nodes[0]).submit(JOB, 9000, lambda _: Task(0.0), packed=True, batch=9000)
    assert world.run(lambda: own.ended, 60)
    before = world.bytes[m.P_TOLD]
    read = _client(nodes[1], 2).read(JOB)

    assert world.run(lambda: read.ended, 60)
    assert world.bytes[m.P_TOLD] - before > 64 << 10
    assert set(read.got) == set(range(9000))


@pytest.mark.parametrize("seed", range(8))
def test_readers_at_all_nodes_while_nodes_die(seed: int) -> None:
    """Two workers die and come back, the accepting node once: each reader that lives is given everything once."""
    world, nodes = _grid(100 + seed, 5)
    owner = _client(nodes[0])
    own = owner.submit(JOB, 400, lambda _: Task(0.05), detach=True)
    reads = [_client(node, 10 + number).read(JOB, patience_s=60.0) for number, node in enumerate(nodes[1:3])]
    for node in nodes[3:]:
        world.at(world.rng.uniform(0.2, 3.0), node.crash)
        world.at(world.rng.uniform(4.0, 8.0), node.start)
    at = world.rng.uniform(0.2, 2.0)
    world.at(at, nodes[0].crash)
    back = at + world.rng.uniform(0.5, 6.0)
    world.at(back, nodes[0].start)
    world.at(back, owner.connect)

    assert world.run(lambda: own.ended and all(read.ended for read in reads), 300)
    for read in reads:
        assert set(read.got) == set(range(400))
        assert set(read.delivered.values()) == {1}


# ---- what nobody knows ----------------------------------------------------------------------------------------------


def test_an_unknown_job_is_unknown_at_once_where_everybody_is_there() -> None:
    """Nobody is waited for."""
    world, nodes = _grid(11)
    world.run(lambda: False, 5)
    client = _client(nodes[1])
    read = client.read(b"x" * 16)

    assert world.run(lambda: read.state == "unknown", 0.5)
    assert _asked(world, client, "find", 0.5, target="61" * 16, within=10.0)["code"] == "not-found"


def test_a_member_that_is_about_to_come_is_waited_for() -> None:
    """It may know: only then, or when the time is over, the job counts as unknown."""
    world, nodes = _grid(12)
    world.part([nodes[2]], nodes[:2])
    assert world.run(lambda: not nodes[2].machine.peers, 20)
    own = _client(nodes[0]).submit(JOB, 5, _task)
    assert world.run(lambda: own.ended, 60)
    client = _client(nodes[2], 2)
    client.ask("find", target=JOB.hex()[:6], within=10.0)
    read = client.read(JOB)
    world.run(lambda: False, 4)
    assert not client.answers
    assert not client.errors
    world.heal()

    assert world.run(lambda: bool(client.answers) and read.ended, 5)
    _is_whole(read, own, 5)


def test_time_is_over_when_nobody_comes() -> None:
    """NotFound after as long as was asked for."""
    world, nodes = _grid(13)
    world.part([nodes[2]], [nodes[0]])
    assert world.run(lambda: "n0" not in nodes[2].machine.peers, 20)
    began = world.now

    assert _asked(world, _client(nodes[2]), "find", target="quiet-nothing-1", within=4.0)["code"] == "not-found"
    assert 3.9 < world.now - began < 6.5


# ---- steering -------------------------------------------------------------------------------------------------------


def test_tasks_that_somebody_cancels_are_told_to_every_reader() -> None:
    """One that watched, and one that comes later."""
    world, nodes = _grid(14)
    _client(nodes[0]).submit(JOB, 10, lambda _: Task(100.0))
    heard: list[Any] = []
    client = _client(nodes[1], 2)
    client.receive = lambda *frame: heard.append((frame[0], frame[2]))  # type: ignore[method-assign]
    client.say(m.WATCH, [JOB, []])
    assert _asked(world, _client(nodes[2], 3), "cancel", target=f"{JOB.hex()}/3-4")["cancelled"] == 2
    world.run(lambda: False, 1)
    assert (m.CANCELLED, [JOB, [3, 5]]) in heard
    assert _asked(world, _client(nodes[2], 4), "cancel", target=JOB.hex())["cancelled"] == 8
    world.run(lambda: False, 1)

    assert heard[-1] == (m.STATE, [JOB, "cancelled", ""])


def test_a_job_is_kept_and_forgotten_from_any_node() -> None:
    """Its expiry only grows; who reads it when it goes is told."""
    world, nodes = _grid(15)
    _client(nodes[0]).submit(JOB, 10, lambda _: Task(100.0))
    client = _client(nodes[2], 2)
    kept = nodes[0].machine.keeping.jobs[JOB]
    until = kept.expires_s + 1000.0
    assert _asked(world, client, "keep", target="last", until=until)["expires"] == until
    assert _asked(world, client, "keep", target=JOB.hex(), until=until - 500)["expires"] == until
    read = client.read(JOB)
    world.run(lambda: False, 1)

    assert _asked(world, _client(nodes[1], 3), "forget", target=JOB.hex())["forgotten"] == 1
    assert world.run(lambda: (read.state, read.reason) == ("cancelled", "forgotten"), 1)
    assert JOB not in nodes[0].machine.keeping.jobs
    assert _asked(world, client, "find", target=JOB.hex())["code"] == "not-found"


def test_a_reader_amid_its_results_is_told_when_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the rest."""
    monkeypatch.setattr(relaying, "WINDOW_BYTES", 200)
    world, nodes = _grid(16)
    own = _client(nodes[0]).submit(JOB, COUNT, _task)
    assert world.run(lambda: own.ended, 60)
    other = _client(nodes[2], 2)
    other.slow = True
    read = other.read(JOB)
    world.run(lambda: False, 1)
    assert _asked(world, _client(nodes[1], 3), "forget", target="last")["forgotten"] == 1

    assert world.run(lambda: (read.state, read.reason) == ("unknown", "forgotten"), 1)


@pytest.mark.parametrize(("roles", "reads"), [(OBSERVE, True), (WORK, False)])
def test_reading_takes_a_role_that_allows_it(roles: int, reads: bool) -> None:  # noqa: FBT001
    """Who observes reads and does not forget; who only works is refused with a reason."""
    world = GridWorld(17, Faults(ordered=True))
    nodes = [world.join("n0", keeps=False), world.join("n1", "n0", roles=roles, keeps=False)]
    assert world.run(lambda: all(node.sees("alive") == 2 for node in nodes), 10.0)
    own = _client(nodes[0]).submit(JOB, 5, _task)
    assert world.run(lambda: own.ended, 60)
    client = _client(nodes[1], 2)
    nodes[1].machine.relays.place(JOB, "n0")
    read = client.read(JOB)
    world.run(lambda: False, 1)

    assert (len(read.got), read.state) == ((5, "done") if reads else (0, ""))
    assert [error[3]["code"] for error in client.errors] == ([] if reads else ["not-authorized"])
    client.errors.clear()
    assert _asked(world, client, "forget", target=JOB.hex())["code"] == "not-authorized"
    assert JOB in nodes[0].machine.keeping.jobs


def test_who_may_not_read_any_more_is_told() -> None:
    """Amid the results."""
    world, nodes = _grid(18)
    _client(nodes[0]).submit(JOB, COUNT, lambda _: Task(1.0))
    client = _client(nodes[1], 2)
    read = client.read(JOB)
    assert world.run(lambda: len(read.got) > 5, 60)
    nodes[0].hear(e.PeerRoles("n1", WORK))

    assert world.run(lambda: [error[3]["code"] for error in client.errors] == ["not-authorized"], 1)
    assert not nodes[0].machine.relays.is_busy
