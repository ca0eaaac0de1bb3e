"""What a node knows of one job that is kept here: its record, what of it is where, who reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.core.large import Large
from p2pgrid.core.ranges import RangeMap, RangeSet, Span
from p2pgrid.core.record import BatchId, Record, Spec
from p2pgrid.node.events import Outcome, Reply, Send
from p2pgrid.node.rows import Rows

Job = bytes
Promise = Reply | Send
"""What is said once the rows are synced."""

Mark = tuple[str, bytes]
"""What of a job is to be synced besides inputs: ("spec", b""), ("code", id), ("close", b"")."""

RUNNING, DONE, FAILED, CANCELLED, ABANDONED = "running", "done", "failed", "cancelled", "abandoned"


@dataclass(frozen=True, slots=True)
class KeepingOptions:
    """Bounds; bytes unless a name says otherwise."""

    window_bytes: int = 64 << 20
    """Results sent to a reader and not yet taken in."""
    recent_bytes: int = 64 << 20
    """Synced results that stay in memory for the next reader."""
    step_bytes: int = 8 << 20
    """Results read from disk at once for a late reader."""
    log_bytes: int = 64 << 10
    jobs_max: int = 100_000
    retry_s: float = 5.0
    """How long after a failed write results are written again."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which batch of which node outcomes came in; outcome number i of it is batch `number` + i."""

    node: str
    name: str
    incarnation: int
    number: int


@dataclass(slots=True)
class Fresh:
    """Outcomes that readers were given and that are still to be kept."""

    attempt: int
    seal: bool
    batches: list[tuple[BatchId, Outcome]] = field(default_factory=list)
    new: list[Span] = field(default_factory=list)
    """The tasks that are done with them."""
    awaited: bool = False
    """Whether rows that were stored before are to be synced as well before anything is promised."""


@dataclass(slots=True)
class Watch:
    """A client that reads a job."""

    client: int
    sent: RangeSet
    window_bytes: int
    unread: int = 0
    wanted: int | None = None
    """The task whose result it waits for, whatever else is on its way: it takes results in order."""
    behind: bool = False
    fetching: int = 0
    ended: bool = False
    stable: bool = False
    """Whether it is given only results that are sealed on two disks."""
    show: int = 0
    """What it wants to see of tasks while they run (core.prints: PRINTS, PROGRESS)."""


@dataclass(slots=True)
class Listening:
    """A keeper that became the first in rank hears the others before it grants anything."""

    until_s: float
    latest_s: float
    """Whatever else they have to tell."""
    heard: set[str] = field(default_factory=set)
    """Those whose copy was the same as ours."""


@dataclass(slots=True, eq=False)
class Kept:
    """One job whose record is kept here."""

    id: Job
    name: str
    spec: Spec
    record: Record
    done: RangeSet = field(default_factory=RangeSet)
    failed: RangeSet = field(default_factory=RangeSet)
    cancelled: RangeSet = field(default_factory=RangeSet)
    known: RangeSet = field(default_factory=RangeSet)
    """Tasks whose inputs were appended."""
    durable: RangeSet = field(default_factory=RangeSet)
    """Tasks whose inputs are synced; `synced` names what else is."""
    synced: set[Mark] = field(default_factory=set)
    order: list[tuple[int, BatchId, int]] = field(default_factory=list)
    """Result batches by first index, with their size."""
    watches: dict[int, Watch] = field(default_factory=dict)
    state: str = RUNNING
    reason: str = ""
    logs: RangeSet = field(default_factory=RangeSet)
    reasons: dict[int, str] = field(default_factory=dict)
    """What failed tasks raised, in this life of the node."""
    objects: list[Large] = field(default_factory=list)
    """Its large results."""
    refs: dict[bytes, Large] = field(default_factory=dict)
    """Objects that its inputs name, by id: needed until it has ended."""
    programs: set[int] = field(default_factory=set)
    """Clients that opened it and are connected."""
    rows: Rows = field(default_factory=Rows)
    """What this copy of its record consists of."""
    accepted: str = ""
    """The node that accepted it."""
    serving: bool = True
    """Whether this node grants its tasks and judges what becomes of them; else another keeper does."""
    server: str = ""
    """Who serves it, by the last that was heard; where this node does not."""
    listening: Listening | None = None
    """Set while this node is about to serve it."""
    copied: bool = False
    """Whether another node ever had a copy."""
    raised: RangeMap[int] = field(default_factory=lambda: RangeMap(max))
    """Attempt numbers that tasks got because this node took the job over or was started again, begun or not."""
    taken_over: bool = False
    """Whether a node that served it vanished: whatever runs is named to other keepers before it begins."""
    named: dict[str, RangeSet] = field(default_factory=dict)
    """What the nodes that served it said they run themselves."""
    orphaned: bool = False
    """Whether the node that accepted it and its client are gone: nobody will say that it is complete."""
    torn: set[BatchId] = field(default_factory=set)
    """Results that are damaged on disk here and are being had from another keeper."""
    given: RangeSet = field(default_factory=RangeSet)
    """Tasks whose results were given to readers here, in this life of the node."""
    overlaps: bool = False
    """Whether some task has more than one result: then it matters which one counts."""

    @property
    def total(self) -> int | None:
        """How many tasks the job has, once that is known."""
        return self.record.closed

    def is_again(self, task: int, attempt: int) -> bool:
        """Whether an execution under this number is known to be another one of the task."""
        return attempt > (self.raised.get(task) or 1)

    @property
    def answers(self) -> bool:
        """Whether this node answers for it: it serves it, or is about to."""
        return self.serving or self.listening is not None

    @property
    def is_whole(self) -> bool:
        """Whether this copy has what is to be read: that a job has ended may be heard before its last results."""
        if self.state == CANCELLED or self.record.cancelled_all or self.total is None:
            return True
        return (self.done | self.cancelled).size >= self.total if self.cancelled else self.done.size >= self.total

    @property
    def ended(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.state != RUNNING

    @property
    def open_tasks(self) -> RangeSet:
        """Tasks that are known and neither done nor cancelled."""
        return self.known - self.done - self.cancelled

    @property
    def expires_s(self) -> float:
        """Unix time at which it is deleted."""
        return self.record.expires
