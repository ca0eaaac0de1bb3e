"""The job record is a join-semilattice: copies may meet in any order, any number of times, and agree."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.errors import PeerError
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId, Claim, Inputs, Record, Results, Spec, State, TaskOf, Try, merge, unpack_spec
from p2pgrid.core.wire import pack, unpack

TOP = 12
small = st.integers(0, 3)
ids = st.sampled_from([b"\0", b"\1", b"\2"])
nodes = st.sampled_from(["a", "b", "c"])
spans = st.tuples(st.integers(0, TOP), st.integers(1, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))
range_sets = st.lists(spans, max_size=3).map(RangeSet)
batch_ids = st.builds(BatchId, nodes, small, small)
refs = st.lists(ids, max_size=2).map(tuple)
tries = st.builds(Try, st.sampled_from("etmwn"), nodes, small, small)
claims = st.builds(Claim, small, small, st.sampled_from([1.0, 5.0]), range_sets.map(tuple), range_sets.map(tuple))
results = st.builds(
    lambda span, failed, attempt, content, more, sign: Results(span[0], span[1], failed, attempt, content, more, sign),
    spans, st.booleans(), small, ids, refs, ids,
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn, *, buried: bool = True) -> Record:
    """Return a record; ids come from small spaces, so that the keys of two records collide."""
    record = Record()
    record.spec = draw(st.none() | ids)
    record.codes = draw(st.dictionaries(ids, ids, max_size=3))
    record.inputs = draw(st.dictionaries(small, st.builds(Inputs, st.integers(4, 6), ids, refs, ids), max_size=3))
    record.closed = draw(st.none() | small)
    record.claims = draw(st.dictionaries(nodes, claims, max_size=3))
    record.results = draw(st.dictionaries(batch_ids, results, max_size=4))
    record.lost = draw(st.sets(batch_ids, max_size=2))
    for (lo, hi), attempt in draw(st.lists(st.tuples(spans, small), max_size=3)):
        record.attempts.join(lo, hi, attempt)
    record.tries = draw(st.dictionaries(small, st.frozensets(tries, min_size=1, max_size=3), max_size=3))
    for (lo, hi), rank, batch in draw(st.lists(st.tuples(spans, small, batch_ids), max_size=3)):
        record.seals.join(lo, hi, (rank, batch))
    record.cancelled = draw(range_sets)
    record.cancelled_all = draw(st.booleans())
    record.state = draw(st.sampled_from([State.OPEN, State.FINISHED, State.CANCELLED]))
    record.expires = draw(st.sampled_from([0.0, 1.0, 2.5]))
    if buried and draw(st.integers(0, 9)) == 0:
        record.forget()
    return record


def test_the_generator_covers_every_field() -> None:
    """A field added to the record must be added to the generator above."""
    assert set(Record.__slots__) == {
        "attempts", "cancelled", "cancelled_all", "claims", "closed", "codes", "expires", "inputs", "lost", "results",
        "seals", "spec", "state", "tries",
    }  # fmt: skip


@given(records(), records())
def test_merge_is_commutative(a: Record, b: Record) -> None:
    """Whoever asks whom, both end with the same."""
    assert merge(a, b) == merge(b, a)


@given(records(), records(), records())
def test_merge_is_associative(a: Record, b: Record, c: Record) -> None:
    """Whoever meets first does not matter."""
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(records(), records())
def test_merge_is_idempotent(a: Record, b: Record) -> None:
    """Hearing something twice changes nothing."""
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@given(records(), records())
def test_merge_grows_and_leaves_its_arguments_alone(a: Record, b: Record) -> None:
    """The join is above both and is the least such: it is below anything that is."""
    before = a.digest(), b.digest()
    both = merge(a, b)

    assert both >= a
    assert both >= b
    assert (a >= b) == (both == a)
    assert (a.digest(), b.digest()) == before


@given(st.lists(records(), min_size=1, max_size=5), st.randoms(use_true_random=False), st.integers(0, 4))
def test_deltas_converge_in_any_order(deltas: list[Record], rng: Any, doubled: int) -> None:
    """Two holders that hear the same deltas, shuffled and some of them twice, hold equal records."""
    one, two = Record(), Record()
    for delta in deltas:
        one.join(delta)
    shuffled = [*deltas, deltas[doubled % len(deltas)]]
    rng.shuffle(shuffled)
    for delta in shuffled:
        two.join(delta)

    assert one == two
    assert one.digest() == two.digest()


@given(records(), records())
def test_a_tombstone_absorbs_everything(a: Record, b: Record) -> None:
    """A forgotten job stays forgotten, whatever an old disk says; its expiry only grows."""
    a.forget()
    both = merge(b, a)

    assert both.state is State.FORGOTTEN
    assert (both.spec, both.inputs, both.results, both.codes, both.tries) == (None, {}, {}, {}, {})
    assert both.expires == max(a.expires, b.expires)


@given(records(), records())
def test_records_are_equal_exactly_if_their_digests_are(a: Record, b: Record) -> None:
    """Anti-entropy compares 16 bytes instead of records."""
    assert (a == b) == (a.digest() == b.digest())
    assert len(a.digest()) == 16


_OTHER_PROCESS = """
import pickle, sys
from p2pgrid.core.record import Record, Try
tries = {0: [("e", "a", 1, 1), ("w", "b", 1, 2), ("n", "c", 3, 4)], 1: [("t", "a", 0, 0)]}
lost = [("a", 1, 1), ("b", 2, 2), ("c", 3, 3), ("a", 2, 2)]
from p2pgrid.core.record import BatchId, Results
record = Record()
order = pickle.loads(bytes.fromhex(sys.argv[1]))
for i in order:
    record.codes[b"%d" % i] = b"x"
    record.results[BatchId("abc"[i % 3], i, i)] = Results(i, i + 1, False, 1, b"c")
    record.claims = {}
record.lost = {BatchId(*one) for one in lost}
record.tries = {task: frozenset(Try(*one) for one in many) for task, many in tries.items()}
print(record.digest().hex())
"""


def test_equal_records_have_equal_digests_in_all_processes() -> None:
    """Neither the hash seed of a process nor the order of arrival shows in a digest."""
    digests = set()
    for seed, order in (("1", list(range(9))), ("2", list(reversed(range(9)))), ("77", [4, 2, 8, 0, 1, 3, 7, 5, 6])):
        ran = subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, pickle.dumps(order).hex()],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(ran.stdout.strip())

    assert len(digests) == 1


@given(records(buried=False))
def test_done_is_what_has_a_batch_that_is_not_lost(record: Record) -> None:
    """A batch whose copies are all gone counts for nothing."""
    expected = {i for batch, one in record.results.items() if batch not in record.lost for i in range(one.lo, one.hi)}

    assert {i for lo, hi in record.done() for i in range(lo, hi)} == expected


@given(records(buried=False), st.integers(0, TOP + 5))
def test_the_sealed_batch_counts_else_the_smallest(record: Record, task: int) -> None:
    """Every holder of equal records gives the same value of a task to its readers."""
    seal = record.seals.get(task)
    having = sorted(b for b, r in record.results.items() if r.lo <= task < r.hi and b not in record.lost)
    expected = seal[1] if seal is not None else (having[0] if having else None)

    assert record.chosen(task) == expected


@given(records(buried=False))
def test_crashes_are_counted_by_kind(record: Record) -> None:
    """Each failed execution has a name, so that it counts once however often it is told."""
    for task, many in record.tries.items():
        twice = merge(record, record)
        for kind in "etmwn":
            assert twice.crashes(task, kind) == len([one for one in many if one.kind == kind])
    assert record.crashes(99, "w") == 0


specs = st.builds(
    Spec,
    kind=st.sampled_from(["map", "calls"]), name=st.text(max_size=8), session=st.binary(max_size=16),
    submitted_s=st.floats(0, 1e10), ttl_s=st.floats(0, 1e7), detach=st.booleans(), copies=small,
    owner=st.binary(max_size=8), program=st.text(max_size=8),
    defaults=st.dictionaries(st.text(max_size=4), small, max_size=2).map(lambda d: tuple(sorted(d.items()))),
    parent=st.none() | st.builds(TaskOf, st.binary(min_size=16, max_size=16), small, small),
)  # fmt: skip


@given(specs)
def test_a_spec_round_trips(spec: Spec) -> None:
    """What was packed is what is read, and elements that a later version appends are passed over."""
    longer = pack([*unpack(spec.packed()), "of a later version"])

    assert unpack_spec(spec.packed()) == spec
    assert unpack_spec(longer) == spec


@pytest.mark.parametrize("kind", ["flow", "actor", "periodic", "stream", "", "Map"])
def test_a_kind_that_this_version_does_not_know_is_refused_by_name(kind: str) -> None:
    """Reserved kinds get a typed refusal, never half an execution."""
    with pytest.raises(PeerError, match=f"kind '{kind}'"):
        unpack_spec(Spec(kind, "", b"", 0.0, 1.0).packed())


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9) | st.text(),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=3),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=200)
@given(specs, st.integers(0, 10), anything)
def test_a_damaged_spec_is_a_spec_or_a_peer_error(spec: Spec, at: int, damage: Any) -> None:
    """One element replaced by anything raises nothing but PeerError."""
    value = unpack(spec.packed())
    value[at] = damage
    with contextlib.suppress(PeerError):
        unpack_spec(pack(value))


@given(anything.map(pack) | st.binary(max_size=40))
def test_anything_else_is_no_spec(data: bytes) -> None:
    """Whatever the bytes are."""
    with pytest.raises(PeerError):
        unpack_spec(data)
