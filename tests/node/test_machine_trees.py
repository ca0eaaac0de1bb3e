"""Source trees and interpreters in the machine: which worker gets what, what travels to members, who is unfit."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, TREES, content_id, encode_batch, imported_function, pickled_function
from p2pgrid.core.failure import decode_exception
from p2pgrid.core.missing import missing, missing_program, nowhere
from p2pgrid.core.tree import File, pack_tree
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from tests.node.desk import JOB, Desk, replies, runs, sends, spec

OLD = pack_tree([File("mine.py", executable=False, data=b"old")])
NEW = pack_tree([File("mine.py", executable=False, data=b"new")])
PYTHONS = [{"path": "/a", "version": "3.11.7"}, {"path": "/b", "version": "3.13.0"}]
LIFE = 1000


def submit(
    desk: Desk, job: bytes, tree: bytes | None, count: int = 1, union: bytes = b"", **options: Any,
) -> list[Any]:  # fmt: skip
    """Let a client submit a job whose function imports from a tree."""
    tree_id = None if tree is None else content_id(tree)
    union = union or imported_function("mine:f", tree_id)
    fn = content_id(union)
    out = desk.say(m.OPEN, [job, spec()])
    if tree is not None:
        out += desk.say(m.CODE, [job, tree_id, tree])
    out += desk.say(m.CODE, [job, fn, union])
    batch = encode_batch([fn], [options], [(count, 0, 0, CALLS, [b""] * count)])
    out += desk.say(m.INPUT, [job, 0, count, batch])
    out += desk.say(m.CLOSE, [job, count])
    return out + desk.say(m.WATCH, [job, []])


def begun(slots: int = 2, **config: Any) -> Desk:
    desk = Desk(slots, **config)
    desk.ready()
    desk.join()
    return desk


def test_a_run_names_its_tree_and_goes_to_the_worker_that_has_it() -> None:
    """Not to the first idle one; of a tree that none has, to one that has none."""
    desk = begun()
    (first,) = runs(submit(desk, b"1" * 16, OLD))
    (second,) = runs(submit(desk, b"2" * 16, NEW))
    desk.finish(first)
    desk.finish(second)
    (again,) = runs(submit(desk, b"3" * 16, NEW))
    desk.finish(again)
    (third,) = runs(submit(desk, b"4" * 16, OLD))

    assert [(run.worker, run.tree) for run in (first, second, again, third)] == [
        (0, content_id(OLD)), (1, content_id(NEW)), (1, content_id(NEW)), (0, content_id(OLD)),
    ]  # fmt: skip
    assert first.codes[content_id(OLD)] == OLD


def test_nothing_of_another_tree_is_queued_behind_a_run() -> None:
    """The shell replaces a child only when it is idle."""
    desk = begun(slots=1)
    (first,) = runs(submit(desk, b"1" * 16, OLD, count=1))
    desk.finish(first, busy_s=0.001)
    (second,) = runs(submit(desk, b"2" * 16, OLD, count=1))
    behind = runs(submit(desk, b"3" * 16, NEW, count=1))
    after = runs(desk.finish(second))

    assert not behind
    assert [run.tree for run in after] == [content_id(NEW)]


def test_a_run_goes_to_a_worker_with_as_many_threads() -> None:
    """What a first run set for its child stays; only where none has that number one is made anew."""
    desk = begun(slots=4)
    given = []
    for number, cpu in enumerate((1, 2, 1, 2, 2.5, 3, 2)):
        (run,) = runs(submit(desk, bytes([number]) * 16, None, resources={"cpu": cpu}))
        desk.finish(run)
        given.append(run.worker)

    assert given == [0, 1, 0, 1, 1, 2, 1]


def test_a_dead_worker_has_no_tree_any_more() -> None:
    """Its successor may take up any."""
    desk = begun(slots=2)
    (first,) = runs(submit(desk, b"1" * 16, OLD))
    desk.finish(first)
    desk.do(e.WorkerDied(0, None, None, "exit", "grown"), e.WorkerReady(0))
    (second,) = runs(submit(desk, b"2" * 16, NEW))

    assert second.worker == 0


def test_a_tree_travels_to_a_member_once_in_all_jobs() -> None:
    """With the first grant; after that the member has it, until it says that it lacks something."""
    desk = begun(slots=0)
    desk.do(e.PeerUp("p", {"name": "p", "slots": 1, "minor": 11, "resources": {"cpu": 1}}))
    known = []
    for number, job in enumerate((b"1" * 16, b"2" * 16, b"3" * 16)):
        submit(desk, job, OLD)
        (grant,) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[LIFE, number], 1, 1.0, 1.0])), m.P_GRANT)
        known.append([bytes(code) for code, _ in grant[4]])
        desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[LIFE, number], number]))
        if number == 1:
            desk.do(e.PeerSent("p", m.P_RETURN, [job, [0, 1], "", True]))
            submit(desk, b"4" * 16, OLD)
            desk.do(e.PeerSent("p", m.P_DROP, [job, None]))

    assert content_id(OLD) in known[0]
    assert content_id(OLD) not in known[1]
    assert content_id(OLD) in known[2]


def grant(tree: bytes, codes: list[list[bytes]]) -> list[Any]:
    fn = imported_function("mine:f", content_id(tree))
    batch = encode_batch([content_id(fn)], [{}], [(1, 0, 0, CALLS, [b""])])
    return [[7, 1], JOB, "job", [[0, 1, 1, False]], [[content_id(fn), fn], *codes], [[0, 1, batch]]]


def test_a_holder_runs_what_it_was_granted_with_its_tree() -> None:
    """And says that it lacks something where the tree is not here."""
    desk = begun(slots=1)
    desk.do(e.PeerUp("p", {"name": "p", "slots": 0, "minor": 11, "resources": {}}))
    lacking = desk.do(e.PeerSent("p", m.P_GRANT, grant(OLD, [])))
    granted = desk.do(e.PeerSent("p", m.P_GRANT, [[7, 2], *grant(OLD, [[content_id(OLD), OLD]])[1:]]))

    assert sends(lacking, m.P_RETURN)[0][3] is True
    assert [run.tree for run in runs(granted)] == [content_id(OLD)]


def test_a_tree_under_the_wrong_name_costs_the_connection() -> None:
    """One that is in use by jobs of others must not be put in its place."""
    desk = begun(slots=1)
    desk.do(e.PeerUp("p", {"name": "p", "slots": 0, "minor": 11, "resources": {}}))
    out = desk.do(e.PeerSent("p", m.P_GRANT, grant(OLD, [[content_id(OLD), NEW]])))

    assert [one.peer for one in out if isinstance(one, e.Drop)] == ["p"]
    assert desk.machine.members.stock.get(("", TREES, content_id(OLD))) is None


def facts(**more: Any) -> dict[str, Any]:
    return {"name": "n", "slots": 1, "minor": 11, "python": "3.11.7", "resources": {"cpu": 1}, **more}


class Two(Desk):
    """A machine whose node offers two interpreters."""

    def __init__(self) -> None:
        from p2pgrid.node import machine  # noqa: PLC0415 - its config is patched for this one

        config = machine.MachineConfig("n", "n", "g", 1, facts(pythons=PYTHONS))
        import random  # noqa: PLC0415

        self.machine = machine.Machine(config, random.Random(1))
        self.now, self.all = 1000.0, []
        self.do(e.Loaded([], 1.8e9, 7))
        self.ready()
        self.join()


def test_a_pickle_goes_to_the_interpreter_of_its_minor_and_a_name_to_any() -> None:
    """`where` asks for one by its version or path; what none has is said."""
    desk = Two()
    places = []
    for number, (union, where) in enumerate([
        (pickled_function(13, b"x"), None), (pickled_function(11, b"x"), None), (b"", None),
        (b"", "python >= '3.12'"), (b"", "interpreter == '/a'"),
    ]):  # fmt: skip
        (run,) = runs(submit(desk, bytes([number]) * 16, None, union=union, where=where))
        places.append(run.python)
        desk.finish(run)

    assert places == [1, 0, 0, 1, 0]
    out = submit(desk, b"n" * 16, None, union=pickled_function(11, b"x"), where="minor == 13", strict=True)
    ((_, results),) = replies(out, m.RESULT)
    assert "Python 3.11 for its function" in str(decode_exception(unpack(results[0][3])))


def test_an_interpreter_that_lacks_a_module_leaves_the_task_to_the_other() -> None:
    """Only when both lack it is the node unfit."""
    desk = Two()
    (first,) = runs(submit(desk, JOB, OLD))
    back = [(0, 1)]
    (second,) = runs(desk.do(e.WorkerDone(0, first.run, [], True, back, 0.0, unfit=missing("np", "/a", (3, 11)))))  # noqa: FBT003
    out = desk.do(e.WorkerDone(0, second.run, [], True, back, 0.0, unfit=missing("np", "/b", (3, 13))))  # noqa: FBT003

    assert (first.python, second.python) == (0, 1)
    ((_, results),) = replies(out, m.RESULT)
    error = decode_exception(unpack(results[0][3]))
    assert "module 'np' is missing at n" in str(error)
    (again,) = runs(submit(desk, b"k" * 16, OLD))
    assert again.run > second.run, "what was missing may be there by now"


@pytest.mark.parametrize(
    ("unfit", "has_run", "said"),
    [
        ({"n": missing("np", "/a", (3, 11))}, [], "'np' is missing at n (/a); no node that is known has it"),
        ({"n": missing("np", "/a", (3, 11)), "m": missing("np", "/b", (3, 12))}, ["k"],
         "'np' is missing at m (/b), n (/a); k has it"),
        ({"n": "no such luck"}, [], "the function cannot be loaded on any node: no such luck"),
        ({"n": missing_program("gs"), "m": missing_program("gs")}, ["k"], "program 'gs' is missing at m, n; k has it"),
        ({"n": missing("np", "/a", (3, 11)), "m": "other"}, [], "m: other; n: no module np in /a"),
    ],
)  # fmt: skip
def test_a_missing_module_is_named_with_who_lacks_and_who_has_it(
    unfit: dict[str, str], has_run: list[str], said: str
) -> None:
    """In one line that ends with what to do."""
    error = nowhere(unfit, has_run)

    assert said in error.message
    assert "\n" not in str(error)
    assert error.next
