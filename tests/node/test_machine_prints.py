"""Lines of tasks on their way through machines: to those who watch, bounded, and never owed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.core.prints import KEEP, LINES_PER_S, PRINTS, PROGRESS, Line, Said, Throttle, read_lot, read_show
from p2pgrid.node import events as e
from tests.node.desk import JOB, Desk, replies, runs, sends
from tests.node.test_machine_members import claim, holder, holder_of, keeper, want

HELLO = Line(0, 1, "hello")


def running(show: int = PRINTS) -> tuple[Desk, e.Run]:
    """Return a node that runs the only task of a job that its client watches."""
    desk = Desk()
    desk.ready()
    desk.join()
    (run,) = runs(desk.submit(1))
    desk.say(m.WATCH, [JOB, [], 10.0, show])
    return desk, run


def watched_keeper() -> Desk:
    """Return a keeper whose client watches what tasks print, and a member that was given tasks 0 and 1."""
    desk = keeper()
    desk.say(m.WATCH, [JOB, [], 10.0, PRINTS])
    want(desk)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 1], 1]))
    claim(desk, 1, [0, 2], [0, 1])
    return desk


def lot(lines: list[Any] | None = None, logs: list[Any] | None = None) -> e.PeerSent:
    """Return what a holder says that its tasks printed."""
    return e.PeerSent("p", m.P_PRINTED, [JOB, lines or [], 0, [], logs or []])


def log_rows(effects: list[e.Effect]) -> list[tuple[int, bytes | None]]:
    """Return the logs that are to be kept."""
    rows = [row for one in effects if isinstance(one, e.Store) for row in one.rows if row.kind == "log"]
    return [(int.from_bytes(row.key, "big"), row.value) for row in rows]


def test_lines_go_to_the_client_that_watches() -> None:
    """At once, with the name of the node; a client that only waits for results gets none."""
    desk, run = running()
    desk.join(client=2, session=b"t" * 16)
    desk.say(m.WATCH, [JOB, []], client=2)
    out = desk.do(e.WorkerPrinted(0, run.run, [HELLO]))

    assert [(one.client, one.body) for one in out if isinstance(one, e.Reply)] == [
        (1, [JOB, "n", [[0, 1, "hello", 0, ""]], 0, []])
    ]


def test_workers_hear_when_somebody_begins_and_stops_to_watch() -> None:
    """Runs say it from their start; of one that is under way the shell hears it."""
    desk, run = running()
    assert run.context["show"] == 0  # its client said so a moment later
    began = [one for one in desk.all if isinstance(one, e.Show)]
    stopped = desk.say(m.UNWATCH, [JOB])

    assert began == [e.Show(JOB, PRINTS)]
    assert [one for one in stopped if isinstance(one, e.Show)] == [e.Show(JOB, 0)]


def test_so_many_lines_a_second_pass_and_the_rest_is_counted() -> None:
    """A flood costs its watchers no more than a trickle."""
    desk, run = running()
    shown = more = 0
    for _ in range(20):
        for _, _, lines, left, _ in replies(desk.do(e.WorkerPrinted(0, run.run, [HELLO] * 30, more=5)), m.PRINTED):
            shown += len(lines)
            more += left

    assert (shown, shown + more) == (LINES_PER_S, 20 * 35)
    desk.wait(1.0)
    ((_, _, lines, _, _),) = replies(desk.do(e.WorkerPrinted(0, run.run, [HELLO])), m.PRINTED)
    assert len(lines) == 1


def test_progress_goes_only_to_whoever_shows_it() -> None:
    """A client asks for lines, progress, or both."""
    said = Said(0, 1.0, 2.0, "half")
    for show, expected in ((PRINTS, [[[[0, 1, "hello", 0, ""]], []]]), (PROGRESS, [[[], [[0, 1.0, 2.0, "half"]]]])):
        desk, run = running(show)
        out = desk.do(e.WorkerPrinted(0, run.run, [HELLO], progress=[said]))

        assert [[body[2], body[4]] for body in replies(out, m.PRINTED)] == expected


def test_what_a_killed_task_printed_is_kept() -> None:
    """Cancelled, its worker is killed; `logs` shows what it had to say."""
    desk, run = running()
    desk.say(m.CANCEL, [JOB, None])
    out = desk.do(e.WorkerDied(0, run.run, 0, "killed", "killed", "", [(run.run, 0, b"so far\n")]))

    assert log_rows(out) == [(0, b"so far\n")]


def test_a_crash_keeps_the_logs_of_all_tasks_that_were_with_the_worker() -> None:
    """Not of the culprit alone: 100 async tasks may run in one worker."""
    desk = Desk()
    desk.ready()
    desk.join()
    (first,) = runs(desk.submit(1, job=b"w" * 16))
    desk.do(e.WorkerDone(0, first.run, [e.Outcome(0, 1, 0, [b""])], True, [], 0.002))  # noqa: FBT003
    run = runs(desk.submit(8))[0]
    left = [(run.run, 0, b"zero\n"), (run.run, 1, b"one\n")]
    out = desk.do(e.WorkerDied(0, run.run, 1, "signal", "killed by signal SIGSEGV", "one", left))

    assert sorted(log_rows(out)) == [(0, b"zero\n"), (1, b"one\n")]


# ---- between nodes --------------------------------------------------------------------------------------------------


def test_a_holder_is_told_that_somebody_watches() -> None:
    """With its first tasks, once; and when that ends."""
    desk = watched_keeper()
    assert sends(desk.all, m.P_SHOW) == [[JOB, PRINTS]]
    claim(desk, 2, [0, 2], [0, 1])
    stopped = desk.say(m.UNWATCH, [JOB])

    assert sends(desk.all, m.P_SHOW)[1:] == [[JOB, 0]]
    assert sends(stopped, m.P_SHOW) == [[JOB, 0]]


def test_a_thief_is_told_when_it_claims() -> None:
    """Whoever stole tasks shows their lines as well."""
    desk = watched_keeper()
    desk.do(e.PeerUp("q", {"name": "q", "slots": 1, "minor": 11, "resources": {"cpu": 1}}))
    out = desk.do(e.PeerSent("q", m.P_CLAIM, [9, 1, 1.0, [[JOB, [1, 2], []]]]))

    assert [one.peer for one in out if isinstance(one, e.Send) and one.kind == m.P_SHOW] == ["q"]


def test_a_holder_sends_lines_to_the_keeper() -> None:
    """From when it hears that somebody watches; word that came before the tasks counts as well."""
    there = holder()
    there.do(e.PeerSent("k", m.P_SHOW, [JOB, PRINTS]))
    (run,) = runs(holder_of(there, [[0, 2, 1]], [7, 1]))
    out = there.do(e.WorkerPrinted(0, run.run, [HELLO], more=3, logs=[(0, b"hello\n")]))

    assert run.context["show"] == PRINTS
    assert sends(out, m.P_PRINTED) == [[JOB, [[0, 1, "hello", 0, ""]], 3, [], [[0, b"hello\n"]]]]


def test_the_keeper_hands_lines_of_a_holder_on() -> None:
    """Under the name of that node."""
    desk = watched_keeper()
    out = desk.do(lot([[1, 2, "far", 30, "sim"]]))

    assert replies(out, m.PRINTED) == [[JOB, "p", [[1, 2, "far", 30, "sim"]], 0, []]]


def test_lines_that_nobody_watches_are_stopped_at_their_source() -> None:
    """A client that left takes its wish along, also where the word of it was lost."""
    desk = watched_keeper()
    desk.machine.keeping.jobs[JOB].watches.clear()

    assert sends(desk.do(lot([[0, 1, "x", 0, ""]])), m.P_SHOW) == [[JOB, 0]]


def test_nobody_speaks_for_tasks_that_it_was_not_given() -> None:
    """Neither lines nor logs: a liar could put words into the mouth of any task."""
    desk = watched_keeper()
    out = desk.do(lot([[3, 1, "a lie", 0, ""]], [[3, b"a lie"], [0, b"true\n"]]))

    assert replies(out, m.PRINTED) == []
    assert log_rows(out) == [(0, b"true\n")]


def test_the_log_of_a_result_is_not_replaced_by_a_late_word() -> None:
    """What came with the result is all of it."""
    desk = watched_keeper()
    entry = [JOB, [5, 9], 1, [[0, 1, 0, [b"v"]]], [[0, b"all of it\n"]], 0.1]
    desk.do(e.PeerSent("p", m.P_RESULTS, [entry]))

    assert log_rows(desk.do(lot(logs=[[0, b"half of it"]]))) == []


GOOD = [JOB, [[0, 1, "x", 0, ""]], 0, [[0, 1.0, -1.0, ""]], [[0, b"x"]]]


def test_a_lot_is_read_as_it_was_sent() -> None:
    """Lines, progress and logs."""
    read = read_lot(GOOD)

    assert (read.lines, read.said, read.logs) == ([Line(0, 1, "x")], [Said(0, 1.0, -1.0, "")], [(0, b"x")])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"short"), (0, None), (1, None), (1, [[0, 3, "x", 0, ""]]), (1, [[-1, 1, "x", 0, ""]]), (1, [[0, 1, b"x"]]),
        (1, [[0, 1, "x" * 5000, 0, ""]]), (1, [[0, 1, "x", 0, "y" * 200]]), (1, [[0, 1, "x", 0, ""]] * 300), (2, -1),
        (2, True), (3, [[0, float("nan"), 1.0, ""]]), (3, [[0, "1", 1.0, ""]]),
        (3, [[0, 10**400, 1.0, ""]]), (3, [[0]]), (4, [[0, "text"]]),
        (4, [[0, b"x" * (KEEP + 1)]]), (4, [[1 << 70, b""]]), (4, [[0, 5]]),
    ],
)  # fmt: skip
def test_a_malformed_lot_is_refused_as_a_whole(at: int, value: Any) -> None:
    """Its sender breaks the protocol."""
    body = [*GOOD[:at], value, *GOOD[at + 1 :]]
    with pytest.raises(PeerError):
        read_lot(body)


@given(st.recursive(st.none() | st.integers() | st.text() | st.binary() | st.floats(), st.lists))
def test_no_body_breaks_the_reader(body: Any) -> None:
    """Whatever a member sends is read or refused."""
    for read in (read_lot, read_show):
        with contextlib.suppress(PeerError):
            read(body)


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 0.3)), max_size=60))
def test_a_throttle_never_lets_more_pass_in_a_second(asked: list[tuple[int, float]]) -> None:
    """In any second that begins with the first it lets pass."""
    throttle, now = Throttle(50), 0.0
    passed: list[tuple[float, int]] = []
    for count, pause in asked:
        now += pause
        passed.append((now, throttle.admit(count, now)))

    starts = [at for at, _ in passed]
    assert all(sum(n for at, n in passed if start <= at < start + 1.0) <= 100 for start in starts)
    assert sum(n for _, n in passed) <= 50 * (int(now) + 1)
