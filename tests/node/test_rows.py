"""Rows of one copy: whatever was put, and in whatever order, equal sets have equal digests."""

from __future__ import annotations

import random

from p2pgrid.core.record import Spec
from p2pgrid.node import rows as module
from p2pgrid.node.events import Outcome, Row, Store
from p2pgrid.node.keeping import Keeping
from p2pgrid.node.kept import KeepingOptions, Source
from p2pgrid.node.rows import Rows


def row(number: int, meta: bytes = b"m", value: bytes | None = b"v") -> Row:
    return Row(b"j" * 16, "input", number.to_bytes(8, "big"), meta, value)


def test_what_was_put_and_taken_out_again_leaves_no_trace() -> None:
    """Rows are hashed late, in lots and when asked about: nobody sees that."""
    for seed in range(20):
        rng = random.Random(seed)
        rows, there = Rows(), dict[int, bytes]()
        for _ in range(3 * module.FRESH_MAX):
            number = rng.randrange(module.FRESH_MAX)
            if rng.random() < 0.4:
                rows.put(row(number, value=None))
                there.pop(number, None)
            else:
                meta = b"%d" % rng.randrange(3)
                rows.put(row(number, meta))
                there[number] = meta
            if rng.random() < 0.01:
                assert (("input", number.to_bytes(8, "big")) in rows) == (number in there)
        plain = Rows()
        for number in rng.sample(sorted(there), len(there)):
            plain.put(row(number, there[number]))

        assert rows.digest() == plain.digest()
        assert rows.buckets() == plain.buckets()
        assert len(rows) == len(there)
        assert sorted(rows.tags(None)) == sorted(plain.tags(None))


def test_an_empty_copy_is_as_one_that_was_emptied() -> None:
    """A tombstone lets all rows go."""
    rows = Rows()
    rows.put(row(1))
    rows.put(Row(b"j" * 16, "*", b"", b"", None))

    assert rows.digest() == Rows().digest()
    assert not len(rows)


def test_what_a_million_tasks_cost_beside_their_results() -> None:
    """A report of results is one row, whatever the number of its tasks; what describes it is some 150 bytes."""
    node = "12D3KooW" + "x" * 44
    keeping = Keeping(node, "quiet-fox", KeepingOptions())
    kept, _ = keeping.open(b"J" * 16, Spec("map", "", b"s" * 16, 0.0, 1e9).packed(), 1)
    kept.known.add(0, 1_000_000)
    described = count = 0
    for lo in range(0, 1_000_000, 5000):
        fresh, _ = keeping.deliver(kept, [Outcome(lo, lo + 5000, 1, b"packed")], 1, Source(node, "wren", 1 << 40, lo))
        for effect in keeping.keep(kept, fresh):
            assert isinstance(effect, Store)
            described += sum(len(row.key) + len(row.meta) for row in effect.rows)
            count += len(effect.rows)

    assert kept.done.size == 1_000_000
    assert count == 200
    assert described < 200 * count < 1_000_000
