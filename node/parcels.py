"""Parcels: tasks with all that whoever shall run them needs and does not have.

Rule: this file knows tasks and their inputs, not who gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from p2pgrid.core.batch import TREES, encode_batch
from p2pgrid.node.pool import Taken

Key = tuple[bytes, bytes | tuple[int, int]]
"""A job and one of its functions or packed runs."""


def parcel(takens: Sequence[Taken], has: Callable[[Key], bool]) -> tuple[list[Any], list[Key], int]:
    """Return [job, name, ranges, functions, inputs] of tasks of one work for whoever shall run them.

    Left out is what they have; besides, what is not left out, and the size of all in bytes.
    """
    work = takens[0].work
    batches: list[list[Any]] = []
    codes: dict[bytes, bytes] = {}
    brings: list[Key] = []
    seen: set[Key] = set()
    for taken in takens:
        for run, lane, lo, end in taken.pieces():
            key: Key = (work.job, run.fn)
            if run.fn not in codes and not has(key):
                codes[run.fn] = work.codes[run.fn]
                brings.append(key)
            tree = lane.tree
            if tree is not None and tree in work.codes and tree not in codes and not has((TREES, tree)):
                codes[tree] = work.codes[tree]
                brings.append((TREES, tree))
            a, b = (run.lo, run.hi) if run.packed else (lo, end)
            key = (work.job, (a, b))
            if run.packed and key in seen:
                continue
            seen.add(key)
            if run.packed and has(key):
                batches.append([a, b, b""])
                continue
            if run.packed:
                brings.append(key)  # a packed run travels whole, however little of it is granted
            data, _ = run.cut(a, b)
            batches.append([a, b, encode_batch([run.fn], [lane.raw], [(b - a, 0, 0, run.shape, data)])])
    ranges = [[lo, hi, taken.attempt, taken.alone] for taken in takens for lo, hi in taken.spans]
    size = sum(len(one[2]) for one in batches) + sum(map(len, codes.values())) + 24 * len(ranges)
    return [work.job, work.name, ranges, [list(item) for item in codes.items()], batches], brings, size
