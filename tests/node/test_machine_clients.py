"""Clients: cancelling, leaving, coming back, reading slowly or late; and the end of a node."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, encode_batch
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.kept import KeepingOptions
from tests.node.desk import CODE, JOB, UNIX_0, Desk, batch, replies, runs, spec, tasks
from tests.node.driver import Client, Task, World


def kills(effects: list[e.Effect]) -> list[e.Kill]:
    """Return what is to be killed."""
    return [one for one in effects if isinstance(one, e.Kill)]


# ---- how far a job is ------------------------------------------------------------------------------------------------


def test_how_far_a_job_is() -> None:
    """The first task that is not over, and how many are known: by that what no Ref names any more is let go of."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    assert desk.machine.progress(JOB) == (0, 0)
    first, second = runs(desk.submit(4, close=False))
    assert desk.machine.progress(JOB) == (0, 4)
    desk.finish(second, busy_s=1.0)
    assert desk.machine.progress(JOB) == (0, 4)
    desk.finish(first, busy_s=1.0)
    desk.say(m.CANCEL, [JOB, [3, 4]])
    assert desk.machine.progress(JOB) == (2, 4)
    desk.say(m.CANCEL, [JOB, [2, 3]])
    assert desk.machine.progress(JOB) == (4, 4)


# ---- cancelling ------------------------------------------------------------------------------------------------------


def test_cancelling_a_job_kills_what_runs_and_ends_it() -> None:
    """Its state is `cancelled`; what a worker gives back afterwards does not run."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    first, second = runs(desk.submit(10))
    out = desk.say(m.CANCEL, [JOB, None])

    assert kills(out) == [e.Kill(0, first.run, [(0, 1)]), e.Kill(1, second.run, [(1, 2)])]
    assert replies(out, m.STATE) == [[JOB, "cancelled", ""]]
    assert replies(desk.sync(), m.ACK)[-1] == [JOB, "cancel", 0]
    assert runs(desk.do(e.WorkerDied(0, first.run, 0, "killed", "killed"), e.WorkerReady(0))) == []
    assert desk.machine.pool.works == {}


def test_cancelling_some_tasks_leaves_the_others() -> None:
    """Queued ones are dropped, running ones killed, finished ones keep their results."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    first, second = runs(desk.submit(6))
    desk.finish(first, busy_s=1.0)
    out = desk.say(m.CANCEL, [JOB, [0, 2, 4, 5]])
    assert kills(out) == [e.Kill(1, second.run, [(1, 2)])]
    out = desk.do(e.WorkerDied(1, second.run, 1, "killed", "killed"), e.WorkerReady(1))
    ran = []
    given = runs(desk.all)
    while given:
        run = given.pop(0)
        ran += tasks(run)
        if run.run not in (first.run, second.run):
            given += runs(desk.finish(run, busy_s=1.0))

    assert sorted(ran) == [0, 1, 2, 3, 5]
    kept = desk.machine.keeping.jobs[JOB]
    assert list(kept.done) == [(0, 1), (2, 4), (5, 6)]
    assert list(kept.cancelled) == [(1, 2), (4, 5)]


def test_tasks_may_be_cancelled_before_their_inputs_come() -> None:
    """They are accepted and not run."""
    desk = Desk()
    desk.join()
    desk.submit(2, close=False)
    desk.say(m.CANCEL, [JOB, [3, 5]])
    desk.say(m.INPUT, [JOB, 2, 6, batch(2, 6)])

    assert [span for lane in desk.machine.pool.works[JOB].lanes.values() for span in lane.ready] == [(0, 3), (5, 6)]


def test_cancellations_survive_a_restart_each_of_them() -> None:
    """Two long lists of ranges with the same beginning are two rows."""
    desk = Desk()
    desk.join()
    desk.submit(200)
    flat = [bound for i in range(0, 100, 2) for bound in (i, i + 1)]
    desk.say(m.CANCEL, [JOB, flat])
    desk.say(m.CANCEL, [JOB, [*flat, 150, 160]])
    rows = {(r.job, r.kind, r.key): r for one in desk.all if isinstance(one, e.Store) for r in one.rows}
    again = Desk(rows=[row._replace(value=b"") for row in rows.values()])

    assert again.machine.keeping.jobs[JOB].cancelled == RangeSet.from_flat([*flat, 150, 160])


def test_whoever_waits_for_a_task_hears_that_somebody_else_cancelled_it() -> None:
    """At once, and again when it comes back; the job goes on."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(5)
    out = desk.say(m.REQUEST, ["cancel", {"target": "last/2"}], client=2, id_=3)
    assert [(one.client, one.body) for one in out if isinstance(one, e.Reply) and one.kind == m.CANCELLED] == [
        (1, [JOB, [2, 3]])
    ]
    desk.do(e.ClientGone(1, goodbye=False))
    desk.join(client=4)

    assert replies(desk.say(m.WATCH, [JOB, []], client=4), m.CANCELLED) == [[JOB, [2, 3]]]


def test_the_command_line_cancels_by_target() -> None:
    """Some tasks of a job, with the number of tasks that were not over."""
    desk = Desk()
    desk.join()
    desk.submit(5)
    desk.sync()
    before = desk.say(m.REQUEST, ["cancel", {"target": "last/2-4"}], id_=3)

    assert replies(before, m.ANSWER) == []
    assert replies(desk.sync(), m.ANSWER) == [{"cancelled": 3}]


# ---- leaving ---------------------------------------------------------------------------------------------------------


def test_a_client_that_vanishes_has_a_minute_to_come_back() -> None:
    """Then what it did not detach is abandoned."""
    desk = Desk()
    desk.join()
    desk.submit(2)
    desk.submit(2, job=b"d" * 16, detach=True)
    desk.do(e.ClientGone(1, goodbye=False))
    desk.wait(59)
    assert desk.machine.keeping.jobs[JOB].state == "running"
    desk.wait(2)

    assert desk.machine.keeping.jobs[JOB].state == "abandoned"
    assert desk.machine.keeping.jobs[b"d" * 16].state == "running"


def test_a_client_that_comes_back_in_time_loses_nothing() -> None:
    """It is known by its session, not by its connection."""
    desk = Desk()
    desk.join()
    desk.submit(2)
    desk.do(e.ClientGone(1, goodbye=False))
    desk.wait(50)
    desk.join(client=2)
    desk.wait(500)

    assert desk.machine.keeping.jobs[JOB].state == "running"


def test_a_client_that_says_goodbye_is_not_waited_for() -> None:
    """What it left unfinished is abandoned at once."""
    desk = Desk()
    desk.join()
    desk.submit(2)
    desk.do(e.ClientGone(1, goodbye=True))
    desk.wait(0)

    assert desk.machine.keeping.jobs[JOB].state == "abandoned"


def test_single_tasks_may_be_detached_each_by_itself() -> None:
    """The open job of a session is closed, its other tasks are cancelled, also those that never came."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(2, close=False)
    desk.say(m.INPUT, [JOB, 5, 7, batch(5, 7, {"detach": True})])
    desk.do(e.ClientGone(1, goodbye=True))
    out = desk.wait(0)
    kept = desk.machine.keeping.jobs[JOB]
    assert (kept.total, list(kept.cancelled), kept.state) == (7, [(0, 5)], "running")
    assert [one.spans for one in kills(out)] == [[(0, 1)]]
    given = runs(desk.do(e.WorkerDied(0, kills(out)[0].run, 0, "killed", ""), e.WorkerReady(0)))
    while given:
        given += runs(desk.finish(given.pop(0)))

    assert kept.state == "done"


def test_an_embedded_node_does_not_stay_for_tasks_that_have_used_the_grid() -> None:
    """Their processes are its own; what they started ends with the program that started them."""
    desk = Desk(embedded=True)
    desk.join()
    desk.do(e.ClientJoined(2, b"t" * 16, "a task", 1, 0))
    desk.do(e.ClientGone(1, goodbye=True))
    desk.do(e.ClientJoined(3, b"u" * 16, "another", 1, 1))
    out = desk.wait(desk.machine.config.linger_s + 0.1)
    desk.do(e.ClientGone(3, goodbye=True))
    out += desk.sync() + desk.wait(1.0)
    assert any(isinstance(one, e.Stopped) for one in out)


@pytest.mark.parametrize("detach", ["no", "job", "task"])
def test_an_embedded_node_ends_after_its_last_client_and_detached_work(detach: str) -> None:
    """It lingers two seconds, for the next script; it does not leave what was detached."""
    desk = Desk(embedded=True)
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1, detach=detach == "job", options={"detach": True} if detach == "task" else {}))
    desk.sync()
    desk.do(e.ClientGone(1, goodbye=True))
    out = desk.wait(1.9)
    assert not any(isinstance(one, e.Stopped) for one in out)
    out = desk.wait(10)
    if detach == "no":
        out += desk.do(e.WorkerDied(0, run.run, 0, "killed", ""))
    else:
        assert not any(isinstance(one, e.Stopped) for one in out)
        out = desk.finish(run) + desk.sync() + desk.wait(4) + desk.sync()

    assert [one for one in out + desk.sync() if isinstance(one, e.Stopped)] == [e.Stopped([])]


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_reader_that_takes_nothing_in_gets_a_window_and_the_rest_later() -> None:
    """What does not fit into memory either comes from disk; every index is delivered once, and the state last."""
    world = World(1)
    options = KeepingOptions(window_bytes=2000, recent_bytes=6000, step_bytes=500)
    client = Client(world.add("n", keeping=options), 1, b"s" * 16, slow=True)
    client.connect()
    one = client.submit(b"J" * 16, 2000, lambda _: Task(0.001))
    world.run(lambda: False, 60)
    assert client.node.machine.keeping.jobs[b"J" * 16].state == "done"
    assert one.state == ""
    assert client.unread[b"J" * 16] <= 2100
    while not one.ended:
        client.take_in(b"J" * 16)
        world.run(lambda: client.unread[b"J" * 16] > 0 or one.ended, 5)
        assert client.unread[b"J" * 16] <= 2600

    assert one.delivered == dict.fromkeys(range(2000), 1)


def test_credit_is_counted_as_the_client_counts_it() -> None:
    """A reader that takes in all it gets has an empty window, however small its results were."""
    world = World(1)
    client = Client(world.add("n"), 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 500, lambda _: Task(0.001), close=False)
    world.run(lambda: len(one.got) == 500, 60)

    assert client.node.machine.keeping.jobs[b"J" * 16].watches[1].unread == 0


@pytest.mark.parametrize("had", [[], [0, 150], [10, 20, 299, 300]])
def test_a_late_reader_of_a_finished_job_gets_what_it_lacks(had: list[int]) -> None:
    """After a restart of the node, from disk; what it says it has is not sent."""
    world = World(1)
    node = world.add("n")
    client = Client(node, 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 300, lambda _: Task(0.001))
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 1)
    node.crash()
    node.start()
    late = Client(node, 2, b"l" * 16)
    late.connect()
    world.tasks[b"J" * 16] = lambda _: Task(0)
    seen = late.jobs[b"J" * 16] = type(one)(b"J" * 16, 300)
    late.say(m.WATCH, [b"J" * 16, had])

    assert world.run(lambda: seen.ended, 60)
    assert set(seen.got) == set(range(300)) - {
        i for lo, hi in zip(had[::2], had[1::2], strict=True) for i in range(lo, hi)
    }
    assert (seen.state, max(seen.delivered.values())) == ("done", 1)


def test_a_reader_that_left_is_sent_nothing() -> None:
    """Neither after UNWATCH nor after its connection ended."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    first, second = runs(desk.submit(2))
    desk.say(m.UNWATCH, [JOB])
    assert replies(desk.finish(first), m.RESULT) == []
    desk.say(m.WATCH, [JOB, []])
    desk.do(e.ClientGone(1, goodbye=False))

    assert replies(desk.finish(second), m.RESULT) == []


# ---- the end of a node -----------------------------------------------------------------------------------------------


def test_stop_gives_running_tasks_their_grace_and_names_what_waits() -> None:
    """Nothing new starts; what is not over after the grace is killed, waits in the journal and runs after a restart."""
    world = World(1)
    node = world.add("n")
    client = Client(node, 1, b"s" * 16)
    client.connect()
    one = client.submit(b"J" * 16, 20, lambda i: Task(0.5 if i % 2 else 30.0))
    world.run(lambda: False, 1.2)
    done = len(one.got)
    node.handle(e.Stop(2.0))
    assert world.run(lambda: node.stopped is not None, 4)
    assert node.stopped == [f"{node.machine.keeping.jobs[b'J' * 16].name} ({len(one.got)} of 20 done)"]
    assert len(one.got) <= done + 2
    node.crash()
    node.start()
    client.connect()

    assert world.run(lambda: one.ended, 1000)
    assert one.state == "done"


def test_stop_waits_for_no_grace_when_nothing_runs() -> None:
    """An idle node ends at once, one that waits for its disk after the commit."""
    desk = Desk()
    desk.join()
    desk.submit(2)
    assert not any(isinstance(one, e.Stopped) for one in desk.do(e.Stop(2.0)))
    (stopped,) = [one for one in desk.sync() if isinstance(one, e.Stopped)]

    assert len(stopped.waiting) == 1
    assert "(0 of 2 done)" in stopped.waiting[0]


def test_expired_jobs_are_deleted_with_all_their_rows() -> None:
    """Running ones are killed, their readers told."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(1)
    desk.say(m.OPEN, [b"x" * 16, spec(ttl_s=100.0)])
    desk.say(m.CODE, [b"x" * 16, CODE, b"\x93\xa6pickle\x0b\xc4\x00"])
    desk.say(m.WATCH, [b"x" * 16, []])
    out = desk.wait(601)

    assert [row for one in out if isinstance(one, e.Store) for row in one.rows] == [
        e.Row(b"x" * 16, "*", b"", b"", None)
    ]
    assert replies(out, m.STATE) == [[b"x" * 16, "abandoned", "expired"]]
    assert list(desk.machine.keeping.jobs) == [JOB]
    assert desk.machine.wall(desk.now) == UNIX_0 + desk.now


def test_memory_of_synced_results_is_bounded_whatever_their_size() -> None:
    """A million empty results are not a million entries in memory."""
    desk = Desk(keeping=KeepingOptions(recent_bytes=10_000))
    desk.ready()
    desk.join()
    desk.say(m.OPEN, [JOB, spec()])
    desk.say(m.CODE, [JOB, CODE, b"\x93\xa6pickle\x0b\xc4\x00"])
    for number in range(100):
        (run,) = runs(desk.say(m.INPUT, [JOB, number, number + 1, batch(number, number + 1)]))
        desk.finish(run, b"")
        desk.sync()

    assert len(desk.machine.keeping.readers._recent) < 25
    assert not desk.machine.keeping.readers._pinned
    assert not desk.machine.keeping._unsynced
    assert not desk.machine.keeping._promises


def test_a_job_that_is_over_leaves_nothing_but_its_record() -> None:
    """No timer, lease, input or promise of it stays."""
    world = World(1)
    nodes = [world.add("n"), world.add("m")]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    one = client.submit(b"J" * 16, 200, lambda i: Task(0.02, "crash" if i == 5 else "ok"))
    assert world.run(lambda: one.ended, 60)
    world.run(lambda: False, 20)
    for node in nodes:
        machine = node.machine
        assert machine.pool.works == {}
        assert machine.pool._owners == machine.pool._active == {}
        assert not any(holder.holds for holder in machine.leases.holders.values())
        assert not any(debt.owes or debt.held for debt in machine.holding.debts.values())
        once = {("expire",), ("offer",), ("ask",), ("lease",), ("beat",), ("double",)}
        assert set(machine.parts.timers) <= once  # of the node, not of a job; the last looks once, and is over
        assert (machine.restoring._reading, machine.door.held_back, machine.logs.reading) == ({}, {}, {})


def fits(options: dict[str, Any]) -> bytes:
    """Return a batch of one task with options of any kind."""
    return encode_batch([CODE], [options], [(1, 0, 0, CALLS, [b""])])


@pytest.mark.parametrize(
    "options", [{"retries": "x"}, {"where": "import os"}, {1: 2, "a": 3}, {"resources": {"cpu": -1}}]
)
def test_options_that_are_none_are_refused_with_their_batch(options: dict[str, Any]) -> None:
    """Nothing of it is kept: the place is free for a good one."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(1, close=False)
    (error,) = replies(desk.say(m.INPUT, [JOB, 1, 2, fits(options)]), m.ERROR)
    assert error["code"] == "version-mismatch"
    desk.say(m.INPUT, [JOB, 1, 2, batch(1, 2)])

    assert replies(desk.sync(), m.ACK)[-1] == [JOB, "input", 1]


# ---- forgetting and keeping ------------------------------------------------------------------------------------------


def test_a_forgotten_job_is_gone_from_memory_and_disk_and_what_ran_is_killed() -> None:
    """The answer comes once that is synced; a restart knows nothing of it."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(3))
    desk.sync()
    out = desk.say(m.REQUEST, ["forget", {"target": JOB.hex()}], id_=9)

    assert [(one.worker, one.run) for one in kills(out)] == [(0, run.run)]
    assert replies(out, m.STATE) == [[JOB, "cancelled", "forgotten"]]
    assert replies(out, m.ANSWER) == []
    assert e.Store(0, [e.Row(JOB, "*", b"", b"", None)]) in out
    assert replies(desk.sync(), m.ANSWER) == [{"forgotten": 1}]
    assert desk.answer("jobs") == {"jobs": []}
    assert desk.machine.pool.works == {}
    assert runs(desk.do(e.WorkerDied(0, run.run, 0, "killed", "killed"), e.WorkerReady(0))) == []


def test_a_kept_job_expires_later_and_never_earlier_also_after_a_restart() -> None:
    """`keep_until` only adds; the journal knows it."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(1)
    desk.sync()
    later = UNIX_0 + 1e7
    out = desk.say(m.REQUEST, ["keep", {"target": "last", "until": later}], id_=9)
    rows = [e.Row(JOB, "spec", b"", spec(), b""), *(row for one in out if isinstance(one, e.Store) for row in one.rows)]

    assert replies(desk.sync(), m.ANSWER) == [{"expires": later}]
    desk.say(m.REQUEST, ["keep", {"target": "last", "until": UNIX_0}], id_=9)
    assert replies(desk.sync(), m.ANSWER) == [{"expires": later}]
    assert Desk(rows=rows).machine.keeping.jobs[JOB].expires_s == later
