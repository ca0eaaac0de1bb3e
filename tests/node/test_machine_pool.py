"""Which task goes to which worker, when, and how many at once."""

from __future__ import annotations

from p2pgrid.core import messages as m
from p2pgrid.core.batch import decode_batch, encode_batch
from p2pgrid.core.deps import DEPENDENT, VALUE, TaskId, Value, table
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.pool import LANES_IDLE_MAX, Pool
from tests.node.desk import CODE, JOB, UNION, Desk, batch, runs, spec, tasks
from tests.node.driver import Client, Task, World

OTHER = b"o" * 16


def warm(desk: Desk, seconds: float, job: bytes = b"w" * 16) -> None:
    """Let the node learn how long the function takes."""
    (run,) = runs(desk.submit(1, job=job))
    outcome = e.Outcome(0, 1, 0, [b""])
    desk.do(e.WorkerDone(run.worker, run.run, [outcome], True, [], seconds))  # noqa: FBT003


def test_a_function_of_unknown_rate_gets_one_task_at_a_time() -> None:
    """Whoever has a slow function would not thank us for a hundred of it on one worker."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    given = runs(desk.submit(100))

    assert [tasks(run) for run in given] == [[0], [1]]


def test_fast_single_calls_leave_in_grains_of_64_two_per_worker() -> None:
    """A worker that ends a grain finds the next one waiting."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    warm(desk, 0.0001)
    given = runs(desk.submit(10_000))

    assert [(run.worker, len(tasks(run))) for run in given] == [(0, 64), (1, 64), (0, 64), (1, 64)]
    (third,) = runs(desk.finish(given[0]))
    assert third.worker == 0


def test_packed_items_leave_in_grains_of_50_ms_cut_out_of_one_blob() -> None:
    """The blob is not copied: a segment says where its items begin."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    warm(desk, 0.0001)
    given = runs(desk.submit(100_000, packed=True))
    (first,), (second,) = given[0].segments, given[1].segments

    assert len(tasks(given[0])) == 500
    assert (first.offset, second.offset) == (0, 500)
    assert first.data is second.data
    assert first.key == second.key == bytes(8)


def test_slow_tasks_are_not_queued_behind_one_another() -> None:
    """A second task of a minute waits in the pool, for whichever worker is free first."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    warm(desk, 60.0)

    assert [len(tasks(run)) for run in runs(desk.submit(10))] == [1, 1]


def test_an_idle_worker_makes_another_give_back_what_it_has_not_started() -> None:
    """When the pool is empty, queued grains are the reserve."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    warm(desk, 0.01)
    given = runs(desk.submit(16))
    mine = [run for run in given if run.worker == 0]
    while mine:
        more = runs(desk.finish(mine.pop(0)))
        given += more
        mine += [run for run in more if run.worker == 0]
    assert e.Recall(1) in desk.wait(0.1)
    (first, second) = (run for run in given if run.worker == 1)
    kept, back = tasks(first)[:1], tasks(first)[1:]
    out = desk.do(
        e.WorkerDone(1, first.run, [], False, [(back[0], back[-1] + 1)], 0.0),  # noqa: FBT003
        e.WorkerDone(1, second.run, [], True, [(s.lo, s.hi) for s in second.segments], 0.0),  # noqa: FBT003
    )

    assert runs(out)[0].worker == 0
    assert kept[0] not in [i for run in runs(out) for i in tasks(run)]


def test_an_idle_node_sets_no_timer() -> None:
    """Nobody polls: with nothing to do only the expiry of old jobs is looked at, every ten minutes."""
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    for run in runs(desk.submit(2)):
        desk.finish(run)
    desk.sync()
    desk.wait(5)
    out = desk.wait(500)

    assert [one for one in out if isinstance(one, e.SetTimer)] == []


def test_a_long_job_does_not_hold_up_a_short_one_of_another_client() -> None:
    """Owners take turns by the time they were served."""
    world = World(1)
    node = world.add("n", slots=2)
    long, short = Client(node, 1, b"l" * 16), Client(node, 2, b"s" * 16)
    long.connect()
    short.connect()
    one = long.submit(b"L" * 16, 1000, lambda _: Task(0.1))
    world.run(lambda: False, 5)
    start = world.now
    two = short.submit(b"S" * 16, 4, lambda _: Task(0.1))

    assert world.run(lambda: two.ended, 60)
    assert world.now - start < 1.0
    assert not one.ended


def test_an_owner_that_was_idle_for_long_has_no_credit() -> None:
    """Who comes back after an hour shares from then on and does not hold the others up."""
    world = World(1)
    node = world.add("n", slots=1)
    busy, idle = Client(node, 1, b"b" * 16), Client(node, 2, b"i" * 16)
    busy.connect()
    idle.connect()
    idle.submit(b"I" * 16, 1, lambda _: Task(0.1), close=False)
    one = busy.submit(b"B" * 16, 2000, lambda _: Task(1.0))
    world.run(lambda: False, 1000)
    before = len(one.got)
    idle.submit(b"J" * 16, 1000, lambda _: Task(1.0))
    world.run(lambda: False, 100)

    assert len(one.got) - before > 40


def test_jobs_of_one_owner_take_turns_by_priority() -> None:
    """A higher priority goes first; equals alternate; the priority of single submits in one job counts as well."""
    desk = Desk(slots=1)
    desk.join()
    desk.submit(2, job=b"a" * 16)
    desk.submit(2, job=b"b" * 16)
    desk.submit(1, job=b"c" * 16, options={"priority": 5})
    desk.say(m.OPEN, [JOB, spec()])
    desk.say(m.CODE, [JOB, CODE, UNION])
    desk.say(m.INPUT, [JOB, 0, 1, batch(0, 1, {"priority": -1})])
    desk.say(m.INPUT, [JOB, 1, 2, batch(1, 2, {"priority": 9})])
    order = []
    out = desk.ready()
    while runs(out):
        (run,) = runs(out)
        order.append((run.job[:1], *tasks(run)))
        outcome = e.Outcome(tasks(run)[0], tasks(run)[0] + 1, 0, [b""])
        out = desk.do(e.WorkerDone(0, run.run, [outcome], True, [], 1.0))  # noqa: FBT003

    assert order == [(b"j", 1), (b"c", 0), (b"a", 0), (b"b", 0), (b"a", 1), (b"b", 1), (b"j", 0)]


def test_a_wide_task_does_not_starve_behind_a_stream_of_narrow_ones() -> None:
    """After a second of waiting slots are kept free for a task of two."""
    world = World(2)
    node = world.add("n", slots=2)
    narrow, wide = Client(node, 1, b"n" * 16), Client(node, 2, b"w" * 16)
    narrow.connect()
    wide.connect()
    narrow.submit(b"N" * 16, 3000, lambda i: Task(0.02 + 0.013 * (i % 3)))
    world.run(lambda: False, 2)
    start = world.now
    one = wide.submit(b"W" * 16, 3, lambda _: Task(0.1), options={"resources": {"cpu": 2}})

    assert world.run(lambda: one.ended, 60)
    assert world.now - start < 10


def test_named_resources_bound_how_many_run_at_once() -> None:
    """One gpu, four slots: one gpu task at a time, and the other slots are for other tasks meanwhile."""
    desk = Desk(slots=4, resources={"gpu": 1})
    desk.join()
    desk.ready()
    first = runs(desk.submit(3, job=b"g" * 16, options={"resources": {"gpu": 1}}))
    assert [tasks(run) for run in first] == [[0]]
    desk.now += 100
    others = runs(desk.submit(3))
    assert [tasks(run) for run in others] == [[0], [1], [2]]
    desk.now += 100
    assert runs(desk.finish(others[0])) == []
    (second,) = runs(desk.finish(first[0]))

    assert (second.job, tasks(second)) == (b"g" * 16, [1])


def test_a_wide_lane_that_becomes_unfit_keeps_no_slots() -> None:
    """What slots were kept free for may vanish: cancelled, expired or unfit."""
    desk = Desk(slots=2)
    desk.join()
    desk.ready()
    narrow = runs(desk.submit(1, job=b"a" * 16))
    desk.submit(1, job=b"b" * 16, options={"resources": {"cpu": 2}})
    desk.now += 5
    desk.say(m.CANCEL, [b"b" * 16, None])
    assert narrow

    assert [tasks(run) for run in runs(desk.submit(2))] == [[0]]


def test_a_thousand_open_jobs_without_ready_tasks_cost_nothing_per_event() -> None:
    """The queues hold only what has ready tasks."""
    desk = Desk(slots=1)
    desk.join()
    for number in range(1000):
        job = number.to_bytes(16, "big")
        desk.say(m.OPEN, [job, spec()])
    desk.submit(2)

    assert len(list(desk.machine.pool.candidates())) == 1
    assert len(desk.machine.pool._owners) == 1


def test_functions_of_a_session_are_let_go_with_their_tasks() -> None:
    """A notebook submits a new lambda each time to one open job: what is over costs the pool nothing."""
    desk = Desk(slots=1)
    desk.ready()
    desk.join()
    desk.say(m.OPEN, [JOB, spec()])
    desk.say(m.CODE, [JOB, CODE, UNION])
    count = 2 * LANES_IDLE_MAX
    for number in range(count):
        (run,) = runs(desk.say(m.INPUT, [JOB, number, number + 1, batch(number, number + 1, {"name": f"f{number}"})]))
        desk.finish(run)
    desk.say(m.INPUT, [JOB, count, count + 10, batch(count, count + 10)])
    desk.say(m.CANCEL, [JOB, [count + 1, count + 10]])
    work = desk.machine.pool.works[JOB]

    assert len(work.runs) == len(work.starts) == len(work.unfinished) == 1
    assert len(work.lanes) <= LANES_IDLE_MAX + 1


def test_a_task_that_is_granted_with_its_values_runs_where_it_has_waited_for_them() -> None:
    """Seed 3449 of `menu`: a node gave way with a run whose tasks waited, and was granted one of them later."""
    pool = Pool()
    work = pool.open(JOB, "job", (b"owner", JOB), None)
    needs = [(b"x", [TaskId(JOB, 7), TaskId(OTHER, 1)]), (b"y", [TaskId(OTHER, 1)]), (b"z", [TaskId(OTHER, 2)])]
    pool.append(work, decode_batch(0, 3, encode_batch([CODE], [{}], [(3, 0, 0, DEPENDENT, table(needs, JOB))])))
    pool.make_ready(work, 0, 3)
    assert not pool.waits

    given = [[[b"y", [0]], [b"z", [1]]], [[VALUE, b"one", 0], [VALUE, b"two", 0]]]
    pool.append(work, decode_batch(1, 3, encode_batch([CODE], [{}], [(2, 0, 0, DEPENDENT, given)])))
    pool.make_ready(work, 1, 3)
    (lane,) = pool.candidates()

    assert lane.ready == RangeSet([(1, 3)])
    assert work.runs[0][0].deps == [TaskId(b"", 7), Value(VALUE, b"one"), Value(VALUE, b"two")]
