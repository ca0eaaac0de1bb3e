"""Tasks that wait for others: they run once all have ended, with the values, and fail with whoever fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, encode_batch
from p2pgrid.core.chains import SUBMIT, WORK
from p2pgrid.core.deps import DEPENDENT, TaskId, table
from p2pgrid.core.errors import DependencyFailed, NotAuthorized, NotFound, ObjectLost, TaskCancelled
from p2pgrid.core.failure import decode_exception, encode_exception
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, UNION, Desk, replies, runs, spec, tasks
from tests.node.driver import Client, Faults, Needs, Submitted, Task, World
from tests.node.grid_world import GridWorld

OTHER = b"o" * 16


def after(job: bytes, lo: int, *needs: Sequence[TaskId]) -> bytes:
    """Return a batch of tasks from `lo` on, each of which waits for those; without any it is an ordinary call."""
    runs = []
    for index, deps in enumerate(needs, lo):
        call = b"%d" % index
        runs.append((1, 0, 0, DEPENDENT, table([(call, deps)], job)) if deps else (1, 0, 0, CALLS, [call]))
    return encode_batch([CODE], [{}], runs)


def submit(desk: Desk, job: bytes, lo: int, *needs: Sequence[TaskId], close: bool = True) -> list[e.Effect]:
    """Open a job if need be, and append such a batch."""
    out = desk.say(m.OPEN, [job, spec()])
    out += desk.say(m.CODE, [job, CODE, UNION])
    out += desk.say(m.INPUT, [job, lo, lo + len(needs), after(job, lo, *needs)])
    if close:
        out += desk.say(m.CLOSE, [job, lo + len(needs)])
    return out + desk.say(m.WATCH, [job, []])


def desk(slots: int = 4) -> Desk:
    one = Desk(slots=slots)
    one.ready()
    one.join()
    return one


def states(at: Desk, job: bytes) -> list[str]:
    shown = at.answer("show", target=f"{job.hex()}/0-9")
    return [task["state"] for task in shown["listed"]]


def error_of(out: list[e.Effect], job: bytes, index: int) -> BaseException:
    """Return what a reader was told that a task raised."""
    for said, entries in replies(out, m.RESULT):
        for lo, _, shape, data, _, _ in entries if said == job else []:
            if (lo, shape) == (index, 2):
                return decode_exception(unpack(data))
    raise AssertionError(f"task {index} has not failed")


T = TaskId


def test_a_task_runs_once_those_it_needs_have_ended_and_gets_their_values() -> None:
    """A diamond: b and c wait for a, d for both; the worker gets each with what it stands for."""
    at = desk()
    (a,) = runs(submit(at, JOB, 0, [], [T(JOB, 0)], [T(JOB, 0)], [T(JOB, 1), T(JOB, 2)]))
    assert states(at, JOB) == ["running", "waiting", "waiting", "waiting"]
    assert at.answer("show", target=JOB.hex())["tasks"]["waiting"] == 3

    b, c = runs(at.finish(a, b"A"))
    assert [one.segments[0].data for one in (b, c)] == [
        [[[b"1", [0]]], [[0, b"A", 0]]],
        [[[b"2", [0]]], [[0, b"A", 0]]],
    ]
    assert runs(at.finish(c, b"C")) == []
    (d,) = runs(at.finish(b, b"B"))
    assert d.segments[0].data == [[[b"3", [0, 1]]], [[0, b"B", 0], [0, b"C", 0]]]
    out = at.finish(d)

    assert replies(out, m.STATE) == [[JOB, "done", ""]]
    assert at.machine.depending.waits == {} == at.machine.depending.watched


def test_a_value_among_many_in_one_pickle_travels_with_its_place_and_once() -> None:
    """Tasks of a map return lists of values: the list is not taken apart here, and not sent twice."""
    at = desk()
    at.submit(4, packed=True, close=False)
    first = runs(at.all)[0]
    submit(at, OTHER, 0, [T(JOB, 0), T(JOB, 2)], [T(JOB, 3)])
    lone = [one for one in runs(at.all) if one is not first]
    done = [e.Outcome(0, 4, 1, b"a list")]
    at.machine.running.find(0, first.run).left.add(0, 4)  # type: ignore[union-attr]
    out = at.do(e.WorkerDone(0, first.run, done, True, [], 0.1))  # noqa: FBT003
    given = [one for one in runs(out) if one.job == OTHER]

    assert [one.segments[0].data for one in given] == [
        [[[b"0", [0, 1]]], [[1, b"a list", 0], [1, 0, 2]]],
        [[[b"1", [0]]], [[1, b"a list", 3]]],
    ]
    assert lone


@pytest.mark.parametrize("synced", [True, False])
def test_what_has_ended_before_is_read_from_memory_or_disk(synced: bool) -> None:  # noqa: FBT001
    """A task of another job waits no longer than that takes."""
    at = desk()
    (a,) = runs(submit(at, JOB, 0, []))
    at.finish(a, b"A")
    if synced:
        at.sync()
        at.machine.keeping.readers.forget(list(at.machine.keeping.readers._recent))
    out = submit(at, OTHER, 0, [T(JOB, 0)])
    if synced:
        (fetch,) = [one for one in out if isinstance(one, e.Fetch)]
        assert states(at, OTHER) == ["waiting"]
        rows = [e.Row(job, kind, key, b"", pack([0, [b"A"]])) for job, kind, key in fetch.keys]
        out = at.do(e.Fetched(fetch.token, rows))

    (given,) = runs(out)
    assert given.segments[0].data == [[[b"0", [0]]], [[0, b"A", 0]]]


def test_a_damaged_result_fails_who_needs_it() -> None:
    """A row that the disk does not give back."""
    at = desk()
    (a,) = runs(submit(at, JOB, 0, []))
    at.finish(a, b"A")
    at.sync()
    at.machine.keeping.readers.forget(list(at.machine.keeping.readers._recent))
    (fetch,) = [one for one in submit(at, OTHER, 0, [T(JOB, 0)]) if isinstance(one, e.Fetch)]
    out = at.do(e.Fetched(fetch.token, []))

    assert "damaged" in str(error_of(out, OTHER, 0).__cause__)


def test_a_failure_is_the_cause_of_all_that_need_it_however_far_away() -> None:
    """Every one of a chain names the one before it and the first; its cause is what the first raised."""
    at = desk()
    (a,) = runs(submit(at, JOB, 0, [], [T(JOB, 0)], [T(JOB, 1)], [T(JOB, 2)]))
    out = at.fail(a, 0, encode_exception(ValueError("no luck")))
    near, far = error_of(out, JOB, 1), error_of(out, JOB, 3)

    assert isinstance(near, DependencyFailed)
    assert isinstance(far, DependencyFailed)
    assert isinstance(far.__cause__, ValueError)
    assert far.__cause__.args == ("no luck",)
    assert far.origin == near.origin == f"{at.machine.keeping.jobs[JOB].name}/0"
    assert far.origin in far.message
    assert replies(out, m.STATE) == [[JOB, "failed", ""]]
    assert at.machine.depending.waits == {}


def test_a_chain_of_two_thousand_fails_without_end_of_the_stack() -> None:
    """One after the other, not one inside the other."""
    at = desk(1)
    count = 2000
    needs = [[], *([T(JOB, i)] for i in range(count))]
    (a,) = runs(submit(at, JOB, 0, *needs))
    out = at.fail(a, 0, encode_exception(ValueError("no luck")))

    assert isinstance(error_of(out, JOB, count), DependencyFailed)


def test_a_cancelled_task_fails_those_of_other_jobs() -> None:
    """The cause says that it was cancelled; those of its own job that were cancelled with it are just that."""
    at = desk()
    submit(at, JOB, 0, [], [T(JOB, 0)])
    submit(at, OTHER, 0, [T(JOB, 1)])
    out = at.say(m.CANCEL, [JOB, None])

    assert replies(out, m.STATE) == [[JOB, "cancelled", ""], [OTHER, "failed", ""]]
    assert isinstance(error_of(out, OTHER, 0).__cause__, TaskCancelled)
    assert at.machine.depending.waits == {} == at.machine.depending.watched


def test_who_is_cancelled_waits_no_longer() -> None:
    """Nothing is left of it, and what it waited for ends as ever."""
    at = desk()
    (a,) = runs(submit(at, JOB, 0, [], [T(JOB, 0)], [T(JOB, 0)], close=False))
    at.say(m.CANCEL, [JOB, [1, 2]])
    assert [task.index for task in at.machine.depending.waits] == [0]
    (c,) = runs(at.finish(a, b"A"))

    assert tasks(c) == [2]
    assert at.machine.depending.waits == {}


def test_what_nobody_knows_is_waited_for_ten_seconds() -> None:
    """It may be on its way, in another connection; then it is not found, and nothing hangs."""
    at = desk()
    submit(at, OTHER, 0, [T(JOB, 0)], [T(JOB, 7)])
    assert "no node knows it so far" in " ".join(at.answer("explain", target=f"{OTHER.hex()}/0")["lines"])
    at.wait(5)
    (a,) = runs(submit(at, JOB, 0, [], close=False))
    at.wait(4)
    assert at.machine.keeping.jobs[OTHER].done.size == 0
    out = at.wait(2)
    assert isinstance(error_of(out, OTHER, 1).__cause__, NotFound)

    (b,) = runs(at.finish(a))
    assert (b.job, tasks(b)) == (OTHER, [0])


def test_beyond_the_end_of_a_closed_job_there_is_nothing() -> None:
    """That is known at once."""
    at = desk()
    submit(at, JOB, 0, [])

    assert isinstance(error_of(submit(at, OTHER, 0, [T(JOB, 1)]), OTHER, 0).__cause__, NotFound)


def test_tasks_that_wait_for_each_other_do_not_hang() -> None:
    """No program of ours can say such a thing; whoever does gets an error."""
    at = desk()
    submit(at, OTHER, 0, [T(JOB, 0)], close=False)
    out = submit(at, JOB, 0, [T(OTHER, 0)], close=False)
    assert "waits for itself" in str(error_of(out, OTHER, 0))
    out = submit(at, b"x" * 16, 0, [T(b"x" * 16, 0)])

    assert "waits for itself" in str(error_of(out, b"x" * 16, 0))
    assert at.machine.depending.waits == {}


def test_a_job_that_is_forgotten_fails_those_that_wait() -> None:
    """They are not left behind."""
    at = desk()
    submit(at, JOB, 0, [])
    submit(at, OTHER, 0, [T(JOB, 0)])
    out = at.say(m.REQUEST, ["forget", {"target": JOB.hex()}], id_=3)

    assert isinstance(error_of(out, OTHER, 0), DependencyFailed)


def test_a_batch_that_the_disk_refused_takes_its_waiting_tasks_along() -> None:
    """And who waits for one of them waits for it to come again."""
    at = desk()
    submit(at, JOB, 0, [], close=False)
    at.sync()
    at.say(m.INPUT, [JOB, 1, 2, after(JOB, 1, [T(JOB, 0)])])
    at.sync(fail=True)

    assert at.machine.depending.waits == {}


def test_what_a_detached_task_waits_for_is_not_cancelled_with_its_client() -> None:
    """Nor what that waits for in turn; the rest is."""
    at = desk()
    submit(at, JOB, 0, [], [T(JOB, 0)], [T(JOB, 0)], [], close=False)
    at.say(m.OPEN, [OTHER, spec(detach=True)])
    submit(at, OTHER, 0, [T(JOB, 1)])
    at.do(e.ClientGone(1, goodbye=True))
    at.wait(61)
    kept = at.machine.keeping.jobs[JOB]
    assert list(kept.cancelled) == [(2, 4)]
    (b,) = runs(at.finish(next(run for run in runs(at.all) if tasks(run) == [0])))
    (last,) = runs(at.finish(b))
    at.finish(last)

    assert (kept.state, at.machine.keeping.jobs[OTHER].state) == ("done", "done")


def test_explain_names_what_a_task_waits_for() -> None:
    """And how that is."""
    at = desk()
    submit(at, JOB, 0, [], [T(JOB, 0)], close=False)
    name = at.machine.keeping.jobs[JOB].name

    lines = at.answer("explain", target=f"{JOB.hex()}/1")["lines"]
    assert lines[-1].endswith(f"waiting, attempt 1, for {name}/0 (running)")
    assert "1 for what other tasks return" in " ".join(lines)


def test_waiting_tasks_are_not_granted_and_ready_ones_bring_their_values() -> None:
    """The node that runs them needs nobody else."""
    at = desk(0)
    at.do(e.PeerUp("p", {"name": "p", "slots": 2, "minor": 11, "resources": {"cpu": 2}}))
    submit(at, JOB, 0, [], [T(JOB, 0)])
    want = e.PeerSent("p", m.P_WANT, [[1, 1], 2, 0.0, 1.0])
    (grant,) = [one.body for one in at.do(want) if isinstance(one, e.Send) and one.kind == m.P_GRANT]
    assert grant[3] == [[0, 1, 1, False]]
    at.do(e.PeerSent("p", m.P_GRANT_ACK, [[1, 1], 1]))
    at.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [1, 1], 1, [[0, 1, 0, [b"A"]]]]]))
    want = e.PeerSent("p", m.P_WANT, [[1, 2], 2, 0.0, 1.0])
    (grant,) = [one.body for one in at.do(want) if isinstance(one, e.Send) and one.kind == m.P_GRANT]

    assert grant[3] == [[1, 2, 1, False]]
    assert unpack(grant[5][0][2])[2] == [[1, 0, 0, 3, [[b"1", [0]]], [[0, b"A", 0]], None]]

    holder = desk()
    holder.do(e.PeerUp("k", {"name": "k", "slots": 0}), e.PeerSent("k", m.P_WORK, []))
    (asked,) = [one.body for one in holder.all if isinstance(one, e.Send) and one.kind == m.P_WANT]
    (run,) = runs(
        holder.do(e.PeerSent("k", m.P_GRANT, unpack(pack([asked[0], *grant[1:4], [[CODE, UNION]], grant[5]]))))
    )
    assert run.segments[0].data == [[[b"1", [0]]], [[0, b"A", 0]]]


def test_a_grant_of_tasks_that_wait_is_malformed() -> None:
    """A worker could make nothing of them."""
    holder = desk()
    holder.do(e.PeerUp("k", {"name": "k", "slots": 0}), e.PeerSent("k", m.P_WORK, []))
    (asked,) = [one.body for one in holder.all if isinstance(one, e.Send) and one.kind == m.P_WANT]
    body = [asked[0], JOB, "a-job", [[1, 2, 1, False]], [[CODE, UNION]], [[1, 2, after(JOB, 1, [T(JOB, 0)])]]]

    assert any(isinstance(one, e.Drop) for one in holder.do(e.PeerSent("k", m.P_GRANT, body)))


# ---- in the heap driver ----------------------------------------------------------------------------------------------


def chained(job: bytes, step: int = 1) -> Needs:
    """Each task waits for the one `step` before it."""
    return lambda index: [T(job, index - step)] if index >= step else []


def together(world: World, count: int, **config: Any) -> Client:
    """Add nodes, and a client at the first."""
    first = world.add("n0", **config)
    for number in range(1, count):
        world.add(f"n{number}", **config)
    client = Client(first, 1, b"s" * 16)
    client.connect()
    return client


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_of_two_hundred_runs_in_order_on_three_nodes(seed: int) -> None:
    """Each once, each with what the one before it returned, wherever that was."""
    world = World(seed)
    client = together(world, 3)
    job = client.submit(JOB, 200, lambda _: Task(0.01), needs=chained(JOB))

    assert world.run(lambda: job.ended, 60)
    assert (job.state, len(job.got)) == ("done", 200)
    assert all(count == 1 for count in world.runs.values())


@pytest.mark.parametrize("seed", range(6))
def test_layers_end_although_nodes_and_messages_are_lost(seed: int) -> None:
    """Ten layers, each task waits for three of the layer before it; what runs again has the same values."""
    world = World(seed, Faults(loss=0.05, duplicate=0.1, slow=0.05))
    client = together(world, 4)

    def needs(index: int) -> list[TaskId]:
        layer, place = divmod(index, 20)
        return [T(JOB, (layer - 1) * 20 + (place + k) % 20) for k in (0, 1, 7)] if layer else []

    job = client.submit(JOB, 200, lambda _: Task(0.05), needs=needs)
    world.at(1.0, lambda: world.nodes["n2"].crash(with_disk=False))

    assert world.run(lambda: job.ended, 300)
    assert (job.state, len(job.got)) == ("done", 200)


@pytest.mark.parametrize("seed", range(6))
def test_a_node_that_is_started_again_goes_on_where_it_was(seed: int) -> None:
    """Its journal has what waits; values of tasks that had ended come from disk."""
    world = World(seed)
    client = together(world, 2)
    node = client.node
    job = client.submit(JOB, 100, lambda _: Task(0.02), needs=chained(JOB, 5), detach=True)
    other = client.submit(OTHER, 20, lambda _: Task(0.02), needs=lambda i: [T(JOB, 5 * i), T(JOB, 99)], detach=True)
    assert world.run(lambda: len(job.got) > 30, 60)
    node.crash()
    world.at(1.0, node.start)
    world.at(1.2, client.connect)

    assert world.run(lambda: job.ended and other.ended, 120)
    assert (job.state, other.state) == ("done", "done")
    assert node.machine.depending.waits == {}


def test_a_chain_goes_on_without_its_client() -> None:
    """What is detached ends, the client of it being gone since the first began."""
    world = World(1)
    client = together(world, 1)
    client.submit(JOB, 50, lambda _: Task(0.1), needs=chained(JOB), detach=True)
    assert world.run(lambda: world.runs[JOB, 1] > 0, 10)
    client.leave(goodbye=False)

    kept = client.node.machine.keeping.jobs[JOB]
    assert world.run(lambda: kept.ended, 200)
    assert (kept.state, kept.done.size) == ("done", 50)


# ---- tasks of jobs that are kept at other nodes ----------------------------------------------------------------------


def two_clients(world: GridWorld, count: int = 3) -> tuple[Client, Client]:
    """Nodes that see each other, a client at each of the first two."""
    nodes = world.grid(count, keeps=False)
    clients = Client(nodes[0], 1, b"s" * 16), Client(nodes[1], 1, b"t" * 16)
    for client in clients:
        client.connect()
    return clients


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_tasks_of_another_nodes_job_are_waited_for(seed: int, first: bool) -> None:  # noqa: FBT001
    """Whether they end before or after they are asked for, or are submitted a moment later."""
    world = GridWorld(seed)
    one, two = two_clients(world)

    def submit() -> Submitted:
        return one.submit(JOB, 30, lambda _: Task(0.2), detach=True)

    if first:
        submit()
        world.run(lambda: bool(one.jobs[JOB].got), 10)
    other = two.submit(OTHER, 20, lambda _: Task(0.05), needs=lambda i: [T(JOB, i), T(JOB, i + 10)], detach=True)
    if not first:
        world.run(lambda: False, 2.0)
        submit()

    assert world.run(lambda: other.ended, 60)
    assert (other.state, len(other.got)) == ("done", 20)
    assert two.node.machine.awaiting.jobs == {}
    assert world.run(lambda: one.jobs[JOB].ended, 60)
    assert world.run(lambda: not two.node.machine.relays.is_busy and not one.node.machine.relays.is_busy, 5)


def test_no_other_results_than_those_that_are_needed_travel() -> None:
    """Of a job of many tasks only one is read."""
    world = GridWorld(1)
    one, two = two_clients(world)
    job = one.submit(JOB, 300, lambda _: Task(0.01))
    assert world.run(lambda: job.ended, 60)
    world.bytes.clear()
    other = two.submit(OTHER, 1, lambda _: Task(0.05), needs=lambda _: [T(JOB, 250)])

    assert world.run(lambda: other.ended, 60)
    assert other.state == "done"
    assert 0 < world.bytes[m.P_TOLD] < 200


@pytest.mark.parametrize("restart", ["keeper", "waiter"])
@pytest.mark.parametrize("seed", range(3))
def test_a_restart_of_either_node_delays_it_only(seed: int, restart: str) -> None:
    """Whoever waits asks again when the other is back, or when it is back itself."""
    world = GridWorld(seed)
    one, two = two_clients(world)
    one.submit(JOB, 20, lambda _: Task(1.0), detach=True)
    other = two.submit(OTHER, 20, lambda _: Task(0.05), needs=lambda i: [T(JOB, i)], detach=True)
    assert world.run(lambda: len(other.got) > 3, 30)
    node = {"keeper": one, "waiter": two}[restart].node
    node.crash()
    world.at(20.0, node.start)
    if restart == "waiter":
        world.at(21.0, two.connect)

    assert world.run(lambda: other.ended, 120)
    assert (other.state, len(other.got)) == ("done", 20)


def test_a_node_that_was_away_before_it_was_asked_is_waited_for() -> None:
    """The list of jobs says that there is such a job."""
    world = GridWorld(1)
    one, two = two_clients(world)
    one.submit(JOB, 1, lambda _: Task(1.0), detach=True)
    world.run(lambda: False, 5.0)
    one.node.crash()
    world.at(60.0, one.node.start)
    world.run(lambda: False, 10.0)
    other = two.submit(OTHER, 1, lambda _: Task(0.05), needs=lambda _: [T(JOB, 0)])

    assert world.run(lambda: other.ended, 120)
    assert other.state == "done"


def test_a_failure_elsewhere_is_the_cause_here() -> None:
    """And a cancelled job, too; and a task that a job elsewhere has not, once that is sure."""
    world = GridWorld(1)
    one, two = two_clients(world)
    world.run(lambda: False, 5.0)
    one.submit(JOB, 2, lambda index: Task(1.0, "raise" if index else "ok"), close=False)
    long = one.submit(b"l" * 16, 1, lambda _: Task(1000.0))
    needs = [[T(JOB, 0)], [T(JOB, 1)], [T(long.job, 0)], [T(JOB, 7)], [T(b"nobody's job....", 0)]]
    other = two.submit(OTHER, 5, lambda _: Task(0.05), needs=lambda i: needs[i])
    world.at(3.0, lambda: one.say(m.CANCEL, [long.job, None]))
    began = world.now

    assert world.run(lambda: other.ended, 60)
    assert world.now - began < 15
    shapes = {index: shape for index, (shape, _) in other.got.items()}
    assert shapes == {0: 0, 1: 2, 2: 2, 3: 2, 4: 2}
    causes = [decode_exception(unpack(other.got[index][1])).__cause__ for index in (1, 2, 3, 4)]
    assert [type(cause) for cause in causes] == [ObjectLost, TaskCancelled, NotFound, NotFound]


def test_for_a_node_that_may_not_read_there_is_no_such_task() -> None:
    """Its tasks do not wait for ever."""
    world = GridWorld(1)
    nodes = [world.join("n0"), world.join("n1", "n0", roles=SUBMIT | WORK, keeps=False)]
    assert world.run(lambda: all(node.sees("alive") == 2 for node in nodes), 10)
    world.nodes["n0"].machine.parts.roles["n1"] = WORK
    one, two = Client(nodes[0], 1, b"s" * 16), Client(nodes[1], 1, b"t" * 16)
    one.connect()
    two.connect()
    one.submit(JOB, 1, lambda _: Task(1000.0))
    other = two.submit(OTHER, 1, lambda _: Task(0.05), needs=lambda _: [T(JOB, 0)])

    assert world.run(lambda: other.ended, 20)
    assert isinstance(decode_exception(unpack(other.got[0][1])).__cause__, NotFound)


def test_whoever_may_not_read_any_more_is_told_so() -> None:
    """What waits fails with that."""
    world = GridWorld(1)
    one, two = two_clients(world, 2)
    one.submit(JOB, 1, lambda _: Task(1000.0))
    other = two.submit(OTHER, 1, lambda _: Task(0.05), needs=lambda _: [T(JOB, 0)])
    world.run(lambda: False, 2.0)
    one.node.handle(e.PeerRoles("n1", WORK))

    assert world.run(lambda: other.ended, 1)
    assert isinstance(decode_exception(unpack(other.got[0][1])).__cause__, NotAuthorized)
