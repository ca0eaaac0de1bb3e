"""Tasks that start tasks and wait for them: who runs what meanwhile, and what ends with whom."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.chains import WORK
from p2pgrid.core.failure import decode_exception
from p2pgrid.core.prints import PRINTS, Line
from p2pgrid.core.record import Spec, TaskOf
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from p2pgrid.node.running import LEND_AFTER_S, LENT_MAX
from tests.node.desk import CODE, JOB, UNION, UNIX_0, Desk, batch, replies, runs, sends, tasks

CHILD, GRANDCHILD = b"c" * 16, b"g" * 16
ALL = [0, 1 << 40]
FIRST = TaskOf(JOB, 0, 1)
TASK = 9
"""The client that a task is."""


def busy(count: int = 1, slots: int = 1, **how: Any) -> tuple[Desk, list[e.Run]]:
    """Return a node of which a program's tasks run, and what was given to its workers."""
    desk = Desk(slots=slots)
    desk.ready()
    desk.join()
    given = runs(desk.submit(count, **how))
    for run in given:
        enter(desk, TASK + run.worker, run.worker)
    return desk, given


def enter(desk: Desk, client: int, worker: int) -> None:
    """Let a task of a worker use the grid."""
    desk.do(e.ClientJoined(client, b"t%015d" % client, "task", 1, worker))


def start(
    desk: Desk, count: int, parent: TaskOf | None = FIRST, job: bytes = CHILD, client: int = TASK,
    options: dict[str, Any] | None = None,
) -> list[e.Effect]:  # fmt: skip
    """Let a task start others."""
    spec = Spec("calls", "", b"t%015d" % client, UNIX_0 + 1000.0, 86400.0, parent=parent).packed()
    out = desk.say(m.OPEN, [job, spec], client)
    out += desk.say(m.CODE, [job, CODE, UNION], client)
    out += desk.say(m.INPUT, [job, 0, count, batch(0, count, options)], client)
    return out + desk.say(m.WATCH, [job, []], client)


def wait(
    desk: Desk, index: int = 0, wanted: Any = None, *, may_run: bool = True, client: int = TASK, job: bytes = JOB,
    number: int = 1,
) -> list[e.Effect]:  # fmt: skip
    """Let a task wait."""
    return desk.say(m.WAIT, [number, job, index, may_run, wanted or [[CHILD, ALL]]], client)


def below(effects: list[e.Effect]) -> list[tuple[bytes, list[int], tuple[int, int] | None]]:
    """Return what was given to workers: of which job, which tasks, below which."""
    return [(run.job, tasks(run), run.inside) for run in runs(effects)]


def test_what_a_task_waits_for_runs_below_it() -> None:
    """On one slot: no second process is needed."""
    desk, (run,) = busy()

    assert runs(start(desk, 2)) == []
    assert below(wait(desk)) == [(CHILD, [0], (run.run, 0))]


def test_one_after_the_other_until_it_waits_no_more() -> None:
    """What is left is for whoever is free then."""
    desk, (run,) = busy()
    start(desk, 3)
    (first,) = runs(wait(desk))
    (second,) = runs(desk.finish(first))
    desk.finish(second)

    assert (tasks(first), tasks(second)) == ([0], [1])
    assert desk.say(m.WAITED, [1], TASK) == [e.Recall(0)]
    assert desk.machine.running.innermost(desk.machine.running.workers[0]) is not None
    assert run.run in [info.run for info in desk.machine.running.workers[0].all_runs]


def test_a_chain_goes_down_in_one_worker() -> None:
    """Each below the one before it; the innermost is the one that runs."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    start(desk, 1, TaskOf(CHILD, 0, 1), GRANDCHILD)
    out = wait(desk, 0, [[GRANDCHILD, ALL]], job=CHILD, number=2)

    assert below(out) == [(GRANDCHILD, [0], (child.run, 0))]
    assert {run.run, child.run} < {info.run for info in desk.machine.running.workers[0].all_runs}
    assert desk.machine.running.active() == 1


def test_the_rest_of_its_grain_is_for_others() -> None:
    """Whoever waits holds up nobody who came with it."""
    desk = Desk()
    desk.ready()
    desk.join()
    (warm,) = runs(desk.submit(1, job=b"w" * 16))
    desk.finish(warm, busy_s=0.0001)
    first = runs(desk.submit(10))[0]
    enter(desk, TASK, 0)
    start(desk, 1)

    assert len(tasks(first)) > 1
    assert e.Recall(0) in wait(desk)


def test_what_runs_elsewhere_is_helped_by_what_it_has_started() -> None:
    """The slot of a task that waits is not idle while the task it waits for has more than it can do."""
    desk, (one, two) = busy(2, slots=2)
    start(desk, 1, client=TASK + one.worker)
    desk.finish(two)
    (child,) = [info for info in desk.machine.running.workers[two.worker].runs if info.job == CHILD]
    start(desk, 3, TaskOf(CHILD, 0, 1), GRANDCHILD, client=TASK + two.worker)

    assert child.taken.count == 1
    assert below(wait(desk, client=TASK + one.worker))[0][::2] == (GRANDCHILD, (one.run, 0))


def test_a_slot_is_lent_after_a_moment_where_nothing_can_run_below() -> None:
    """Threads and `async` tasks wait as well; a process more takes their place."""
    desk, _ = busy()
    start(desk, 2)

    assert runs(wait(desk, may_run=False)) == []
    (lent,) = runs(desk.wait(2 * LEND_AFTER_S))
    assert (lent.worker, lent.job, lent.inside) == (1, CHILD, None)
    assert runs(desk.finish(lent))[0].worker == 1


def test_a_slot_is_lent_to_what_somebody_waits_for_first() -> None:
    """However much else is ready."""
    desk, _ = busy(50, options={"priority": 5})
    start(desk, 1)
    wait(desk, may_run=False)

    assert [run.job for run in runs(desk.wait(2 * LEND_AFTER_S))] == [CHILD]


def test_a_slot_is_not_lent_any_more_once_its_task_goes_on() -> None:
    """What runs there ends; nothing more begins."""
    desk, _ = busy()
    start(desk, 3)
    wait(desk, may_run=False)
    (lent,) = runs(desk.wait(2 * LEND_AFTER_S))
    desk.say(m.WAITED, [1], TASK)

    assert runs(desk.finish(lent)) == []


def test_at_most_sixteen_slots_are_lent() -> None:
    """Each is a process: what cannot be run then fails with a word that says why, and nobody waits for ever."""
    desk, _ = busy()
    parent, last = TaskOf(JOB, 0, 1), JOB
    given = []
    for depth in range(LENT_MAX + 1):
        job, client = b"%016d" % depth, TASK + depth
        enter(desk, client, depth)
        start(desk, 1, parent, job, client)
        wait(desk, 0, [[job, ALL]], client=client, job=last, may_run=False)
        given += runs(desk.wait(2 * LEND_AFTER_S))
        parent, last = TaskOf(job, 0, 1), job

    assert [run.worker for run in given] == list(range(1, LENT_MAX + 1))
    failed = [body for body in replies(desk.wait(20), m.RESULT) if body[0] == last]
    error = decode_exception(unpack(failed[0][1][0][3]))
    assert isinstance(error, RecursionError)
    assert "next:" in str(error)


def test_what_has_a_limit_of_its_own_gets_a_process_of_its_own() -> None:
    """The limit would end the one that waits as well."""
    desk, _ = busy()
    start(desk, 1, options={"timeout_s": 5.0})

    assert runs(wait(desk)) == []
    assert [run.inside for run in runs(desk.wait(2 * LEND_AFTER_S))] == [None]


def test_what_a_task_has_started_ends_with_it() -> None:
    """Nobody else wants it: it is stopped, and its record deleted."""
    desk, (run,) = busy()
    start(desk, 2)
    wait(desk)
    out = desk.finish(run)

    assert CHILD not in desk.machine.keeping.jobs
    assert e.Row(CHILD, "*", b"", b"", None) in [row for one in out if isinstance(one, e.Store) for row in one.rows]
    assert desk.machine.nesting.children == {}


def test_the_family_of_a_task_ends_with_its_process() -> None:
    """It runs again, by itself, and starts anew what it needs."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    start(desk, 1, TaskOf(CHILD, 0, 1), GRANDCHILD)
    desk.do(e.ClientGone(TASK, goodbye=False), e.WorkerDied(0, child.run, 0, "signal", "killed by signal SIGSEGV"))
    (again,) = runs(desk.do(e.WorkerReady(0)))

    assert (again.job, again.context["attempt"]) == (JOB, run.context["attempt"] + 1)
    assert desk.machine.keeping.jobs.keys() == {JOB}
    enter(desk, TASK, 0)
    start(desk, 1, TaskOf(JOB, 0, 2))
    assert runs(wait(desk)) == [], "what was there when a process died gets one of its own"
    assert [one.worker for one in runs(desk.wait(2 * LEND_AFTER_S))] == [1]


def test_a_lent_slot_whose_process_died_is_lent_again() -> None:
    """A second later, even where nothing else happens: the task that crashes it is tried three times."""
    desk, _ = busy()
    start(desk, 1)
    out = wait(desk, may_run=False)
    for _ in range(3):
        (lent,) = runs(desk.wait(2.0))
        out = desk.do(e.WorkerDied(lent.worker, lent.run, 0, "signal", "killed by signal SIGABRT"))
    (body,) = [body for body in replies(out, m.RESULT) if body[0] == CHILD]

    assert type(decode_exception(unpack(body[1][0][3]))).__name__ == "WorkerCrashed"


def test_to_cancel_a_task_kills_what_runs_below_it() -> None:
    """And all that is theirs is deleted."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    out = desk.say(m.CANCEL, [JOB, None])

    assert [(one.worker, one.run) for one in out if isinstance(one, e.Kill)] == [(0, run.run)]
    desk.do(e.WorkerDied(0, child.run, 0, "killed", "killed while it ran task 0"))
    assert desk.machine.keeping.jobs.keys() == {JOB}


def test_to_cancel_what_runs_below_a_task_has_that_run_again_by_itself() -> None:
    """It goes down with what it has cancelled; the next time that has a process of its own."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    out = desk.say(m.CANCEL, [CHILD, None], TASK)
    desk.do(e.WorkerDied(0, child.run, 0, "killed", "killed while it ran task 0"))
    (again,) = runs(desk.do(e.WorkerReady(0)))
    enter(desk, TASK, 0)
    start(desk, 1, TaskOf(JOB, 0, 2))

    assert [(one.worker, one.run) for one in out if isinstance(one, e.Kill)] == [(0, child.run)]
    assert (again.job, again.context["attempt"]) == (JOB, run.context["attempt"] + 1)
    assert runs(wait(desk)) == []


def test_a_node_that_starts_again_forgets_what_tasks_had_started() -> None:
    """They run again."""
    desk, _ = busy()
    start(desk, 1)
    rows = [row for one in desk.all if isinstance(one, e.Store) for row in one.rows if row.value is not None]

    assert CHILD in {row.job for row in rows}
    assert Desk(rows=rows).machine.keeping.jobs.keys() == {JOB}


def test_listings_name_what_programs_have_submitted() -> None:
    """What tasks have started is counted at their job, and found by its id."""
    desk, _ = busy()
    start(desk, 2)

    assert [job["hex"] for job in desk.answer("jobs")["jobs"]] == [JOB.hex()]
    assert desk.answer("show", target=JOB.hex())["started"] == {"jobs": 1, "tasks": 2, "done": 0}
    assert desk.answer("show", target=CHILD.hex())["job"]["known"] == 2
    assert desk.answer("show", target="last")["job"]["hex"] == JOB.hex()
    assert CHILD not in desk.machine.listing.list.jobs


def test_what_it_has_started_prints_as_the_task_itself() -> None:
    """However far up it is: whoever submitted that sees its lines."""
    desk, _ = busy()
    desk.say(m.WATCH, [JOB, [], 10.0, PRINTS])
    start(desk, 1)
    (child,) = runs(wait(desk))
    start(desk, 1, TaskOf(CHILD, 0, 1), GRANDCHILD)
    (grandchild,) = runs(wait(desk, 0, [[GRANDCHILD, ALL]], job=CHILD, number=2))
    out = desk.do(e.WorkerPrinted(0, grandchild.run, [Line(0, 1, "deep down")]))

    assert (child.context["show"], grandchild.context["show"]) == (PRINTS, PRINTS)
    assert [(one.client, one.body[:3]) for one in out if isinstance(one, e.Reply)] == [
        (1, [JOB, "n", [[0, 1, "deep down", 0, ""]]])
    ]


def test_a_task_has_the_rights_of_its_job() -> None:
    """A node that may only work runs what its tasks start, and gives it to nobody: they would not take it."""
    desk, _ = busy()
    desk.do(e.Belongs(b"g" * 32, "g", WORK))
    refused = replies(desk.submit(1, job=b"o" * 16), m.REFUSED)
    start(desk, 1)

    assert refused[0][3]["code"] == "not-authorized"
    assert [run.job for run in runs(wait(desk))] == [CHILD]


@pytest.mark.parametrize("client", [1, TASK])
def test_only_a_task_that_runs_starts_jobs_in_its_name(client: int) -> None:
    """Neither another program, nor a task that is over."""
    desk, (run,) = busy()
    desk.finish(run)
    out = start(desk, 1, client=client)

    assert CHILD not in desk.machine.keeping.jobs
    assert replies(out, m.ERROR if client == 1 else m.REFUSED)


def test_no_other_node_keeps_what_a_task_has_started() -> None:
    """It would be of no use there once this node is gone. Its tasks are for everybody."""
    desk, _ = busy()
    facts = {"name": "p", "slots": 2, "minor": 11, "resources": {"cpu": 2, "mem": 8 << 30}}
    desk.do(e.PeerUp("p", facts))
    desk.sync()
    out = start(desk, 3)
    desk.sync()
    granted = desk.do(e.PeerSent("p", m.P_WANT, [[1, 1], 2, 0.0, 0.0]))

    assert sends(out, m.P_WORK)
    assert [body[1] for body in sends(granted, m.P_GRANT)] == [CHILD]
    assert all(row[0] != CHILD for body in sends(desk.all, m.P_ROWS) for row in body[1])


def chained(desk: Desk, depth: int) -> e.Run:
    """Let tasks start each other, each below the one before it; return the run of the innermost."""
    parent, last = FIRST, JOB
    (run,) = (info for info in desk.machine.running.workers[0].runs)
    innermost: list[e.Run] = []
    for number in range(depth):
        job = b"%016d" % number
        start(desk, 1, parent, job)
        innermost = runs(wait(desk, 0, [[job, ALL]], job=last, number=number + 1))
        parent, last = TaskOf(job, 0, 1), job
    assert run.run != innermost[0].run
    return innermost[0]


def test_a_family_of_a_thousand_generations_is_counted_and_ends() -> None:
    """As deep as tasks may start each other: Python's own stack is no measure of that."""
    desk, _ = busy()
    innermost = chained(desk, 1000)

    assert desk.answer("show", target=JOB.hex())["started"] == {"jobs": 1000, "tasks": 1000, "done": 0}
    desk.do(e.WorkerDied(0, innermost.run, 0, "signal", "killed by signal SIGKILL"))
    assert desk.machine.keeping.jobs.keys() == {JOB}
    assert desk.machine.nesting.children == {}


def test_a_thousand_generations_end_with_the_task_that_began_them() -> None:
    """From above as well: nobody waits for them any more."""
    desk, (run,) = busy()
    chained(desk, 1000)
    desk.say(m.CANCEL, [JOB, None])
    desk.do(e.WorkerDied(0, run.run, 0, "killed", "killed"))

    assert desk.machine.keeping.jobs.keys() == {JOB}
