"""Checkers of what a node takes up: its memory (I12), and in the end its disk (the part of L6 about files)."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from p2pgrid.node.rows import LOCAL
from p2pgrid.simulations.checking import Checker
from p2pgrid.simulations.world import Violation

if TYPE_CHECKING:
    from p2pgrid.node.events import Row
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

LOOKS, OBJECTS = 16, 512
"""Memory is measured after so many samples, and one more for so many objects of the last one: it takes milliseconds."""
BASE_BYTES, MEMBER_BYTES = 640 << 10, 8 << 10
"""What a machine may take without any job, and beside that for each member."""
ROW_BYTES = 1 << 10
"""What a row takes beside its bytes, at most."""
TIMES = 2
"""While there is work the bytes of a row are at most so many times in the memory of one node."""
QUIET_BYTES, QUIET_TIMES = 384 << 10, 1.5
"""The same when all is over."""
LOOK_S = 0.5
_ATOMS = (bool, int, float, str, type, ModuleType, FunctionType, BuiltinFunctionType, random.Random)
_LISTS = (list, tuple, set, frozenset, deque)


def measured(root: Any) -> tuple[int, int]:
    """Return how many bytes an object takes with all that hangs on it, and how many objects these are."""
    seen: set[int] = set()
    todo, total = [root], 0
    while todo:
        one = todo.pop()
        if one is None or isinstance(one, _ATOMS) or id(one) in seen:
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, bytes):
            continue
        if isinstance(one, MethodType):
            todo.append(one.__self__)
            continue
        if isinstance(one, dict):
            todo += one.keys()
            todo += one.values()
        elif isinstance(one, _LISTS):
            todo += one
        todo.append(getattr(one, "__dict__", None))
        todo += [getattr(one, slot, None) for kind in type(one).__mro__ for slot in getattr(kind, "__slots__", ())]
    return total, len(seen)


def _bytes(rows: Iterable[Row]) -> tuple[int, int]:
    sizes = [len(row.key) + len(row.meta) + len(row.value or b"") for row in rows]
    return len(sizes), sum(sizes)


class Room(Checker):
    """I12: what a node has in memory is bounded by the records and members there are."""

    name = "I12 memory is bounded"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._looks = LOOKS

    def looked(self, node: Node) -> None:
        """Measure a node, now and then."""
        self._looks -= 1
        if self._looks:
            return
        taken, objects = measured(node.machine)
        self._looks = LOOKS + objects // OBJECTS
        if taken <= self._limit(node.disk.rows.values()):
            return
        rows: dict[Any, Row] = {}
        for one in self.world.nodes.values():  # it may have inputs and results of jobs that it does not keep
            rows.update(one.disk.rows)
            rows.update({(row.job, row.kind, row.key): row for store in one.disk.pending for row in store.rows})
        runs = [
            (truth.plan(index).size, count)
            for truth in self.world.truths.values()
            for index, count in truth.runs.items()
        ]
        # While a disk is full, what tasks return is nowhere else.
        made = sum((TIMES * size + ROW_BYTES) * count for size, count in runs)
        limit = self._limit(rows.values()) + made
        if taken > limit:
            what = f"{node.name} takes {taken} bytes of memory; {limit} would do for {len(rows)} rows in all the grid"
            self.fail(what, node)

    def _limit(self, rows: Iterable[Row]) -> int:
        count, size = _bytes(rows)
        return BASE_BYTES + MEMBER_BYTES * len(self.world.nodes) + TIMES * size + ROW_BYTES * count


# ---- once the faults have ended -------------------------------------------------------------------------------------


def must_be_tidy(world: World, limit_s: float) -> None:
    """L6: nothing is on a disk but rows of records that are kept; I12: nor in memory but what these need."""
    if not world.run(lambda: not _left(world), limit_s, look_s=LOOK_S):
        node, what = _left(world)[0]
        raise Violation("L6 nothing is left over", f"{node.name} {what}", [node])
    # Rows whose acknowledgement was lost are held until they count as lost themselves.
    if not world.run(lambda: not _large(world), limit_s, look_s=LOOK_S):
        node, what = _large(world)[0]
        raise Violation(Room.name, f"when all is over {what}", [node])


def _large(world: World) -> list[tuple[Node, str]]:
    found = []
    for node in world.nodes.values():
        if not node.alive:
            continue
        count, size = _bytes(node.disk.rows.values())
        limit = QUIET_BYTES + MEMBER_BYTES * len(world.nodes) + int(QUIET_TIMES * size) + ROW_BYTES * count
        taken, _ = measured(node.machine)
        if taken > limit:
            what = f"takes {taken} bytes of memory; {limit} would do for {count} rows of {size} bytes"
            found.append((node, f"{node.name} {what}"))
    return found


def _left(world: World) -> list[tuple[Node, str]]:
    found = []
    for node in world.nodes.values():
        if not node.alive:
            continue
        there: dict[bytes, set[tuple[str, bytes]]] = {}
        for job, kind, key in node.disk.rows:
            if kind not in LOCAL:
                there.setdefault(job, set()).add((kind, key))
        for job, rows in there.items():
            kept = node.machine.keeping.jobs.get(job)
            if kept is None:
                found.append((node, f"has {len(rows)} rows on disk of {job.hex()[:6]}, which it does not keep"))
                continue
            more = sorted(f"{kind} {key.hex()}" for kind, key in rows if key not in kept.rows.keys_of(kind))
            if more:
                found.append(
                    (node, f"has {len(more)} rows of {job.hex()[:6]} on disk that its record has not: {more[0]}")
                )
    return found
