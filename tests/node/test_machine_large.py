"""Large grants and results take a stream of their own, for seconds: nobody is impatient, nothing travels twice."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, TASKS_MAX, encode_batch
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_peer
from p2pgrid.core.wire import FRAME_MAX_CONTROL, pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.holding import Holding, HoldingOptions, lots
from p2pgrid.node.leases import Holder, LeaseOptions, Leases
from tests.node.desk import CODE, JOB, UNION, Desk, batch, replies, runs, sends, tasks
from tests.node.driver import Client, Faults, Task, World, value_of
from tests.node.test_machine_members import FACTS, claim, granted, holder, holder_of, keeper, waiting

LARGE = 500_000
"""Bytes: patience is 10 s + 10 s."""


def large_keeper(count: int = 2) -> Desk:
    """Return a keeper whose tasks have large arguments, and a member."""
    desk = Desk(slots=0)
    desk.join()
    desk.submit(1, close=False)
    desk.say(m.CANCEL, [JOB, [0, 1]])
    data = encode_batch([CODE], [{}], [(count, 0, 0, CALLS, [b"x" * LARGE] * count)])
    desk.say(m.INPUT, [JOB, 1, 1 + count, data])
    desk.sync()
    desk.do(e.PeerUp("p", FACTS))
    return desk


def want_one(desk: Desk, number: int = 1) -> list[e.Effect]:
    """Let the member ask for one task."""
    return desk.do(e.PeerSent("p", m.P_WANT, [[5, number], 1, 0.0, 0.0]))


def alive(desk: Desk, seconds: int) -> list[e.Effect]:
    """Let time pass while the member says every second that it is there."""
    out = []
    for _ in range(seconds):
        out += desk.wait(1.0) + desk.do(e.PeerSent("p", m.P_PING, [1, 1, 0]))
    return out


# ---- grants ---------------------------------------------------------------------------------------------------------


def test_a_large_grant_is_announced_and_sent_once() -> None:
    """Its holder asks again every second and hears that it is coming."""
    desk = large_keeper()
    out = want_one(desk)
    assert len(sends(out, m.P_GRANT)) == 1
    assert sends(out, m.P_COMING) == [[[5, 1]]]
    again = [effect for _ in range(15) for effect in desk.wait(1.0) + want_one(desk)]

    assert sends(again, m.P_GRANT) == []
    assert sends(again, m.P_COMING) == [[[5, 1]]] * 15
    assert waiting(desk) == [(2, 3)]


def test_a_large_grant_is_taken_back_when_its_time_is_over() -> None:
    """Ten seconds and its size over 50 kB/s; nobody is charged."""
    desk = large_keeper()
    want_one(desk)
    alive(desk, 19)
    assert waiting(desk) == [(2, 3)]
    alive(desk, 2)

    assert waiting(desk) == [(1, 3)]
    assert desk.machine.keeping.jobs[JOB].record.tries == {}


def test_a_large_grant_to_a_member_that_falls_silent_is_taken_back_after_four_seconds() -> None:
    """And nobody is charged: the task had not begun."""
    desk = large_keeper()
    want_one(desk)
    alive(desk, 6)
    desk.wait(3.9)
    assert waiting(desk) == [(2, 3)]
    desk.wait(0.2)

    assert waiting(desk) == [(1, 3)]
    assert desk.machine.keeping.jobs[JOB].record.tries == {}


def test_a_large_grant_is_sent_again_over_a_new_connection() -> None:
    """What was under way on the old one is lost."""
    desk = large_keeper()
    (first,) = sends(want_one(desk), m.P_GRANT)
    alive(desk, 6)
    desk.do(e.PeerDown("p", reset=False))
    desk.wait(1.0)

    assert sends(desk.do(e.PeerUp("p", FACTS)), m.P_GRANT) == [first]
    alive(desk, 19)
    assert waiting(desk) == [(2, 3)]


def test_a_claim_that_does_not_advance_lapses_though_its_member_is_heard_of() -> None:
    """Frames of liveness show that grants under way may arrive; they renew no claim."""
    desk = large_keeper()
    want_one(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    want_one(desk, 2)
    alive(desk, 3)
    assert waiting(desk) == []
    alive(desk, 2)

    assert waiting(desk) == [(1, 2)]
    alive(desk, 10)
    assert waiting(desk) == [(1, 2)]  # the one under way is waited for


def test_a_cancelled_job_overtakes_its_large_grant() -> None:
    """Its holder takes it in, says so, and hears at once that it is over; nothing of it stays there."""
    desk = large_keeper()
    ((*_, ranges, codes, batches),) = sends(want_one(desk), m.P_GRANT)
    assert sends(desk.say(m.CANCEL, [JOB, None]), m.P_DROP) == [[JOB, None]]
    there = holder()
    there.do(e.PeerSent("k", m.P_DROP, [JOB, None]))
    out = there.do(e.PeerSent("k", m.P_GRANT, [[7, 1], JOB, "j", ranges, codes, batches]))
    ((_, seq),) = sends(out, m.P_GRANT_ACK)
    (run,) = runs(out)
    assert sends(desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], seq])), m.P_DROP) == [[JOB, None]]
    out = there.do(e.PeerSent("k", m.P_DROP, [JOB, None]))

    assert e.Kill(0, run.run, [(1, 2)]) in out
    there.do(e.WorkerDied(0, run.run, 1, "killed", ""), e.WorkerReady(0))
    assert there.machine.pool.works == {}
    assert not any(debt.held or debt.batches for debt in there.machine.holding.debts.values())


def test_cancelled_tasks_overtake_their_large_grant() -> None:
    """The acknowledgement is answered by what of it need not run."""
    desk = large_keeper(1)
    want_one(desk)
    desk.say(m.CANCEL, [JOB, [1, 2]])

    assert sends(desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1])), m.P_DROP) == [[JOB, [1, 2]]]


def test_a_request_waits_for_what_is_coming() -> None:
    """Longer than for an answer; and it goes on saying that it is there."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS), e.PeerSent("k", m.P_WORK, []))
    ((rid, *_),) = sends(desk.all, m.P_WANT)
    out = []
    for _ in range(12):
        out += desk.do(e.PeerSent("k", m.P_COMING, [rid])) + desk.wait(1.0)
    assert [body[0] for body in sends(out, m.P_WANT)] == [rid] * 12
    given = [rid, JOB, "j", [[0, 1, 1]], [[CODE, UNION]], [[0, 1, batch(0, 1)]]]

    assert [tasks(run) for run in runs(desk.do(e.PeerSent("k", m.P_GRANT, given)))] == [[0]]


def test_a_stall_of_our_own_takes_nothing_from_anybody() -> None:
    """Neither claims nor grants lapse by time in which this node stood still."""
    desk = large_keeper()
    want_one(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    want_one(desk, 2)
    desk.now += 60.0
    desk.do(e.Stalled(60.0))
    desk.wait(3.0)
    assert waiting(desk) == []
    desk.wait(1.5)

    assert waiting(desk) == [(1, 3)]


@pytest.mark.parametrize("drop_s", [0.0, 5.0])
def test_an_argument_of_many_megabytes_arrives_once(drop_s: float) -> None:
    """10 MB over 1 MB/s: 10 s on the way, granted once, run once; a link cut meanwhile costs one more transfer."""
    world = World(1, Faults(ordered=True, rate=1e6))
    near, far = world.add("near", slots=0), world.add("far", slots=1)
    client = Client(near, 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    world.tasks[JOB] = lambda _: Task(0.1)
    one = client.submit(JOB, 1, lambda _: Task(0.1), close=False, options={"name": "small"})
    world.run(lambda: 0 in one.got, 10)
    big = encode_batch([CODE], [{}], [(1, 0, 0, CALLS, [b"1" + bytes(10_000_000)])])
    client.say(m.INPUT, [JOB, 1, 2, big])
    client.say(m.CLOSE, [JOB, 2])
    before = world.bytes[m.P_GRANT]
    if drop_s:
        world.run(lambda: False, drop_s)
        world.sever(near, far)
        world.run(lambda: False, 2.0)
        world.reconnect(near, far)

    assert world.run(lambda: one.ended, 60)
    assert set(one.got) == {0, 1}
    assert (world.bytes[m.P_GRANT] - before) // 10_000_000 == (2 if drop_s else 1)
    assert world.runs[JOB, 1] == 1
    assert near.machine.keeping.jobs[JOB].record.tries == {}


# ---- results --------------------------------------------------------------------------------------------------------


def test_a_large_result_is_not_sent_again_with_every_beat() -> None:
    """Its claim is; it itself after ten seconds and its size over 50 kB/s, or over a new connection."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 1, 1]], [7, 1]))
    assert len(sends(desk.finish(run, b"v" * LARGE), m.P_RESULTS)) == 1
    out = desk.wait(19)
    assert sends(out, m.P_RESULTS) == []
    assert len(sends(out, m.P_CLAIM)) >= 18
    assert len(sends(desk.wait(3), m.P_RESULTS)) == 1
    desk.do(e.PeerDown("k", reset=False), e.PeerUp("k", FACTS))

    assert len(sends(desk.wait(0.1), m.P_RESULTS)) == 1


def test_results_are_cut_into_lots() -> None:
    """256 KiB each, a single larger value excepted; every task is in one of them, every log as well."""
    values = [b"v" * 100_000] * 6 + [b"w" * 400_000]
    cut = lots([e.Outcome(0, 7, 0, values)], [(3, b"l" * 100_000), (6, b"x")], 0.5, 256 << 10, 64 << 10)
    spans = [(one.lo, one.hi) for lot in cut for one in lot.outcomes]

    assert spans == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [data for lot in cut for one in lot.outcomes for data in one.data] == values
    assert all(lot.size <= 256 << 10 for lot in cut if all(one.lo != 6 for one in lot.outcomes))
    assert [(i, len(text)) for lot in cut for i, text in lot.logs] == [(3, 64 << 10), (6, 1)]
    assert sum(lot.busy_s for lot in cut) == 0.5


def test_small_results_are_sent_again_in_few_frames() -> None:
    """Packed together, none of them too large for the control stream."""
    desk = holder()
    given = runs(holder_of(desk, [[0, 40, 1]], [7, 1]))
    while given:
        given = runs(desk.finish(given[0], b"v" * 5_000, busy_s=1.0))
    frames = sends(desk.wait(1.1), m.P_RESULTS)

    assert sum(len(frame) for frame in frames) == 40
    assert len(frames) == 5
    assert all(len(pack(frame)) < 60_000 for frame in frames)


def test_a_claim_of_many_jobs_leaves_in_parts_and_counts_as_a_whole() -> None:
    """In any order; half of it would uncover the other half."""
    desk = holder()
    desk.machine.holding.options = HoldingOptions(claim_bounds=12)
    for number in range(6):
        job = bytes([number]) * 16
        given = [[7, number + 1], job, "j", [[0, 2, 1]], [[CODE, UNION]], [[0, 2, batch(0, 2)]]]
        desk.do(e.PeerSent("k", m.P_GRANT, given))
    claims = sends(desk.wait(1.1), m.P_CLAIM)
    assert [body[4:] for body in claims] == [[i, len(claims)] for i in range(len(claims))]
    assert len(claims) > 2

    at_keeper = keeper()
    want_all(at_keeper)
    parts = [[[JOB, [0, 2], [0, 1]]], [[JOB, [2, 4], []]]]
    for part in (1, 0):
        at_keeper.do(e.PeerSent("p", m.P_CLAIM, [5, 3, 1.0, parts[part], part, 2]))
        assert waiting(at_keeper) == []
    holders = at_keeper.machine.leases.holders
    assert holders["p"].covered[JOB] == RangeSet([(0, 4)])
    assert holders["p"].version == (5, 3)
    at_keeper.do(e.PeerSent("p", m.P_CLAIM, [5, 4, 1.0, parts[0], 0, 2]))
    assert holders["p"].version == (5, 3)


@pytest.mark.parametrize("bounds", [40, 4096])
def test_a_claim_that_names_many_ranges_fits_control_frames(bounds: int) -> None:
    """What is held and what was handed to many, in single tasks far apart; the keeper reads what was meant."""
    holding = Holding(HoldingOptions(claim_bounds=bounds))
    count = 20_000
    far = TASKS_MAX - 4 * count
    tasks = [range(far + 2 * part, TASKS_MAX - 4, 2 * 5) for part in range(5)]
    spans = [RangeSet((i, i + 1) for i in some) for some in tasks]
    for one in spans:
        holding.take("k", JOB, list(one))
    handed = {"thief": spans[1], **{f"{i:052}": RangeSet([(far + 4 + 10 * i, far + 5 + 10 * i)]) for i in range(600)}}
    running = {JOB: [tasks[0][0], tasks[0][7]]}
    frames = holding.claim("k", running, {JOB: handed})
    read = [from_peer(m.P_CLAIM, unpack(pack(frame.body))) for frame in frames]
    leases = Leases(LeaseOptions())
    leases.holders["p"] = Holder(0.0)
    whole = None
    for _, seq, _, claims, part, parts in reversed(read):
        whole = leases.whole("p", (5, seq), part, parts, claims)

    assert whole is not None
    assert len(frames) > 5
    assert all(len(pack(frame.body)) < FRAME_MAX_CONTROL - 64 for frame in frames)
    named = RangeSet(span for some in handed.values() for span in some)
    assert whole[JOB].held == RangeSet(span for one in spans for span in one) - named
    assert whole[JOB].handed == handed
    assert whole[JOB].running == RangeSet((i, i + 1) for i in running[JOB])


def want_all(desk: Desk) -> None:
    """Let the member ask and acknowledge until it has all tasks."""
    for number in range(1, 9):
        for grant in sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, number], 2, 0.0])), m.P_GRANT):
            desk.do(e.PeerSent("p", m.P_GRANT_ACK, [grant[0], 1]))


# ---- inputs that are there already ----------------------------------------------------------------------------------


def test_a_packed_run_and_its_function_travel_once() -> None:
    """The second grant names them only, and the holder runs its tasks."""
    desk = keeper(1000, packed=True)
    first, second = (grants(desk, number) for number in (1, 2))
    assert first[5][0][2] != b""
    assert second[4:] == [[], [[0, 1000, b""]]]
    there = holder()
    (run,) = runs(there.do(e.PeerSent("k", m.P_GRANT, [[7, 1], *first[1:]])))
    there.do(e.PeerSent("k", m.P_GRANT, [[7, 2], *second[1:]]))
    done = []
    given = [run]
    while given:
        done += tasks(given[0])
        given = runs(there.finish(given[0], busy_s=1.0))

    assert sorted(done) == granted(first) + granted(second)


def test_a_packed_run_is_still_there_when_its_work_was_over_for_a_while() -> None:
    """A holder keeps it beyond the last of its tasks."""
    desk = keeper(1000, packed=True)
    first, second = (grants(desk, number) for number in (1, 2))
    there = holder()
    there.do(e.PeerSent("k", m.P_GRANT, [[7, 1], *first[1:]]), e.PeerSent("k", m.P_DROP, [JOB, None]))
    assert there.machine.pool.works == {}
    there.do(e.WorkerDied(0, 1, None, "killed", ""), e.WorkerReady(0))
    (run,) = runs(there.do(e.PeerSent("k", m.P_GRANT, [[7, 2], *second[1:]])))

    assert tasks(run) == granted(second)[:1]


def test_a_holder_that_lacks_a_packed_run_says_so_and_gets_it_whole() -> None:
    """Its tasks go back, it is not unfit, and nothing stays claimed."""
    desk = keeper(1000, packed=True)
    grants(desk, 1)
    second = grants(desk, 2)
    there = holder()
    out = there.do(e.PeerSent("k", m.P_GRANT, [[7, 2], *second[1:]]))
    (body,) = sends(out, m.P_RETURN)
    assert body == [JOB, RangeSet((lo, hi) for lo, hi, *_ in second[3]).flat(), "", True]
    assert runs(out) == []
    assert len(sends(out, m.P_GRANT_ACK)) == 1
    assert [claimed[3] for claimed in sends(there.wait(1.1), m.P_CLAIM)] == [[]]
    desk.do(e.PeerSent("p", m.P_RETURN, body))
    third = grants(desk, 3)

    assert third[5][0][2] != b""
    assert third[4] == [[CODE, UNION]]
    assert granted(third)[0] == granted(second)[0]


def test_a_member_that_was_started_again_gets_its_inputs_again() -> None:
    """Nothing of its former life counts."""
    desk = keeper(1000, packed=True)
    grants(desk, 1)

    assert grants(desk, 1, incarnation=6)[5][0][2] == grants(desk, 1, incarnation=7)[5][0][2] != b""


def grants(desk: Desk, number: int, incarnation: int = 5) -> list[Any]:
    """Let the member ask; acknowledge and return what it gets."""
    rid = [incarnation, number]
    (grant,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [rid, 2, 0.0, 0.0])), m.P_GRANT)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [rid, 1]))
    assert isinstance(grant, list)
    return grant


# ---- what comes with results ----------------------------------------------------------------------------------------


def test_output_of_tasks_that_ran_elsewhere_is_kept() -> None:
    """It travels with their results and is a row at the keeper; so are the last words of a worker that died."""
    there = holder()
    (run,) = runs(holder_of(there, [[0, 2, 1]], [7, 1]))
    outcome = e.Outcome(0, 1, 0, [b"v"])
    out = there.do(e.WorkerDone(0, run.run, [outcome], True, [], 0.5, [(0, b"hello\n")]))  # noqa: FBT003
    ((entry,),) = sends(out, m.P_RESULTS)
    assert entry[4:] == [[[0, b"hello\n"]], 0.5]
    desk = keeper()
    grants(desk, 1)
    out = desk.do(e.PeerSent("p", m.P_RESULTS, [entry]))
    crash = [1, 2, 4, pack(["signal", "SIGSEGV", "Segmentation fault"])]
    out += desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [7, 9], 1, [crash]]]))
    rows = [row for one in out if isinstance(one, e.Store) for row in one.rows if row.kind == "log"]

    assert [(int.from_bytes(row.key, "big"), row.value) for row in rows] == [
        (0, b"hello\n"), (1, b"Segmentation fault\n"),
    ]  # fmt: skip


def test_a_failure_that_is_tried_again_is_acknowledged_once_it_is_on_disk() -> None:
    """A keeper that crashes right after it would else not know that one try was used up."""
    desk = keeper(options={"retries": 1})
    grants(desk, 1)
    desk.sync()
    crash = [0, 1, 4, pack(["signal", "SIGSEGV", ""])]
    out = desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 1], 1, [crash]]]))
    assert sends(out, m.P_RESULTS_ACK) == []
    assert "try" in [row.kind for one in out if isinstance(one, e.Store) for row in one.rows]

    assert sends(desk.sync(), m.P_RESULTS_ACK) == [[[JOB, 5, 1]]]


def test_results_name_the_node_that_ran_them_also_after_a_restart() -> None:
    """Readers, `show` and `explain` say its name; so they do of what it runs now."""
    world = World(3, Faults(ordered=True))
    near, far = world.add("near", slots=0), world.add("far", slots=1)
    client = Client(near, 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    one = client.submit(JOB, 3, lambda i: Task(0.1 if i == 0 else 30.0))
    world.run(lambda: False, 3.5)
    name = near.machine.keeping.jobs[JOB].name
    shown = [client.ask("show", target=f"{name}/{i}")["task"] for i in range(2)]
    assert [(task["state"], task["node"]) for task in shown] == [("done", "far"), ("running", "far")]
    assert client.ask("show", target=name)["tasks"]["running"] == 1
    near.crash()
    del far
    near.start()
    client.connect()
    world.run(lambda: False, 0.5)
    entry = near.machine.keeping.entry_of(near.machine.keeping.jobs[JOB], 0)

    assert entry is not None
    assert entry[1] == "far"
    assert one.got[0] == (0, [value_of(JOB, 0)])


def test_a_function_that_cannot_be_loaded_leaves_nothing_behind() -> None:
    """All its tasks go back with the reason, and its work is closed."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 3, 1]], [7, 1]))
    spans = [(s.lo, s.hi) for s in run.segments]
    out = desk.do(e.WorkerDone(0, run.run, [], True, spans, 0.0, unfit="no module named x"))  # noqa: FBT003

    assert sends(out, m.P_RETURN) == [[JOB, [0, 3], "no module named x", False]]
    assert desk.machine.pool.works == {}
    assert claim(desk, 1, []) == []
    assert replies(out, m.RESULT) == []
