"""The end of a job that was shared out unevenly: nothing waits behind a long task while others are idle."""

from __future__ import annotations

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.granting import HINTS
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


def test_what_is_async_is_given_many_at_once_from_the_start() -> None:
    """Its client says so: learning it would take seconds, in which a handful of tasks sleeps and the rest waits."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    given = runs(desk.submit(1000, options={"overlap": True}))
    assert [len(tasks(run)) for run in given] == [500, 500]

    desk = Desk(slots=2, resources={"gpu": 2})
    desk.ready()
    desk.join()
    given = runs(desk.submit(1000, options={"overlap": True, "resources": {"gpu": 1}}))
    assert [len(tasks(run)) for run in given] == [1, 1], "what it asks for it has to itself"


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


def test_what_is_done_is_no_backlog_although_an_older_claim_names_it() -> None:
    """It crossed the word that its result has arrived: thieves would be sent to a member that has nothing."""
    desk = lent(12)
    desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 9], 1, [[2, 12, 0, [b"v"] * 10]]]]))
    say(desk, "p", 2, [0, 12])

    assert sends(desk.do(e.PeerSent("q", m.P_WANT, [[6, 1], 2, 0.0, 1.0])), m.P_NONE) == [[[6, 1]]]
    assert desk.machine.leases.held("p", JOB).flat() == [0, 2]


def test_members_that_ask_at_the_same_time_are_sent_to_different_ones() -> None:
    """Else all of them ask the same few, who have something for the first."""
    granting = lent(12).machine.members.granting
    waits = {f"m{number}": 1.0 + number / 100 for number in range(20)}
    granting.backlogs = lambda besides="": {peer: one for peer, one in waits.items() if peer != besides}  # type: ignore[method-assign]
    named = [granting._hints("q", 10.0) for _ in range(5)]

    assert [len(one) for one in named] == [HINTS] * 5
    assert {peer for one in named for peer, _ in one} == set(waits)
    assert granting._hints("q", 20.0) == named[0], "a while later nothing is remembered of that"


def test_who_asked_ahead_in_vain_asks_once_more_when_a_slot_is_free() -> None:
    """Until then its keeper does not know that a copy of a slow task would be welcome."""
    desk = thief(hints=())
    holding = desk.machine.holding
    holding.hint("k")
    (asked,) = holding.ask(0, 1.0, 1.0, desk.now)
    holding.refused("k", tuple(asked.body[0]), desk.now)
    assert list(holding.ahead) == ["k"]
    desk.all.clear()
    desk.do(e.PeerUp("y", {"name": "y", "slots": 0}))

    assert [one[1] for one in sends(desk.all, m.P_WANT)] == [1]
    assert not holding.ahead


def test_a_task_that_a_member_must_have_begun_may_be_copied_although_it_has_not_said_so() -> None:
    """It has ended all others that it had; its next claim comes in a second."""
    desk = lent(6)
    say(desk, "p", 2, [0, 6])
    assert {task: peer for peer, task, _ in desk.machine.leases.began(JOB)} == {0: "p"}
    desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 9], 1, [[0, 4, 0, [b"v"] * 4]]]]))

    assert {task for _, task, _ in desk.machine.leases.began(JOB)} >= {4, 5}
