"""What the parts of a machine share: its policies, its timers, and the effects of the event that is being handled.

Rule: nothing is decided here.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import InputBatch
from p2pgrid.core.chains import ALL_ROLES, WORK
from p2pgrid.core.errors import (
    PeerError,
)
from p2pgrid.core.interpreters import offered
from p2pgrid.core.member import Seal
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node import events as e
from p2pgrid.node.grains import RunningOptions
from p2pgrid.node.holding import Holding, HoldingOptions
from p2pgrid.node.keeping import Keeping
from p2pgrid.node.kept import KeepingOptions
from p2pgrid.node.leases import LeaseOptions, Leases
from p2pgrid.node.moves import Moves
from p2pgrid.node.pool import Lane, Pool, Work
from p2pgrid.node.running import Running
from p2pgrid.node.stealing import StealOptions, Thief, Victim

SAID_MAX = 1024
QUEUE_S = 0.25
"""Work per slot that is asked for at once, in seconds; the keeper gives less when little is left."""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What a node is, and the bounds of its policies."""

    node_id: str
    name: str
    grid: str
    slots: int
    facts: Mapping[str, Any]
    embedded: bool = False
    version: str = ""
    python: tuple[int, int] = (3, 11)
    pid: int = 0
    seal: Seal | None = None
    """Signs and checks cards; None: every card is believed."""
    preset: str = "lan"
    """Of liveness and member view: local, lan, wan or edge."""
    connected_max: int = 128
    """Up to so many members a node is connected with every other; above, with whom it observes, and the first met."""
    orphan_after_s: float = 60.0
    linger_s: float = 2.0
    notice_after_s: float = 10.0
    unknown_s: float = 10.0
    """For how long a task waits for one that nobody knows, and `away_s` for one that was known to a node that is away
    now, or if it is this node that was away."""
    away_s: float = 600.0
    worker_crashes_max: int = 3
    node_crashes_max: int = 5
    running: RunningOptions = field(default_factory=RunningOptions)
    keeping: KeepingOptions = field(default_factory=KeepingOptions)
    leases: LeaseOptions = field(default_factory=LeaseOptions)
    holding: HoldingOptions = field(default_factory=HoldingOptions)
    stealing: StealOptions = field(default_factory=StealOptions)
    speculate: bool = True
    """Whether the last tasks run a second time where slots are idle, if they are at slow members."""
    queue_s: float = QUEUE_S
    ahead_s: float = 1.2
    """For so long, in seconds, a member is given work for at most, unless it asks for more."""
    guided: float = 2.0
    """A member gets at most its share of what is left, divided by this."""


class Parts:
    """The policies of one node, and what its handlers have in common."""

    def __init__(self, config: MachineConfig, rng: random.Random) -> None:
        self.config = config
        self.pool = Pool()
        self.running = Running(
            config.slots, config.facts.get("resources", {}), config.running, config.name, len(offered(config.facts))
        )
        self.keeping = Keeping(config.node_id, config.name, config.keeping)
        self.leases = Leases(config.leases)
        self.holding = Holding(config.holding)
        self.thief = Thief(config.stealing, rng)
        self.victim = Victim(config.stealing)
        self.moves = Moves()
        self.doubled: dict[bytes, RangeSet] = {}
        """Tasks of jobs kept here that were given to a second node on purpose."""
        self.stored: set[bytes] = set()
        """Jobs of others of whose results some are objects here."""
        self.counts: Counter[str] = Counter()
        """Tasks of others that came here before a slot was free (`prefetched`) or from their holders (`stolen`), and
        those that ran here under a higher attempt number (`rerun`); and how often others were asked for work or to
        remember that it is wanted (`asked`). In this life."""
        self.grid_name = config.grid
        self.peers: dict[str, Mapping[str, Any]] = {}
        """The members that are connected, and their facts."""
        self.slots_of_grid: int | None = None
        """What `grid_slots` has counted; None after members, their facts or roles have changed."""
        self.roles: dict[str, int] = {}
        """What the certificates of members give them, also of some that are not connected now."""
        self.suspects: set[str] = set()
        """Members that get no new work; only ever asked about, never walked."""
        self.own_roles = ALL_ROLES
        """What this node's own certificate gives it; 0: it is out of its grid."""
        self.refusing = ""
        """Why this node takes no work at all: somebody else has its identity."""
        self.askers: dict[int, tuple[str, tuple[int, int]]] = {}
        """Requests of members, as if of clients with numbers below zero: who asked, under which number."""
        self.out: list[e.Effect] = []
        """The effects so far of the event that is being handled, in order."""
        self.later: list[Callable[[], None]] = []
        """What the event still asks for once the urgent effects have left: book-keeping nobody waits for."""
        self.round_trip_s: Callable[[str], float | None] = lambda _: None
        """How long a frame to a member and its answer take, if that is known."""
        self.serving: Callable[[bytes], str | None] = lambda job: config.node_id if job in self.keeping.jobs else None
        """Who serves a job: this node, a connected member, or None if nobody is known to have it (`relaying`)."""
        self.ran_at: Callable[[bytes], list[str]] = lambda _: []
        """Where tasks of a function have ended lately, beside here."""
        self.now = 0.0
        """When the event came that is being handled."""
        self.tell_shown: Callable[[str, bytes], None] = lambda *_: None
        """Told that a member has tasks of a job: somebody may watch it."""
        self.announced: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        """What keepers have said is watched of their jobs."""
        self.timers: dict[tuple[Any, ...], float] = {}
        self.tokens = 1 << 40  # apart from those of `keeping`
        self.stopping = False
        self.draining = False
        """Whether this node takes no work and hands over what it has."""
        self.hungry = False
        """Whether workers may have something new to do."""
        self.reading: set[bytes] = set()
        """Jobs served here whose inputs are being read: how often one of their tasks may be tried is not known yet."""
        self.regrouped = False
        """Whether members came, went, or are seen in another light: then other nodes may be keepers."""
        self._said: dict[tuple[str, str], None] = {}

    def token(self) -> int:
        self.tokens += 1
        return self.tokens

    def timer(self, key: tuple[Any, ...], at_s: float | None) -> None:
        if at_s is None:
            if self.timers.pop(key, None) is not None:
                self.out.append(e.SetTimer(key, None))
            return
        self.timers[key] = at_s
        self.out.append(e.SetTimer(key, at_s))

    def timer_unless_set(self, key: tuple[Any, ...], at_s: float) -> None:
        if key not in self.timers:
            self.timer(key, at_s)

    def log_once(self, peer: str, text: str) -> None:
        """Say what is wrong with a member, once while it is remembered."""
        if (peer, text) not in self._said:
            if len(self._said) >= SAID_MAX:
                self._said.clear()
            self._said[peer, text] = None
            self.out.append(e.Log("warning", f"{self.name_of(peer)} ({peer}) {text}"))

    def may(self, peer: str, role: int) -> bool:
        """Whether the certificate of a member gives it a role."""
        return bool(self.roles.get(peer, ALL_ROLES) & role)

    def grid_slots(self) -> int:
        """Return how many tasks this node and the connected members that may work run at once."""
        if self.slots_of_grid is None:
            others = (slots_of(facts) for peer, facts in self.peers.items() if self.may(peer, WORK))
            self.slots_of_grid = self.config.slots + sum(others)
        return self.slots_of_grid

    def name_of(self, peer: str) -> str:
        """Return the name of a member as people know it."""
        return str(self.peers.get(peer, {}).get("name") or self.keeping.readers.names.get(peer) or peer[-8:])

    def reply(self, client: int, kind: int, id_: int, body: Any) -> e.Reply | e.Send:
        """Return what answers a request of a client, or of a member in the name of one of its clients."""
        if client >= 0:
            return e.Reply(client, kind, id_, body)
        peer, rid = self.askers.pop(client)
        return e.Send(peer, m.P_ANSWER if kind == m.ANSWER else m.P_ERROR, [list(rid), body])

    def appetite(self, eligible: Callable[[Lane], bool]) -> tuple[int, float] | None:
        """Return how many slots are free and how many slot-seconds of work this node wants queued; None: it has enough.

        A node asks when a slot is free, or when what waits here lasts for less than an answer takes. Where tasks are
        much longer than that, nothing is queued ahead: it would wait behind them while others are idle.
        """
        slots, rtt_s = self.config.slots, 1.5 * self.holding.rtt_s
        free = self.running.free_slots()
        if not slots or self.draining or (not free and not rtt_s):
            return None
        target_s = slots * max(self.config.queue_s, 3 * rtt_s)
        waits_s, typical_s = self.running.backlog(self.pool, eligible, target_s)
        if not free and (4 * rtt_s < typical_s or waits_s >= slots * rtt_s):
            return None
        return free, max(target_s - waits_s, 0.0)

    def delivered(self, job: bytes, spans: Iterable[Span] | None) -> None:
        """Let go of results that are objects: their keeper knows them, or does not want them."""
        if job in self.stored:
            self.out.append(e.Delivered(job, None if spans is None else list(spans)))
            if spans is None:
                self.stored.discard(job)

    def append(self, work: Work, batch: InputBatch) -> list[Lane]:
        try:
            return self.pool.append(work, batch)
        except ValueError as error:
            raise PeerError(str(error)) from error


def slots_of(facts: Mapping[str, Any]) -> int:
    """Return how many slots a member says it has; what it says may be anything."""
    slots = facts.get("slots", 0)
    return max(slots, 0) if type(slots) is int else 0


class Handler:
    """Whoever decides by these parts, under the names by which the code speaks of them."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.config
        self.pool = parts.pool
        self.running = parts.running
        self.keeping = parts.keeping
        self.leases = parts.leases
        self.holding = parts.holding
        self.thief = parts.thief
        self.victim = parts.victim
        self.peers = parts.peers
        self.out = parts.out
