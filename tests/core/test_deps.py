"""Tables of dependencies: what a client says, what a node cuts out of it, what a worker makes of that."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import deps
from p2pgrid.core.batch import CALLS, decode_batch, encode_batch
from p2pgrid.core.deps import DEPENDENT, IN_LIST, VALUE, TaskId, Value, cut, read, sizes, table
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.worker_deps import opened

JOB, OTHER = b"j" * 16, b"o" * 16


def test_a_table_names_each_task_once_and_its_own_job_by_nothing() -> None:
    """Calls say where in it their placeholders stand."""
    a, b = TaskId(JOB, 3), TaskId(OTHER, 4)

    assert table([(b"x", [a, b]), (b"y", []), (b"z", [b])], JOB) == (
        [[b"x", [0, 1]], [b"y", []], [b"z", [1]]], [[b"", 3], [OTHER, 4]],
    )  # fmt: skip


def test_a_batch_keeps_its_dependencies_and_knows_who_is_ready() -> None:
    """Beside runs that have none; a task is ready once values stand for all it needs."""
    said = table([(b"x", [TaskId(OTHER, 1)]), (b"y", []), (b"z", [TaskId(OTHER, 1), TaskId(JOB, 0)])], JOB)
    batch = decode_batch(5, 9, encode_batch([b"f" * 16], [{}], [(1, 0, 0, CALLS, [b"c"]), (3, 0, 0, DEPENDENT, said)]))
    plain, run = batch.runs
    assert (plain.deps, plain.is_whole, run.packed, run.is_whole) == (None, True, False, False)
    assert list(run.ready(6, 9)) == [(7, 8)]
    assert run.deps is not None
    run.deps[0] = Value(VALUE, b"value")

    assert list(run.ready(6, 9)) == [(6, 7), (7, 8)]
    assert run.cut(6, 8) == ([[[b"x", [0]], [b"y", []]], [[0, b"value", 0]]], 0)
    assert list(run.sizes(6, 9)) == [6, 1, 6 - 5]


calls = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6)


@given(calls, st.data())
def test_what_is_cut_out_has_the_same_values(places: list[list[int]], data: st.DataObject) -> None:
    """Whatever part of a run travels, each call finds in its table what it had; a list goes once."""
    shared = pickle.dumps([10, 11, 12])
    values = [Value(IN_LIST, shared, 1), Value(VALUE, pickle.dumps(5)), Value(IN_LIST, shared, 2),
              Value(VALUE, b""), Value(IN_LIST, pickle.dumps([7]), 0)]  # fmt: skip
    meant = [11, 5, 12, None, 7]
    run = [[b"%d" % i, used] for i, used in enumerate(places)]
    lo = data.draw(st.integers(0, len(run) - 1))
    hi = data.draw(st.integers(lo + 1, len(run)))
    part, said = unpack(pack(cut(run, values, lo, hi)))
    got = read(hi - lo, part, said)

    assert [pickled for pickled, _ in part] == [pickled for pickled, _ in run[lo:hi]]
    assert sum(dep[1] == shared for dep in said) <= 1
    assert len(list(sizes(run, values, lo, hi))) == hi - lo
    for (_, before), (_, after) in zip(run[lo:hi], part, strict=True):
        assert [values[place] for place in before] == [got[place] for place in after]
        arguments = pickle.dumps((tuple(Placeholder(i) for i in range(len(after))), {}))
        ((opened_call,), load) = opened([[[arguments, after]], said])
        assert load(opened_call) == (tuple(meant[place] for place in before), {})


class Placeholder:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return deps.argument, (self.number,)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 63) | st.binary(max_size=17) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4), max_leaves=12,
)  # fmt: skip


@given(anything, anything)
def test_what_is_no_table_is_refused(data: Any, said: Any) -> None:
    """`read` raises PeerError and nothing else; or it was a table."""
    try:
        found = read(len(data) if isinstance(data, list) else 1, data, said)
    except PeerError:
        return

    assert len(found) == len(said)


@pytest.mark.parametrize("said", [[[b"short", 1]], [[b"", -1]], [[1, 0, 0]], [[0, b"x", 0], [1, 0, 0]], [[9, b"", 0]]])
def test_malformed_dependencies_are_refused(said: Any) -> None:
    """Among them a value whose list is none, and one that refers to itself."""
    with pytest.raises(PeerError):
        read(1, [[b"", []]], said)


def test_a_placeholder_means_nothing_elsewhere() -> None:
    """Whoever unpickles such arguments outside of a worker is told so."""
    with pytest.raises(GridError, match="in a worker only"):
        deps.argument(0)
