"""The machine: everything a node decides, in one place that touches nothing. `handle(event, now) -> effects`.

It composes policies that do not know each other: `pool` (what is ready, in which order), `running` (workers of this
node), `keeping` (records, promises, readers), `leases` (what others hold of ours), `holding` (what we hold of theirs),
`stealing` (what goes from holder to holder). Above them stand `fitness` (who may run what), `outcomes` (what becomes of
tasks), `members` (what other nodes send), `thieves` (what goes between holders) and `clients` (what local programs
send), `working` (what workers tell); they share `parts`.
The shells that drive it are the daemon and the heap driver of the tests.

Rules: time comes in as `now` (monotonic seconds), chance as a `random.Random`. No promise leaves before `Stored`.
A malformed frame costs its sender the connection (PeerError); an AssertionError here is our bug and ends the node.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.core.member import ALIVE
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_peer
from p2pgrid.node import answers
from p2pgrid.node import events as e
from p2pgrid.node.awaiting import TIMER as AWAIT
from p2pgrid.node.awaiting import Awaiting
from p2pgrid.node.burying import TIMER as BURY
from p2pgrid.node.burying import Burying
from p2pgrid.node.clients import Door
from p2pgrid.node.depending import TIMER as DEPENDS
from p2pgrid.node.depending import Depending
from p2pgrid.node.doubling import TIMER as DOUBLE
from p2pgrid.node.doubling import Doubling
from p2pgrid.node.draining import TIMER as DRAINED
from p2pgrid.node.draining import Draining
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.inquiries import LATE, Inquiries
from p2pgrid.node.keepers import Candidate, keepers
from p2pgrid.node.listing import TIMER as LISTING
from p2pgrid.node.listing import Listing
from p2pgrid.node.locating import TIMER as LOCATING
from p2pgrid.node.locating import Locating
from p2pgrid.node.logs import Logs
from p2pgrid.node.members import Members
from p2pgrid.node.neighbours import CLONED, GUESTS, Neighbours
from p2pgrid.node.neighbours import TIMER as NEIGHBOURS
from p2pgrid.node.nesting import LEND, STUCK, Nesting
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, MachineConfig, Parts
from p2pgrid.node.prints import Prints
from p2pgrid.node.relaying import AGAIN as RELAY_AGAIN
from p2pgrid.node.relaying import QUIET as RELAY_QUIET
from p2pgrid.node.relaying import TIMER as RELAY
from p2pgrid.node.relaying import Relays
from p2pgrid.node.replicas import ALONE, ROOM, Replicas
from p2pgrid.node.replicas import TIMER as COPIES
from p2pgrid.node.restoring import Restoring
from p2pgrid.node.rounds import TIMER as INQUIRY
from p2pgrid.node.rounds import Rounds
from p2pgrid.node.thieves import HANDS, SERVE, STEAL, WAKE, Thieves
from p2pgrid.node.working import Working

__all__ = ["Machine", "MachineConfig"]


CLOCK_APART_S = 300.0
"""Further from the grid's clocks than that, this node's own is not believed, nor the grid's: nothing expires here."""
_GIVES_NOTHING = frozenset({e.Stored, e.Listens, e.Reachable, e.WallClock})
"""Events that give workers nothing new to do."""


class Machine(Handler):
    """One node's mind."""

    def __init__(self, config: MachineConfig, rng: random.Random) -> None:
        super().__init__(Parts(config, rng))
        parts = self.parts
        self.rng = rng
        self.fitness = Fitness(parts)
        self.outcomes = Outcomes(parts, self.fitness)
        self.members = Members(parts, self.fitness, self.outcomes)
        self.relays = Relays(parts, self._name_of)
        self.depending = Depending(parts, self.outcomes)
        self.listing = Listing(parts, rng, self._name_of)
        self.listing.has = self.relays.place
        self.listing.wall_s = lambda now: self.wall(now) if self._believes_clocks() else 0.0
        self.nesting = Nesting(parts, self.fitness, self.outcomes)
        self.door = Door(
            parts, self.outcomes, self.depending, self.relays, self.listing, self.nesting,
            lambda *asked: answers.answer(self, *asked), self._on_stop,
        )  # fmt: skip
        self.prints = Prints(parts)
        self.prints.below = self.nesting.logs.joined
        self.door.watched = self.prints.watches_changed
        self.working = Working(parts, self.fitness, self.outcomes, self.members, self.prints, self.nesting, self._feed)
        self.doubling = Doubling(parts, self.fitness, self.members.granting)
        self.naming = self.members.granting.gathering.arriving
        self.thieves = Thieves(parts, self.fitness, self.outcomes, self.members)
        self.neighbours = Neighbours(parts, rng)
        parts.round_trip_s = self.neighbours.round_trip_s
        self.rounds = Rounds(parts, self._name_of)
        self.inquiries = Inquiries(parts, self.door, self.relays, self.listing, self.rounds, self._name_of)
        self.awaiting = Awaiting(parts, self.depending, self.relays, self.inquiries, self.listing)
        self.awaiting.is_somebody_away = self.neighbours.is_somebody_away
        parts.serving = self.relays.serving
        self.listing.is_leaf = self.neighbours.is_leaf
        self.relays.patience_s = self.inquiries.patience_s = self.neighbours.patience_s
        self.restoring = Restoring(parts, self.outcomes, self.door, self.depending)
        self.replicas = Replicas(parts, self.outcomes, self.members, self.restoring, self._candidates)
        self.logs = Logs(parts, self.inquiries, self.replicas.others)
        self.replicas.tell_facts = self.neighbours.tell_facts
        self.replicas.is_somebody_away = self.neighbours.is_somebody_away
        self.replicas.is_gone = self.neighbours.is_gone
        self.draining = Draining(parts, self.members, self.neighbours, self._on_stop)
        self.door.drain = self.draining.request
        self.burying = self.door.burying = Burying(parts, self.rounds.question)
        self.burying.living = lambda: {one.id for one in self._candidates() if one.id != config.node_id}
        self.door.keepers_of = self.replicas.others
        self.inquiries.node = self.draining.node
        self.locating = Locating(
            parts, self.neighbours.is_large, self.neighbours.meet, self._likely, self.replicas.others
        )
        self.locating.place = self.relays.place
        self.locating.in_vain = self._nowhere
        self.relays.seeks = self.inquiries.seeks = self.locating.seeks
        self.neighbours.is_used = self._is_used
        self.relays.has_room = lambda: self.replicas.has_room
        self.relays.is_lost = self.inquiries.is_lost = self.neighbours.is_lost
        self.clients = self.door.clients
        self.wall_offset_s = 0.0
        self.loaded = False
        self._stopped = False
        self._timers: dict[str, Callable[..., None]] = {
            "recall": self._on_recall,
            "beat": self.members.beat,
            "ask": lambda _: None,  # feeding asks again
            "offer": lambda _: self.members.granting.told_again(),
            "lease": self.members.granting.leases_due,
            "debt": self.members.forget,
            "orphan": lambda _, session: self.door.abandon(session),
            "stuck": lambda now, job, lane: self.outcomes.notice(job, lane, now),
            "expire": self._expire,
            "write": lambda _: self.out.extend(self.keeping.write_again()),
            "grace": lambda _: self.out.extend(self.running.kill_all()),
            "linger": self._linger,
            DEPENDS: self.depending.due,
            DOUBLE: self.doubling.due,
            STEAL: self.thieves.late,
            HANDS: self.thieves.hands_due,
            WAKE: self.thieves.wake,
            SERVE: self.thieves.serve,
            NEIGHBOURS: self._on_neighbours,
            CLONED: lambda _: self.neighbours.alone_again(),
            INQUIRY: lambda now, number: self.rounds.due(number, now),
            LISTING: self.listing.tick,
            LATE: lambda now, number: self.inquiries.too_late(number, now),
            AWAIT: self.awaiting.again,
            RELAY: lambda now, client, job: self.relays.due(client, job, now),
            RELAY_AGAIN: lambda now, client, job: self.relays.again(client, job, now),
            RELAY_QUIET: lambda now, client, job: self.relays.quiet(client, job, now),
            COPIES: self.replicas.tick,
            BURY: self.burying.ask,
            GUESTS: self.neighbours.guests_due,
            LOCATING: self.locating.tick,
            DRAINED: self.draining.look,
            ALONE: self.replicas.alone,
            LEND: lambda _: None,  # feeding lends
            STUCK: self.nesting.stuck,
            ROOM: self.replicas.room,
        }
        self._events: dict[type, Callable[[Any, float], None]] = {
            e.Loaded: self._on_loaded,
            e.Stored: self._on_stored,
            e.StoreFailed: self._on_store_failed,
            e.Fetched: self._on_fetched,
            e.ClientJoined: self.door.joined,
            e.ClientSent: self.door.sent,
            e.ClientGone: self.door.gone,
            e.WorkerReady: self.working.ready,
            e.WorkerDone: self.working.done,
            e.WorkerPrinted: self.prints.printed,
            e.WorkerDied: self.working.died,
            e.Named: self.naming.named,
            e.Pulled: self.naming.pulled,
            e.Secured: self.door.secured,
            e.TimerFired: self._on_timer,
            e.PeerUp: self._on_peer_up,
            e.PeerDown: self._on_peer_down,
            e.PeerRoles: self._on_peer_roles,
            e.PeerSent: self._on_peer_sent,
            e.Belongs: self._on_belongs,
            e.Listens: self.neighbours.listens,
            e.Reachable: self.neighbours.reachable,
            e.Leaving: self._on_leaving,
            e.Located: self.locating.located,
            e.Stalled: self._on_stalled,
            e.WallClock: self._on_wall_clock,
            e.Stop: self._on_stop,
        }

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Take in one event; return what the shell shall do, in order."""
        self._take_in(event, now)
        if not self.parts.later:
            return self._end(now)
        urgent = self.relays.addressed(self.out)
        return urgent + self._rest(now)

    def steps(self, event: e.Event, now: float) -> Iterator[list[e.Effect]]:
        """As `handle`, in two parts: first what a worker or a reader waits for, then the book-keeping.

        A shell that performs the first part before it asks for the second takes hashing and journalling out of every
        task's way. It has to ask for both before the next event.
        """
        self._take_in(event, now)
        if self.parts.later:
            yield self.relays.addressed(self.out)
            yield self._rest(now)
        else:
            yield self._end(now)

    def _take_in(self, event: e.Event, now: float) -> None:
        """Do what somebody waits for."""
        parts = self.parts
        assert not parts.later, "the shell left an event half done"
        self.out.clear()
        kind = type(event)
        parts.hungry = kind not in _GIVES_NOTHING
        parts.now = now
        self._events[kind](event, now)
        if self.awaiting.jobs:
            self.awaiting.attend(now)
        if parts.regrouped and self.loaded:
            parts.regrouped = False
            parts.hungry = True
            self.replicas.look(now)
            self.locating.regrouped(now)
            if not self.replicas.has_room:
                self.relays.leave_copies(now)
        elif self.replicas.touched and self.loaded:
            self.replicas.look_again(now)
        if parts.hungry and self.loaded:
            self._feed(now)

    def _rest(self, now: float) -> list[e.Effect]:
        """Do the book-keeping, and return its effects alone."""
        parts = self.parts
        self.out.clear()
        parts.hungry = False
        for rest in parts.later:
            rest()
        parts.later.clear()
        if self.awaiting.jobs:
            self.awaiting.attend(now)
        if parts.hungry:
            self._feed(now)
        return self._end(now)

    def _end(self, now: float) -> list[e.Effect]:
        """Do what every event ends with; return its effects."""
        if self.listing.changed:
            self.listing.settle(now)
        if self.parts.stopping and self.loaded:
            self._settle_stop(now)
        if self.peers and self.replicas.copying.filled:
            self.replicas.flush()
        return self.relays.addressed(self.out)

    def wall(self, now: float) -> float:
        """Return unix time, by the clocks of the grid if there are others."""
        return now + self.wall_offset_s + (self.neighbours.offset_s or 0.0)

    def alive(self) -> int:
        """Return how many members live, this node among them, as far as it knows."""
        seen = self.neighbours.view
        if seen is None or len(seen.members) <= self.config.connected_max:
            return 1 + len(self.peers.keys() - self.parts.suspects)  # whom nobody is connected with is of no use yet
        return sum(known.status == ALIVE for _, known in seen.live())

    def member_rows(self, _now: float) -> list[dict[str, Any]]:
        """Return every member that is known, as the request `members` shows it."""
        return self.neighbours.rows()

    def is_apart(self) -> bool:
        """Whether a live member is not connected, and so cannot ask this node for anything."""
        return self.neighbours.is_apart()

    def progress(self, job: bytes) -> tuple[int, int]:
        """Return the first task of a job that is not over, and the end of those that are known; of no job: zeros."""
        kept = self.keeping.jobs.get(job)
        last = None if kept is None else kept.known.last()
        if kept is None or last is None:
            return 0, 0
        first = next(iter(kept.open_tasks), None)
        return last[1] if first is None else first[0], last[1]

    def _candidates(self) -> list[Candidate]:
        """Return who might keep records, this node among them; nobody while it belongs to no grid."""
        return self.neighbours.candidates()

    def _likely(self, job: bytes) -> list[str]:
        """Return who may have a job by what this node knows: who accepted it, and who should keep it."""
        entry = self.listing.list.jobs.get(job)
        owner = "" if entry is None else entry.owner
        return [owner, *(one.id for one in keepers(job, owner, self._candidates()))]

    def _nowhere(self, job: bytes, now: float) -> None:
        self.relays.in_vain(job, now)
        self.inquiries.in_vain(job)

    def has_tasks_of_ours(self, peer: str) -> bool:
        """Whether a member was given tasks of jobs kept here: results of them may come, late ones as well."""
        return self.leases.was_given(peer)

    def _is_used(self, peer: str) -> bool:
        """Whether something goes on with a member that needs a connection."""
        holds = self.leases.holders.get(peer)
        return (
            self.relays.reads_at(peer)
            or (holds is not None and holds.holds)
            or peer in self.holding.debts
            or any(peer in self.replicas.others(kept) for kept in self.keeping.jobs.values())
        )

    def _name_of(self, peer: str) -> str:
        """Return what people call a member."""
        return next((row["name"] for row in self.neighbours.rows() if row["id"] == peer), peer[-8:])

    # ---- a life begins ----------------------------------------------------------------------------------------------

    def _on_loaded(self, event: e.Loaded, now: float) -> None:
        self.wall_offset_s = event.wall_offset_s
        self.keeping.load(event.rows, event.incarnation, event.objects)
        self.holding.begin(event.incarnation)
        self.thief.begin(event.incarnation)
        self.neighbours.loaded(event)
        self.listing.load(event.rows)
        self.replicas.begin(event.rows, event.incarnation, now)
        self.loaded = True
        for kept in list(self.keeping.jobs.values()):
            if kept.spec.parent is not None:  # of a task of the former life: it starts anew what it needs
                self.out += self.keeping.delete(kept.id, "")
        for kept in self.keeping.jobs.values():
            self.replicas.loaded(kept, now)
            if kept.objects and kept.accepted == self.config.node_id:
                self.outcomes.needs(kept, kept.objects)
            if kept.ended:
                continue
            if kept.refs and kept.accepted == self.config.node_id:
                self.outcomes.needs(kept, kept.refs.values(), inputs=True)
            if not kept.spec.detach and kept.accepted == self.config.node_id:
                self.parts.timer(("orphan", kept.spec.session), now + self.config.orphan_after_s)
        self._expire(now)
        if self.config.embedded:
            self.parts.timer(("linger",), now + 5 * self.config.linger_s)

    # ---- disk -------------------------------------------------------------------------------------------------------

    def _on_stored(self, event: e.Stored, now: float) -> None:
        self.out += self.keeping.stored(event.token)

    def _on_store_failed(self, event: e.StoreFailed, now: float) -> None:
        refused = self.keeping.store_failed(event.token, event.reason)
        self.out += refused.effects
        if self.replicas.no_room(now):
            self.out.append(e.Log("warning", event.reason))
        if self.keeping.must_write_again:
            self.parts.timer_unless_set(("write",), now + self.config.keeping.retry_s)
        for job, lo, hi in refused.inputs:
            self.outcomes.take_out(job, RangeSet([(lo, hi)]))
            self.depending.refused(job, lo, hi)
            self.out += self.running.cancel(job, RangeSet([(lo, hi)]))
        for job in refused.jobs:
            self.outcomes.forget(job)

    def _on_fetched(self, event: e.Fetched, now: float) -> None:
        if self.restoring.fetched(event, now) or self.replicas.fetched(event, now):
            return
        if not self.logs.fetched(event) and not self.depending.fetched(event.token, event.rows):
            self.out += self.keeping.readers.fetched(event.token, event.rows)

    # ---- members ----------------------------------------------------------------------------------------------------

    def _on_peer_up(self, event: e.PeerUp, now: float) -> None:
        self.members.up(event, now)
        self.thieves.up(event.peer)
        self.neighbours.up(event, now)
        self.listing.up(event.peer, now)
        self.relays.up(event.peer, now)
        self.awaiting.up()
        self.inquiries.up(event.peer, now)
        self.replicas.up(event.peer, now)

    def _on_belongs(self, event: e.Belongs, now: float) -> None:
        self.neighbours.belongs(event, now)
        self.listing.belongs(event, now)
        self.locating.belongs(event)

    def _on_peer_roles(self, event: e.PeerRoles, now: float) -> None:
        self.members.roles_changed(event, now)
        self.relays.roles_changed(event.peer)
        self.parts.regrouped = True

    def _on_peer_down(self, event: e.PeerDown, now: float) -> None:
        self.members.down(event, now)
        self.thieves.down(event, now)
        self.prints.down(event.peer)
        self.doubling.gone(event.peer)
        self.neighbours.down(event, now)
        self.rounds.gone(event.peer, now)
        self.relays.down(event.peer, now)
        self.replicas.down(event.peer, now)

    def _on_peer_sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame; a malformed one is refused as a whole, and its sender loses the connection."""
        if event.peer in self.leases.holders:
            self.leases.alive(event.peer, now)
        try:
            if m.P_PING <= event.kind <= m.P_CLOCK_IS:
                self.parts.hungry = False
                self.neighbours.sent(event, now)
                return
            self.neighbours.heard(event.peer, now)
            match event.kind:
                case m.P_ASK:
                    self.inquiries.asked(event.peer, from_peer(event.kind, event.body), now)
                case m.P_ANSWER:
                    self.rounds.answered(event.peer, from_peer(event.kind, event.body), now)
                case m.P_ERROR:
                    self.rounds.refused(event.peer, from_peer(event.kind, event.body), now)
                case kind if m.P_READ <= kind <= m.P_UNREAD:
                    self.relays.sent(event, now)
                case kind if m.P_JOBS <= kind <= m.P_JOBS_RECORDS:
                    self.listing.sent(event, now)
                case m.P_SHOW | m.P_PRINTED:
                    self.prints.sent(event.peer, event.kind, event.body, now)
                case kind if m.P_STEAL <= kind <= m.P_LIFELINE:
                    self.thieves.sent(event, now)
                case kind if m.P_ROWS <= kind <= m.P_RUNS:
                    self.replicas.sent(event, now)
                case _:
                    self.members.sent(event, now)
        except PeerError as error:
            self.out.append(e.Drop(event.peer, f"a malformed frame of type {event.kind}: {error}"))

    # ---- feeding workers, asking and offering -----------------------------------------------------------------------

    def _feed(self, now: float) -> None:
        self.parts.hungry = False
        if self.parts.refusing:
            return
        if self.nesting.waits:
            self.nesting.feed(now)
        fed = self.running.feed(self.pool, self.fitness.eligible, now)
        if fed:
            if self.peers:
                self.replicas.name_running(fed)
            self.out += fed
        if self.nesting.waits:
            self.nesting.look(now)
        if self.peers:
            self.thieves.feed(now)
            self.members.feed(now)

    # ---- time -------------------------------------------------------------------------------------------------------

    def _on_timer(self, event: e.TimerFired, now: float) -> None:
        self.parts.timers.pop(event.key, None)
        name, *rest = event.key
        self._timers[name](now, *rest)

    def _on_recall(self, now: float) -> None:
        self.out += self.running.recall(now)

    def _on_neighbours(self, now: float) -> None:
        self.parts.hungry = False
        self.neighbours.tick(now)

    def _on_leaving(self, event: e.Leaving, now: float) -> None:
        self.members.hand_back()
        self.neighbours.leave(now)

    def _on_stalled(self, event: e.Stalled, now: float) -> None:
        """Our own loop stood still: the silence of others meanwhile was ours."""
        self.neighbours.stalled(event.seconds, now)
        self.members.stalled(event.seconds)
        self.thieves.stalled(event.seconds)
        self.listing.list.stalled(event.seconds)
        for key, at_s in list(self.parts.timers.items()):
            if key[0] in {"orphan", "debt", "linger"}:
                self.parts.timer(key, at_s + event.seconds)

    def _on_wall_clock(self, event: e.WallClock, now: float) -> None:
        self.wall_offset_s = event.offset_s
        self.neighbours.wall_clock(event, now)

    def _expire(self, now: float) -> None:
        self.parts.timer(("expire",), now + 600.0)
        if not self._believes_clocks():
            return  # whoever's clock is wrong, nothing is deleted by it
        self.listing.expire(self.wall(now))
        gone, effects = self.keeping.expired(self.wall(now))
        self.out += effects
        for job in gone:
            self.outcomes.forget(job)

    def _believes_clocks(self) -> bool:
        return abs(self.neighbours.offset_s or 0.0) <= CLOCK_APART_S

    def _linger(self, now: float) -> None:
        """An embedded node ends after its last program and its last detached job."""
        if self.door.has_programs:
            return
        if not any(self.door.outlives(kept) for kept in self.keeping.jobs.values()):
            self._on_stop(e.Stop(0.0), now)
        else:
            self.parts.timer(("linger",), now + self.config.linger_s)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _on_stop(self, event: e.Stop, now: float) -> None:
        if self.parts.stopping:
            return
        self.parts.stopping = True
        self.out += self.running.stop()
        if self.running.busy():
            self.parts.timer(("grace",), now + event.grace_s)

    def _settle_stop(self, now: float) -> None:
        if not self._stopped and not (self.running.busy() or self.naming.busy or self.keeping.unsettled):
            self._stopped = True
            self.members.hand_back()
            self.neighbours.leave(now)
            waiting = [
                answers.hand_over(kept)
                for kept in self.keeping.jobs.values()
                if kept.answers and not kept.ended and kept.spec.parent is None
            ]
            self.out.append(e.Stopped(waiting))
