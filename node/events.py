"""What goes into the machine and what comes out of it: the only words that `node/machine.py` and its shells share.

An *event* is something that happened (a frame arrived, a worker finished, a commit was synced, a timer fired); an
*effect* is something the shell shall do. Both are plain data, the commonest of them tuples, which are made three times
as fast: a shell carries effects out in the order given and decides nothing. Two shells exist: the daemon (trio,
processes, disk) and the heap driver of the tests, from which the simulator grows. Rule: nothing here may import a
clock, a socket or a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pgrid.core.chains import ALL_ROLES
from p2pgrid.core.large import Large
from p2pgrid.core.member import Card
from p2pgrid.core.prints import Line, Said
from p2pgrid.core.segments import Outcome as Outcome  # noqa: PLC0414 - shells and machine know them by this file
from p2pgrid.core.segments import Segment as Segment  # noqa: PLC0414

Job = bytes  # 16 bytes
NodeId = str  # a PeerId in text form


class Row(NamedTuple):
    """One journal row, unique by (job, kind, key).

    A `value` of None in a Store means: delete the row, and with kind "*" all rows of the job.

    `meta` is small and read at start; `value` may be large and is read on demand by Fetch (see HEAVY).
    """

    job: Job
    kind: str
    key: bytes
    meta: bytes
    value: bytes | None


HEAVY = frozenset({"code", "input", "result", "log"})
"""Kinds of rows whose `value` is left on disk at start (`Loaded` carries b"" there) and asked for with Fetch."""


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """First event of a life: what the journal held (heavy values empty), and wall clock minus monotonic clock."""

    rows: Sequence[Row]
    wall_offset_s: float
    incarnation: int
    objects: frozenset[bytes] = frozenset()
    """Ids of the objects that are on this node's disk."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The rows of that Store are fsynced."""

    token: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The rows of that Store are not on disk (full, broken); `reason` is one line."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """The rows asked for; a row that is missing or fails its checksum is absent."""

    token: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A client said HELLO on the local socket. `session` is b"" for the command line."""

    client: int
    session: bytes
    program: str
    pid: int
    worker: int | None = None
    """The worker whose process it is: a task of it uses the grid."""


@dataclass(frozen=True, slots=True)
class ClientSent:
    """One frame from a client (`core.messages`)."""

    client: int
    kind: int
    id: int
    body: Any


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The connection ended; `goodbye` if the client said so before."""

    client: int
    goodbye: bool


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker child has started (again) and waits for a Run."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerDone:
    """A worker reports on a run: outcomes so far, and at the end (`final`) the ranges it gives back unstarted.

    `busy_s` is the time spent in these tasks; `logs` is a list of (index, captured output).
    `unfit` names why the function could not be loaded here (a missing import): then all its tasks are given back.
    """

    worker: int
    run: int
    outcomes: Sequence[Outcome]
    final: bool
    returned: Sequence[tuple[int, int]]
    busy_s: float
    logs: Sequence[tuple[int, bytes]] = ()
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class WorkerPrinted:
    """What tasks of a run print while they run: lines and progress only if somebody watches (see Show).

    There were `more` lines than these. `logs`: (index, last bytes of all it printed so far), now and then.
    """

    worker: int
    run: int
    lines: Sequence[Line] = ()
    more: int = 0
    progress: Sequence[Said] = ()
    logs: Sequence[tuple[int, bytes]] = ()


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker child ended. `index` is the task that its progress page named as running, or None.

    cause: "signal" | "exit" | "timeout" | "memory" | "killed" (we asked for it); `detail` is one line for people,
    `stderr` the last lines it wrote. Runs that were with it and not `final` are gone; a new child follows.
    `logs` is what their tasks had printed, a list of (run, index, text).
    """

    worker: int
    run: int | None
    index: int | None
    cause: str
    detail: str
    stderr: str = ""
    logs: Sequence[tuple[int, int, bytes]] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """The object that a worker wrote under `key` has this id (Name); None: it is gone."""

    key: bytes
    id: bytes | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """The object asked for with Pull is here, for long enough to say that it is needed; not `good`: it is not.

    `full`: there is no room for it here, and it stays where it is.
    """

    id: bytes
    good: bool
    full: bool = False


@dataclass(frozen=True, slots=True)
class Secured:
    """The objects of that Secure will outlive this node's memory; else why not, in one line."""

    token: int
    why_not: str = ""


class TimerFired(NamedTuple):
    """A timer set by SetTimer is due."""

    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A member became reachable: it said HELLO. `roles` are those its certificate gives (core.chains)."""

    peer: NodeId
    facts: Mapping[str, Any]
    card: Card | None = None
    roles: int = ALL_ROLES


@dataclass(frozen=True, slots=True)
class PeerRoles:
    """The certificate of a connected member was replaced by another."""

    peer: NodeId
    roles: int


@dataclass(frozen=True, slots=True)
class PeerDown:
    """A member's connection ended; `reset` if a new one was refused as well (it is gone, not only silent)."""

    peer: NodeId
    reset: bool


class PeerSent(NamedTuple):
    """One control frame from a member."""

    peer: NodeId
    kind: int
    body: Any


@dataclass(frozen=True, slots=True)
class Belongs:
    """To which grid this node belongs, and with which roles: right after Loaded, and whenever it changes.

    With another `grid` (its public key) all peers of the former one were reported down before.
    """

    grid: bytes
    name: str
    roles: int
    chain: bytes = b""
    """Our certificate, which stands on our card."""


@dataclass(frozen=True, slots=True)
class Listens:
    """Where peers can dial this node: multiaddrs without the PeerId. Whenever they change."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reachable:
    """Whether other machines can dial this node, as one of them has found out. Whenever it changes."""

    yes: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    """The node is about to go to another grid: its members are told; PeerDown of each and Belongs follow."""


@dataclass(frozen=True, slots=True)
class Located:
    """Who keeps a job, as the grid's DHT has it; empty if it does not know. Answers Locate; members wrote it."""

    job: Job
    keepers: Sequence[NodeId]


@dataclass(frozen=True, slots=True)
class Stalled:
    """The shell's own loop stood still that long (SIGSTOP, suspend); comes before anything that queued meanwhile."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WallClock:
    """Wall clock minus monotonic clock, once a minute."""

    offset_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The node shall end: start nothing new, give running tasks `grace_s`, then emit Stopped."""

    grace_s: float


Event = (
    Loaded | Stored | StoreFailed | Fetched | ClientJoined | ClientSent | ClientGone | WorkerReady | WorkerDone
    | WorkerPrinted | WorkerDied | Named | Pulled | Secured | TimerFired | PeerUp | PeerDown | PeerRoles | PeerSent
    | Belongs | Listens | Reachable | Leaving | Located | Stalled | WallClock | Stop
)  # fmt: skip


# ---- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """One frame to a local client."""

    client: int
    kind: int
    id: int
    body: Any


class Send(NamedTuple):
    """One control frame to a member."""

    peer: NodeId
    kind: int
    body: Any


@dataclass(frozen=True, slots=True)
class Connect:
    """Keep a connection with this member, by whichever of the addresses answers; said again when they change."""

    peer: NodeId
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A connection with this member is not wanted any more."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Publish:
    """Say in the grid's DHT who keeps a job, and go on saying so; again when it changes. Nobody: say it no more."""

    job: Job
    keepers: Sequence[NodeId]


@dataclass(frozen=True, slots=True)
class Locate:
    """Ask the grid's DHT who keeps a job; answered by Located."""

    job: Job


@dataclass(frozen=True, slots=True)
class Drop:
    """A member broke the protocol: end its connection, say so once, and let it try again later."""

    peer: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Introduce:
    """What this node says of itself from now on, in the HELLO of its connections."""

    card: Card


@dataclass(frozen=True, slots=True)
class GridClock:
    """Grid time minus own clock in seconds; None while no other clock is known."""

    offset_s: float | None


@dataclass(frozen=True, slots=True)
class Store:
    """Write (or delete) rows and answer Stored(token) once they are fsynced; token 0 wants no answer."""

    token: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read the values of rows (job, kind, key) and answer Fetched(token, rows)."""

    token: int
    keys: Sequence[tuple[Job, str, bytes]]


@dataclass(frozen=True, slots=True)
class Run:
    """Give a worker tasks. Up to two runs may be with a worker; it works them off in order.

    `codes` maps a function id to its union as packed by `core.batch` (a view of the job's own table, not a copy; the
    shell sends an entry to a child once). `context` goes to the child: {"job", "name", "attempt", "node", "prints",
    "env", "cpu", "show"}; where a child ran with another count of `cpu`s, the shell puts a fresh one in its place.
    `timeout_s` is per task, `memory` in bytes, None: no own limit.
    """

    worker: int
    run: int
    job: Job
    segments: Sequence[Segment]
    codes: Mapping[bytes, bytes]
    context: Mapping[str, Any]
    timeout_s: float | None = None
    memory: int | None = None
    tree: bytes | None = None
    """The source tree that its functions import from, by its name in `codes`. A child serves one; for another the shell
    puts a fresh child in its place, which the machine need not know."""
    python: int = 0
    """Which interpreter of the node, by its place among those it was given; where another child is there, likewise."""
    inside: tuple[int, int] | None = None
    """Run and index of the task of this worker that waits for these, and below which they run. Where it waits no longer
    they come back unstarted."""


@dataclass(frozen=True, slots=True)
class Show:
    """From now on this (core.prints: PRINTS, PROGRESS) is wanted of what tasks of a job that run here print.

    Of runs that follow their context says it, as "show".
    """

    job: Job
    what: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask a worker to give back all it has not started (answered by WorkerDone(final=True, returned=…))."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the worker's process group if the task it runs now is in `spans` of `run` (None: whatever it runs).

    A task that waits, and below which another runs, counts as running. Answered by WorkerDied(cause="killed"); where
    another task runs it is a Recall.
    """

    worker: int
    run: int
    spans: Sequence[tuple[int, int]] | None


@dataclass(frozen=True, slots=True)
class Name:
    """Find out the id of what a worker wrote under `key` as the result of a task, and answer Named.

    `durable`: write it to disk first. `own`: of a job kept here, whose Needs tells what becomes of it; else it stays
    until Delivered says that its keeper knows it.
    """

    key: bytes
    job: Job
    task: int
    own: bool
    durable: bool


@dataclass(frozen=True, slots=True)
class Pull:
    """Fetch an object that these nodes have, and answer Pulled."""

    id: bytes
    holders: Sequence[NodeId]


@dataclass(frozen=True, slots=True)
class Needs:
    """A job kept here needs these objects, wherever they are, until Freed.

    `session` is the program's that submitted it: once that has a value (not a Ref), the job needs it less than others
    need the room. b"": it is detached.
    """

    job: Job
    session: bytes
    objects: Sequence[Large]
    copies: int
    inputs: bool = False
    """They are Refs among its inputs: needed until it has ended."""


@dataclass(frozen=True, slots=True)
class Freed:
    """A job is not kept here any more: it needs no objects. `inputs`: it has ended, and needs no inputs.

    `here`: other nodes keep it, and need them as before.
    """

    job: Job
    inputs: bool = False
    here: bool = False


@dataclass(frozen=True, slots=True)
class Secure:
    """Have objects that Needs has named on disk here and at other members, and answer Secured."""

    token: int
    job: Job
    ids: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The keeper of a job knows the results of these tasks (None: of all), or does not want them."""

    job: Job
    spans: Sequence[tuple[int, int]] | None


class SetTimer(NamedTuple):
    """Fire TimerFired(key) at `at_s` (monotonic); a timer of the same key is replaced; `at_s` None cancels it."""

    key: tuple[Any, ...]
    at_s: float | None


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the node's log on stderr. level: "info" | "warning"."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """All is handed over or in the journal; `waiting` names the jobs that wait there. The shell may end."""

    waiting: Sequence[str] = field(default=())


Effect = (
    Reply | Send | Connect | Disconnect | Publish | Locate | Drop | Introduce | GridClock | Store | Fetch | Run | Show
    | Recall | Kill | Name | Pull | Needs | Freed | Secure | Delivered | SetTimer | Log | Stopped
)  # fmt: skip
