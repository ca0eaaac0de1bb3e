"""Nothing is promised before it is on disk, and what is refused is not done."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, UNION, Desk, batch, replies, runs, spec


def test_nothing_is_acknowledged_before_it_is_synced() -> None:
    """OPEN, CODE, INPUT, CLOSE and CANCEL are acknowledged by Stored, in this order."""
    desk = Desk()
    desk.join()
    before = desk.submit(3)
    before += desk.say(m.CANCEL, [JOB, [0, 1]])

    assert replies(before, m.ACK) == []
    assert replies(desk.sync(), m.ACK) == [
        [JOB, "spec", 0], [JOB, "code", CODE], [JOB, "input", 0], [JOB, "close", 0], [JOB, "cancel", 0],
    ]  # fmt: skip


def test_tasks_leave_for_the_workers_before_their_inputs_leave_for_the_disk() -> None:
    """The hot path does not wait for a commit."""
    desk = Desk()
    desk.ready()
    desk.join()
    desk.say(m.OPEN, [JOB, spec()])
    desk.say(m.CODE, [JOB, CODE, UNION])
    out = desk.say(m.INPUT, [JOB, 0, 3, batch(0, 3)])

    kinds = [type(one) for one in out]
    assert kinds.index(e.Run) < kinds.index(e.Store)


@pytest.mark.parametrize("synced", [False, True])
def test_what_a_new_connection_says_again_is_acknowledged_there_and_not_doubled(*, synced: bool) -> None:
    """The acknowledgement belongs to the connection by which it came, synced meanwhile or not."""
    desk = Desk()
    desk.join()
    desk.submit(3)
    if synced:
        desk.sync()
    desk.do(e.ClientGone(1, goodbye=False))
    desk.join(client=2)
    at_once = desk.submit(3, client=2)
    later = desk.sync()
    to_new = [one.body for one in at_once + later if isinstance(one, e.Reply) and one.client == 2 and one.kind == m.ACK]

    assert to_new == [[JOB, "spec", 0], [JOB, "code", CODE], [JOB, "input", 0], [JOB, "close", 0]]
    assert bool(replies(at_once, m.ACK)) == synced
    assert desk.machine.pool.ready() == 3


def test_another_batch_at_the_same_place_is_refused() -> None:
    """A batch is immutable: byte for byte the same, or none."""
    desk = Desk()
    desk.join()
    desk.submit(3)
    for lo, hi in ((0, 2), (1, 3), (2, 5), (3, 4)):
        (error,) = replies(desk.say(m.INPUT, [JOB, lo, hi, batch(lo, hi, {"retries": 1})]), m.ERROR)
        assert error["code"] == "version-mismatch"

    assert desk.machine.pool.ready() == 3


def test_a_full_disk_refuses_the_inputs_and_runs_none_of_them() -> None:
    """REFUSED names the reason; what came later is accepted again."""
    desk = Desk()
    desk.join()
    desk.submit(1, close=False)
    desk.sync()
    desk.say(m.INPUT, [JOB, 1, 3, batch(1, 3)])
    out = desk.sync(fail=True)
    (refused,) = replies(out, m.REFUSED)

    assert refused[:3] == [JOB, "input", 1]
    assert (refused[3]["code"], refused[3]["message"]) == ("quota-exceeded", "no space left")
    assert desk.machine.pool.ready() == 1
    desk.say(m.INPUT, [JOB, 1, 2, batch(1, 2)])
    assert replies(desk.sync(), m.ACK) == [[JOB, "input", 1]]
    assert desk.machine.pool.ready() == 2


def test_a_refused_spec_takes_everything_with_it() -> None:
    """The tasks of a job whose spec is not on disk would be gone after a restart: none is acknowledged."""
    desk = Desk()
    desk.join()
    desk.submit(3)
    spec_token = next(one.token for one in desk.all if isinstance(one, e.Store))
    out = desk.do(e.StoreFailed(spec_token, "no space left"))
    out += desk.sync()

    assert sorted(body[1] for body in replies(out, m.REFUSED)) == ["close", "code", "input", "spec"]
    assert replies(out, m.ACK) == []
    assert desk.machine.pool.ready() == 0
    assert replies(desk.say(m.INPUT, [JOB, 0, 3, batch(0, 3)]), m.STATE) == [[JOB, "unknown", ""]]


def test_a_refused_function_takes_the_inputs_that_use_it_with_it() -> None:
    """Inputs on their way to the disk cannot run after a restart without their function."""
    desk = Desk()
    desk.join()
    desk.say(m.OPEN, [JOB, spec()])
    desk.sync()
    desk.say(m.CODE, [JOB, CODE, UNION])
    code_token = desk.all[-1].token  # type: ignore[union-attr]
    desk.say(m.INPUT, [JOB, 0, 3, batch(0, 3)])
    out = desk.do(e.StoreFailed(code_token, "no space left"))

    assert sorted(body[1] for body in replies(out, m.REFUSED)) == ["code", "input"]
    assert desk.machine.pool.ready() == 0
    (error,) = replies(desk.say(m.INPUT, [JOB, 0, 3, batch(0, 3)]), m.ERROR)
    assert "function" in error["message"]


def test_a_refused_close_leaves_the_job_open() -> None:
    """It can be closed again."""
    desk = Desk()
    desk.join()
    desk.submit(2, close=False)
    desk.sync()
    desk.say(m.CLOSE, [JOB, 2])
    desk.sync(fail=True)
    assert desk.machine.keeping.jobs[JOB].total is None
    desk.say(m.CLOSE, [JOB, 2])

    assert replies(desk.sync(), m.ACK) == [[JOB, "close", 0]]


def test_results_whose_write_failed_are_written_again() -> None:
    """They are given to the reader at once, and to the disk as soon as it takes them."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))
    desk.sync()
    assert replies(desk.finish(run), m.RESULT) == [[JOB, [[0, 1, 0, [b"v"], "n", 1]]]]
    desk.sync(fail=True)
    rows = [row for one in desk.wait(5.0) if isinstance(one, e.Store) for row in one.rows]

    assert [row.kind for row in rows] == ["result", "state"]


def test_a_member_hears_of_its_results_when_they_are_synced() -> None:
    """Before that a second copy of the batch is not answered either; after a failed write it is, once written."""
    desk = Desk(slots=0)
    desk.join()
    desk.submit(2)
    desk.sync()
    desk.do(e.PeerUp("p", {"slots": 1, "minor": 11, "resources": {"cpu": 1}}))
    desk.do(*(e.PeerSent("p", m.P_WANT, [[5, number], 1, 1.0, 0.0]) for number in (1, 2)))
    results = e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 1], 1, [[0, 2, 0, [b"a", b"b"]]]]])

    def acks(out: list[e.Effect]) -> list[Any]:
        return [one.body for one in out if isinstance(one, e.Send) and one.kind == m.P_RESULTS_ACK]

    assert acks(desk.do(results, results)) == []
    assert acks(desk.sync(fail=True)) == []
    assert acks(desk.do(results)) == []
    desk.wait(5.0)
    assert acks(desk.sync()) == [[[JOB, 5, 1]]]
    assert acks(desk.do(results) + desk.sync()) == [[[JOB, 5, 1]]]


def test_inputs_that_come_while_a_job_is_read_from_disk_wait_for_its_functions() -> None:
    """A client does not say again what was acknowledged."""
    desk = Desk()
    desk.join()
    desk.submit(2, close=False)
    rows = [row for one in desk.all if isinstance(one, e.Store) for row in one.rows]
    cold = [row._replace(value=b"") if row.kind in e.HEAVY else row for row in rows]
    again = Desk(rows=cold)
    again.join()
    assert replies(again.say(m.INPUT, [JOB, 2, 4, batch(2, 4)]), m.ERROR) == []
    (fetch,) = [one for one in again.all if isinstance(one, e.Fetch)]
    again.do(e.Fetched(fetch.token, [row for row in rows if (row.job, row.kind, row.key) in fetch.keys]))

    assert again.machine.pool.ready() == 4
    assert replies(again.sync(), m.ACK) == [[JOB, "input", 2]]
