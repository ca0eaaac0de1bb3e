"""What tasks have printed that another has started: it is kept with what that one printed."""

from __future__ import annotations

from p2pgrid.core import messages as m
from p2pgrid.core.prints import KEEP
from p2pgrid.core.record import TaskOf
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, Desk, replies, runs
from tests.node.test_machine_nesting import ALL, CHILD, GRANDCHILD, TASK, busy, enter, start, wait
from tests.node.test_machine_prints import log_rows


def done(desk: Desk, run: e.Run, text: bytes = b"") -> list[e.Effect]:
    """Let the only task of a run end, which has printed this."""
    return desk.do(
        e.WorkerDone(run.worker, run.run, [e.Outcome(0, 1, 0, [b"v"])], True, [], 0.01, [(0, text)] if text else [])  # noqa: FBT003
    )


def kept(effects: list[e.Effect]) -> dict[int, bytes]:
    """Return what is to be kept of what the tasks of the program's job have printed."""
    rows = [row for one in effects if isinstance(one, e.Store) for row in one.rows]
    return {int.from_bytes(row.key, "big"): row.value or b"" for row in rows if (row.job, row.kind) == (JOB, "log")}


def test_what_it_has_started_is_in_its_log_when_it_has_ended() -> None:
    """However far down: first what it printed itself, then the others. Their own jobs are gone by then."""
    desk, (run,) = busy()
    start(desk, 2)
    (child,) = runs(wait(desk))
    start(desk, 1, TaskOf(CHILD, 0, 1), GRANDCHILD)
    (grandchild,) = runs(wait(desk, 0, [[GRANDCHILD, ALL]], job=CHILD, number=2))
    done(desk, grandchild, b"far down\n")
    done(desk, child, b"below")
    out = done(desk, run, b"mine\n")

    assert kept(out) == {0: b"mine\nbelow\nfar down\n"}
    assert desk.machine.keeping.jobs.keys() == {JOB}
    assert desk.machine.nesting.logs._texts == {}


def test_also_of_a_task_that_has_printed_nothing_itself() -> None:
    """And of one that fails."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    done(desk, child, b"below\n")

    assert kept(done(desk, run)) == {0: b"below\n"}


def test_what_is_heard_of_a_task_again_takes_the_place_of_what_it_had_said() -> None:
    """Of a long one the output comes now and then, all of it so far."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    desk.do(e.WorkerPrinted(0, child.run, [], logs=[(0, b"one\n")]))
    desk.do(e.WorkerPrinted(0, child.run, [], logs=[(0, b"one\ntwo\n")]))
    sofar = desk.do(e.WorkerPrinted(0, run.run, [], logs=[(0, b"mine\n")]))

    assert kept(sofar) == {0: b"mine\none\ntwo\n"}
    done(desk, child, b"one\ntwo\nthree\n")
    assert kept(done(desk, run)) == {0: b"one\ntwo\nthree\n"}


def test_what_was_printed_below_a_task_that_is_killed_is_kept() -> None:
    """The process goes down with both; what each had said comes after its death."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    desk.say(m.CANCEL, [JOB, None])
    left = [(run.run, 0, b"mine\n"), (child.run, 0, b"below\n")]
    out = desk.do(e.WorkerDied(0, child.run, 0, "killed", "killed while it ran task 0", "", left))

    assert kept(out) == {0: b"mine\nbelow\n"}


def test_another_attempt_begins_anew() -> None:
    """What was printed below the first belongs to it alone."""
    desk, (run,) = busy()
    start(desk, 1)
    (child,) = runs(wait(desk))
    done(desk, child, b"the first time\n")
    desk.do(e.ClientGone(TASK, goodbye=False), e.WorkerDied(0, run.run, 0, "signal", "killed by signal SIGSEGV"))
    (again,) = runs(desk.do(e.WorkerReady(0)))
    enter(desk, TASK, 0)
    start(desk, 1, TaskOf(JOB, 0, 2))

    assert kept(done(desk, again, b"mine\n")) == {0: b"mine\n"}


def test_at_most_so_much_is_kept_of_all_of_them() -> None:
    """The last 64 KiB, as of any task; a task may start a million others."""
    desk, (run,) = busy()
    count = 20
    start(desk, count)
    wait(desk)
    for index in range(count):
        (below,) = desk.machine.running.workers[0].below
        text = b"%02d " % index * (KEEP // 12) + b"\n"
        outcome = e.Outcome(index, index + 1, 0, [b"v"])
        desk.do(e.WorkerDone(0, below.run, [outcome], True, [], 1.0, [(index, text)]))  # noqa: FBT003
        texts = desk.machine.nesting.logs._texts[JOB][0]
        assert texts.size <= KEEP
    (log,) = kept(done(desk, run, b"mine\n")).values()

    assert len(log) == KEEP
    assert log.endswith(b"19 \n")


def test_of_a_task_that_runs_elsewhere_as_well() -> None:
    """Its log comes with its result; what it has started is in there."""
    desk, (run,) = busy()
    facts = {"name": "p", "slots": 2, "minor": 11, "resources": {"cpu": 2, "mem": 8 << 30}}
    desk.do(e.PeerUp("p", facts))
    start(desk, 1)
    desk.sync()
    desk.do(e.PeerSent("p", m.P_WANT, [[1, 1], 2, 0.0, 0.0]))
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    entry = [CHILD, [5, 2], 1, [[0, 1, 0, [b"v"]]], [[0, b"over there\n"]], 0.01]
    desk.do(e.PeerSent("p", m.P_RESULTS, [entry]))

    assert kept(done(desk, run, b"mine\n")) == {0: b"mine\nover there\n"}


def test_what_a_program_has_submitted_is_kept_as_it_is() -> None:
    """Nothing is looked for where nothing was started."""
    desk, (run,) = busy()

    assert log_rows(done(desk, run, b"mine\n")) == [(0, b"mine\n")]
    assert CODE not in desk.machine.nesting.logs._texts


def test_logs_of_several_jobs_are_not_mixed_up() -> None:
    """They are asked for one by one."""
    desk, (run,) = busy()
    done(desk, run, b"mine\n")
    desk.submit(1, job=b"o" * 16)
    (refused,) = replies(desk.say(m.REQUEST, ["logs", {"target": "all"}], id_=9), m.ERROR)

    assert refused["code"] == "ambiguous"
