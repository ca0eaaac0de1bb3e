"""The job record: a join-semilattice, so that copies of it may meet in any order, any number of times, and agree.

Every field is itself a join-semilattice (DESIGN §7, ALGORITHMS §4.3); the record is their product, below one
*tombstone* element that absorbs everything (an ordinal sum):

    spec, codes, inputs     immutable values under a key; written by the owner alone
    closed, state, expires  chains under max
    claims                  per worker node: the newest (incarnation, seq) wins, equal ones unite
    results, lost           grow-only sets of batches and of tombstones for batches whose copies are all gone
    attempts                per task, max: the fencing number of its newest execution
    tries                   per task, grow-only set of failed executions, each with a name of its own
    seals                   per task, min of (rank, batch): which batch a reader was given
    cancelled               grow-only set of tasks, or all

Payloads (input batches, results) live beside the record under their keys; it holds their content ids. Two different
values under one key of an immutable map mean that a writer lied or its disk did; the smaller one wins everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from p2pgrid.core.batch import ID_BYTES, content_id
from p2pgrid.core.errors import PeerError
from p2pgrid.core.ranges import RangeMap, RangeSet, Span
from p2pgrid.core.wire import pack, unpack

KINDS = ("map", "calls")
"""Kinds of jobs that are understood; "flow" "actor" "periodic" "stream" are reserved."""
BLOCK = 1024
SHARD = 1 << 17


class State(IntEnum):
    """The state in the list of jobs: it only rises."""

    OPEN = 0
    FINISHED = 1
    CANCELLED = 2
    FORGOTTEN = 3


class TaskOf(NamedTuple):
    """One attempt of a task."""

    job: bytes
    task: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Spec:
    """What a job is: fixed when it is opened.

    `owner` is the public key of the accepting node, filled in by it; `session` the client's, 16 bytes; times are unix
    seconds. `defaults` are task options; `detach` jobs outlive their client.
    """

    kind: str
    name: str
    session: bytes
    submitted_s: float
    ttl_s: float
    detach: bool = False
    copies: int = 0
    owner: bytes = b""
    defaults: tuple[tuple[str, Any], ...] = ()
    program: str = ""
    parent: TaskOf | None = None
    """The task that has started this job: it is kept where that attempt of it runs, and ends with it."""

    def packed(self) -> bytes:
        """Return the spec as bytes, ready to be signed."""
        return pack(
            [
                1, self.kind, self.name, self.session, self.submitted_s, self.ttl_s, self.detach, self.copies,
                self.owner, dict(self.defaults), self.program, self.parent,
            ]
        )  # fmt: skip


def unpack_spec(data: bytes) -> Spec:
    """Return the spec that `data` holds. Raises PeerError if it is malformed or of an unknown kind or version."""
    match unpack(data):
        case [1, str(kind), str(name), bytes(session), int() | float() as at, int() | float() as ttl, bool(detach),
              int(copies), bytes(owner), dict(defaults), str(program), *rest]:  # fmt: skip
            if kind not in KINDS:
                msg = f"a job of kind {kind!r}, which this version does not know"
                raise PeerError(msg)
            if not (math.isfinite(at) and math.isfinite(ttl)) or not all(isinstance(key, str) for key in defaults):
                msg = "a job spec without an end"
                raise PeerError(msg)
            return Spec(
                kind, name[:200], session, float(at), float(ttl), detach, copies, owner,
                tuple((key, defaults[key]) for key in sorted(defaults)), program[:200],
                _parent(rest[0] if rest else None),
            )  # fmt: skip
    msg = "a malformed job spec"
    raise PeerError(msg)


def _parent(value: Any) -> TaskOf | None:
    match value:
        case None:
            return None
        case [bytes(job), int(index), int(attempt), *_] if len(job) == ID_BYTES and index >= 0 and attempt >= 0:
            return TaskOf(job, index, attempt)
    msg = "a malformed parent in a job spec"
    raise PeerError(msg)


class BatchId(NamedTuple):
    """Names a batch of results for ever: who made it, in which incarnation, which number."""

    node: str
    incarnation: int
    number: int


class Inputs(NamedTuple):
    """An appended input batch, under its first index."""

    hi: int
    content: bytes
    refs: tuple[bytes, ...] = ()
    signature: bytes = b""


class Results(NamedTuple):
    """A batch of results: which tasks it holds and how; it belongs to the block of its first task."""

    lo: int
    hi: int
    failed: bool
    attempt: int
    content: bytes
    refs: tuple[bytes, ...] = ()
    signature: bytes = b""


class Claim(NamedTuple):
    """What a worker node holds of this job, by its own word."""

    incarnation: int
    seq: int
    interval_s: float
    held: tuple[Span, ...]
    running: tuple[Span, ...]


class Try(NamedTuple):
    """One failed execution of a task, named so that it is counted once.

    kind: "e" raised, "t" timed out, "m" out of memory, "w" its worker process died, "n" its node vanished.
    """

    kind: str
    node: str
    incarnation: int
    number: int


Seal = tuple[int, BatchId]


def _unite(a: Iterable[Span], b: Iterable[Span]) -> tuple[Span, ...]:
    return tuple(RangeSet([*a, *b]))


def _newer(a: Claim, b: Claim) -> Claim:
    if a[:2] != b[:2]:
        return max(a, b, key=lambda claim: claim[:2])
    return Claim(
        a.incarnation, a.seq, max(a.interval_s, b.interval_s), _unite(a.held, b.held), _unite(a.running, b.running)
    )


class Record:
    """One copy of a job's record. `join` is the only way it changes besides the small writers below it."""

    __slots__ = (
        "attempts", "cancelled", "cancelled_all", "claims", "closed", "codes", "expires", "inputs", "lost", "results",
        "seals", "spec", "state", "tries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.spec: bytes | None = None
        self.codes: dict[bytes, bytes] = {}
        self.inputs: dict[int, Inputs] = {}
        self.closed: int | None = None
        self.claims: dict[str, Claim] = {}
        self.results: dict[BatchId, Results] = {}
        self.lost: set[BatchId] = set()
        self.attempts: RangeMap[int] = RangeMap(max)
        self.tries: dict[int, frozenset[Try]] = {}
        self.seals: RangeMap[Seal] = RangeMap(min)
        self.cancelled = RangeSet()
        self.cancelled_all = False
        self.state = State.OPEN
        self.expires = 0.0

    def copy(self) -> Record:
        """Return an independent copy."""
        return Record().join(self)

    def join(self, other: Record) -> Record:
        """Become the least record that holds both, and return self. Commutative, associative, idempotent."""
        self.expires = max(self.expires, other.expires)
        self.state = max(self.state, other.state)
        if self.state is State.FORGOTTEN:
            return self._bury()
        if other.spec is not None:
            self.spec = other.spec if self.spec is None else min(self.spec, other.spec)
        for key, code in other.codes.items():
            self.codes[key] = min(self.codes.get(key, code), code)
        for lo, inputs in other.inputs.items():
            self.inputs[lo] = min(self.inputs.get(lo, inputs), inputs)
        if other.closed is not None:
            self.closed = max(self.closed or 0, other.closed)
        for node, claim in other.claims.items():
            mine = self.claims.get(node)
            self.claims[node] = claim if mine is None else _newer(mine, claim)
        for batch, results in other.results.items():
            self.results[batch] = min(self.results.get(batch, results), results)
        self.lost |= other.lost
        self.attempts.update(other.attempts)
        for task, tries in other.tries.items():
            self.tries[task] = self.tries.get(task, frozenset()) | tries
        self.seals.update(other.seals)
        self.cancelled.update(other.cancelled)
        self.cancelled_all = self.cancelled_all or other.cancelled_all
        return self

    def _bury(self) -> Record:
        """Keep nothing but the tombstone and its expiry."""
        state, expires = self.state, self.expires
        self.__init__()  # type: ignore[misc]
        self.state, self.expires = state, expires
        return self

    def forget(self) -> None:
        """Turn into a tombstone, which holds until the job would have expired."""
        self.state = State.FORGOTTEN
        self._bury()

    def canonical(self) -> list[Any]:
        """Return all of it as plain values in one order: equal records, equal bytes, in every process."""
        return [
            self.spec,
            sorted(self.codes.items()),
            sorted([lo, list(inputs)] for lo, inputs in self.inputs.items()),
            self.closed,
            sorted([node, list(claim)] for node, claim in self.claims.items()),
            sorted([list(batch), list(results)] for batch, results in self.results.items()),
            sorted(map(list, self.lost)),
            [list(piece) for piece in self.attempts],
            sorted([task, sorted(map(list, tries))] for task, tries in self.tries.items()),
            [[lo, hi, [seal[0], list(seal[1])]] for lo, hi, seal in self.seals],
            self.cancelled.flat(),
            self.cancelled_all,
            int(self.state),
            self.expires,
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.canonical() == other.canonical()

    __hash__ = None  # type: ignore[assignment]

    def __ge__(self, other: Record) -> bool:
        """Whether everything `other` knows is known here: joining it would change nothing."""
        return self.copy().join(other) == self

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for equal records."""
        return content_id(pack(self.canonical()))

    def done(self) -> RangeSet:
        """Return the tasks that have a result or a final failure in a batch that is not lost."""
        return RangeSet((r.lo, r.hi) for batch, r in sorted(self.results.items()) if batch not in self.lost)

    def chosen(self, task: int) -> BatchId | None:
        """Return the batch whose value of `task` counts: the sealed one, else the smallest that has it."""
        seal = self.seals.get(task)
        if seal is not None:
            return seal[1]
        return min((b for b, r in self.results.items() if r.lo <= task < r.hi and b not in self.lost), default=None)

    def crashes(self, task: int, kind: str) -> int:
        """Return how many failed executions of one kind ("w", "n", "e") the task has."""
        return sum(1 for one in self.tries.get(task, ()) if one.kind == kind)


def merge(a: Record, b: Record) -> Record:
    """Return the join of two records; neither is changed."""
    return a.copy().join(b)
