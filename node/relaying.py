"""Relaying: readers at one node of jobs at another. Results go to them as they come, the way the question came.

*A reader here* of a job that another node serves is a `Relay`: it asks that node to let the results flow, and passes on
to its client what comes, frame by frame as the client would get it there. When the connection ends, or another node is
to serve from now on, it asks again with what the client has had by then; so each result is delivered once. While nobody
who has the job can be reached it waits and looks for one, for as long as its client is patient.

*A reader elsewhere* of a job here has a number below zero among the readers of the job (`reading`): it gets what it
misses in windows of its own, as any. What is said to such a number leaves as frames for its node (`addressed`).

Rule: who serves a job is asked of `Parts.serving` and of nobody else. Nobody is asked twice in a row for want of an
answer: it comes, the connection ends, or the time is over. A reader to whom nothing came for half a minute asks anew,
less and less often: something may have been lost on the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import may
from p2pgrid.core.errors import GridError, NotAuthorized, QuotaExceeded, error_to_wire
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import outcome_bytes
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_peer
from p2pgrid.node import events as e
from p2pgrid.node.kept import Kept
from p2pgrid.node.parts import Handler, Parts

TIMER = "relay"
AGAIN, QUIET = "relay again", "relay quiet"
AGAIN_S = 1.0
"""How often those who do not have what is looked for are asked again: a keeper may have it since."""
QUIET_S, QUIET_MAX_S = 30.0, 960.0
"""After which a job is read anew of which nothing came; twice as long each time."""
SILENT_S = 60.0
"""How long somebody who is connected and does not answer is waited for, whatever patience the reader has."""
WINDOW_BYTES = 8 << 20
"""Results on their way to a reader at another node, not yet taken in by it."""
READERS_MAX = 4096
"""Of other nodes, here; and of a single one the eighth part."""
AHEAD_MAX = 1 << 16
"""No frame has a number so much above how many came: what says otherwise is not taken in."""
PLACES_MAX = 10_000
"""Jobs of which this node remembers who said to have them."""
FIRST_READER = -(1 << 40)
"""Below it, downwards, are the numbers of readers elsewhere; above it those of `Parts.askers`."""

Key = tuple[int, bytes]


@dataclass(slots=True)
class Relay:
    """A client of this machine that reads a job which is served elsewhere."""

    client: int
    job: bytes
    had: RangeSet
    """What the client has, or was sent."""
    patience_s: float
    stable: bool = False
    since_s: float = 0.0
    """Since when somebody who has it is looked for."""
    peer: str = ""
    """Who serves it, while anybody does."""
    number: int = 0
    came: RangeSet = field(default_factory=RangeSet)
    """The numbers of the frames of this subscription that came."""
    heard_s: float = 0.0
    """When something came last, or it was asked for."""
    quiet_s: float = QUIET_S
    wanted: int | None = None
    """The task for whose result the client waits."""
    end: tuple[int, list[Any]] | None = None
    """The number of the last frame and what it says: large ones before it may come after it."""
    asked: set[str] = field(default_factory=set)
    """Who was asked whether it has the job since it is looked for."""
    without: set[str] = field(default_factory=set)
    """Of those, who does not."""


@dataclass(slots=True)
class Subscription:
    """A reader at another node of a job here."""

    peer: str
    rid: tuple[int, int]
    job: bytes
    sent: int = 0


class Relays(Handler):
    """Both sides of reading across nodes."""

    def __init__(self, parts: Parts, names: Callable[[str], str]) -> None:
        super().__init__(parts)
        self.names = names
        self.ask: Callable[[str, bytes, float], None] = lambda *_: None
        """Asks a member whether it has a job; `has` or `has_not` follows."""
        self.patience_s: Callable[[float, float], float] = lambda *_: 0.0
        """How long it makes sense to wait for members that are not here (`Neighbours.patience_s`)."""
        self.is_lost: Callable[[str, float], bool] = lambda *_: False
        """Whether a member has been gone for long (`Neighbours.is_lost`)."""
        self.seeks: Callable[[bytes, float], bool] = lambda *_: False
        """Whether a job may be with members that are not connected, and is being looked for there (`locating`)."""
        self.has_room: Callable[[], bool] = lambda: True
        """Whether the disk here takes what others have (`Replicas`)."""
        self._relays: dict[Key, Relay] = {}
        self._numbers: dict[int, Relay] = {}
        self._number = 0
        self._places: OrderedDict[bytes, set[str]] = OrderedDict()
        self._readers: dict[int, Subscription] = {}
        self._reader_of: dict[tuple[str, tuple[int, int]], int] = {}
        self._last_reader = FIRST_READER
        self._frames: dict[int, Callable[[str, Any, float], None]] = {
            m.P_READ: self._read,
            m.P_TAKEN: self._taken,
            m.P_UNREAD: self._unread,
            m.P_TOLD: self._told,
        }

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame of a member. Raises PeerError if it is malformed."""
        self._frames[event.kind](event.peer, from_peer(event.kind, event.body), now)

    @property
    def is_busy(self) -> bool:
        """Whether anybody reads elsewhere, or here for elsewhere."""
        return bool(self._relays or self._numbers or self._readers or self._reader_of)

    # ---- who has a job ----------------------------------------------------------------------------------------------

    def place(self, job: bytes, peer: str) -> None:
        """A member says that it has a job."""
        self._places.setdefault(job, set()).add(peer)
        self._places.move_to_end(job)
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)

    def serving(self, job: bytes) -> str | None:
        """Return who serves a job: this node, a connected member, or None if none is known to have it."""
        if job in self.keeping.jobs:
            return self.config.node_id
        return next((peer for peer in sorted(self._places.get(job, ())) if peer in self.peers), None)

    def read_at(self, job: bytes, *, stable: bool) -> str | None:
        """Return where a job is read; what is to be stable where it is served, for there seals do not meet rivals.

        A copy on a full disk may lack what others have: then it is read where it is served as well.
        """
        kept = self.keeping.jobs.get(job)
        if kept is not None and (stable or not self.has_room()) and self._is_served_elsewhere(kept):
            return kept.server
        return self.parts.serving(job)

    def _is_served_elsewhere(self, kept: Kept) -> bool:
        return not kept.answers and kept.server in self.peers

    # ---- readers here -----------------------------------------------------------------------------------------------

    def watch(self, client: int, body: tuple[bytes, RangeSet, float], now: float, *, stable: bool = False) -> None:
        """Let a client read a job from now on; it has the results `had` already."""
        job, had, patience_s = body
        self.unwatch(client, job)
        relay = self._relays[client, job] = Relay(client, job, had, patience_s, stable)
        self._begin(relay, now)

    def unwatch(self, client: int, job: bytes) -> None:
        """A client reads a job no more."""
        relay = self._relays.pop((client, job), None)
        if relay is not None:
            self._leave(relay)
            self._look_no_more(relay)
            self.parts.timer((QUIET, client, job), None)

    def gone(self, client: int) -> None:
        """A client left."""
        for _, job in [key for key in self._relays if key[0] == client]:
            self.unwatch(client, job)

    def got(self, client: int, job: bytes, size: int, wanted: int | None = None) -> None:
        """A client took that many bytes in, and may wait for one result."""
        relay = self._relays.get((client, job))
        if relay is not None:
            relay.wanted = wanted
            self._credit(relay, size)

    def _credit(self, relay: Relay, size: int) -> None:
        if relay.peer:
            self.out.append(e.Send(relay.peer, m.P_TAKEN, [self._rid(relay), size, relay.wanted]))

    def _rid(self, relay: Relay) -> list[int]:
        return [self.keeping.incarnation, relay.number]

    def _begin(self, relay: Relay, now: float) -> None:
        """Read where the job is served now, or look for somebody who has it."""
        peer = self.read_at(relay.job, stable=relay.stable)
        if peer == self.config.node_id:
            self.unwatch(relay.client, relay.job)
            kept = self.keeping.jobs[relay.job]
            self.out += self.keeping.readers.watch(kept, relay.client, relay.had, stable=relay.stable)
        elif peer is None or peer in relay.without:
            self._look_for(relay, now)
        else:
            self._look_no_more(relay)
            relay.asked.clear()
            relay.without.clear()
            self._number += 1
            relay.peer, relay.number, relay.came, relay.end = peer, self._number, RangeSet(), None
            self._numbers[relay.number] = relay
            relay.heard_s = now
            self.parts.timer((QUIET, relay.client, relay.job), now + relay.quiet_s)
            more = [True] if relay.stable else []
            self.out.append(e.Send(peer, m.P_READ, [self._rid(relay), relay.job, relay.had.flat(), *more]))
            if relay.wanted is not None:
                self._credit(relay, 0)

    def _leave(self, relay: Relay) -> None:
        """Read there no more."""
        self._numbers.pop(relay.number, None)
        if relay.peer in self.peers:
            self.out.append(e.Send(relay.peer, m.P_UNREAD, [self._rid(relay)]))
        relay.peer = ""

    def _look_for(self, relay: Relay, now: float) -> None:
        """Ask everybody who is there and was not asked yet; the others are asked when they come."""
        if (TIMER, relay.client, relay.job) not in self.parts.timers:
            relay.since_s = now
        some = self.peers or relay.job in self._places
        wait_s = relay.patience_s if some else self.patience_s(relay.patience_s, now)
        self.parts.timer_unless_set((TIMER, relay.client, relay.job), now + wait_s)
        self.parts.timer_unless_set((AGAIN, relay.client, relay.job), now + AGAIN_S)
        for peer in sorted(self.peers.keys() - relay.asked):
            relay.asked.add(peer)
            self.ask(peer, relay.job, now)
        self._give_up_if_nobody_has_it(relay, now)

    def _look_no_more(self, relay: Relay) -> None:
        for timer in (TIMER, AGAIN):
            self.parts.timer((timer, relay.client, relay.job), None)

    def again(self, client: int, job: bytes, now: float) -> None:
        """Whoever had it is gone; a keeper that did not have it a moment ago may have it now."""
        relay = self._relays.get((client, job))
        if relay is not None and not relay.peer:
            relay.asked -= relay.without
            self._look_for(relay, now)

    def quiet(self, client: int, job: bytes, now: float) -> None:
        """On the timer: of a job that is read nothing may have come for long."""
        relay = self._relays.get((client, job))
        if relay is None or not relay.peer:
            return  # it is looked for, and read anew then
        if now < relay.heard_s + relay.quiet_s:
            self.parts.timer((QUIET, client, job), relay.heard_s + relay.quiet_s)
            return
        relay.quiet_s = min(2 * relay.quiet_s, QUIET_MAX_S)
        self._leave(relay)
        self._begin(relay, now)

    def _give_up_if_nobody_has_it(self, relay: Relay, now: float) -> None:
        """Whoever could have it says no, and nobody else is to come: no need to wait for the end of all patience."""
        places = self._places.get(relay.job, ())
        hasty = relay.patience_s <= m.WATCH_S  # who has more than that waits for a dead node to come back
        away = any(peer not in relay.without and not (hasty and self.is_lost(peer, now)) for peer in places)
        if not self.peers.keys() <= relay.without:
            return
        away = self.seeks(relay.job, now) or away
        if not away and not self.patience_s(relay.patience_s, now):
            self.due(relay.client, relay.job, now)

    def in_vain(self, job: bytes, now: float) -> None:
        """It was looked for elsewhere, and nobody is to be asked any more."""
        for relay in self._of(job):
            if not relay.peer:
                self._give_up_if_nobody_has_it(relay, now)

    def reads_at(self, peer: str) -> bool:
        """Whether somebody here reads at a member, or it reads here."""
        return any(relay.peer == peer for relay in self._relays.values()) or any(
            one.peer == peer for one in self._readers.values()
        )

    def has(self, peer: str, job: bytes, now: float) -> None:
        """A member has a job."""
        self.place(job, peer)
        for relay in self._of(job):
            if not relay.peer:
                relay.without.discard(peer)
                self._begin(relay, now)

    def has_not(self, peer: str, job: bytes, now: float) -> None:
        """A member does not have a job, or may not say so."""
        if peer in self._places.get(job, ()):
            self._places[job].discard(peer)
        for relay in self._of(job):
            if not relay.peer and peer in relay.asked:
                relay.without.add(peer)
                self._give_up_if_nobody_has_it(relay, now)

    def is_silent(self, peer: str, job: bytes) -> None:
        """A member did not say in time whether it has a job: it is asked again."""
        for relay in self._of(job):
            if not relay.peer:
                relay.asked.discard(peer)

    def _of(self, job: bytes) -> list[Relay]:
        return [relay for relay in self._relays.values() if relay.job == job]

    def due(self, client: int, job: bytes, now: float) -> None:
        """Nobody who has the job was found, and the client has waited long enough."""
        relay = self._relays.get((client, job))
        if relay is None:
            return
        if self.peers.keys() - relay.without and now < relay.since_s + SILENT_S and relay.patience_s:
            self.parts.timer((TIMER, client, job), now + AGAIN_S)
            return
        self.unwatch(client, job)
        last = [self.names(peer) for peer in sorted(self._places.get(job, ()))]
        why = f"{', '.join(last)}, which had it, cannot be reached" if last else ""
        self.out.append(e.Reply(client, m.STATE, 0, [job, "unknown", why]))

    def reconsider(self, now: float) -> None:
        """Read where jobs are served now: a member came or went, or the rank of one has changed."""
        for relay in list(self._relays.values()):
            if not relay.peer or self.read_at(relay.job, stable=relay.stable) not in (relay.peer, None):
                if relay.peer:
                    self._leave(relay)
                self._begin(relay, now)

    def leave_copies(self, now: float) -> None:
        """The disk here is full: readers of copies that may lack something read where the jobs are served."""
        for kept in list(self.keeping.jobs.values()):
            if not kept.watches or not self._is_served_elsewhere(kept):
                continue
            for watch in [one for one in kept.watches.values() if not one.ended]:
                reader = self._readers.get(watch.client)
                if reader is None:
                    self.keeping.readers.unwatch(watch.client, kept)
                    self.watch(watch.client, (kept.id, watch.sent, self.config.away_s), now, stable=watch.stable)
                else:
                    self.out.append(e.Reply(watch.client, m.STATE, 0, [kept.id, "unknown", ""]))

    def up(self, peer: str, now: float) -> None:
        """A member is there (again): it may have what somebody here looks for."""
        for relay in self._relays.values():
            relay.asked.discard(peer)
            relay.without.discard(peer)
        self.reconsider(now)

    def down(self, peer: str, now: float) -> None:
        """A member is not there: what it served is read elsewhere, what it read here it will ask for again."""
        for reader in [number for number, one in self._readers.items() if one.peer == peer]:
            self._drop(reader)
        for relay in self._relays.values():
            if relay.peer == peer:
                self._leave(relay)
        self.reconsider(now)

    def _told(self, peer: str, body: Any, now: float) -> None:
        rid, number, kind, told = body
        relay = self._numbers.get(rid[1])
        if relay is None or rid[0] != self.keeping.incarnation or relay.peer != peer or told[0] != relay.job:
            return  # it reads elsewhere by now, or not at all
        if number > relay.came.size + AHEAD_MAX:
            return
        relay.came.add(number, number + 1)
        relay.heard_s = now
        if kind == m.RESULT:
            self._pass_on(relay, told[1])
        elif kind in (m.STATE, m.REFUSED):
            relay.end = number, [kind, told]
        else:
            self.out.append(e.Reply(relay.client, kind, 0, told))
        if relay.end is None or relay.came.missing(1, relay.end[0] + 1):
            return
        kind, told = relay.end[1]
        if (
            kind == m.STATE and told[1] == "unknown" and not told[2]
        ):  # with a reason it is over, without it was never there
            self._leave(relay)
            relay.asked.add(peer)
            self.has_not(peer, relay.job, now)
            if (relay.client, relay.job) in self._relays:
                self._begin(relay, now)
            return
        relay.peer = ""  # it knows that this was all
        self._numbers.pop(relay.number, None)
        self.unwatch(relay.client, relay.job)
        self.out.append(e.Reply(relay.client, kind, 0, told))

    def _pass_on(self, relay: Relay, entries: list[list[Any]]) -> None:
        """Give a client results, each once."""
        fresh = [entry for entry in entries if relay.had.missing(entry[0], entry[1])]
        for entry in fresh:
            relay.had.add(entry[0], entry[1])
        stale = sum(outcome_bytes(entry[2], entry[3]) for entry in entries) - sum(
            outcome_bytes(entry[2], entry[3]) for entry in fresh
        )
        if stale:
            self._credit(relay, stale)
        if fresh:
            self.out.append(e.Reply(relay.client, m.RESULT, 0, [relay.job, fresh]))

    # ---- readers elsewhere ------------------------------------------------------------------------------------------

    def _read(self, peer: str, body: Any, now: float) -> None:
        rid, job, had, stable = body
        kept = self.keeping.jobs.get(job)
        of_peer = sum(one.peer == peer for one in self._readers.values())
        refusal: GridError | None = None
        if not may(self.parts.roles.get(peer, 0), "read"):
            refusal = NotAuthorized(f"the role of {self.names(peer)} does not allow reading {job_name(job)}")
        elif len(self._readers) >= READERS_MAX or of_peer >= READERS_MAX // 8:
            busy = f"{self.names(self.config.node_id)} has as many readers as it can"
            refusal = QuotaExceeded(busy, next="read fewer jobs at a time")
        if refusal is not None:
            told = [job, "watch", 0, dict(error_to_wire(refusal))]
            self.out.append(e.Send(peer, m.P_TOLD, [list(rid), 1, m.REFUSED, told]))
        elif kept is None or not (self.has_room() or kept.answers):
            self.out.append(e.Send(peer, m.P_TOLD, [list(rid), 1, m.STATE, [job, "unknown", ""]]))
        elif (peer, rid) not in self._reader_of:
            self._last_reader -= 1
            reader = self._reader_of[peer, rid] = self._last_reader
            self._readers[reader] = Subscription(peer, rid, job)
            self.out += self.keeping.readers.watch(kept, reader, had, WINDOW_BYTES, stable=stable)

    def _taken(self, peer: str, body: Any, now: float) -> None:
        rid, size, wanted = body
        reader = self._reader_of.get((peer, rid))
        kept = self.keeping.jobs.get(self._readers[reader].job) if reader is not None else None
        if reader is not None and kept is not None:
            self.out += self.keeping.readers.got(kept, reader, size, wanted)

    def _unread(self, peer: str, body: Any, now: float) -> None:
        reader = self._reader_of.get((peer, body[0]))
        if reader is not None:
            self._drop(reader)

    def _drop(self, reader: int) -> None:
        one = self._readers.pop(reader)
        del self._reader_of[one.peer, one.rid]
        kept = self.keeping.jobs.get(one.job)
        if kept is not None:
            self.keeping.readers.unwatch(reader, kept)

    def roles_changed(self, peer: str) -> None:
        """Whoever may not read any more is told so."""
        if may(self.parts.roles.get(peer, 0), "read"):
            return
        why = NotAuthorized(f"the role of {self.names(peer)} does not allow reading any more")
        for reader in [number for number, one in self._readers.items() if one.peer == peer]:
            told = [self._readers[reader].job, "watch", 0, dict(error_to_wire(why))]
            self.out.append(e.Reply(reader, m.REFUSED, 0, told))

    def addressed(self, effects: Iterable[e.Effect]) -> list[e.Effect]:
        """Return effects with what is said to readers elsewhere as frames for their nodes."""
        if not self._readers:
            return list(effects)
        out: list[e.Effect] = []
        for effect in effects:
            if not isinstance(effect, e.Reply) or effect.client >= FIRST_READER:
                out.append(effect)
                continue
            one = self._readers.get(effect.client)
            if one is None:
                continue  # its node is gone
            one.sent += 1
            out.append(e.Send(one.peer, m.P_TOLD, [list(one.rid), one.sent, effect.kind, effect.body]))
            if effect.kind in (m.STATE, m.REFUSED):
                self._drop(effect.client)
        return out
