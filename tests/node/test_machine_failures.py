"""What becomes of tasks that raise, kill their worker, run too long, or fit nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.failure import decode_exception, encode_exception
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from tests.node.desk import JOB, Desk, replies, runs, tasks
from tests.node.driver import Client, Submitted, Task, World


def grid(slots: int = 2, **config: Any) -> tuple[World, Client]:
    """Return a world of one node and a client of it."""
    world = World(1)
    client = Client(world.add("n", slots=slots, **config), 1, b"s" * 16)
    client.connect()
    return world, client


def failure(one: Submitted, index: int) -> str:
    """Return the type and the text of a task's exception."""
    shape, data = one.got[index]
    assert shape == 2
    return told(data)


def told(data: bytes) -> str:
    """Return the type and the text of an encoded exception."""
    error = decode_exception(unpack(data))
    return f"{type(error).__qualname__}: {error}"


def test_a_task_that_kills_its_worker_three_times_fails_alone() -> None:
    """WorkerCrashed says what killed it and what it wrote last; all other tasks end well."""
    world, client = grid()
    one = client.submit(b"J" * 16, 40, lambda i: Task(0.01, "crash" if i == 7 else "ok"))

    assert world.run(lambda: one.ended, 60)
    assert sorted(i for i, (shape, _) in one.got.items() if shape == 2) == [7]
    assert world.runs[b"J" * 16, 7] == 3
    assert max(count for (_, i), count in world.runs.items() if i != 7) <= 2
    assert failure(one, 7).startswith("WorkerCrashed")
    assert "SIGSEGV" in failure(one, 7)
    assert "Segmentation fault" in failure(one, 7)


def test_after_its_first_crash_a_task_runs_alone() -> None:
    """Whoever shared a grain with it would die with it again."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1, job=b"w" * 16))
    desk.do(e.WorkerDone(0, run.run, [e.Outcome(0, 1, 0, [b""])], True, [], 0.002))  # noqa: FBT003
    first, second = runs(desk.submit(100))
    assert (tasks(first)[0], tasks(second)[0]) == (0, 25)
    desk.do(e.WorkerDied(0, first.run, 3, "signal", "killed by signal SIGKILL"))
    alone = []
    out = desk.ready()
    while runs(out):
        given = runs(out)
        alone += [tasks(one) for one in given if 3 in tasks(one)]
        out = []
        for one in given:
            out += desk.finish(one)

    assert alone == [[3]]


def test_what_a_dead_worker_printed_is_the_output_of_the_task_that_killed_it() -> None:
    """`logs` shows it: WorkerCrashed and TaskTimeout tell people to look there."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))
    died = e.WorkerDied(0, run.run, 0, "timeout", "ran longer than 1 s", "what it printed")
    rows = [row for one in desk.do(died) if isinstance(one, e.Store) for row in one.rows]

    assert [(row.key, row.value) for row in rows if row.kind == "log"] == [(bytes(8), b"what it printed\n")]


def test_a_run_says_on_which_node_it_is() -> None:
    """`pg.current().node` is the name of the node."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))

    assert run.context["node"] == "n"


def test_a_crash_without_a_culprit_lets_every_task_of_the_grain_run_alone() -> None:
    """Nobody is charged who may be innocent, and their attempt number rises."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1, job=b"w" * 16))
    desk.do(e.WorkerDone(0, run.run, [e.Outcome(0, 1, 0, [b""])], True, [], 0.002))  # noqa: FBT003
    first, _ = runs(desk.submit(8))
    desk.do(e.WorkerDied(0, None, None, "exit", "ended with exit code 0"))
    given = []
    out = desk.ready()
    while runs(out):
        batch = runs(out)
        given += batch
        out = [effect for one in batch for effect in desk.finish(one)]
    again = [one for one in given if set(tasks(one)) & set(tasks(first))]

    assert [tasks(one) for one in again] == [[i] for i in tasks(first)]
    assert {one.context["attempt"] for one in again} == {2}
    assert desk.machine.keeping.jobs[JOB].record.tries == {}


@pytest.mark.parametrize(
    ("retry_on", "executions"),
    [([["builtins", "Exception"]], 3), ([["builtins", "LookupError"]], 3), ([["builtins", "OSError"]], 1)],
)
def test_a_task_that_raises_is_tried_again_where_asked(retry_on: list[list[str]], executions: int) -> None:
    """`retries=2` means three executions, of errors that `retry_on` names by class or base class."""
    desk = Desk()
    desk.ready()
    desk.join()
    out = desk.submit(1, options={"retries": 2, "retry_on": retry_on})
    attempts = []
    while runs(out):
        (run,) = runs(out)
        attempts.append(run.context["attempt"])
        out = desk.fail(run, 0, encode_exception(KeyError("k")))

    assert attempts == list(range(1, executions + 1))
    ((_, [entry]),) = replies(out, m.RESULT)
    assert (entry[2], entry[5]) == (2, executions)


def test_without_retries_an_error_is_the_result() -> None:
    """Failures of the user's code are results; the other tasks go on."""
    world, client = grid()
    one = client.submit(b"J" * 16, 10, lambda i: Task(0.01, "raise" if i % 2 else "ok"))

    assert world.run(lambda: one.ended, 60)
    assert sorted(i for i, (shape, _) in one.got.items() if shape == 2) == [1, 3, 5, 7, 9]
    assert one.state == "failed"
    assert max(world.runs.values()) == 1


@pytest.mark.parametrize(("outcome", "kind"), [("timeout", "TaskTimeout"), ("memory", "TaskMemoryExceeded")])
def test_limits_end_the_task_with_their_own_error(outcome: str, kind: str) -> None:
    """A task that was killed for its time or its memory is not run again unless retries ask for it."""
    world, client = grid()
    one = client.submit(b"J" * 16, 6, lambda i: Task(0.01, outcome if i == 2 else "ok"))
    two = client.submit(b"K" * 16, 2, lambda _: Task(0.01, outcome, times=1), options={"retries": 1})

    assert world.run(lambda: one.ended and two.ended, 60)
    assert failure(one, 2).startswith(kind)
    assert f"{outcome} after 1 s" in failure(one, 2)
    assert world.runs[b"J" * 16, 2] == 1
    assert two.state == "done"


def test_limits_travel_with_the_run() -> None:
    """The shell is told the time and the memory a task may take."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1, options={"timeout_s": 2.5, "resources": {"mem": 1 << 20}}))

    assert (run.timeout_s, run.memory) == (2.5, 1 << 20)


NOWHERE = "0 of 1 nodes: gpu ≥ 1 (none has it)"


def test_what_no_node_can_run_waits_and_everyone_says_why() -> None:
    """The client after 10 s, `jobs`, `show` and `explain` whenever they are asked: the same clause."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(2, options={"resources": {"gpu": 1}})
    assert replies(desk.wait(9.9), m.NOTICE) == []

    assert replies(desk.wait(0.2), m.NOTICE) == [[JOB, NOWHERE]]
    (job,) = desk.answer("jobs")["jobs"]
    assert job["waiting"] == NOWHERE
    shown = desk.answer("show", target="last")
    assert (shown["job"]["waiting"], shown["tasks"]["waiting"]) == (NOWHERE, 2)
    assert f"tasks wait: {NOWHERE}" in desk.answer("explain", target="last/0")["lines"]
    assert replies(desk.wait(100), m.NOTICE) == []


def test_a_job_that_waits_runs_as_soon_as_a_node_fits() -> None:
    """And nobody is told that it waits."""
    desk = Desk()
    desk.join()
    desk.submit(2, options={"resources": {"gpu": 1}})
    desk.do(e.PeerUp("p", {"slots": 1, "minor": 11, "resources": {"cpu": 1, "gpu": 1}}))

    assert replies(desk.wait(20), m.NOTICE) == []
    assert any(isinstance(one, e.Send) and one.kind == m.P_WORK for one in desk.all)


def test_strict_tasks_that_no_node_can_run_fail_at_once() -> None:
    """`strict=True` asks for Unschedulable instead of waiting; a lane that exists already does not hide it."""
    desk = Desk()
    desk.ready()
    desk.join()
    out = desk.submit(2, options={"resources": {"gpu": 1}, "strict": True})
    ((_, entries),) = replies(out, m.RESULT)

    assert [entry[:3] for entry in entries] == [[0, 1, 2], [1, 2, 2]]
    assert NOWHERE in told(entries[0][3])
    assert replies(out, m.STATE) == [[JOB, "failed", ""]]


def test_a_function_for_another_python_says_so() -> None:
    """A pickled function is bound to the minor version that made it."""
    desk = Desk(python=(3, 13))
    desk.ready()
    desk.join()
    desk.submit(1)
    ((_, text),) = replies(desk.wait(11), m.NOTICE)

    assert "Python 3.11" in text


def test_a_function_that_cannot_be_loaded_anywhere_is_a_missing_module() -> None:
    """On a grid of one node: the reason is the task's error."""
    world, client = grid()
    client.node.lacks = "No module named 'pandas'"
    one = client.submit(b"J" * 16, 5, lambda _: Task(0.01))

    assert world.run(lambda: one.ended, 60)
    assert failure(one, 0).startswith("MissingModule")
    assert "No module named 'pandas'" in failure(one, 0)


def test_a_function_that_one_node_cannot_load_runs_on_the_other() -> None:
    """The node is unfit for that job, the task has not failed."""
    world, client = grid()
    world.add("m")
    client.node.lacks = "No module named 'pandas'"
    world.run(lambda: False, 1)
    one = client.submit(b"J" * 16, 20, lambda _: Task(0.01))

    assert world.run(lambda: one.ended, 60)
    assert one.state == "done"
    lines = client.node.machine.pool.works
    assert lines == {}


def test_a_member_that_cannot_load_a_function_gives_the_tasks_back() -> None:
    """It is not asked again, and it does not ask without end."""
    world, client = grid(slots=1)
    other = world.add("m", slots=4)
    other.lacks = "No module named 'pandas'"
    world.run(lambda: False, 1)
    one = client.submit(b"J" * 16, 50, lambda _: Task(0.1))

    assert world.run(lambda: one.ended, 60)
    assert one.state == "done"
    assert world.sent[m.P_WANT] < 20


def test_a_node_without_what_a_job_needs_is_not_told_of_it() -> None:
    """Offers go to those who could run something: no ping-pong of requests and refusals."""
    world, client = grid()
    world.add("m")
    world.run(lambda: False, 1)
    client.submit(b"J" * 16, 5, lambda _: Task(0.1), options={"resources": {"gpu": 1}})
    before = sum(world.sent.values())
    world.run(lambda: False, 60)

    assert sum(world.sent.values()) == before


def test_attempt_numbers_rise_with_each_execution_and_each_restart() -> None:
    """An execution of a former life can be told from one of this."""
    world, client = grid(slots=1)
    one = client.submit(b"J" * 16, 3, lambda _: Task(5.0))
    world.run(lambda: False, 2)
    seen = []
    for _ in range(3):
        client.node.crash()
        client.node.start()
        client.connect()
        world.run(lambda: False, 2)
        work = client.node.machine.pool.works[b"J" * 16]
        seen.append([work.attempts.get(i) for i in range(3)])

    assert seen == [[2, 2, 2], [3, 3, 3], [4, 4, 4]]
    assert world.run(lambda: one.ended, 60)


def test_inputs_that_are_damaged_on_disk_fail_their_tasks_only() -> None:
    """ObjectLost for the batch whose row is gone, the other tasks run."""
    world, client = grid()
    one = client.submit(b"J" * 16, 150, lambda _: Task(1.0))
    world.run(lambda: len(one.acks) >= 6, 1)
    client.node.crash()
    client.node.damaged.add((b"J" * 16, "input", (50).to_bytes(8, "big")))
    client.node.start()
    client.connect()

    assert world.run(lambda: one.ended, 600)
    lost = sorted(i for i, (shape, _) in one.got.items() if shape == 2)
    assert lost == list(range(50, 100))
    assert failure(one, 50).startswith("ObjectLost")


def test_results_that_are_damaged_on_disk_are_told_to_their_reader() -> None:
    """ResultLost, never a hang."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))
    desk.finish(run)
    rows = [row for one in desk.all if isinstance(one, e.Store) for row in one.rows]
    again = Desk(rows=[row._replace(value=b"") if row.kind in e.HEAVY else row for row in rows])
    again.join()
    again.say(m.WATCH, [JOB, []])
    (fetch,) = [one for one in again.all if isinstance(one, e.Fetch)]
    out = again.do(e.Fetched(fetch.token, []))
    ((_, [entry]),) = replies(out, m.RESULT)

    assert (entry[:3], told(entry[3]).split(":")[0]) == ([0, 1, 2], "ResultLost")
    assert replies(out, m.STATE) == [[JOB, "done", ""]]


def test_output_of_tasks_is_kept_and_read_back() -> None:
    """The last 64 KiB of each task, also after a restart."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))
    outcome = e.Outcome(0, 1, 0, [b""])
    desk.do(e.WorkerDone(0, run.run, [outcome], True, [], 0.1, [(0, b"x" * 70_000 + b"end")]))  # noqa: FBT003
    desk.say(m.REQUEST, ["logs", {"target": "last/0"}], id_=5)
    fetch = desk.all[-1]
    assert isinstance(fetch, e.Fetch)
    rows = [row for one in desk.all if isinstance(one, e.Store) for row in one.rows if row[:3] in fetch.keys]
    (answer,) = replies(desk.do(e.Fetched(fetch.token, rows)), m.ANSWER)

    assert [(index, len(text), text[-3:]) for index, text in answer["logs"]] == [(0, 65536, b"end")]
