"""`Grid` and its futures against a node that follows a script: what is sent when, and what becomes of what comes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future as PlainFuture
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.grid import Grid
from p2pgrid.client.session import UNSENT_BYTES_MAX
from p2pgrid.core import deps
from p2pgrid.core import messages as m
from p2pgrid.core.batch import InputRun, decode_batch
from p2pgrid.core.errors import (
    GridError,
    NodeGone,
    NoNode,
    NotAuthorized,
    NotFound,
    NotSerializable,
    QuotaExceeded,
    TaskCancelled,
)
from p2pgrid.core.ref import Ref
from tests.client.conftest import Connect
from tests.client.scripted import ScriptedNode
from tests.waiting import SOON_S


def square(x: int) -> int:
    return x * x


def nothing() -> None:
    return None


def fail_at_five(x: int) -> int:
    if x == 5:
        raise ValueError("five")
    return x


def inputs(node: ScriptedNode) -> list[Any]:
    return [one.body for one in node.heard if one.kind == m.INPUT]


# ---- submit ----------------------------------------------------------------------------------------------------------


def test_submit_gives_the_value(connect: Connect) -> None:
    """A call's value comes back, None and keyword arguments included."""
    grid = connect()

    assert grid.submit(square, 7).result(SOON_S) == 49
    assert grid.submit(nothing).result(SOON_S) is None
    assert grid.submit(int, "ff", base=16).result(SOON_S) == 255


def test_future_knows_its_task(connect: Connect) -> None:
    """A future has the id of its task, and after it ran its node and attempts."""
    grid = connect()
    first, second = grid.submit(square, 1), grid.submit(square, 2)
    concurrent.futures.wait([first, second], SOON_S)

    assert first.id.endswith("/0")
    assert second.id == first.id[:-1] + "1"
    assert (second.state, second.node, second.attempts) == ("done", "n0", 1)


def test_exception_comes_back_as_its_own_type(connect: Connect) -> None:
    """What a task raises is raised by its future."""
    future = connect().submit(fail_at_five, 5)

    with pytest.raises(ValueError, match="five"):
        future.result(SOON_S)
    assert isinstance(future.exception(), ValueError)
    assert future.state == "failed"


def test_nothing_is_unpickled_if_asked(connect: Connect) -> None:
    """With unpickle='never' errors and None come back, and a value raises instead."""
    grid = connect(unpickle="never")

    with pytest.raises(GridError, match="unpickle='never'") as caught:
        grid.submit(square, 1).result(SOON_S)
    with pytest.raises(GridError, match="unpickle='never'"):
        list(grid.map(square, range(3)))
    with pytest.raises(ValueError, match="five"):
        grid.submit(fail_at_five, 5).result(SOON_S)
    assert grid.submit(nothing).result(SOON_S) is None
    assert caught.value.code == "not-unpickled"


def test_lone_call_leaves_at_once_and_a_burst_in_batches(node: ScriptedNode, connect: Connect) -> None:
    """A task leaves at once while nothing is on its way; 5,000 while the node says nothing make far fewer frames."""
    node.runs = node.acks = False
    grid = connect()
    futures = [grid.submit(square, i) for i in range(5000)]
    node.acks = True
    node.release()
    values = [future.result(SOON_S) for future in futures]

    assert values == [i * i for i in range(5000)]
    assert inputs(node)[0][1:3] == [0, 1]
    assert len(inputs(node)) < 1000
    assert sum(hi - lo for _, lo, hi, _ in inputs(node)) == 5000
    assert node.kinds().count(m.CODE) == 2  # its module's source tree, and the function


def test_held_task_leaves_with_the_next_answer(tmp_path: Path) -> None:
    """Behind tasks that run for long nothing stays held back: the acknowledgement of a batch sends the next one."""
    node = ScriptedNode(tmp_path, slots=1, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    for i in range(3):
        grid.submit(square, i)
        node.wait_for(lambda: bool(inputs(node)))
    node.wait_for(lambda: sum(hi - lo for _, lo, hi, _ in inputs(node)) == 3)
    grid.abandon()
    node.stop()


def test_waiting_sends_what_is_held_back(tmp_path: Path) -> None:
    """Without any answer of the node, whoever waits for a future sends it, also by concurrent.futures.wait."""
    node = ScriptedNode(tmp_path, slots=1, runs=False, acks=False).start()
    grid = Grid(tmp_path, embedded=False)
    futures = [grid.submit(square, i) for i in range(3)]
    held = sum(hi - lo for _, lo, hi, _ in inputs(node))
    concurrent.futures.wait(futures, 0.01)
    node.wait_for(lambda: sum(hi - lo for _, lo, hi, _ in inputs(node)) == 3)
    grid.abandon()
    node.stop()

    assert held < 3


def test_runs_share_a_batch(tmp_path: Path) -> None:
    """Tasks of other functions and options follow each other in one batch."""
    node = ScriptedNode(tmp_path, slots=1, runs=False, acks=False).start()
    grid = Grid(tmp_path, embedded=False)
    view = grid.options(retries=2)
    grid.submit(square, 0)
    futures = [grid.submit(square, 1), grid.submit(abs, 2), view.submit(abs, 3), view.submit(abs, 4)]
    concurrent.futures.wait(futures, 0.01)
    node.wait_for(lambda: len(inputs(node)) == 2)
    _, lo, hi, data = inputs(node)[1]
    batch = decode_batch(lo, hi, data)
    grid.abandon()
    node.stop()

    assert [(run.lo, run.hi) for run in batch.runs] == [(1, 2), (2, 3), (3, 5)]
    assert [dict(batch.opts[run.opts]) for run in batch.runs] == [{}, {}, {"retries": 2}]


def test_what_cannot_be_pickled_is_not_sent(node: ScriptedNode, connect: Connect) -> None:
    """NotSerializable comes from submit and map themselves, before a frame leaves."""
    grid = connect()
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match=r"args\[0\]"):
        grid.submit(square, lock)
    with pytest.raises(NotSerializable, match=r"items\[2\]"):
        grid.map(square, [[1], [2], lock])
    with pytest.raises(TypeError, match=r"use \.result\(\)"):
        grid.submit(square, [concurrent.futures.Future()])
    assert grid.submit(square, 3).result(SOON_S) == 9

    assert node.kinds().count(m.OPEN) == 1


def test_value_beyond_the_limit_is_refused(connect: Connect) -> None:
    """More than 256 MiB is QuotaExceeded, and the grid goes on."""
    grid = connect()
    with pytest.raises(QuotaExceeded):
        grid.submit(len, bytearray(UNSENT_BYTES_MAX + 1))

    assert grid.submit(len, b"abc").result(SOON_S) == 3


def test_unknown_option_names_the_nearest(connect: Connect) -> None:
    """A mistyped option is a TypeError."""
    with pytest.raises(TypeError, match="retries"):
        connect().options(retrys=1)


def test_same_life_same_job(node: ScriptedNode, connect: Connect) -> None:
    """Submits of views share a job unless their name, detachment or expiry differ."""
    grid = connect()
    a = grid.submit(square, 1)
    b = grid.options(retries=1).submit(square, 2)
    c = grid.options(detach=True).submit(square, 3)
    concurrent.futures.wait([a, b, c], SOON_S)

    assert a.id.split("/")[0] == b.id.split("/")[0] != c.id.split("/")[0]


# ---- futures ---------------------------------------------------------------------------------------------------------


def test_wait_and_as_completed_are_those_of_concurrent_futures(connect: Connect) -> None:
    """The usual functions work on these futures."""
    grid = connect()
    futures: list[concurrent.futures.Future[int]] = [grid.submit(square, i) for i in range(100)]
    done, pending = concurrent.futures.wait(futures, SOON_S)

    assert (len(done), len(pending)) == (100, 0)
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures, SOON_S)) == [i * i for i in range(100)]


def test_cancel_is_at_once_and_tells_the_grid(tmp_path: Path) -> None:
    """cancel() of a task that may run returns True, the future is cancelled, CANCEL names the task."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    grid.submit(square, 1)
    future = grid.submit(square, 2)
    called: list[object] = []
    future.add_done_callback(called.append)

    assert future.cancel() is True
    assert future.cancelled()
    assert future.state == "cancelled"
    assert called == [future]
    with pytest.raises(TaskCancelled):
        future.result()
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception()
    node.wait_for(lambda: m.CANCEL in node.kinds())
    assert next(one.body[1] for one in node.heard if one.kind == m.CANCEL) == [1, 2]
    node.release()
    assert future.cancelled()
    grid.abandon()
    node.stop()


def test_cancel_of_a_done_future_is_false(connect: Connect) -> None:
    """What is done stays done."""
    future = connect().submit(square, 2)
    future.result(SOON_S)

    assert future.cancel() is False


def test_timeout_of_result_is_the_usual_one(tmp_path: Path) -> None:
    """result(timeout=) raises TimeoutError and may be asked again."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    future = grid.submit(square, 2)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    node.release()

    assert future.result(SOON_S) == 4
    grid.abandon()
    node.stop()


def test_durable_follows_the_acknowledgement(tmp_path: Path) -> None:
    """A task is durable when its batch is acknowledged, not before; flush waits for that."""
    node = ScriptedNode(tmp_path, runs=False, acks=False).start()
    grid = Grid(tmp_path, embedded=False)
    future = grid.submit(square, 2)
    durable = future.durable
    node.wait_for(lambda: bool(inputs(node)))
    with pytest.raises(TimeoutError):
        grid.flush(timeout=0.01)
    assert not durable.done()
    job, lo = inputs(node)[0][:2]
    node.send(m.ACK, [job, "input", lo])

    assert durable.result(SOON_S) is None
    grid.flush(timeout=SOON_S)
    grid.abandon()
    node.stop()


def test_futures_can_be_awaited_under_asyncio(connect: Connect) -> None:
    """Await gives the value; results are async iterators."""
    grid = connect()

    async def main() -> tuple[Any, list[Any], list[Any]]:
        some = await asyncio.gather(*(grid.submit(square, i) for i in range(10)))
        return await grid.submit(square, 7), some, [x async for x in grid.map(square, range(1000))]

    one, some, many = asyncio.run(main())

    assert one == 49
    assert some == [i * i for i in range(10)]
    assert many == [i * i for i in range(1000)]


def test_futures_can_be_awaited_under_trio(connect: Connect) -> None:
    """Await gives the value under trio as well, and cancelling the awaiting task cancels it."""
    trio = pytest.importorskip("trio")
    grid = connect()

    async def main() -> tuple[Any, list[Any]]:
        return await grid.submit(square, 7), [x async for x in grid.map(square, range(10))]

    assert trio.run(main) == (49, [i * i for i in range(10)])


def test_cancelled_trio_task_cancels_the_future(tmp_path: Path) -> None:
    """Who awaits and is cancelled cancels."""
    trio = pytest.importorskip("trio")
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    future = grid.submit(square, 2)

    async def main() -> None:
        with trio.move_on_after(0.01):
            await future

    trio.run(main)

    assert future.cancelled()
    grid.abandon()
    node.stop()


def test_waiting_inside_a_callback_is_refused(node: ScriptedNode, connect: Connect) -> None:
    """A callback runs in the thread that brings results: waiting there is an error, not a deadlock."""
    grid = connect()
    caught: list[BaseException] = []
    told = threading.Event()

    def callback(_: object) -> None:
        try:
            grid.submit(square, 2).result()
        except RuntimeError as error:
            caught.append(error)
        told.set()

    node.runs = False
    grid.submit(square, 3).add_done_callback(callback)
    node.wait_for(lambda: bool(inputs(node)))
    node.release()
    assert told.wait(SOON_S)

    assert "done-callback" in str(caught[0])


# ---- futures as arguments --------------------------------------------------------------------------------------------


def sent_runs(node: ScriptedNode) -> list[InputRun]:
    """Return the runs of all batches that the node heard of, in order."""
    return [run for body in inputs(node) for run in decode_batch(*body[1:]).runs]


def test_a_future_in_arguments_goes_as_the_id_of_its_task(connect: Connect, node: ScriptedNode) -> None:
    """At any depth; one that is named twice once, and what has ended travels as its value."""
    grid = connect()
    ended = grid.submit(square, 3)
    assert ended.result(SOON_S) == 9
    node.runs = False
    first, second = grid.submit(square, 1), grid.submit(square, 2)
    grid.submit(str, [first, {"a": (second, first)}], ended)
    node.wait_for(lambda: any(run.deps for run in sent_runs(node)))
    (run,) = [run for run in sent_runs(node) if run.deps]

    assert run.deps == [(b"", first.index), (b"", second.index)]
    ((pickled, places),) = run.data
    assert places == [0, 1]
    deps.resolving(["one", "two"].__getitem__)
    try:
        assert pickle.loads(pickled) == ((["one", {"a": ("two", "one")}], 9), {})
    finally:
        deps.resolving(None)


def test_what_a_task_waits_for_leaves_before_it(connect: Connect, node: ScriptedNode) -> None:
    """Also where it is in another job, whose tasks are held back."""
    grid = connect()
    node.runs = False
    view = grid.options(name="other")
    *_, held = [view.submit(square, number) for number in range(5)]  # the first ones leave at once
    grid.submit(square, held)
    node.wait_for(lambda: any(run.deps for run in sent_runs(node)))
    (run,) = [run for run in sent_runs(node) if run.deps]

    assert run.deps == [held.task]
    sent = [(body[0], index) for body in inputs(node) for index in range(body[1], body[2])]
    assert held.task in sent


def test_items_with_futures_wait_each_for_its_own(connect: Connect, node: ScriptedNode) -> None:
    """They are not packed in one list; others are as before."""
    grid = connect()
    node.runs = False
    futures = [grid.submit(square, number) for number in range(3)]
    grid.map(square, futures)
    grid.starmap(pow, [(future, 2) for future in futures])
    node.wait_for(lambda: sum(run.hi - run.lo for run in sent_runs(node) if run.deps) == 2 * len(futures))
    runs = [run for run in sent_runs(node) if run.deps]
    needs = [[run.deps[place] for place in places] for run in runs if run.deps for _, places in run.data]

    assert needs == [[future.task] for future in futures] * 2


def test_a_future_where_it_cannot_be_resolved_is_refused(connect: Connect) -> None:
    """In a function, in another pickle; and one of another executor."""
    grid = connect()
    future = grid.submit(square, 2)
    with pytest.raises(TypeError, match="pass it as an argument"):
        grid.submit(lambda: future)
    with pytest.raises(TypeError, match=r"Grid\.future"):
        pickle.dumps(future)
    with pytest.raises(TypeError, match=r"use \.result\(\)"):
        grid.submit(square, PlainFuture())


# ---- map -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        lambda: range(2000),
        lambda: list(range(2000)),
        lambda: tuple(range(2000)),
        lambda: iter(range(2000)),
        lambda: dict.fromkeys(range(2000)),
        lambda: (i for i in range(2000)),
    ],
)
def test_map_gives_values_in_order(connect: Connect, source: Callable[[], Any]) -> None:
    """Whatever the items come from, results are in their order."""
    assert list(connect().map(square, source())) == [i * i for i in range(2000)]


def test_map_of_several_iterables_and_starmap(connect: Connect) -> None:
    """Several iterables side by side, the shortest ends; starmap takes tuples."""
    grid = connect()

    assert list(grid.map(pow, [2, 3, 4], itertools.count(1))) == [2, 9, 64]
    assert list(grid.map(pow, [2, 3, 4], [1, 2])) == [2, 9]
    assert list(grid.starmap(pow, [(2, 5), (3, 2)])) == [32, 9]


def test_imap_unordered_gives_everything(connect: Connect) -> None:
    """Every result once, in whatever order."""
    assert sorted(connect().imap_unordered(square, range(500))) == [i * i for i in range(500)]


@pytest.mark.parametrize("source", [[], (), range(0), iter(())])
def test_map_over_nothing(connect: Connect, source: Any) -> None:
    """Nothing in, nothing out, and no job."""
    results = connect().map(square, source)

    assert list(results) == []


def test_map_raises_at_the_index(connect: Connect) -> None:
    """What a task raised is raised where its value would be; what comes before is given."""
    results = connect().map(fail_at_five, range(10))
    got = list(itertools.islice(results, 5))

    assert got == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_endless_generator(node: ScriptedNode, connect: Connect) -> None:
    """An endless generator is drawn from only so far ahead."""
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        for i in itertools.count():
            drawn += 1
            yield i

    with connect().map(square, numbers(), buffersize=100) as results:
        got = list(itertools.islice(results, 250))

    assert got == [i * i for i in range(250)]
    assert drawn <= 500
    node.wait_for(lambda: m.CANCEL in node.kinds())


def test_slow_generator_is_not_waited_for(connect: Connect) -> None:
    """A generator that waits for the results of what it gave before does not block them."""
    seen: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(5):
            deadline = time.monotonic() + SOON_S
            while i > 1 and len(seen) < i - 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            yield i

    for value in connect().map(square, numbers(), buffersize=2):
        seen.append(value)  # noqa: PERF402 - the generator looks at it meanwhile

    assert seen == [0, 1, 4, 9, 16]


def test_dropped_after_iteration_is_cancelled(node: ScriptedNode, connect: Connect) -> None:
    """A `for` loop that is left early cancels the rest."""
    for value in connect().map(square, iter(range(1000)), buffersize=10):
        if value == 25:
            break

    node.wait_for(lambda: m.CANCEL in node.kinds())


def test_dropped_without_iteration_is_not_cancelled(node: ScriptedNode, connect: Connect) -> None:
    """Never iterated, a map is only a job that runs; leaving waits for it, endless sources apart."""
    with connect() as grid:
        grid.map(square, range(100))
        grid.map(square, iter(range(300)), buffersize=10)

    assert m.CANCEL not in node.kinds()
    assert sum(hi - lo for _, lo, hi, _ in inputs(node)) == 400


def test_results_can_be_taken_after_leaving(connect: Connect) -> None:
    """As with any Executor, what was waited for can be read afterwards."""
    with connect() as grid:
        results = grid.map(square, range(3000))

    assert list(results) == [i * i for i in range(3000)]


def test_map_timeout_is_that_of_the_iteration(tmp_path: Path) -> None:
    """timeout= counts from the call and is raised by the iterator."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    results = grid.map(square, range(3), timeout=0.05)

    with pytest.raises(TimeoutError):
        next(results)
    node.wait_for(lambda: m.CANCEL in node.kinds())
    grid.abandon()
    node.stop()


def test_results_reported_twice_count_once(tmp_path: Path) -> None:
    """Overlapping segments: the first value of a task wins."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    results = grid.map(square, range(4))
    node.wait_for(lambda: m.CLOSE in node.kinds())
    job = inputs(node)[0][0]
    for lo, values in ((1, [10, 20]), (0, [0, 11, 21]), (2, [22, 30])):
        node.send(m.RESULT, [job, [[lo, lo + len(values), 1, pickle.dumps(values), "n0", 1]]])
    node.send(m.STATE, [job, "done", ""])

    assert list(results) == [0, 10, 20, 30]
    grid.abandon()
    node.stop()


def test_large_items_make_small_lists(node: ScriptedNode, connect: Connect) -> None:
    """Items of a megabyte are not gathered by the thousand."""
    sizes = list(connect().map(len, [bytes(1 << 20) for _ in range(40)]))

    assert sizes == [1 << 20] * 40
    assert max(len(one[3]) for one in inputs(node)) < 40 << 20


@pytest.mark.parametrize("options", [{"chunksize": 0}, {"buffersize": 0}, {"chunksize": -1}])
def test_wrong_ways_of_a_map(connect: Connect, options: dict[str, Any]) -> None:
    """Sizes below one are refused by name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        connect().map(square, range(3), **options)


def test_finished_maps_leave_nothing_behind(node: ScriptedNode, connect: Connect) -> None:
    """A session that maps for months does not grow."""
    grid = connect()
    for _ in range(5):
        list(grid.map(square, range(10)))
        with grid.map(square, itertools.count(), buffersize=10) as results:
            next(results)
    grid.start(square, range(3))
    node.wait_for(lambda: node.kinds().count(m.CANCEL) == 5)
    grid.submit(square, 1).result(SOON_S)
    grid.flush(SOON_S)
    session = grid._session

    assert (len(session.ledger.uploads), len(session.ledger.receivers), session.ledger.kept) == (1, 1, 0)


# ---- start and jobs --------------------------------------------------------------------------------------------------


def test_start_returns_once_durable(tmp_path: Path) -> None:
    """Start waits for spec, code, inputs and close to be acknowledged."""
    node = ScriptedNode(tmp_path, runs=False, acks=False).start()
    grid = Grid(tmp_path, embedded=False)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(grid.start(square, range(3), name="three")))
    thread.start()
    node.wait_for(lambda: m.CLOSE in node.kinds())
    job = inputs(node)[0][0]
    for what in ("spec", "code", "code", "input"):  # its module's source tree, and the function
        node.send(m.ACK, [job, what, 0])
    thread.join(0.05)
    assert not done
    node.send(m.ACK, [job, "close", 0])
    thread.join(SOON_S)

    assert done[0].name == "three"
    grid.abandon()
    node.stop()


def test_job_results_wait_and_failures(node: ScriptedNode, connect: Connect) -> None:
    """A job gives its values in order, its futures as they complete, and its failures."""
    node.answers["show"] = {"job": {"done": 9, "failed": 1, "total": 10, "state": "failed", "name": "", "expires": 1.0}}
    node.answers["find"] = {"job": b"", "lo": None, "hi": None}
    grid = connect()
    job = grid.start(fail_at_five, range(10))

    assert job.wait(SOON_S) is True
    assert list(itertools.islice(job.results(SOON_S), 5)) == [0, 1, 2, 3, 4]
    assert list(itertools.islice(job.results(SOON_S, stable=True), 5)) == [0, 1, 2, 3, 4]
    assert [one.body[4:] for one in node.heard if one.kind == m.WATCH][-1] == [True]
    assert len(list(job.as_completed(SOON_S))) == 10
    assert [future.index for future in job.failed()] == [5]
    assert job.progress() == (9, 1, 10)
    assert m.CANCEL not in node.kinds()


def test_unknown_ids_are_not_found(node: ScriptedNode, connect: Connect) -> None:
    """Whatever gets an unknown id raises NotFound."""
    node.answers["find"] = {"code": "not-found", "message": "no job 'x' here", "next": "p2pgrid jobs"}
    grid = connect()
    with pytest.raises(NotFound):
        grid.job("calm-river-42")
    with pytest.raises(NotFound):
        grid.future("calm-river-42/17")


def test_request_without_answer_times_out(connect: Connect) -> None:
    """A node that does not answer is not waited for for ever."""
    grid = connect()
    grid._session.timeout_s = 0.05  # only now: what greets a client may take longer
    with pytest.raises(GridError, match="did not answer") as caught:
        grid.jobs()

    assert caught.value.code == "timed-out"


# ---- the node goes away ----------------------------------------------------------------------------------------------


def test_connection_lost_and_found(node: ScriptedNode, connect: Connect) -> None:
    """After a reconnect everything unacknowledged is sent again, byte for byte, and no value is lost or doubled."""
    node.runs = False
    node.acks = False
    grid = connect()
    futures = [grid.submit(square, i) for i in range(10)]
    results = grid.map(square, range(50))
    concurrent.futures.wait(futures, 0.05)
    node.wait_for(lambda: sum(hi - lo for _, lo, hi, _ in inputs(node)) == 60)
    before = inputs(node)
    node.heard.clear()
    node.runs = node.acks = True
    node.cut()
    node.wait_for(lambda: sum(hi - lo for _, lo, hi, _ in inputs(node)) == 60)
    node.release()

    assert sorted(inputs(node)) == sorted(before)
    assert [future.result(SOON_S) for future in futures] == [i * i for i in range(10)]
    assert list(results) == [i * i for i in range(50)]


def test_node_gone_for_good(node: ScriptedNode, connect: Connect) -> None:
    """A node that is not back in time: every waiter gets NodeGone with the command to type, and so does submit."""
    node.runs = False
    grid = connect(timeout=1.0)
    future = grid.submit(square, 1)
    results = grid.map(square, range(5))
    node.wait_for(lambda: len(inputs(node)) == 2)
    node.stop()
    with pytest.raises(NodeGone, match="p2pgrid show"):
        future.result(SOON_S)
    with pytest.raises(NodeGone):
        list(results)
    with pytest.raises(NodeGone):
        grid.submit(square, 2)
    node.start()
    node.runs = True

    assert grid.submit(square, 3).result(SOON_S) == 9


def test_without_reconnect_node_gone_at_once(node: ScriptedNode, connect: Connect) -> None:
    """reconnect=False waits for nothing."""
    node.runs = False
    future = connect(reconnect=False, timeout=60).submit(square, 1)
    node.wait_for(lambda: bool(inputs(node)))
    node.cut()

    with pytest.raises(NodeGone):
        future.result(SOON_S)


def test_refused_input_fails_its_tasks_only(node: ScriptedNode, connect: Connect) -> None:
    """A batch that is refused fails the futures in it; the others go on."""
    node.runs = node.acks = False
    grid = connect()
    first = grid.submit(square, 1)
    node.wait_for(lambda: len(inputs(node)) == 1)
    job, lo, _, _ = inputs(node)[0]
    node.acks = True
    error = {"code": "quota-exceeded", "message": "the disk is full", "next": "make room"}
    node.send(m.REFUSED, [job, "input", lo, error])
    with pytest.raises(QuotaExceeded, match="disk is full"):
        first.result(SOON_S)
    node.runs = True

    assert grid.submit(square, 3).result(SOON_S) == 9


def test_why_a_job_was_refused_is_what_map_raises(node: ScriptedNode, connect: Connect) -> None:
    """A node that refuses a job says next that it does not know it; what counts is the first."""
    node.runs = node.acks = False
    grid = connect()
    found = grid.map(square, range(3))
    node.wait_for(lambda: bool(inputs(node)))
    job = inputs(node)[0][0]
    error = {"code": "not-authorized", "message": "its role is work", "next": "ask an admin"}
    node.send(m.REFUSED, [job, "spec", 0, error])
    node.send(m.STATE, [job, "unknown", ""])

    with pytest.raises(NotAuthorized, match="its role is work"):
        list(found)


# ---- leaving ---------------------------------------------------------------------------------------------------------


def test_leaving_waits_and_says_goodbye(node: ScriptedNode, connect: Connect) -> None:
    """Leaving the `with` waits for all, closes the job, and says GOODBYE."""
    with connect() as grid:
        futures = [grid.submit(square, i) for i in range(300)]

    assert all(future.done() for future in futures)
    node.wait_for(lambda: node.kinds()[-1] == m.GOODBYE)
    assert node.kinds()[-2] == m.CLOSE
    with pytest.raises(RuntimeError, match="shutdown"):
        grid.submit(square, 1)


def test_exception_cancels(tmp_path: Path) -> None:
    """An exception in the `with` cancels what was submitted."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    with pytest.raises(KeyError), grid:  # noqa: PT012
        future = grid.submit(square, 1)
        grid.map(square, range(10))
        raise KeyError
    node.wait_for(lambda: node.kinds().count(m.CANCEL) == 2)

    assert future.cancelled()
    node.stop()


def test_view_waits_for_its_own_work_only(tmp_path: Path) -> None:
    """Leaving a view waits for what went through it; the session lives on."""
    node = ScriptedNode(tmp_path).start()
    grid = Grid(tmp_path, embedded=False)
    with grid.options(retries=1) as view:
        mine = view.submit(square, 2)
        results = view.map(square, range(10))
    assert mine.done()
    assert list(results) == [i * i for i in range(10)]
    node.runs = False
    other = grid.submit(square, 3)
    with grid.options(retries=1):
        pass

    assert not other.done()
    grid.abandon()
    node.stop()


def test_shutdown_without_waiting(node: ScriptedNode, connect: Connect) -> None:
    """shutdown(wait=False) returns at once; what was submitted still comes, then the client leaves."""
    node.runs = False
    grid = connect()
    future = grid.submit(square, 2)
    grid.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        grid.submit(square, 3)
    node.release()

    assert future.result(SOON_S) == 4
    node.wait_for(lambda: m.GOODBYE in node.kinds())


def test_shutdown_cancelling_futures(node: ScriptedNode, connect: Connect) -> None:
    """shutdown(cancel_futures=True) cancels what is not done, in one frame."""
    node.runs = False
    grid = connect()
    futures = [grid.submit(square, i) for i in range(100)]
    grid.shutdown(cancel_futures=True)

    assert all(future.cancelled() for future in futures)
    node.wait_for(lambda: m.GOODBYE in node.kinds())
    assert node.kinds().count(m.CANCEL) == 1


def _in_child(grid: Grid, out: Any) -> None:
    try:
        grid.submit(square, 1)
    except RuntimeError as error:
        out.put(str(error))


def test_forked_child_leaves_the_parents_connection_alone(connect: Connect) -> None:
    """After a fork the child's copy refuses to work, and the parent's goes on."""
    grid = connect()
    assert grid.submit(square, 2).result(SOON_S) == 4
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(grid, out))
    child.start()
    child.join(SOON_S)

    assert str(os.getpid()) in out.get()
    assert grid.submit(square, 3).result(SOON_S) == 9


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_no_node_and_none_to_be_started(tmp_path: Path) -> None:
    """embedded=False with nobody there is NoNode, and names where it looked."""
    with pytest.raises(NoNode, match=str(tmp_path)):
        Grid(tmp_path, embedded=False)


def test_found_node_is_named_once(node: ScriptedNode, connect: Connect, capfd: pytest.CaptureFixture[str]) -> None:
    """What was found is said on stderr, the first time."""
    connect()
    connect()

    assert capfd.readouterr().err.count("grid blue-otter: 1 node, 2 slots\n") == 1


def test_progress_is_yes_no_or_a_label(connect: Connect) -> None:
    """Anything else is refused before a task is sent."""
    with pytest.raises(TypeError, match="a label for the bar"):
        connect().map(square, [1], progress=3)  # type: ignore[arg-type]


def test_a_function_captures_no_ref(connect: Connect) -> None:
    """The message says what to do instead."""
    grid, ref = connect(), Ref(b"\x01" + bytes(32), 5)
    with pytest.raises(TypeError, match="pass it as an argument"):
        grid.submit(lambda: ref)


def test_dask_sees_the_slots(connect: Connect) -> None:
    """Dask reads `_max_workers`."""
    assert connect()._max_workers == 2


def test_who_waits_for_one_result_says_so_when_later_ones_fill_up(node: ScriptedNode, connect: Connect) -> None:
    """Results in order, the first comes last: the node hears which one is missing, and can send it past its window."""
    node.runs = False
    grid = connect()
    results = grid.map(str, range(3), chunksize=1)
    node.wait_for(lambda: m.WATCH in node.kinds() and len(node.inputs) == 1)
    (job,) = node.inputs
    big = pickle.dumps("x" * 1_500_000, 5)
    taken: list[Any] = []
    reader = threading.Thread(target=lambda: taken.extend(results))
    reader.start()
    for index in (2, 1):
        node.send(m.RESULT, [job, [[index, index + 1, 0, [big], "n0", 1]]])
    node.wait_for(lambda: any(one.kind == m.GOT and one.body[2:] == [0] for one in node.heard))
    assert not taken
    node.send(m.RESULT, [job, [[0, 1, 0, [big], "n0", 1]]])
    node.send(m.STATE, [job, "done", ""])
    reader.join(10)

    assert [len(value) for value in taken] == [1_500_000] * 3
