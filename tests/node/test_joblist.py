"""The list of jobs that every node has: entries that only rise, news, anti-entropy, tombstones."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import messages as m
from p2pgrid.core.chains import WORK
from p2pgrid.core.errors import PeerError
from p2pgrid.core.listed import Listed, Standing, forgotten, merge, read, wire
from p2pgrid.core.record import State
from p2pgrid.core.shapes import from_peer
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.events import Send
from p2pgrid.node.joblist import JobList, JobListOptions
from tests.node.driver import Client, Faults, Task
from tests.node.grid_world import GridNode, GridWorld

JOB = b"j" * 16
DONE = Standing(State.FINISHED, "done", 5, 0, 5)


def _listed(number: int, submitted_s: float = 1000.0, standing: Standing = DONE) -> Listed:
    return Listed(number.to_bytes(16, "big"), submitted_s, "name", "n0", "prog", 2000.0, standing)


def _list(**options: Any) -> JobList:
    return JobList(JobListOptions(**options), random.Random(1))


_STANDINGS = st.builds(
    Standing, st.integers(0, 3), st.sampled_from(["", "done", "failed"]), st.integers(0, 2), st.integers(0, 2),
    st.integers(-1, 2),
)  # fmt: skip
_ENTRIES = st.builds(
    Listed, st.just(JOB), st.sampled_from([1.0, 2.0]), st.sampled_from(["a", "b"]), st.sampled_from(["n0", "n1"]),
    st.just("p"), st.sampled_from([5.0, 6.0]), _STANDINGS,
).map(lambda one: read(unpack(pack(wire(one)))))  # fmt: skip


@given(_ENTRIES, _ENTRIES, _ENTRIES)
def test_entries_are_a_lattice(a: Listed, b: Listed, c: Listed) -> None:
    """In whatever order and however often they meet, the same follows; states never fall."""
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(merge(a, b), b) == merge(a, b)
    assert merge(a, b).standing.rank == max(a.standing.rank, b.standing.rank)


def test_nothing_of_a_forgotten_job_is_left_but_its_times() -> None:
    """Neither who had it nor what it was called; its entry is 48 bytes of content at most."""
    gone = merge(_listed(1), forgotten(_listed(1).job, 1000.0, 3000.0))

    assert gone[:-1] == (_listed(1).job, 1000.0, "", "", "", 3000.0)
    assert gone.forgotten
    assert len(pack(wire(gone))) <= 48


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: [*one[:0], b"short", *one[1:]],
        lambda one: [*one[:1], float("nan"), *one[2:]],
        lambda one: [*one[:2], "x" * 300, *one[3:]],
        lambda one: [*one[:5], 1e300, *one[6:]],
        lambda one: [*one[:6], [4, "done", 0, 0, 0]],
        lambda one: [*one[:6], [1, "strange", 0, 0, 0]],
        lambda one: [*one[:6], [1, "done", -1, 0, 0]],
        lambda one: one[:6],
        lambda _: 7,
    ],
)
def test_a_malformed_entry_is_refused(spoil: Any) -> None:
    """As a whole frame, before anything is learned."""
    with pytest.raises(PeerError):
        from_peer(m.P_JOBS, [[wire(_listed(1)), spoil(wire(_listed(2)))]])


def test_the_newest_are_kept() -> None:
    """Who is older than all there is room for is not taken in, and not told."""
    jobs = _list(jobs_max=3)
    for number in (5, 3, 4, 1, 2):
        jobs.learn(_listed(number, 1000.0 + number), 0.0)

    assert sorted(one.submitted_s for one in jobs.jobs.values()) == [1003.0, 1004.0, 1005.0]
    assert not jobs.learn(_listed(1, 1001.0), 0.0)


def _exchange(a: JobList, b: JobList, first: list[Any]) -> int:
    """Carry frames between two lists until nothing is left to say; return how many there were."""
    queue = [(b, a, one) for one in first]
    count = 0
    while queue:
        target, source, effect = queue.pop(0)
        count += 1
        body = from_peer(effect.kind, unpack(pack(effect.body)))
        for entry in () if effect.kind == m.P_JOBS_DIGEST else body[-1]:
            target.learn(entry, 0.0)
        queue += [(source, target, one) for one in target.received("peer", effect.kind, body)]
    return count


@pytest.mark.parametrize("seed", range(10))
def test_two_lists_that_compare_are_equal(seed: int) -> None:
    """Whatever either has; equal ones say one thing, and need no answer."""
    rng = random.Random(seed)
    a, b = _list(), _list()
    for number in range(600):
        entry = _listed(number, standing=DONE if rng.random() < 0.5 else Standing())
        if rng.random() < 0.6:
            a.learn(entry, 0.0)
        if rng.random() < 0.6:
            b.learn(forgotten(entry.job, 1000.0, 2000.0) if rng.random() < 0.1 else entry, 0.0)
    _exchange(a, b, a.met("b"))

    assert a.jobs == b.jobs
    assert len(a.jobs) > 400
    assert _exchange(a, b, b.met("a")) == 1


def test_news_reach_each_member_once() -> None:
    """In a small grid everybody is told by whoever had the news, and nobody twice."""
    jobs = _list()
    jobs.learn(_listed(1), 0.0)
    rounds = [jobs.tick(lambda: ["a", "b", "c", "d", "e"], 10.0 + number) for number in range(20)]
    told = [one.peer for effects in rounds for one in effects if one.kind == m.P_JOBS]

    assert sorted(told) == ["a", "b", "c", "d", "e"]


# ---- in a grid ------------------------------------------------------------------------------------------------------


def _client(node: GridNode, number: int = 1) -> Client:
    client = Client(node, number, bytes([number]) * 16)
    client.connect()
    return client


def _lists(nodes: list[GridNode]) -> list[dict[bytes, Listed]]:
    return [node.machine.listing.list.jobs for node in nodes]


def _agree(nodes: list[GridNode], count: int) -> bool:
    first, *others = _lists(nodes)
    return len(first) == count and all(one == first for one in others)


def _asked(world: GridWorld, client: Client, verb: str, **arguments: Any) -> Any:
    count = len(client.answers) + len(client.errors)
    client.ask(verb, **arguments)
    assert world.run(lambda: len(client.answers) + len(client.errors) > count, 10.0), "no answer"
    return client.errors[-1] if client.errors else client.answers[max(client.answers)]


def _job(number: int) -> bytes:
    return bytes([number]) * 16


def test_all_nodes_have_the_same_list() -> None:
    """Within a second of the last job's end, at a node that joins later at once; then nothing more is told."""
    world = GridWorld(1, Faults(ordered=True))
    nodes = world.grid(6, keeps=False)
    own = [_client(node, i).submit(_job(i), 5, lambda _: Task(0.1)) for i, node in enumerate(nodes, 1)]
    assert world.run(lambda: all(one.ended for one in own), 60)
    assert world.run(lambda: _agree(nodes, 6), 1.0)
    late = world.join("late", "n3")
    assert world.run(lambda: _agree([late, *nodes], 6), 2.0)
    world.run(lambda: False, 2.0)
    before = world.sent[m.P_JOBS] + world.sent[m.P_JOBS_RECORDS]
    world.run(lambda: False, 120.0)

    assert world.sent[m.P_JOBS] + world.sent[m.P_JOBS_RECORDS] == before
    assert {one.owner for one in _lists([late])[0].values()} == {f"n{i}" for i in range(6)}


def test_a_grid_without_jobs_says_nothing_of_them() -> None:
    """Not even that there are none."""
    world = GridWorld(2)
    world.grid(4, keeps=False)
    world.run(lambda: False, 120.0)

    assert not any(world.sent[kind] for kind in (m.P_JOBS, m.P_JOBS_DIGEST, m.P_JOBS_RECORDS))


def test_what_gossip_lost_is_mended() -> None:
    """A third of all frames is lost: all have the same list after some rounds of anti-entropy."""
    world = GridWorld(3, Faults(loss=0.3))
    nodes = world.grid(8, keeps=False)
    for i, node in enumerate(nodes, 1):
        _client(node, i).submit(_job(i), 1, lambda _: Task(0.1), detach=True)

    assert world.run(lambda: _agree(nodes, 8), 600.0)


def test_halves_list_the_same_jobs_when_they_have_met_again() -> None:
    """A job on either side of a cut."""
    world = GridWorld(4, Faults(ordered=True))
    nodes = world.grid(6, keeps=False)
    world.part(nodes[:3], nodes[3:])
    world.run(lambda: False, 10.0)
    one = _client(nodes[0], 1).submit(_job(1), 5, lambda _: Task(0.1))
    two = _client(nodes[5], 2).submit(_job(2), 5, lambda _: Task(0.1))
    assert world.run(lambda: one.ended and two.ended, 60)
    assert not _agree(nodes, 2)
    world.heal()

    assert world.run(lambda: _agree(nodes, 2), 30)


def test_jobs_are_listed_when_the_node_that_has_them_is_away() -> None:
    """With what was heard last; and found by name, prefix and `last`."""
    world = GridWorld(5, Faults(ordered=True))
    nodes = world.grid(3, keeps=False)
    own = _client(nodes[0]).submit(JOB, 5, lambda _: Task(0.1))
    assert world.run(lambda: own.ended, 60)
    world.run(lambda: False, 1.0)
    nodes[0].crash()
    world.run(lambda: False, 120.0)
    client = _client(nodes[2], 2)
    (row,) = _asked(world, client, "jobs")["jobs"]

    assert (row["hex"], row["state"], row["done"], row["total"], row["owner"]) == (JOB.hex(), "done", 5, 5, "n0")
    for target in ("last", JOB.hex()[:5], row["id"]):
        assert _asked(world, client, "find", target=target)["job"] == JOB
    assert _asked(world, client, "show", target="last")["code"] == "timed-out"


def test_expired_jobs_leave_every_list() -> None:
    """And do not come back by one who drops them later."""
    world = GridWorld(6, Faults(ordered=True))
    nodes = world.grid(4, keeps=False)
    own = _client(nodes[0]).submit(JOB, 2, lambda _: Task(0.1), ttl_s=100.0)
    assert world.run(lambda: own.ended, 60)
    assert world.run(lambda: _agree(nodes, 1), 2.0)

    assert world.run(lambda: not any(_lists(nodes)), 200.0)
    world.run(lambda: False, 500.0)
    assert all(JOB not in node.machine.keeping.jobs for node in nodes)
    assert not any(_lists(nodes))


def test_who_may_only_work_hears_of_no_jobs() -> None:
    """Reading takes a role that allows it."""
    world = GridWorld(7, Faults(ordered=True))
    nodes = [world.join("n0"), world.join("n1", "n0"), world.join("n2", "n0", roles=WORK, keeps=False)]
    assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 10.0)
    own = _client(nodes[0]).submit(JOB, 2, lambda _: Task(0.1))
    assert world.run(lambda: own.ended, 60)
    world.run(lambda: False, 100.0)

    assert [len(one) for one in _lists(nodes)] == [1, 1, 0]


# ---- forgotten ------------------------------------------------------------------------------------------------------


def _forgotten_while_away(seed: int, ttl_s: float = 86400.0) -> tuple[GridWorld, list[GridNode]]:
    """Three nodes; the first had a job that was forgotten at another while it was off."""
    world = GridWorld(seed, Faults(ordered=True))
    nodes = world.grid(3, keeps=False)
    own = _client(nodes[0]).submit(JOB, 20, lambda _: Task(1.0), detach=True, ttl_s=ttl_s)
    assert world.run(lambda: len(own.got) > 3, 60)
    nodes[0].crash()
    world.run(lambda: False, 15.0)
    assert _asked(world, _client(nodes[1], 2), "forget", target=JOB.hex()[:6])["forgotten"] == 1
    world.run(lambda: False, 1.0)
    return world, nodes


def test_a_node_that_comes_back_with_an_old_disk_brings_no_forgotten_job() -> None:
    """Nothing runs again, nothing reappears, and its disk is empty of it."""
    world, nodes = _forgotten_while_away(10)
    runs = sum(world.runs.values())
    nodes[0].start()
    world.run(lambda: False, 30.0)

    assert all(JOB not in node.machine.keeping.jobs for node in nodes)
    assert {kind for job, kind, _ in nodes[0].disk if job == JOB} <= {"tomb"}
    assert sum(world.runs.values()) <= runs + 4  # what it began before it heard of it
    for number, node in enumerate(nodes, 3):
        assert _asked(world, _client(node, number), "jobs")["jobs"] == []


def test_tombstones_outlive_a_restart_of_all() -> None:
    """The node that was told to forget wrote it down before it said so."""
    world, nodes = _forgotten_while_away(11)
    for node in nodes[1:]:
        node.crash()
    world.run(lambda: False, 15.0)
    for node in nodes:
        node.start()
    world.run(lambda: False, 30.0)

    assert all(JOB not in node.machine.keeping.jobs for node in nodes)


def test_a_client_that_sends_a_forgotten_job_again_is_told() -> None:
    """It reconnects and says everything again: the job does not begin anew."""
    world = GridWorld(12, Faults(ordered=True))
    nodes = world.grid(2, keeps=False)
    owner = _client(nodes[0])
    owner.submit(JOB, 20, lambda _: Task(1.0))
    world.run(lambda: False, 3.0)
    assert _asked(world, _client(nodes[1], 2), "forget", target=JOB.hex())["forgotten"] == 1
    owner.leave(goodbye=False)
    owner.connect()
    world.run(lambda: False, 1.0)

    assert [error[3]["code"] for error in owner.errors] == ["not-found"]
    assert JOB not in nodes[0].machine.keeping.jobs


def test_tombstones_end_when_the_job_would_have_expired() -> None:
    """In memory and on disk."""
    world, nodes = _forgotten_while_away(13, 300.0)
    nodes[0].start()
    world.run(lambda: False, 30.0)
    assert all(node.machine.listing.forgotten(JOB) for node in nodes)

    assert world.run(lambda: not any(node.machine.listing.forgotten(JOB) for node in nodes), 1000.0)
    world.run(lambda: False, 5.0)
    assert not any(kind == "tomb" for node in nodes for _, kind, _ in node.disk)


def test_who_may_not_submit_makes_nobody_forget() -> None:
    """A device says that a job was forgotten: nobody believes it, and its owner keeps it."""
    world = GridWorld(14, Faults(ordered=True))
    nodes = [world.join("n0"), world.join("n1", "n0"), world.join("n2", "n0", roles=WORK, keeps=False)]
    assert world.run(lambda: all(node.sees("alive") == 3 for node in nodes), 10.0)
    _client(nodes[0]).submit(JOB, 2, lambda _: Task(100.0))
    world.run(lambda: False, 1.0)
    lie = [wire(forgotten(JOB, 1.8e9, 9e10))]
    for node in nodes[:2]:
        nodes[2].world.deliver(nodes[2], Send(node.name, m.P_JOBS, [lie]))
    world.run(lambda: False, 1.0)

    assert JOB in nodes[0].machine.keeping.jobs
    assert not any(node.machine.listing.forgotten(JOB) for node in nodes)
