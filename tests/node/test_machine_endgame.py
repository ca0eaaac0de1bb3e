"""The end of a job that was shared out unevenly: nothing waits behind a long task while others are idle."""

from __future__ import annotations

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, Desk, runs, sends, tasks
from tests.node.test_machine_members import waiting
from tests.node.test_machine_stealing import handed, lent, say, steal, thief, victim


def test_what_comes_back_before_anybody_said_that_it_was_there_is_not_lost() -> None:
    """A thief gives back at once what it took; its victim's word of it comes later, and would cover it for seconds."""
    desk = lent(8)
    desk.do(e.PeerSent("q", m.P_RETURN, [JOB, [6, 8], "", False]))
    assert waiting(desk) == []
    say(desk, "p", 2, [0, 4], [4, 8])
    assert waiting(desk) == [(6, 8)]
    say(desk, "p", 3, [0, 4], [4, 8])

    assert waiting(desk) == [(6, 8)]


def test_what_came_back_long_ago_does_not_count() -> None:
    """It is another time that its thief has it now."""
    desk = lent(8)
    desk.do(e.PeerSent("q", m.P_RETURN, [JOB, [6, 8], "", False]))
    for seq in range(2, 7):
        desk.wait(1.0)
        say(desk, "p", seq, [0, 8])
    say(desk, "p", 7, [0, 4], [4, 8])
    say(desk, "q", 1, [4, 8])

    assert waiting(desk) == []


def test_a_lifeline_that_was_answered_by_giving_back_is_left_anew() -> None:
    """Its holder has forgotten it; the keeper would wait for nothing."""
    desk = thief()
    thieves = desk.machine.thief
    thieves._lines.update(dict.fromkeys(("v", "w"), desk.now + 60))
    desk.do(e.PeerSent("v", m.P_NOTHING, [[7, 4711], []]))

    assert list(thieves._lines) == ["w"]


def test_a_waiter_is_given_what_turns_out_to_wait_behind_a_long_task() -> None:
    """Short so far, so that the last one would be done here sooner; then the one before it takes its time."""
    desk = victim(3)
    desk.finish(runs(desk.all)[0], busy_s=0.02)
    second, third = runs(desk.all)[-2:]
    assert (tasks(second), tasks(third)) == ([1], [2])
    assert sends(desk.do(e.PeerSent("t", m.P_LIFELINE, [[9, 1], 60.0, [[CODE, 0.2]], []])), m.P_HANDOVER) == []
    assert not [one for one in desk.wait(0.05) if isinstance(one, e.Recall)]
    assert [one for one in desk.wait(1.0) if isinstance(one, e.Recall)]
    (body,) = sends(desk.do(e.WorkerDone(0, third.run, [], True, [(2, 3)], 0.0)), m.P_HANDOVER)  # noqa: FBT003

    assert handed(body) == [2]


def test_many_reports_of_one_run_are_not_taken_for_tasks_that_overlap() -> None:
    """Each takes as long as it says; only those that wait together get all there is at once."""
    desk = Desk(slots=1)
    desk.ready()
    desk.join()
    desk.submit(200)
    desk.finish(runs(desk.all)[0], busy_s=0.002)
    before = len(runs(desk.all))
    run = runs(desk.all)[-2]
    assert len(tasks(run)) > 5
    for index in tasks(run):
        desk.now += 0.1
        desk.do(e.WorkerDone(0, run.run, [e.Outcome(index, index + 1, 0, [b"v"])], index == tasks(run)[-1], [], 0.1))

    desk.finish(runs(desk.all)[before - 1], busy_s=0.1)

    assert max(len(tasks(one)) for one in runs(desk.all)[before:]) == 1


def test_a_first_run_that_took_long_to_import_is_not_taken_for_tasks_that_overlap() -> None:
    """A worker that unpacked a source tree first got all that a job had left, and nobody could help."""
    desk = Desk(slots=1)
    desk.ready()
    desk.join()
    desk.submit(200)
    desk.now += 2.0
    desk.finish(runs(desk.all)[0], busy_s=0.05)

    assert max(len(tasks(one)) for one in runs(desk.all)[1:]) == 1


def test_a_thief_asks_for_what_waits_inside_a_worker_behind_a_queued_run() -> None:
    """Its age counts from when it came to the front."""
    desk = victim(40)
    desk.finish(runs(desk.all)[0], busy_s=0.004)
    first, second = runs(desk.all)[-2:]
    desk.now += 0.05
    desk.finish(first, busy_s=0.05)
    desk.now += 2.0
    steal(desk)

    learnt = desk.machine.running.seconds(CODE)
    assert learnt is not None
    assert learnt >= 2.0 / len(tasks(second))
