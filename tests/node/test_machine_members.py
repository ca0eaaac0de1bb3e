"""Two members and more: grants, claims, results; lost, doubled, late; and members that vanish."""

from __future__ import annotations

from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, UNION, Desk, batch, replies, runs, sends, tasks
from tests.node.driver import Client, Faults, Task, World
from tests.node.test_machine_failures import failure

FACTS = {"name": "p", "slots": 2, "minor": 11, "resources": {"cpu": 2}}


def keeper(count: int = 4, **how: Any) -> Desk:
    """Return a keeper without workers of its own whose job waits, and a member."""
    desk = Desk(slots=0)
    desk.join()
    desk.submit(count, **how)
    desk.sync()
    desk.do(e.PeerUp("p", FACTS))
    return desk


def want(desk: Desk, number: int = 1, incarnation: int = 5) -> list[Any]:
    """Let the member ask for work; return the grant."""
    (grant,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[incarnation, number], 2, 0.0])), m.P_GRANT)
    assert isinstance(grant, list)
    return grant


def granted(grant: list[Any]) -> list[int]:
    """Return the tasks of a grant."""
    return [i for lo, hi, *_ in grant[3] for i in range(lo, hi)]


def claim(
    desk: Desk, seq: int, held: list[int], running: list[int] | None = None, incarnation: int = 5
) -> list[e.Effect]:
    """Let the member say what it holds and runs."""
    claims = [[JOB, held, running or []]] if held else []
    return desk.do(e.PeerSent("p", m.P_CLAIM, [incarnation, seq, 1.0, claims]))


def waiting(desk: Desk) -> list[tuple[int, int]]:
    """Return the tasks that are ready at the keeper."""
    work = desk.machine.pool.works.get(JOB)
    return [span for lane in work.lanes.values() for span in lane.ready] if work else []


def test_a_member_is_told_once_that_there_is_work() -> None:
    """It asks, it is granted a share with functions and inputs, the rest waits."""
    desk = keeper()
    assert sends(desk.all, m.P_WORK) == [[]]
    grant = want(desk)

    assert granted(grant) == [0, 1]
    assert grant[4] == [[CODE, UNION]]
    assert waiting(desk) == [(2, 4)]


def test_a_request_that_arrives_twice_gets_one_answer() -> None:
    """The same grant again, not a second one; nothing at all once it was acknowledged."""
    desk = keeper()
    first = want(desk)
    assert want(desk) == first
    assert waiting(desk) == [(2, 4)]
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))

    assert sends(desk.do(e.PeerSent("p", m.P_WANT, [[5, 1], 2, 0.0])), m.P_GRANT) == []
    assert want(desk, number=2) != first


def test_a_grant_that_is_never_acknowledged_is_sent_three_times_and_taken_back() -> None:
    """Nobody is charged for it."""
    desk = keeper()
    want(desk)
    again = sends(desk.wait(3.5), m.P_GRANT)

    assert len(again) == 2
    assert waiting(desk) == [(0, 4)]
    assert desk.machine.keeping.jobs[JOB].record.tries == {}


def test_a_claim_that_does_not_advance_lapses_after_four_beats() -> None:
    """Its tasks run again, alone, and the one that was running is charged with a node crash."""
    desk = keeper()
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    claim(desk, 1, [0, 2], [0, 1])
    desk.wait(3.9)
    assert waiting(desk) == [(2, 4)]
    desk.wait(0.2)
    record = desk.machine.keeping.jobs[JOB].record

    assert waiting(desk) == [(0, 4)]
    assert [(task, [one.kind for one in tries]) for task, tries in record.tries.items()] == [(0, ["n"])]
    assert list(record.attempts) == [(0, 2, 2)]
    desk.do(e.PeerUp("q", FACTS))
    (grant,) = sends(desk.do(e.PeerSent("q", m.P_WANT, [[1, 1], 2, 0.0])), m.P_GRANT)
    assert grant[3] == [[0, 1, 2, True]]


def test_strict_tasks_fail_when_the_last_node_for_them_stays_away() -> None:
    """Ten seconds after they could be given to nobody any more; one that comes back in time runs them."""
    for comes_back in (False, True):
        desk = Desk()
        desk.ready()
        desk.join()
        desk.do(e.PeerUp("p", FACTS))
        desk.submit(2, options={"where": "name == 'p'", "strict": True})
        grant = want(desk)
        desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
        claim(desk, 1, [0, 2], [0, 1])
        out = desk.do(e.PeerDown("p", reset=True)) + desk.wait(1.5)
        assert granted(grant) == [0, 1]
        assert waiting(desk) == [(0, 2)]
        if comes_back:
            desk.do(e.PeerUp("p", FACTS))
        out += desk.wait(11)
        results = [entry for _, entries in replies(out, m.RESULT) for entry in entries]

        assert [entry[:3] for entry in results] == ([] if comes_back else [[0, 1, 2], [1, 2, 2]])
        assert all("name == 'p' (none has it)" in str(unpack(entry[3])) for entry in results)


def test_a_reset_connection_lapses_after_a_second() -> None:
    """A connection that only ended without a reset waits for the beats."""
    desk = keeper()
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    desk.do(e.PeerDown("p", reset=True))
    desk.wait(0.9)
    assert waiting(desk) == [(2, 4)]
    desk.wait(0.2)

    assert waiting(desk) == [(0, 4)]


def test_a_member_that_was_started_again_holds_nothing_of_its_former_life() -> None:
    """Its first claim says so; its tasks run alone next, as after any vanishing."""
    desk = keeper()
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    claim(desk, 1, [0, 2])
    claim(desk, 1, [], incarnation=6)
    lanes = list(desk.machine.pool.works[JOB].lanes.values())

    assert waiting(desk) == [(0, 4)]
    assert [list(lane.alone) for lane in lanes] == [[(0, 2)]]
    assert claim(desk, 9, [0, 2]) == []  # a late claim of the former life
    assert waiting(desk) == [(0, 4)]


def test_a_late_claim_covers_what_was_taken_back() -> None:
    """The acknowledgement was lost, the tasks run there: they need not run here as well."""
    desk = keeper()
    want(desk)
    desk.wait(3.5)
    assert waiting(desk) == [(0, 4)]
    claim(desk, 1, [0, 2])

    assert waiting(desk) == [(2, 4)]


def test_cancelling_reaches_the_members() -> None:
    """P_DROP names what they hold; a member that missed it hears it with its next claim."""
    desk = keeper()
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    assert sends(desk.say(m.CANCEL, [JOB, [0, 1]]), m.P_DROP) == [[JOB, [0, 1]]]
    assert sends(claim(desk, 1, [0, 2]), m.P_DROP) == [[JOB, [0, 1]]]
    assert sends(desk.say(m.CANCEL, [JOB, None]), m.P_DROP)[0] == [JOB, None]

    assert sends(claim(desk, 2, [0, 2]), m.P_DROP) == [[JOB, None]]


def test_a_packed_blob_travels_whole_and_is_granted_in_part() -> None:
    """The holder cuts what it was granted out of it, and runs nothing else."""
    desk = keeper(10, packed=True)
    grant = want(desk)
    assert [batch[:2] for batch in grant[5]] == [[0, 10]]
    holder = Desk(slots=1)
    holder.ready()
    holder.do(e.PeerUp("n", FACTS), e.PeerSent("n", m.P_WORK, []))
    ((rid, *_),) = sends(holder.all, m.P_WANT)
    (run,) = runs(holder.do(e.PeerSent("n", m.P_GRANT, [rid, *grant[1:]])))

    assert tasks(run) == [0]
    assert run.segments[0].offset == 0
    assert holder.machine.pool.ready() == len(granted(grant)) - 1


def holder_of(desk: Desk, spans: list[list[int]], rid: list[int]) -> list[e.Effect]:
    """Grant tasks to a holder."""
    batches = [[lo, hi, batch(lo, hi)] for lo, hi, _ in spans]
    return desk.do(e.PeerSent("k", m.P_GRANT, [rid, JOB, "j", spans, [[CODE, UNION]], batches]))


def holder() -> Desk:
    """Return a member with one worker and a keeper it may hold for."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS))
    return desk


def test_a_doubled_grant_is_acknowledged_twice_and_held_once() -> None:
    """The acknowledgement may have been lost; the tasks are not."""
    desk = holder()
    first = holder_of(desk, [[0, 3, 1]], [7, 1])
    second = holder_of(desk, [[0, 3, 1]], [7, 1])

    assert [tasks(run) for run in runs(first)] == [[0]]
    assert sends(first, m.P_GRANT_ACK) == sends(second, m.P_GRANT_ACK) == [[[7, 1], 1]]
    assert desk.machine.pool.ready() == 2


def test_a_grant_for_a_former_life_is_not_acknowledged() -> None:
    """The keeper takes it back."""
    desk = holder()
    out = holder_of(desk, [[0, 3, 1]], [6, 1])

    assert sends(out, m.P_GRANT_ACK) == runs(out) == []
    assert desk.machine.pool.works == {}


def test_ranges_granted_again_in_another_cut_all_run() -> None:
    """What was dropped meanwhile comes back with neighbours; no task is left without inputs."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 6, 1]], [7, 1]))
    desk.do(e.PeerSent("k", m.P_DROP, [JOB, [3, 6]]))
    holder_of(desk, [[4, 9, 2]], [7, 2])
    done = []
    given = [run]
    while given:
        one = given.pop(0)
        done += tasks(one)
        given += runs(desk.finish(one))

    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8]


def test_a_finished_task_that_is_granted_again_lets_go_of_no_other_input() -> None:
    """Its keeper lost the result; the inputs of its neighbours stay."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 3, 1]], [7, 1]))
    (second,) = runs(desk.finish(run, busy_s=1.0))
    ((entry,),) = sends(desk.all, m.P_RESULTS)
    desk.do(e.PeerSent("k", m.P_RESULTS_ACK, [[JOB, *entry[1]]]))
    holder_of(desk, [[0, 1, 2]], [7, 2])
    done = []
    given = [second]
    while given:
        one = given.pop(0)
        done += tasks(one)
        given += runs(desk.finish(one, busy_s=1.0))

    assert sorted(done) == [0, 1, 2]


def test_results_are_sent_again_until_they_are_acknowledged() -> None:
    """With every beat, together with the claim that still names their tasks."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 1, 1]], [7, 1]))
    first = sends(desk.finish(run), m.P_RESULTS)
    beat = desk.wait(1.1)
    assert sends(beat, m.P_RESULTS) == first
    assert [body[3] for body in sends(beat, m.P_CLAIM)] == [[[JOB, [0, 1], []]]]
    desk.do(e.PeerSent("k", m.P_RESULTS_ACK, [[JOB, *first[0][0][1]]]))
    farewell = desk.wait(5)

    assert [body[3] for body in sends(farewell, m.P_CLAIM)] == [[]]
    assert sends(farewell, m.P_RESULTS) == []


def test_dropped_tasks_are_killed_at_their_holder() -> None:
    """The keeper's P_DROP reaches the worker that runs one of them."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 3, 1]], [7, 1]))
    out = desk.do(e.PeerSent("k", m.P_DROP, [JOB, None]))

    assert e.Kill(0, run.run, [(0, 1)]) in out
    assert runs(desk.do(e.WorkerDied(0, run.run, 0, "killed", ""), e.WorkerReady(0))) == []
    assert desk.machine.pool.works == {}


def test_nothing_is_sent_to_a_keeper_that_is_away_and_its_tasks_end_after_a_while() -> None:
    """When it is back it gets its results; after ten minutes they are let go."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 2, 1]], [7, 1]))
    desk.do(e.PeerDown("k", reset=True))
    desk.finish(run)
    assert sends(desk.wait(5), m.P_CLAIM) == []
    desk.do(e.PeerUp("k", FACTS))
    assert len(sends(desk.wait(0.5), m.P_RESULTS)) == 1
    desk.do(e.PeerDown("k", reset=True))
    desk.wait(601)

    assert desk.machine.pool.works == {}
    assert not desk.machine.holding.debts["k"].batches


def test_a_node_that_ends_gives_back_what_it_holds() -> None:
    """Its keeper need not wait for the lapse, and charges nobody."""
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 3, 1]], [7, 1]))
    desk.do(e.Stop(2.0))
    out = desk.finish(run)
    (kept,) = sends(out, m.P_RETURN)
    assert kept == [JOB, [0, 3], "", False]
    at_keeper = keeper()
    grant = want(at_keeper)
    at_keeper.do(e.PeerSent("p", m.P_GRANT_ACK, [grant[0], 1]))
    at_keeper.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 1], 1, [[0, 1, 0, [b"v"]]]]]))
    at_keeper.do(e.PeerSent("p", m.P_RETURN, [JOB, [0, 2], ""]))

    assert waiting(at_keeper) == [(1, 4)]
    assert at_keeper.machine.keeping.jobs[JOB].record.tries == {}


def test_a_request_without_an_answer_is_repeated_once_a_second() -> None:
    """Not with every event."""
    desk = Desk(slots=2)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS), e.PeerSent("k", m.P_WORK, []))
    desk.wait(1.5)
    for _ in range(20):
        desk.join(client=9)

    assert len(sends(desk.all, m.P_WANT)) == 2


def test_a_task_whose_nodes_vanish_five_times_is_a_crash() -> None:
    """WorkerCrashed says so, all others end."""
    desk = keeper(2, options={"name": "x"})
    out: list[e.Effect] = []
    for life in range(1, 6):
        grant = want(desk, incarnation=life)
        assert granted(grant) == ([0, 1] if life == 1 else [0])
        desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[life, 1], 1]))
        claim(desk, 1, [granted(grant)[0], granted(grant)[-1] + 1], [0, 1], incarnation=life)
        out = desk.do(e.PeerDown("p", reset=True)) + desk.wait(1.1) + desk.do(e.PeerUp("p", FACTS))
    ((_, [entry]),) = replies(out, m.RESULT)

    assert entry[:3] == [0, 1, 2]
    assert "5 nodes vanished" in str(unpack(entry[3]))
    assert waiting(desk) == [(1, 2)]


def test_the_keeper_may_crash_while_others_hold_its_tasks() -> None:
    """After its restart the holders' claims and results are taken; every task ends, none is reported twice."""
    world = World(5, Faults(loss=0.05, duplicate=0.05))
    nodes = [world.add(f"n{i}") for i in range(3)]
    client = Client(nodes[0], 1, b"s" * 16)
    client.connect()
    world.run(lambda: False, 1)
    one = client.submit(b"J" * 16, 100, lambda i: Task(0.2, "crash" if i == 9 else "ok"))
    world.run(lambda: False, 1)
    nodes[0].crash()
    world.run(lambda: False, 1)
    nodes[0].start()
    client.connect()

    assert world.run(lambda: one.ended, 120)
    assert set(one.got) == set(range(100))
    assert failure(one, 9).startswith("WorkerCrashed")
    assert [i for i, (shape, _) in one.got.items() if shape == 2] == [9]
