"""No owner to lose: whoever is killed, frozen or cut off, the job ends, and any other node hands its results over."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.core.errors import NotFound
from tests.system.grids import Nodes, wait
from tests.system.harm import ALIVE_S, Halves, Moment, blackout, cut_in_halves, freeze, moments, revive, strike
from tests.system.survival import Sent, has_rows_of, listed, stranger_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # seconds each, minutes on a machine that has much else to do

SOON_S = 60.0
NAMES = [f"n{number}" for number in range(1, 7)]
MOMENTS = 20
TOGETHER = 4


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Halves]:
    """Six nodes, three at each end of a wire, where a wire can be had."""
    with Halves(tmp_path_factory.mktemp("six"), NAMES) as halves:
        yield halves


@pytest.fixture
def six(halves: Halves) -> Nodes:
    """Six nodes that are alive for each other, whatever the test before did to them."""
    revive(halves.nodes)
    return halves.nodes


def test_the_client_its_node_and_two_more_are_killed(six: Nodes) -> None:
    """At 30 % the client and the node that took the job, then two more; a node that joined since tells all of it."""
    third, rng = six.all[2], random.Random(1)
    with Sent(third, 400, 0.05) as sent:
        sent.wait(0.3)
        killed = strike(six.all[:6], sent, third, rng, more=2)
        reader = stranger_to(sent, six.all, rng)
        sent.must_be_right(reader)

    print(f"killed {killed}, read at {reader}; {sent.again} of {sent.tasks} executed again")


def test_a_node_is_frozen_for_twenty_seconds(six: Nodes) -> None:
    """Others go on with its job, and with what it had of theirs; nothing is lost, nothing is told or counted twice."""
    print(freeze(six, six.all[0], random.Random(2), tasks=300, seconds=20))


@pytest.mark.usefixtures("six")
def test_cut_in_halves(halves: Halves) -> None:
    """A job runs, each half takes one more; all three end right, and all six nodes list the same after it heals."""
    if halves.why_not:
        pytest.skip(halves.why_not)
    print(cut_in_halves(halves, 400, 0.1, 10))


def test_kills_at_random_moments(six: Nodes) -> None:
    """Whatever `start` has promised comes true, whoever is killed when."""
    rng = random.Random(5)
    found: list[Moment] = []
    while sum(one.taken for one in found) < MOMENTS:
        found += moments(six, rng, TOGETHER)
        print(*found[-TOGETHER:], sep="\n")
        revive(six)

    assert [one for one in found if not one.right] == []


def test_forgotten_and_cancelled_jobs_stay_so(six: Nodes) -> None:
    """A node that was off meanwhile comes back with its old disk: nothing runs again, and nothing reappears."""
    first, second, third, *_, off = six.all
    with Sent(first, 60, 0.02) as done, Sent(second, 3000, 0.05) as running:
        done.must_be_right(second)
        running.wait(0.02)
        for sent in (done, running):
            wait(lambda sent=sent: has_rows_of(off, sent.id), SOON_S, f"{off} has a copy of {sent.id}")  # type: ignore[misc]
        off.kill()
        assert third.command("forget", done.id).returncode == 0
        assert third.command("cancel", running.id).returncode == 0
        for node in (first, second, third):
            wait(lambda node=node: listed(node).get(running.id) == "cancelled", SOON_S, f"cancelled at {node}")  # type: ignore[misc]
        _wait_idle(running)
        begun = done.begun, running.begun

        off.start()
        six.wait_all_alive(ALIVE_S)

        with off.grid() as session:
            assert list(session.map(pow, range(60), [2] * 60)) == [index**2 for index in range(60)]
            with pytest.raises(NotFound):
                session.job(done.id).wait(5)
        for node in six.all:
            jobs = listed(node)
            assert jobs.get(running.id) == "cancelled", (node, jobs)
            assert done.id not in jobs, (node, jobs)
        assert (done.begun, running.begun) == begun


def _wait_idle(sent: Sent) -> None:
    """Wait until nothing of a job has begun for three seconds: so long may a cancel take."""
    seen = [sent.begun, time.monotonic()]

    def idle() -> bool:
        if sent.begun != seen[0]:
            seen[:] = sent.begun, time.monotonic()
        return time.monotonic() - seen[1] > 3

    wait(idle, SOON_S, f"nothing of {sent.id} runs any more")


def test_one_failing_task_among_a_thousand(six: Nodes) -> None:
    """The job ends: 999 results and one exception, also for a node that was not asked; its node is killed meanwhile."""
    fourth, fifth = six.all[3:5]
    with Sent(fourth, 1000, 0.01, failing=[137]) as sent:
        sent.wait(0.5)
        fourth.kill()
        sent.must_be_right(fifth)
        with fifth.grid() as session:
            (failed,) = session.job(sent.id).failed()

    with pytest.raises(ValueError, match="task 137 fails"):
        failed.result(0)


def test_a_damaged_journal_is_made_good_by_the_copies(six: Nodes) -> None:
    """The node that took the job comes back with broken pages: it says so, and the job ends right, there as well."""
    first, second = six.all[:2]
    with Sent(first, 600, 0.05) as sent:
        sent.wait(0.3)
        first.kill()
        broken = _break_pages(first.dir / "journal.db", random.Random(3))
        before = len(first.log())
        first.start()
        sent.must_be_right(second)
        sent.must_be_right(first)
        said = [line for line in first.log()[before:].splitlines() if "journal" in line]

    print(f"{broken} pages broken; it said: {said}")
    assert said


def _break_pages(path: Path, rng: random.Random) -> int:
    """Flip bits in the middle of every third page; what stood in the write-ahead log goes there first."""
    journal = sqlite3.connect(path)
    journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (size,) = journal.execute("PRAGMA page_size").fetchone()
    journal.close()
    data = bytearray(path.read_bytes())
    pages = range(2, len(data) // size, 3)
    for page in pages:
        at = page * size + rng.randrange(size)
        data[at] ^= 0xFF
    path.write_bytes(data)
    return len(pages)


def _letters(index: int) -> bytes:
    return bytes([65 + index]) * 300_000


_letters.__module__ = "__main__"  # it travels by itself


def test_damaged_large_results_are_had_from_their_other_holders(six: Nodes) -> None:
    """Whatever a node has on disk of them is broken while it is off: it reads the right ones all the same."""
    first, second = six.all[:2]
    with first.grid() as session:
        job = session.start(_letters, range(8))
        assert job.wait(ALIVE_S)

    def copies() -> int:
        """Count those that are whole."""
        objects = [node.status()["objects"] for node in six.all]
        return 0 if any(one.get("fetching") for one in objects) else sum(one.get("count", 0) for one in objects)

    wait(lambda: copies() >= 3 * 8, ALIVE_S, "three copies of each")
    broken = list((first.dir / "objects").glob("[0-9a-f]*"))
    first.kill()
    for path in broken:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    first.start()

    print(f"{len(broken)} of 8 broken")
    assert broken
    for node in (first, second):
        with node.grid() as session:
            assert list(session.job(job.id).results(ALIVE_S)) == [_letters(index) for index in range(8)]


def test_blackout(tmp_path: Path) -> None:
    """All five are killed at once and one disk is gone, that of the node that took the job; the four others go on."""
    with Nodes(tmp_path) as nodes:
        first, *others = nodes.grid(["a", "b", "c", "d", "e"])
        nodes.wait_all_alive(ALIVE_S)
        with Sent(first, 400, 0.05) as sent:
            sent.wait(0.5)
            blackout(nodes, sent, first)
            nodes.wait_all_alive(ALIVE_S)
            sent.must_be_right(others[-1])

    print(f"{sent.again} of 400 executed again: {sent.again / 400:.1%}, five of them were running")
    assert set(range(400)) == {index for index, _ in sent.executions()}


def test_of_two_nodes_one_dies_for_ever(tmp_path: Path) -> None:
    """The other has all that was promised, computes on, and promises anew without waiting for anybody."""
    with Nodes(tmp_path) as nodes:
        first, second = nodes.grid(["a", "b"])
        nodes.wait_all_alive(ALIVE_S)
        with Sent(first, 200, 0.05) as sent:
            sent.wait(0.3)
            first.kill()
            shutil.rmtree(first.dir)
            sent.must_be_right(second)
            with second.grid() as session:
                assert list(session.start(abs, range(-50, 0)).results(SOON_S)) == list(range(50, 0, -1))
                future = session.submit(abs, -7)
                assert future.result(SOON_S) == 7
                future.durable.result(SOON_S)
