"""Large results in the machine: shown at once, recorded when they have an id, taken in when they are here."""

from __future__ import annotations

from typing import TypeVar
from unittest.mock import MagicMock, patch

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.node import events as e
from p2pgrid.node.belongings import Belongings
from tests.node.desk import JOB, Desk, replies, runs, sends
from tests.node.test_machine_members import claim, holder, holder_of, keeper, want

KEY = b"k" * 16
ID = b"\x01" + b"i" * 32
SIZE = 1_000_000


T = TypeVar("T")


def of(effects: list[e.Effect], kind: type[T]) -> list[T]:
    return [one for one in effects if isinstance(one, kind)]


def ended(desk: Desk, run: e.Run, *, is_ref: bool = False) -> list[e.Effect]:
    """Let a worker end the only task of a run with a large value."""
    outcome = e.Outcome(0, 1, LARGE, Large(KEY, SIZE, (), is_ref).packed())
    return desk.do(e.WorkerDone(run.worker, run.run, [outcome], True, [], 0.01))  # noqa: FBT003


def one_job(*, detach: bool = False) -> tuple[Desk, e.Run]:
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1, detach=detach))
    desk.sync()
    return desk, run


def test_a_large_result_is_shown_by_its_key_and_recorded_by_its_id() -> None:
    """The reader has it before it is hashed, and once; the job ends, and the journal is told, afterwards."""
    desk, run = one_job()
    shown = ended(desk, run)

    (body,) = replies(shown, m.RESULT)
    assert read_large(body[1][0][3]) == Large(KEY, SIZE)
    assert [type(one) for one in shown if isinstance(one, e.Name | e.Reply)] == [e.Name, e.Reply]  # whole, then shown
    assert not replies(shown, m.STATE)
    assert not [row for one in of(shown, e.Store) for row in one.rows if row.kind == "result"]

    named = desk.do(e.Named(KEY, ID))
    assert not replies(named, m.RESULT)
    assert [body[1] for body in replies(named, m.STATE)] == ["done"]
    (needs,) = of(named, e.Needs)
    assert needs == e.Needs(JOB, b"s" * 16, [Large(ID, SIZE, ("n",))], 0)


def test_what_is_to_be_read_as_a_ref_is_shown_with_its_id() -> None:
    desk, run = one_job()
    assert not replies(ended(desk, run, is_ref=True), m.RESULT)
    (body,) = replies(desk.do(e.Named(KEY, ID)), m.RESULT)

    assert read_large(body[1][0][3]) == Large(ID, SIZE, ("n",), is_ref=True)


def test_a_result_that_is_gone_before_it_has_a_name_runs_again() -> None:
    desk, run = one_job()
    ended(desk, run)
    (again,) = runs(desk.do(e.Named(KEY, None)))

    assert [(segment.lo, segment.hi) for segment in again.segments] == [(0, 1)]


def test_results_of_a_detached_job_are_written_to_disk_first() -> None:
    desk, run = one_job(detach=True)
    (name,) = of(ended(desk, run), e.Name)

    assert name == e.Name(KEY, JOB, 0, own=True, durable=True)


def test_the_record_survives_only_with_its_object() -> None:
    """After a crash a result that was in memory alone has not been."""
    for objects, done in ((frozenset({ID}), 1), (frozenset[bytes](), 0)):
        desk, run = one_job(detach=True)
        ended(desk, run)
        desk.do(e.Named(KEY, ID))
        rows = [row for one in desk.all if isinstance(one, e.Store) for row in one.rows]
        rows += _accepted(desk)
        again = Desk()
        again.do(e.Loaded(rows, 0.0, 8, objects))

        assert again.machine.keeping.jobs[JOB].done.size == done


def _accepted(desk: Desk) -> list[e.Row]:
    """Return the rows of the job that were synced before."""
    kept = desk.machine.keeping.jobs[JOB]
    return [e.Row(JOB, "spec", b"", kept.record.spec or b"", b"")]


def test_forgetting_a_job_frees_what_it_needs() -> None:
    desk, run = one_job()
    ended(desk, run)
    desk.do(e.Named(KEY, ID))
    out = desk.say(m.REQUEST, ["forget", {"target": JOB.hex()}], id_=3)

    assert of([*out, *desk.sync()], e.Freed) == [e.Freed(JOB)]


def test_a_copy_that_is_given_up_frees_nothing_elsewhere() -> None:
    """The keepers that remain need the objects of the job as before."""
    desk, run = one_job()
    ended(desk, run)
    desk.do(e.Named(KEY, ID))
    replicas = desk.machine.replicas
    replicas._give_up(desk.machine.keeping.jobs[JOB])

    assert of(replicas.out, e.Freed) == [e.Freed(JOB, here=True)]


@pytest.mark.parametrize("here", [False, True])
def test_only_who_forgets_a_job_has_its_objects_dropped_by_all(*, here: bool) -> None:
    hands = MagicMock()
    belongings = Belongings(hands, MagicMock(), MagicMock(), MagicMock())
    hands.objects.free.reset_mock()
    with patch.object(belongings, "_watch"):
        belongings.needs(e.Needs(JOB, b"", [Large(ID, 5, ("p",))], 2))
    belongings.freed(e.Freed(JOB, here=here))

    assert hands.objects.free.called is not here
    assert hands.objects.unwant.called


def result_of(desk: Desk, number: int, large: Large) -> list[e.Effect]:
    entry = [JOB, [5, number], 1, [[0, 1, LARGE, large.packed()]], [], 0.1]
    return desk.do(e.PeerSent("p", m.P_RESULTS, [entry]))


def granted() -> Desk:
    desk = keeper(1)
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    claim(desk, 1, [0, 1])
    return desk


def test_a_value_of_another_node_counts_once_it_is_here() -> None:
    """Told twice it is fetched once; acknowledged when it is on disk that it is here."""
    desk = granted()
    told = result_of(desk, 1, Large(ID, SIZE, ("p",)))
    assert of(told, e.Pull) == [e.Pull(ID, ["p"])]
    assert not replies(told, m.RESULT)
    assert not of(result_of(desk, 1, Large(ID, SIZE, ("p",))), e.Pull)

    out = desk.do(e.Pulled(ID, good=True))
    (body,) = replies(out, m.RESULT)
    assert read_large(body[1][0][3]).holders == ("n",)
    assert len(of(out, e.Needs)) == 1
    assert sends(desk.sync(), m.P_RESULTS_ACK) == [[[JOB, 5, 1]]]


def test_a_value_that_its_node_took_with_it_is_not_counted() -> None:
    """Its claim lapses; told again by a node that is back, it is fetched again."""
    desk = granted()
    result_of(desk, 1, Large(ID, SIZE, ("p",)))
    desk.do(e.Pulled(ID, good=False))
    assert not desk.machine.keeping.jobs[JOB].done

    assert of(result_of(desk, 1, Large(ID, SIZE, ("p",))), e.Pull)


def test_what_there_is_no_room_for_and_refs_stay_where_they_are() -> None:
    desk = granted()
    result_of(desk, 1, Large(ID, SIZE, ("p",)))
    (body,) = replies(desk.do(e.Pulled(ID, good=False, full=True)), m.RESULT)
    assert read_large(body[1][0][3]).holders == ("p",)

    desk = granted()
    told = result_of(desk, 1, Large(ID, SIZE, ("p",), is_ref=True))
    assert not of(told, e.Pull)
    assert len(replies(told, m.RESULT)) == 1


def test_a_holder_keeps_a_value_until_its_keeper_knows_it() -> None:
    desk = holder()
    (run,) = runs(holder_of(desk, [[0, 1, 1]], [7, 1]))
    (name,) = of(ended(desk, run), e.Name)
    assert name == e.Name(KEY, JOB, 0, own=False, durable=False)
    ((entry,),) = sends(desk.do(e.Named(KEY, ID)), m.P_RESULTS)
    assert read_large(entry[3][0][3]) == Large(ID, SIZE, ("n",))
    out = desk.do(e.PeerSent("k", m.P_RESULTS_ACK, [[JOB, *entry[1]]]))

    assert of(out, e.Delivered) == [e.Delivered(JOB, [(0, 1)])]


def test_a_detached_job_waits_for_what_it_refers_to() -> None:
    """Pinned at once, acknowledged when it is safe and written down; refused where it cannot be."""
    for why_not in ("", "the disk has no room"):
        desk = Desk(slots=0)
        desk.join()
        desk.submit(1, detach=True, close=False)
        desk.sync()
        out = desk.say(m.REFS, [JOB, [[ID, SIZE, ["p"]]]])
        assert of(out, e.Needs) == [e.Needs(JOB, b"", [Large(ID, SIZE, ("p",), is_ref=True)], 0, inputs=True)]
        (secure,) = of(out, e.Secure)
        assert not replies(desk.sync(), m.ACK)
        refused = replies(desk.do(e.Secured(secure.token, why_not)), m.REFUSED)
        acks = replies(desk.sync(), m.ACK)

        assert (acks, [body[1] for body in refused]) == (([], ["refs"]) if why_not else ([[JOB, "refs", 0]], []))


def test_inputs_are_let_go_of_when_the_job_has_ended() -> None:
    desk = Desk()
    desk.ready()
    desk.join()
    desk.submit(1, close=False)
    desk.say(m.REFS, [JOB, [[ID, SIZE, []]]])
    desk.finish(runs(desk.all)[0])
    out = desk.say(m.CLOSE, [JOB, 1])

    assert of(out, e.Freed) == [e.Freed(JOB, inputs=True)]


def test_malformed_results_cost_nothing_but_themselves() -> None:
    """A task that tampers with its pipe: it runs again. A member: it loses the connection."""
    desk, run = one_job()
    outcome = e.Outcome(0, 1, LARGE, b"\x00")
    assert runs(desk.do(e.WorkerDone(run.worker, run.run, [outcome], True, [], 0.01)))  # noqa: FBT003

    desk = granted()
    dropped = result_of(desk, 1, Large(KEY, SIZE, ("p",)))
    assert of(dropped, e.Drop)
    with pytest.raises(PeerError):
        read_large(b"no msgpack \xff")
