"""Replicas: copies of job records with other nodes, so that no node's death stops a job or loses it (DESIGN §7).

Whoever should hold a record follows from the members (`keepers`). One of them *serves* the job: it grants its tasks and
judges what becomes of them. What is synced there goes to the others at once (`copying`); a keeper whose copy may differ
is asked for its digest, then which buckets of rows differ, then which rows, and both give what the other lacks. When
the serving node is gone, the next in rank *listens*: it says to all that it serves from now on, so that claims and
results come to it, compares its copy with the others', and after three seconds at most it makes ready what nobody
claims. A node that serves and hears one do so that stands before it in rank gives way, and tells its holders.

What comes of another keeper's rows stands in `adopting`, what it takes to go on with a job in `succession`, what is
done about a damaged disk in `mending`.

A keeper does not ask whether it may: two that serve at once, on the two sides of a cut, cost work and lose nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import SUBMIT, may
from p2pgrid.core.keeper_shapes import Copy, from_keeper
from p2pgrid.core.record import unpack_spec
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.adopting import Adopting
from p2pgrid.node.copying import Copying, CopyOptions
from p2pgrid.node.keepers import Candidate, keepers
from p2pgrid.node.kept import Job, Kept, Listening, Promise
from p2pgrid.node.members import Members
from p2pgrid.node.mending import Mending
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.restoring import Restoring
from p2pgrid.node.rows import SMALL, Name
from p2pgrid.node.succession import Succession

TIMER = "copies"
ALONE = "alone"
ROOM = "room"
ROOM_S = 30.0
"""For how long a node whose disk was full is asked to keep nothing."""
ROUND_S = 1.0
"""How often a keeper that may differ is asked."""
LISTEN_S = 3.0
"""How long a keeper that became first in rank waits for the others, from the last moment at which one told it more."""
LISTEN_MAX_S = 30.0
"""And in all: what is still to come after that is run again."""
LISTEN_ROUND_S = 0.3
ANNOUNCED_S = 10.0
"""How long it goes on saying that it serves: some may notice late that the former keeper is gone."""
DIGESTS_MAX = 512
"""Copies that are spoken of in one frame."""
ALONE_S = 8.0
"""How long a node that once had other members waits for them after its start, before it counts as alone."""
OTHERS_ROW = (bytes(16), "life", b"others")
"""Where the journal says that there were other members, and which there were last; no job has that id."""
OTHERS_KEPT = 64
"""Of these so many are remembered."""
LOGS_GIVEN = 256
"""Tasks whose logs a new copy gets."""
READ_ROWS = 64
"""Rows read from disk at once for a keeper that lacks them."""


class Replicas(Handler):
    """What a keeper says to keepers."""

    def __init__(
        self, parts: Parts, outcomes: Outcomes, members: Members, restoring: Restoring,
        candidates: Callable[[], list[Candidate]],
    ) -> None:  # fmt: skip
        super().__init__(parts)
        self.outcomes = outcomes
        self.members = members
        self.restoring = restoring
        self._candidates = candidates
        self.copying = Copying(CopyOptions())
        self._groups: dict[Job, list[Candidate]] = {}
        """Who should hold a record, as far as that was asked since members changed."""
        self._former: dict[Job, set[str]] = {}
        """The same when it was worked out last."""
        self._members: list[Candidate] | None = None
        self._had_others = False
        self._others: list[str] = []
        """As the journal has them."""
        self._missed: set[str] = set()
        """Members of the former life that were not heard of in this one yet, while it is young."""
        self._unmet: set[str] = set()
        """The same for as long as it lasts."""
        self.has_room = True
        """Whether the disk takes rows, as far as is known: else a copy here may lack what others have."""
        self.tell_facts: Callable[[dict[str, Any], float], None] = lambda *_: None
        """Says something of this node in its card."""
        self._alone_s = 0.0
        """Until then others are expected that were not heard yet."""
        self._announced: OrderedDict[Job, float] = OrderedDict()
        """Jobs taken over lately, and until when that is said again."""
        self._reading: dict[int, tuple[str, Job]] = {}
        self.touched: dict[Job, None] = {}
        """Jobs to be looked at, though members are what they were."""
        self._tells: set[Job] = set()
        """Jobs that another node serves, and of which something was written here that it is to hear."""
        self._supplies: dict[str, deque[tuple[Job, list[Name]]]] = {}
        """Rows that keepers lack, still to be read."""
        self.keeping.spread = self._spread
        self.keeping.spread_unsynced = self._spread_unsynced
        self.keeping.spread_logs = self._spread_logs
        self.adopting = Adopting(parts, outcomes, restoring)
        self.succession = Succession(parts, outcomes, members, restoring, self._living)
        self.mending = Mending(parts, outcomes, restoring, self._wake_at)
        self.is_gone: Callable[[str], bool] = lambda _: False
        """Whether a member is known to be dead or to have left."""
        self.is_somebody_away: Callable[[], bool] = lambda: False
        """Whether a member that is known is not connected."""
        self.mending.is_somebody_away = lambda: bool(self._unmet) or self.is_somebody_away()
        self.keeping.deleted = self._deleted
        self.keeping.copies_pending = lambda job: job in self.copying.waiting

    def _deleted(self, job: Job) -> None:
        self._groups.pop(job, None)
        self._former.pop(job, None)
        self._tells.discard(job)
        self.touched.pop(job, None)
        self.out += self.copying.forget(job)

    # ---- who keeps what ---------------------------------------------------------------------------------------------

    def group(self, kept: Kept) -> list[Candidate]:
        """Return who should hold a record, in serving rank; nobody else holds that of a job that a task has started."""
        if kept.spec.parent is not None:
            return []
        found = self._groups.get(kept.id)
        if found is None:
            if self._members is None:
                self._members = self._candidates()
            found = self._groups[kept.id] = keepers(kept.id, kept.accepted, self._members)
            ids = {one.id for one in found}
            before = self._former.get(kept.id, ids)
            left = self.config.node_id in before - ids  # who lets go must know what others have, not who served it
            for peer in ids if left else ids - before:  # what was new meanwhile it was not told
                self.copying.unlevel(peer, kept.id)
            self._former[kept.id] = ids
        return found

    def others(self, kept: Kept) -> list[str]:
        """Return the other nodes that should hold a record."""
        return [one.id for one in self.group(kept) if one.id != self.config.node_id]

    def _is_outside(self, kept: Kept) -> bool:
        """Whether others should hold a record, and not this node."""
        return all(one.id != self.config.node_id for one in self.group(kept))

    def _living(self, kept: Kept) -> set[str]:
        """Return who of those lives."""
        return {one.id for one in self.group(kept) if one.lives}

    def first(self, kept: Kept) -> str:
        """Return who should serve a job."""
        group = self.group(kept)
        return group[0].id if group else self.config.node_id

    def look(self, now: float) -> None:
        """Members have changed: see who keeps what, and take over what nobody else serves."""
        members = self._candidates()
        if members != self._members:
            self._groups.clear()
            self._members = members
        me = self.config.node_id
        others = any(one.id != me for one in members)
        waits = now < self._alone_s
        self._remember([one.id for one in members if one.id != me], waits=waits)
        self.keeping.is_shared = others or waits
        self.touched.clear()
        self._look_at(list(self.keeping.jobs.values()), now)

    def look_again(self, now: float) -> None:
        """Members are what they were; see after the jobs of which something has changed, which may be few of many."""
        jobs = [self.keeping.jobs[job] for job in self.touched if job in self.keeping.jobs]
        self.touched.clear()
        self._look_at(jobs, now)

    def _look_at(self, jobs: Sequence[Kept], now: float) -> None:
        me, waits = self.config.node_id, now < self._alone_s
        for kept in jobs:
            if self.first(kept) == me:
                if not kept.serving and kept.listening is None:
                    self._listen(kept, now)
            elif kept.listening is not None and kept.copied:
                kept.listening = None
            if not waits and kept.id in self.copying.waiting and not self.others(kept):
                self.out += self.copying.release_all(kept.id)
        self._wake(jobs, now)

    def _remember(self, others: list[str], *, waits: bool) -> None:
        """Let the next life know whom to expect, so that it does not go on with old jobs before it has met them."""
        self._missed = {one for one in self._missed if one not in others and not self.is_gone(one)}
        self._unmet.difference_update(others)
        kept = sorted({*others, *self._missed})[:OTHERS_KEPT]
        if kept != self._others and (others or not waits):
            self._had_others = True
            self._others = kept
            self.out.append(e.Store(0, [e.Row(*OTHERS_ROW, pack(kept), b"")]))

    def _expects(self, kept: Kept) -> bool:
        """Whether a keeper of the former life may still come that should be heard about a job."""
        missed = [Candidate(one, lives=True, eligible=True) for one in self._missed]
        group = keepers(kept.id, kept.accepted, [*(self._members or ()), *missed]) if missed else ()
        return any(one.id in self._missed for one in group)

    def _wake(self, jobs: Iterable[Kept], now: float) -> None:
        """Be called again while anybody may lack something of these jobs."""
        if any(kept.listening is not None for kept in jobs):
            self._wake_at(now + LISTEN_ROUND_S)
        elif self._announced or self.mending.jobs or any(self._waits(kept) for kept in jobs):
            self._wake_at(now + ROUND_S)
        elif self.copying.is_sending:
            self._wake_at(now + self.copying.options.wait_s)

    def _waits(self, kept: Kept) -> bool:
        """Whether somebody may lack something of a copy, or it need not be here any more."""
        return bool(self._unlevel(kept)) or self._is_surplus(kept)

    def _wake_at(self, at_s: float) -> None:
        if at_s < self.parts.timers.get((TIMER,), float("inf")):
            self.parts.timer((TIMER,), at_s)

    def _unlevel(self, kept: Kept) -> list[str]:
        """Return the connected keepers whose copy may differ, if it is for this node to see to that."""
        me = self.config.node_id
        group = self.group(kept)
        outside = not any(one.id == me for one in group)
        if not (kept.answers or outside or (group and kept.server != group[0].id)):
            return self._untold(kept)  # for the others whoever serves it does
        if kept.id in self.mending.jobs:
            return [one.id for one in group if one.id != me and one.id in self.peers]
        if kept.serving and group and group[0].id != me and group[0].id in self.peers:
            return [group[0].id]  # one of us gives way
        if kept.listening is None:
            return [
                one.id
                for one in group
                if one.id != me and one.id in self.peers and not self.copying.is_known(one.id, kept.id)
            ]
        return [one.id for one in group if one.id in self.peers and one.id not in kept.listening.heard]

    def _untold(self, kept: Kept) -> list[str]:
        """Return who serves a job, if something of it was written here (a seal) that it may not have."""
        if kept.id in self._tells and self.copying.is_known(kept.server, kept.id):
            self._tells.discard(kept.id)
        return [kept.server] if kept.id in self._tells and kept.server in self.peers else []

    # ---- what happens -----------------------------------------------------------------------------------------------

    def begin(self, rows: Sequence[e.Row], incarnation: int, now: float) -> None:
        """A life begins. If there were other members, what is promised waits for them to be heard."""
        self.copying.live(incarnation)
        row = next((row for row in rows if (row.job, row.kind, row.key) == OTHERS_ROW), None)
        if row is not None:
            self._others = unpack(row.meta) if row.meta else []
            self._missed, self._unmet = set(self._others), set(self._others)
            self._had_others = True
            self.keeping.is_shared = True
            self._alone_s = now + ALONE_S
            self.parts.timer((ALONE,), self._alone_s)

    def alone(self, now: float) -> None:
        """Nobody was heard for long enough."""
        self._alone_s = 0.0
        self._missed.clear()
        self.look(now)

    def loaded(self, kept: Kept, now: float) -> None:
        """A job of a former life: if others had copies, they are heard before it goes on."""
        if not kept.copied:
            if not kept.ended:
                self.restoring.begin(kept)
            return
        kept.serving = False
        self._listen(kept, now)

    def up(self, peer: str, now: float) -> None:
        self.copying.up(peer)
        self.keeping.untold(peer)
        self._supplies.pop(peer, None)
        ours = [[job, self.config.node_id] for job in self._announced if job in self.keeping.jobs]
        if ours:
            self.out.append(e.Send(peer, m.P_KEEPER, ours[-DIGESTS_MAX:]))
        for kept in self.keeping.jobs.values():
            if kept.listening is not None:  # the first that is met may have much to tell
                wait_s = LISTEN_S if self._missed else 3 * LISTEN_ROUND_S
                kept.listening.until_s = max(kept.listening.until_s, self.parts.now + wait_s)
        self.parts.regrouped = True

    def down(self, peer: str, now: float) -> None:
        self.copying.down(peer)
        self._supplies.pop(peer, None)
        self._reading = {token: one for token, one in self._reading.items() if one[0] != peer}
        for kept in self.keeping.jobs.values():
            if kept.server == peer:  # it may come back without what it had: then it is asked
                kept.server = ""
        self.parts.regrouped = True

    def no_room(self, now: float) -> bool:
        """Keep nothing of what others accept for a while, for the disk takes nothing more; whether that is new."""
        is_new = (ROOM,) not in self.parts.timers
        if self.has_room and self._had_others:
            self.has_room = False
            self.tell_facts({"keeps": False}, now)
            self.parts.regrouped = True
        self.parts.timer((ROOM,), now + ROOM_S)
        return is_new

    def room(self, now: float) -> None:
        """Try again."""
        self.has_room = True
        self.tell_facts({"keeps": self.config.facts.get("keeps", True)}, now)

    def flush(self) -> None:
        """Let rows leave that may."""
        if not self.copying.filled:
            return
        frames = self.copying.frames(self.parts.now)
        if frames:
            self.out += frames
            self._wake_at(self.parts.now + self.copying.options.wait_s)

    def _spread(self, rows: Sequence[e.Row], promises: list[Promise]) -> list[e.Effect]:
        """Rows are synced here: let the other keepers have them, and promises wait for one of these."""
        jobs = {row.job: self.keeping.jobs[row.job] for row in rows if row.job in self.keeping.jobs}
        targets: dict[str, list[Job]] = {}
        for job, kept in jobs.items():
            for peer in self.others(kept):
                targets.setdefault(peer, []).append(job)
        if not targets and self.parts.now >= self._alone_s:
            return [*promises]
        awaited = [job for job, kept in jobs.items() if self.others(kept)] or jobs
        hold = self.copying.hold(awaited, promises) if promises else None
        # The spec is written first: what comes after it is all there is.
        new = {row.job for row in rows if row.kind == "spec" and row.job in jobs and not jobs[row.job].copied}
        for peer, theirs in targets.items():
            for job in theirs:
                if job in new:
                    self.copying.begin(peer, job)
            level = [job for job in theirs if self.copying.is_level(peer, job)]
            if level:
                self.copying.push(peer, [row for row in rows if row.job in level and row.value is not None], hold)
            if len(level) < len(theirs):
                untold = [jobs[job] for job in theirs if job not in level]
                self.touched.update((kept.id, None) for kept in untold)
                self._tells.update(kept.id for kept in untold if not kept.answers and kept.server == peer)
        for job, kept in jobs.items():
            if any(job in theirs for theirs in targets.values()):
                self._mark_copied(kept)
        return []

    def _spread_unsynced(self, rows: Sequence[e.Row], told: set[tuple[str, Job]]) -> None:
        """Rows are true and the disk here did not take them: let the other keepers have them, each once."""
        for job in {row.job: None for row in rows}:
            kept = self.keeping.jobs.get(job)
            for peer in self.others(kept) if kept is not None else ():
                if peer not in self.peers or (peer, job) in told:
                    continue
                if self.copying.is_level(peer, job):
                    told.add((peer, job))
                    self.copying.push(peer, [row for row in rows if row.job == job and row.value is not None])
                else:
                    self.touched[job] = None

    def _spread_logs(self, rows: Sequence[e.Row]) -> None:
        """Let the next keeper that can take it have what tasks printed (`logs`); no promise rests on it."""
        for job in {row.job: None for row in rows}:
            kept = self.keeping.jobs.get(job)
            if kept is None or not kept.serving:
                continue
            second = self._second(kept)
            if second is not None:
                self.copying.push_light(second, [row for row in rows if row.job == job])

    def _second(self, kept: Kept) -> str | None:
        """Return the keeper that has the logs of a job as well."""
        return next((peer for peer in self.others(kept) if self.copying.is_level(peer, kept.id)), None)

    def tick(self, now: float) -> None:
        """Ask those whose copies may differ; see whether a listener has heard enough."""
        self.copying.overdue(now)
        for peer in list(self._supplies):  # what waited behind a frame that was lost
            self._supply(peer)
        self.mending.look(now)
        asks: dict[str, list[Kept]] = {}
        for kept in list(self.keeping.jobs.values()):
            for peer in self._unlevel(kept):
                asks.setdefault(peer, []).append(kept)
            if kept.listening is not None:
                self._consider(kept, now)
            elif self._is_surplus(kept):
                self._give_up(kept)
        for peer, those in asks.items():
            for at in range(0, len(those), DIGESTS_MAX):
                self._say(peer, those[at : at + DIGESTS_MAX], asks=True)
        self._announce([job for job, until_s in self._announced.items() if until_s > now], self.peers)
        while self._announced and next(iter(self._announced.values())) <= now:
            self._announced.popitem(last=False)
        self._wake(self.keeping.jobs.values(), now)

    def _say(self, peer: str, those: Iterable[Kept], *, asks: bool) -> None:
        copies = [[kept.id, kept.rows.digest(), kept.serving, asks] for kept in those]
        self._when_synced(e.Send(peer, m.P_COPIES, copies))

    def _when_synced(self, frame: e.Send) -> None:
        """Say what is here once all of it is on disk: others make promises by it."""
        self.out.append(self.keeping.store([], [frame], copied=False)[1])

    def _announce(self, jobs: Sequence[Job], peers: Iterable[str]) -> None:
        rows = [[job, self.config.node_id] for job in jobs if job in self.keeping.jobs]
        for peer in sorted(peers):
            for at in range(0, len(rows), DIGESTS_MAX):
                self.out.append(e.Send(peer, m.P_KEEPER, rows[at : at + DIGESTS_MAX]))

    # ---- taking over and giving way ---------------------------------------------------------------------------------

    def _listen(self, kept: Kept, now: float) -> None:
        kept.listening = Listening(now + LISTEN_S, now + LISTEN_MAX_S)
        self.leases.inherited.add(kept.id)
        if kept.accepted == self.config.node_id:
            self.restoring.door.held_back.setdefault(kept.id, [])
        peers = [peer for peer in self.others(kept) if peer in self.peers]
        for peer in peers:
            self._say(peer, [kept], asks=True)
        self._announced[kept.id] = now + ANNOUNCED_S
        self._announced.move_to_end(kept.id)
        self._announce([kept.id], self.peers)
        self._wake_at(now + LISTEN_ROUND_S)

    def _hears(self, kept: Kept) -> None:
        """A keeper is telling what it has of a job: it takes as long as the network and this machine are slow."""
        one = kept.listening
        if one is not None:
            one.until_s = max(one.until_s, min(self.parts.now + LISTEN_S, one.latest_s))

    def _consider(self, kept: Kept, now: float) -> None:
        """Serve a job once all keepers that live were heard, or three seconds have passed.

        A node that has just started is patient for longer: while it has met nobody, for others may have gone on
        meanwhile; and as long as more come that it knew before, for each may have results that no other has.
        """
        assert kept.listening is not None
        living = self._living(kept) - {self.config.node_id}
        waited = now >= kept.listening.until_s and (bool(self.peers) or now >= self._alone_s)
        if waited or (living and living <= kept.listening.heard and not self._expects(kept)):
            self.succession.serve(kept, now)

    def name_running(self, fed: Sequence[e.Effect]) -> None:
        """Tell the other keepers what this node is about to run of jobs that have cost a keeper, a holder or a worker.

        If it vanishes as well, they know which tasks to charge: one that kills its node must not kill them all.
        """
        jobs = {one.job for one in fed if isinstance(one, e.Run)}
        for job in sorted(jobs):
            kept = self.keeping.jobs.get(job)
            if kept is None or not kept.serving or not (kept.taken_over or kept.record.tries):
                continue
            flat = self.running.spans(job).flat()
            self.out += [e.Send(peer, m.P_RUNS, [[job, flat]]) for peer in self.others(kept) if peer in self.peers]

    def _is_surplus(self, kept: Kept) -> bool:
        """Whether others keep a job, and all of those that live have all that is here."""
        group = self.group(kept)
        if not group or kept.listening or not self._is_outside(kept):
            return False
        living = [one.id for one in group if one.lives]
        read = kept.watches or kept.id in self.outcomes.watched
        return bool(living) and not read and all(self.copying.has_all(peer, kept.id) for peer in living)

    def _give_up(self, kept: Kept) -> None:
        self.out += self.keeping.delete(kept.id, "", here=True)

    # ---- what keepers say -------------------------------------------------------------------------------------------

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame about copies. Raises PeerError if it is malformed, before anything has changed."""
        body = from_keeper(event.kind, event.body)
        peer = event.peer
        if not self.parts.may(peer, SUBMIT):  # a keeper speaks for owners of jobs: what it says is done
            self.parts.log_once(peer, "speaks of job records, which its certificate does not allow")
            if event.kind == m.P_ROWS:
                self.out.append(e.Send(peer, m.P_SYNCED, [[], [body[0]]]))
            return
        match event.kind:
            case m.P_ROWS:
                self._rows(peer, *body)
            case m.P_SYNCED:
                self.parts.hungry = False  # copies of others are no work
                self._synced(peer, *body)
            case m.P_COPIES:
                self._copies(peer, body, now)
            case m.P_BUCKETS:
                self._buckets(peer, *body)
            case m.P_TAGS:
                self._compare(peer, *body)
            case m.P_WANTED:
                self._wanted(peer, *body)
            case m.P_KEEPER:
                self._keeper(peer, body, now)
            case m.P_RUNS:
                self.parts.hungry = False
                for job, spans in body:
                    kept = self.keeping.jobs.get(job)
                    if kept is not None and not kept.serving:
                        kept.named[peer] = spans

    def _synced(self, peer: str, done: list[int], refused: list[int]) -> None:
        for number in done:
            self.out += self.copying.synced(peer, number)
        for number in refused:
            self.copying.refused(peer, number)
            self.parts.regrouped = True
        self._supply(peer)

    def _copies(self, peer: str, copies: list[Copy], now: float) -> None:
        same: list[Kept] = []
        for copy in copies:
            kept = self.keeping.jobs.get(copy.job)
            if kept is None:
                if copy.asks and self._has_room_for(copy.job):  # else its rows would come in vain, for ever
                    self.out.append(e.Send(peer, m.P_TAGS, [copy.job, None, b""]))
                continue
            if copy.serves:
                self._serves(kept, peer, now)
            if kept.rows.digest() == copy.digest:
                if peer in self.others(kept):  # a copy that is about to be let go is no second one
                    self.out += self.copying.equal(peer, kept.id)
                    self._mark_copied(kept)
                if kept.listening is not None:
                    kept.listening.heard.add(peer)
                    self._consider(kept, now)
                if copy.asks:
                    same.append(kept)
            elif copy.asks:
                if len(kept.rows) <= SMALL:
                    self._tell_tags(peer, kept, None)
                else:
                    self.out.append(e.Send(peer, m.P_BUCKETS, [kept.id, [list(one) for one in kept.rows.buckets()]]))
        if same:
            self._say(peer, same, asks=False)

    def _serves(self, kept: Kept, peer: str, now: float) -> None:
        """Another node serves a job; if this one does as well, who comes later in rank gives way."""
        if kept.server != peer and not kept.answers and not self.copying.is_known(peer, kept.id):
            self._tells.add(kept.id)  # what the former one has sent here it may not have sent there
            self.touched[kept.id] = None
        self.parts.regrouped |= not self.has_room and kept.server != peer
        kept.server = peer
        if not kept.serving:
            return
        self.leases.inherited.add(kept.id)  # what it granted nobody here knows
        mine, theirs = self._rank(kept, self.config.node_id), self._rank(kept, peer)
        if theirs < mine:
            self._announced.pop(kept.id, None)
            self.succession.give_way(kept, peer, now)
        elif mine < theirs:
            self._say(peer, [kept], asks=False)

    def _rank(self, kept: Kept, node: str) -> int:
        """Return how many come before a node in serving rank; whoever is no keeper comes last."""
        group = self.group(kept)
        return next((at for at, one in enumerate(group) if one.id == node), len(group))

    def _buckets(self, peer: str, job: Job, theirs: list[tuple[int, bytes]]) -> None:
        kept = self.keeping.jobs.get(job)
        differing = [] if kept is None else kept.rows.differing(theirs)
        if kept is not None and differing:
            self._hears(kept)
            self._tell_tags(peer, kept, differing)

    def _tell_tags(self, peer: str, kept: Kept, buckets: list[int] | None) -> None:
        """Say what is here: the other gives what is missing, and asks for what it lacks."""
        self.copying.doubt(peer, kept.id)  # what it lacks it asks for; what is new from now on it gets
        self._when_synced(e.Send(peer, m.P_TAGS, [kept.id, buckets, kept.rows.tags(buckets)]))

    def _may_have(self, peer: str, kept: Kept) -> bool:
        """Whether a member is to have the record of a job: as its keeper, or because it may read anyway."""
        return peer in self.others(kept) or may(self.parts.roles.get(peer, 0), "read")

    def _compare(self, peer: str, job: Job, buckets: list[int] | None, tags: list[bytes]) -> None:
        kept = self.keeping.jobs.get(job)
        if kept is None or not self._may_have(peer, kept):
            return
        lacks = kept.rows.lacks(tags)
        if lacks:
            self._hears(kept)
            self.out.append(e.Send(peer, m.P_WANTED, [job, b"".join(lacks)]))
        self.copying.compared(peer, job, counts=peer in self.others(kept))
        logs = self._logs_for(peer, kept) if not tags else []  # a copy that begins: nobody sent it any before
        self._give(peer, job, kept.rows.besides(buckets, tags) + logs)
        self.out += self.copying.settle(peer, job)

    def _logs_for(self, peer: str, kept: Kept) -> list[Name]:
        """Return the logs that a member gets which begins a copy, the last ones, if it is who shall have them."""
        if not kept.serving or self._second(kept) != peer:
            return []
        newest = (index for lo, hi in reversed(list(kept.logs)) for index in range(hi - 1, lo - 1, -1))
        return [("log", index.to_bytes(8, "big")) for index in islice(newest, LOGS_GIVEN)]

    def _wanted(self, peer: str, job: Job, tags: list[bytes]) -> None:
        kept = self.keeping.jobs.get(job)
        if kept is not None and self._may_have(peer, kept):
            self._give(peer, job, kept.rows.named(tags))

    def _give(self, peer: str, job: Job, names: list[Name]) -> None:
        """Let a member have rows, which are read from disk a few at a time; it is level when the last of them is there.

        The spec comes first: without it nothing can be kept.
        """
        names.sort(key=lambda name: (name[0] != "spec", name[0] != "code", name[0] == "state"))
        lots = [names[at : at + READ_ROWS] for at in range(0, len(names), READ_ROWS)]
        queue = self._supplies.setdefault(peer, deque())
        for lot in lots:
            self.copying.catch_up(peer, job)
            queue.append((job, lot))
        self._supply(peer)

    def _supply(self, peer: str) -> None:
        """Read the next rows for a member, unless some are being read or under way."""
        queue = self._supplies.get(peer)
        if not queue or any(one[0] == peer for one in self._reading.values()) or self.copying.is_busy(peer):
            return
        job, names = queue.popleft()
        if not queue:
            del self._supplies[peer]
        token = self.parts.token()
        self._reading[token] = (peer, job)
        self.out.append(e.Fetch(token, [(job, kind, key) for kind, key in names]))

    def fetched(self, event: e.Fetched, now: float) -> bool:
        """Rows for a keeper were read from disk; False: they were not asked for here."""
        found = self._reading.pop(event.token, None)
        if found is None:
            return False
        peer, job = found
        rows = [row for row in event.rows if row.value is not None]
        if rows:
            self.copying.push(peer, rows, None, job)
        else:
            self.out += self.copying.caught_up(peer, job)
        self._supply(peer)
        return True

    # ---- rows of others ---------------------------------------------------------------------------------------------

    def _rows(self, peer: str, number: int, rows: list[tuple[bytes, str, bytes, bytes, bytes]]) -> None:
        lots: dict[Job, list[e.Row]] = {}
        for row in rows:
            lots.setdefault(row[0], []).append(e.Row(*row))
        fresh: list[e.Row] = []
        logs: list[e.Row] = []
        opened = {}
        then: list[Callable[[], None]] = []
        for job, those in lots.items():
            kept = self.keeping.jobs.get(job) or self._opened(peer, job, those)
            if kept is not None:
                opened[job] = kept
                fresh += self.adopting.merge(kept, those, then)
                logs += self.keeping.logs_of(kept, those)
        self.parts.hungry = any(kept.serving for kept in opened.values())  # else it is no work of this node
        whole = len(opened) == len(lots)
        promise = e.Send(peer, m.P_SYNCED, [[number], []] if whole else [[], [number]])
        self.out.append(self.keeping.store(fresh + logs, [promise], copied=False)[1])
        told = {row.job for row in fresh}
        for job, kept in opened.items():
            for watch in kept.watches.values() if job in told else ():
                watch.behind = True  # it has these results before it hears that the job has ended by them
        for draw in then:  # now that all of it is on its way to the disk, from where it may be read
            draw()
        for job, kept in opened.items():
            self._mark_copied(kept)
            if job in told:
                self._hears(kept)
                self._behind(kept, peer)
            for watch in list(kept.watches.values()) if job in told else ():
                self.out += self.keeping.readers.catch_up(kept, watch)

    def _behind(self, kept: Kept, peer: str) -> None:
        """Rows came from a member: whether others have them is not known."""
        if kept.answers or self._is_outside(kept):
            self.copying.behind(kept.id, peer)
            self.touched[kept.id] = None
            return
        for other in self.others(kept):
            if other != peer:
                self.copying.unlevel(other, kept.id)
        if kept.server != peer:  # who sent them does not serve any more, or never did: this node tells who does
            self._tells.add(kept.id)
            self.touched[kept.id] = None

    def _has_room_for(self, job: Job) -> bool:
        """Whether a copy of a job that is not kept here may begin."""
        return len(self.keeping.jobs) < self.config.keeping.jobs_max and not self.restoring.door.listing.forgotten(job)

    def _opened(self, peer: str, job: Job, rows: Sequence[e.Row]) -> Kept | None:
        """Begin a copy, if its spec is there."""
        spec = next((row for row in rows if row.kind == "spec"), None)
        if spec is None or not self._has_room_for(job):
            return None
        kept = self.keeping.begin(job, unpack_spec(spec.meta), spec.meta, serving=False)
        kept.server = kept.accepted if peer == kept.accepted else ""  # it may know nothing of it: then it is asked
        kept.synced.add(("spec", b""))
        self.keeping.changed(kept)
        self.touched[job] = None
        return kept

    def _mark_copied(self, kept: Kept) -> None:
        if not kept.copied:
            kept.copied = True
            self.out.append(e.Store(0, [e.Row(kept.id, "copied", b"", b"", b"")]))

    # ---- as a holder ------------------------------------------------------------------------------------------------

    def _keeper(self, peer: str, jobs: list[tuple[Job, str]], now: float) -> None:
        """Another node serves jobs from now on: what is held of them is held for that one."""
        told = set()
        for job, keeper in jobs:
            kept = self.keeping.jobs.get(job)
            if kept is not None and keeper == peer:
                self._serves(kept, peer, now)
            if kept is not None and kept.answers:
                continue
            work = self.pool.works.get(job)
            if work is None or work.keeper in (None, keeper) or keeper == self.config.node_id:
                continue
            old = str(work.keeper)
            redirected = peer == old
            orphaned = peer == keeper and (old not in self.peers or old in self.parts.suspects)
            outranks = kept is not None and self._rank(kept, keeper) < self._rank(kept, old)
            if not (redirected or orphaned or outranks):
                continue
            self.holding.move(job, old, keeper)
            self.pool.convert(work, (keeper.encode(), job), keeper)
            told.add(keeper)
        for keeper in sorted(told):
            if keeper in self.peers:
                self.holding.back(keeper)
                self.out += self.members.claim(keeper)
                self.parts.timer(("beat",), now)
            else:
                self.holding.gone(keeper)
