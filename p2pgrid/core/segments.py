"""What goes to a worker, and what comes back from it: adjacent tasks, packed alike.

Rule: standard library only. A worker child imports this in an interpreter that has nothing installed.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Segment(NamedTuple):
    """Adjacent tasks [lo, hi) of one job that call one function, as they go to a worker.

    shape 0: data is a list of hi-lo byte strings, each a pickled `(args, kwargs)`; b"" means no arguments.
    shape 1: data is one pickled list of items, called as fn(item); task lo is item number `offset` of it.
    shape 2: as 1, called as fn(*item).
    shape 3: data is [calls, values], tasks whose arguments other tasks have returned (`core.deps`).
    `key` names a packed blob (shapes 1 and 2) within the job, so that a worker may keep it; b"" for the others.
    """

    lo: int
    hi: int
    fn: bytes
    shape: int
    data: Any
    offset: int
    key: bytes


class Outcome(NamedTuple):
    """Results of adjacent tasks [lo, hi), as they come from a worker and go to journal and reader.

    shape 0: data is a list of hi-lo pickles; b"" stands for None.
    shape 1: data is one pickled list of hi-lo values.
    shape 2: hi == lo + 1, data is msgpack of `core.failure.encode_exception`: the task raised.
    shape 3: hi == lo + 1, data says which object the value is (`core.large`).
    shape 4 (between nodes only): hi == lo + 1, data is msgpack [kind, detail, stderr]: its worker process died.
    """

    lo: int
    hi: int
    shape: int
    data: Any
