"""The door of this machine: what local clients send, and what becomes of their jobs when they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import binding, decode_batch
from p2pgrid.core.chains import may, role_names
from p2pgrid.core.errors import (
    GridError,
    NotAuthorized,
    NotFound,
    PeerError,
    QuotaExceeded,
    error_to_wire,
)
from p2pgrid.core.ids import job_name
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_client
from p2pgrid.node import events as e
from p2pgrid.node.burying import Burying, Tomb, read_tombs
from p2pgrid.node.depending import Depending
from p2pgrid.node.kept import ABANDONED, Kept, Promise
from p2pgrid.node.listing import Listing
from p2pgrid.node.nesting import Nesting
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Work
from p2pgrid.node.relaying import Relays
from p2pgrid.node.targets import targets


@dataclass(slots=True)
class Client:
    """A connected client."""

    session: bytes
    program: str
    worker: int | None = None
    """Set: it is the process of a worker, a task of which uses the grid."""


_HELD_BACK = frozenset({m.CODE, m.INPUT, m.CLOSE, m.CANCEL, m.WATCH})
"""Frames about a job that wait while its record is being read, or compared with those of other keepers."""
DAY_S = 86400.0
UNIX_MAX_S = 1e11
"""Far beyond any expiry, and still a date."""


class Door(Handler):
    """All clients of this machine."""

    def __init__(
        self, parts: Parts, outcomes: Outcomes, depending: Depending, relays: Relays, listing: Listing,
        nesting: Nesting,
        answer: Callable[[str, dict[str, Any], float], dict[str, Any]], stop: Callable[[e.Stop, float], None],
    ) -> None:  # fmt: skip
        super().__init__(parts)
        self.outcomes = outcomes
        self.relays = relays
        self.depending = depending
        self.listing = listing
        self.nesting = nesting
        nesting.cancel = lambda kept: self._cancel_spans(kept, None, (), ABANDONED)
        listing.forget = self._forget
        self.burying: Burying
        self.keepers_of: Callable[[Kept], Sequence[str]] = lambda _: ()
        """Returns the other nodes that keep a job."""
        self.answer = answer
        self.stop = stop
        self.clients: dict[int, Client] = {}
        self.held_back: dict[bytes, list[e.ClientSent]] = {}
        """Inputs that came before the functions of their job were read from disk."""
        self.elsewhere: Callable[[e.ClientSent, str, dict[str, Any], float], bool] = lambda *_: False
        """Whether a request is being answered with the help of other nodes."""
        self.watched: Callable[[Kept], None] = lambda _: None
        """Told that somebody began or stopped to watch a job."""
        self._securing: dict[int, tuple[bytes, int, list[e.Row]]] = {}
        """Objects that are being brought to safety for a job, and the client that waits for it."""
        self.drain: Callable[[dict[str, Any], float], dict[str, Any]] = lambda *_: {}
        """Answers the request `drain`."""
        self.logs: Callable[[e.ClientSent, dict[str, Any], float], dict[str, Any] | None] = lambda *_: None
        """Answers what tasks printed, now or later."""
        self._frames: dict[int, Callable[[int, Any, float], None]] = {
            m.OPEN: self._open,
            m.CODE: self._code,
            m.REFS: self._refs,
            m.INPUT: self._input,
            m.CLOSE: self._close,
            m.WATCH: self._watch,
            m.UNWATCH: self._unwatch,
            m.CANCEL: self._cancel,
            m.GOT: self._got,
            m.GOODBYE: lambda *_: None,
            m.WAIT: self.nesting.wait,
            m.WAITED: lambda client, body, _: self.nesting.waited(client, body[0]),
        }

    def joined(self, event: e.ClientJoined, now: float) -> None:
        self.clients[event.client] = Client(event.session, event.program, event.worker)
        self.nesting.joined(event)
        if event.session:
            self.parts.timer(("orphan", event.session), None)
        if event.worker is None:
            self.parts.timer(("linger",), None)
        welcome = {
            "v": 1, "id": self.config.node_id, "name": self.config.name, "grid": self.parts.grid_name,
            "slots": self.parts.grid_slots(), "nodes": 1 + len(self.peers), "version": self.config.version,
            "python": list(self.config.python), "embedded": self.config.embedded, "pid": self.config.pid,
        }  # fmt: skip
        self.out.append(e.Reply(event.client, m.WELCOME, 0, welcome))

    def gone(self, event: e.ClientGone, now: float) -> None:
        client = self.clients.pop(event.client, None)
        self.nesting.gone(event.client)
        left = [kept for kept in self.keeping.jobs.values() if event.client in kept.watches]
        self.keeping.readers.unwatch(event.client)
        self.relays.gone(event.client)
        for kept in left:
            self.watched(kept)
        if client is None:
            return
        if client.session and not any(c.session == client.session for c in self.clients.values()):
            wait = 0.0 if event.goodbye else self.config.orphan_after_s
            if self._orphans(client.session):
                self.parts.timer(("orphan", client.session), now + wait)
        if self.config.embedded and client.worker is None and not self.has_programs:
            self.parts.timer(("linger",), now + self.config.linger_s)

    @property
    def has_programs(self) -> bool:
        """Whether a client is there that is no task: for those an embedded node stays."""
        return any(client.worker is None for client in self.clients.values())

    def _orphans(self, session: bytes) -> list[Kept]:
        ours = (kept for kept in self.keeping.jobs.values() if kept.answers and not kept.ended)
        return [kept for kept in ours if kept.spec.session == session and not kept.spec.detach]

    def abandon(self, session: bytes) -> None:
        """The client of a session is gone for good: what it did not detach is cancelled, unless others wait for it."""
        if any(client.session == session for client in self.clients.values()):
            return
        orphans = self._orphans(session)
        detached = {kept.id: self._detached(kept, self.pool.works.get(kept.id)) for kept in orphans}
        needed = self.depending.needed({kept.id: kept.open_tasks - detached[kept.id] for kept in orphans})
        for kept in orphans:
            if kept.accepted != self.config.node_id:
                # The node that its client spoke to is gone as well: what was acknowledged there runs.
                self.out.append(self.keeping.note(kept, "orphan"))
                if kept.total is None:
                    self.out += self.keeping.close(kept, (kept.known.last() or (0, 0))[1], None)
                self.outcomes.settle(kept)
                continue
            stay = detached[kept.id] | needed.get(kept.id, RangeSet())
            if not stay:
                self._cancel_spans(kept, None, (), ABANDONED)
                continue
            # What stays ends the list; what never came before it is cancelled with the rest.
            count = (kept.known.last() or (0, 0))[1]
            self.out += self.keeping.close(kept, count, None)
            self._cancel_spans(kept, (RangeSet([(0, count)]) - kept.done) - stay, ())

    @staticmethod
    def _detached(kept: Kept, work: Work | None) -> RangeSet:
        """Return the open tasks that outlive their client, each by its own option."""
        if work is None:
            return RangeSet()
        open_tasks = kept.open_tasks
        return RangeSet(
            span for run, lane in work.runs if lane.options.detach for span in open_tasks.within(run.lo, run.hi)
        )

    def outlives(self, kept: Kept) -> bool:
        if kept.ended or not kept.answers:
            return False
        work = self.pool.works.get(kept.id)
        return kept.spec.detach or (work is not None and bool(self._detached(kept, work)))

    def sent(self, event: e.ClientSent, now: float) -> None:
        try:
            body = from_client(event.kind, event.body)
            if event.kind == m.REQUEST:
                self._request(event, body, now)
            elif event.kind in _HELD_BACK and body[0] in self.held_back:
                self.held_back[body[0]].append(event)
            else:
                self._frames[event.kind](event.client, body, now)
        except PeerError as error:
            refusal = {"code": "version-mismatch", "message": f"the node does not understand: {error}",
                       "next": "install the same version on both sides: p2pgrid --version"}  # fmt: skip
            self.out.append(e.Reply(event.client, m.ERROR, event.id, refusal))

    def _kept(self, job: bytes, client: int) -> Kept | None:
        kept = self.keeping.jobs.get(job)
        if kept is None:
            self.out.append(e.Reply(client, m.STATE, 0, [job, "unknown", ""]))
        return kept

    def _open(self, client: int, body: Any, now: float) -> None:
        job, spec = body
        if self.listing.forgotten(job):
            over = NotFound(f"job {job_name(job)} was forgotten", next="submit it again")
            self.out.append(e.Reply(client, m.REFUSED, 0, [job, "spec", 0, dict(error_to_wire(over))]))
            return
        if job not in self.keeping.jobs and (refusal := self._refusal(client, spec)) is not None:
            self.out.append(e.Reply(client, m.REFUSED, 0, [job, "spec", 0, dict(error_to_wire(refusal))]))
            return
        if job not in self.keeping.jobs and len(self.keeping.jobs) >= self.config.keeping.jobs_max:
            full = QuotaExceeded(
                f"this node keeps {len(self.keeping.jobs)} jobs", next="forget some of them: Grid().job(ID).forget()"
            )
            self.out.append(e.Reply(client, m.REFUSED, 0, [job, "spec", 0, dict(error_to_wire(full))]))
            return
        kept, effects = self.keeping.open(job, spec, client)
        self.out += effects
        if kept.spec.parent is not None:
            self.nesting.opened(kept)
        if not kept.ended:
            self.outcomes.work_of(kept)

    def _refusal(self, client: int, spec: bytes) -> GridError | None:
        """Return why this node takes no new job, if it does not."""
        if self.nesting.is_task(client, spec):
            return self.nesting.refusal(client, spec)
        if self.parts.refusing:
            return NotAuthorized(self.parts.refusing, next="stop one of the two and wait three minutes")
        grid, roles = self.parts.grid_name, self.parts.own_roles
        if not roles:
            return NotAuthorized(
                f"this node does not belong to grid {grid} any more",
                next="p2pgrid status says why; p2pgrid leave founds a grid of its own",
            )
        if not may(roles, "submit"):
            return NotAuthorized(
                f"this node may not submit in grid {grid}: its role is {', '.join(role_names(roles))}",
                next=f"at an admin's node: p2pgrid promote {self.config.name} --roles submit",
            )
        return None

    def _code(self, client: int, body: Any, now: float) -> None:
        job, code, union = body
        union = union or self.nesting.tree_of(client, code)
        binding(union)  # a kind of function that this version does not know is refused now
        kept = self._kept(job, client)
        if kept is not None:
            self.out += self.keeping.code(kept, code, union, client)

    def _refs(self, client: int, body: Any, now: float) -> None:
        """Objects that batches to come name: pinned now, and what is detached waits until they are on disk."""
        job, objects = body
        kept = self._kept(job, client)
        if kept is None:
            return
        rows = self.keeping.refs(kept, objects)
        if not kept.ended:
            self.outcomes.needs(kept, objects, inputs=True)
        if kept.ended or not kept.spec.detach:
            self.out.append(self.keeping.store(rows, [e.Reply(client, m.ACK, 0, [job, "refs", 0])])[1])
            return
        token = self.parts.token()
        self._securing[token] = job, client, rows
        self.out.append(e.Secure(token, job, [large.name for large in objects]))

    def secured(self, event: e.Secured, now: float) -> None:
        """What a detached job refers to will outlive this node's memory; or it cannot be accepted."""
        job, client, rows = self._securing.pop(event.token, (b"", 0, []))
        if job not in self.keeping.jobs:
            return
        if event.why_not:
            full = QuotaExceeded(event.why_not, next="make room, or give the node more: p2pgrid node --quota")
            self.out.append(e.Reply(client, m.REFUSED, 0, [job, "refs", 0, dict(error_to_wire(full))]))
            return
        self.out.append(self.keeping.store(rows, [e.Reply(client, m.ACK, 0, [job, "refs", 0])])[1])

    def _input(self, client: int, body: Any, now: float) -> None:
        job, lo, hi, data = body
        kept = self._kept(job, client)
        if kept is None:
            return
        if kept.ended:
            ack = e.Reply(client, m.ACK, 0, [job, "input", lo])
            self.out += self.keeping.when_ended(kept, [ack])
            return
        if lo in kept.record.inputs:
            self.out += self.keeping.input(kept, lo, hi, data, frozenset(), client)
            return
        batch = decode_batch(lo, hi, data)
        if kept.known.within(lo, hi) or (kept.total is not None and hi > kept.total):
            raise PeerError(f"inputs of tasks {lo} to {hi}, which are there already or beyond the end of the job")
        runs = batch.runs
        fns = frozenset((runs[0].fn,)) if len(runs) == 1 else frozenset(run.fn for run in runs)
        if not fns <= kept.record.codes.keys():
            raise PeerError("inputs for a function that was not sent")
        work = self.outcomes.work_of(kept)
        new = self.parts.append(work, batch)
        self.parts.later.append(lambda: self._keep_input(kept, lo, hi, data, fns, client))
        wanted = [(lo, hi)]
        if kept.cancelled:  # before they came
            wanted = kept.cancelled.missing(lo, hi)
            for a, b in kept.cancelled.within(lo, hi):
                self.pool.finished(work, a, b)
        for a, b in wanted:
            self.pool.make_ready(work, a, b)
        if job in self.outcomes.watched:
            self.depending.appeared(job, lo, hi)
        strict = []
        for run in runs:
            if run.deps is not None:
                self.depending.hold(kept, runs)
                break
        for run in runs:
            found = work.locate(run.lo)
            if found is not None and found[1].options.strict:
                strict.append(found[1])
        if new or strict:
            self.outcomes.consider(kept, list(dict.fromkeys([*new, *strict])), now)

    def _keep_input(self, kept: Kept, lo: int, hi: int, data: bytes, fns: frozenset[bytes], client: int) -> None:
        """The tasks left for the workers; now their inputs leave for the disk."""
        self.out += self.keeping.input(kept, lo, hi, data, fns, client)

    def _close(self, client: int, body: Any, now: float) -> None:
        job, count = body
        kept = self._kept(job, client)
        if kept is not None:
            if kept.ended:
                self.out += self.keeping.when_ended(kept, [e.Reply(client, m.ACK, 0, [job, "close", 0])])
                return
            self.out += self.keeping.close(kept, count, client)
            self.outcomes.settle(kept)

    def _watch(self, client: int, body: Any, now: float) -> None:
        job, had, _, show, stable = body
        if self.relays.read_at(job, stable=stable) == self.config.node_id:
            kept = self.keeping.jobs[job]
            self.out += self.keeping.readers.watch(kept, client, had, stable=stable)
            kept.watches[client].show = show
            self.watched(kept)
        else:
            self.relays.watch(client, body[:3], now, stable=stable)

    def _unwatch(self, client: int, body: Any, now: float) -> None:
        self.relays.unwatch(client, body[0])
        kept = self.keeping.jobs.get(body[0])
        if kept is not None:
            self.keeping.readers.unwatch(client, kept)
            self.watched(kept)

    def _got(self, client: int, body: Any, now: float) -> None:
        kept = self.keeping.jobs.get(body[0])
        if kept is not None and client in kept.watches:
            self.out += self.keeping.readers.got(kept, client, *body[1:])
        else:
            self.relays.got(client, *body)

    def _cancel(self, client: int, body: Any, now: float) -> None:
        job, spans = body
        kept = self._kept(job, client)
        if kept is not None:
            self._cancel_spans(kept, spans, [e.Reply(client, m.ACK, 0, [job, "cancel", 0])])

    def stop_tasks(self, kept: Kept, spans: RangeSet | None, reason: str) -> None:
        """Another keeper has cancelled tasks: they are in the record already, now they stop."""
        fresh = kept.known - kept.done if spans is None else spans - kept.done
        kept.cancelled.update(fresh)
        kept.reason = kept.reason or reason
        self._stopped(kept, fresh, whole=spans is None)

    def _stopped(self, kept: Kept, fresh: RangeSet, *, whole: bool) -> None:
        """These tasks will not run any more."""
        self.outcomes.take_out(kept.id, fresh)
        if not whole and fresh:
            # Whoever waits for one of them did not have to be the one who cancelled it.
            self.out += [e.Reply(watcher, m.CANCELLED, 0, [kept.id, fresh.flat()]) for watcher in kept.watches]
        self.out += self.running.cancel(kept.id, None if whole else fresh)
        for peer, held in self.leases.covering(kept.id, fresh):
            self.out.append(e.Send(peer, m.P_DROP, [kept.id, None if whole else held.flat()]))
        for lo, hi in fresh:
            self.leases.finished(kept.id, lo, hi)

    def _cancel_spans(
        self, kept: Kept, spans: RangeSet | None, promises: Sequence[Promise], reason: str = ""
    ) -> RangeSet:
        fresh, effects = self.keeping.cancel(kept, spans, promises, reason)
        self._stopped(kept, fresh, whole=spans is None)
        self.out += effects
        self.outcomes.settle(kept)
        self.outcomes.on_cancelled(kept.id, fresh if spans is None else fresh | spans)
        return fresh

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _request(self, event: e.ClientSent, body: tuple[str, dict[str, Any]], now: float) -> None:
        if not self.elsewhere(event, *body, now):
            self.alone(event, *body, now)

    def alone(self, event: e.ClientSent, verb: str, arguments: dict[str, Any], now: float) -> None:
        """Answer a request by what this node knows."""
        try:
            answer = self._answer(event, verb, arguments, now)
        except GridError as error:
            self.out.append(self.parts.reply(event.client, m.ERROR, event.id, dict(error_to_wire(error))))
            return
        if answer is not None:
            self.out.append(self.parts.reply(event.client, m.ANSWER, event.id, answer))

    def _answer(self, event: e.ClientSent, verb: str, arguments: dict[str, Any], now: float) -> dict[str, Any] | None:
        if verb == "stop":
            self.out.append(e.Reply(event.client, m.ANSWER, event.id, {}))
            grace = arguments.get("grace")
            self.stop(e.Stop(float(grace) if isinstance(grace, int | float) and 0 <= grace < DAY_S else 2.0), now)
            return None
        if verb == "drain":
            return self.drain(arguments, now)
        if verb == "cancel":
            return self._cancel_target(event, str(arguments.get("target", "")))
        if verb == "forget":
            return self._forget_target(event, arguments, now)
        if verb == "keep":
            return self._keep_target(event, str(arguments.get("target", "")), arguments.get("until"))
        if verb == "logs":
            return self.logs(event, arguments, now)
        return self.answer(verb, arguments, now)

    def _cancel_target(self, event: e.ClientSent, target: str) -> dict[str, Any] | None:
        targets(self.keeping, target)  # before anything is promised: it may be unknown here
        answer: dict[str, Any] = {}
        answer["cancelled"] = self.cancel_here(target, [self.parts.reply(event.client, m.ANSWER, event.id, answer)])
        return None

    def cancel_here(self, target: str, promises: Sequence[Promise] = ()) -> int:
        """Cancel tasks of jobs of this node; return how many. Promises are kept once the last is on two keepers."""
        jobs = targets(self.keeping, target)
        count = 0
        for kept, span in jobs:
            last = promises if kept is jobs[-1][0] else ()
            count += self._cancel_spans(kept, None if span is None else RangeSet([span]), last).size
        if promises and not jobs:
            self.out.append(self.keeping.store([], promises)[1])
        return count

    def _forget_target(self, event: e.ClientSent, arguments: dict[str, Any], now: float) -> dict[str, Any] | None:
        if event.client < 0 and "tombs" in arguments:  # forgotten at another node: what is promised is its business
            self._bury(read_tombs(arguments["tombs"]), now)
            answer = {"forgotten": 0}
            self.out.append(self.keeping.store([], [self.parts.reply(event.client, m.ANSWER, event.id, answer)])[1])
            return None
        answer = {"forgotten": self.forget_here(str(arguments.get("target", "")))}
        self.burying.promise(self.parts.reply(event.client, m.ANSWER, event.id, answer), now)
        return None

    def _bury(self, tombs: Sequence[Tomb], now: float) -> None:
        for job, submitted_s, expires_s in tombs:
            if job in self.keeping.jobs:
                self._forget(job)
            elif job not in self.listing.tombs and expires_s > self.listing.wall_s(now):
                self.listing.bury(job, submitted_s, expires_s)

    def here(self, verb: str, target: str) -> int:
        """Cancel or forget jobs of this node; return how many tasks, or jobs."""
        return self.cancel_here(target) if verb == "cancel" else self.forget_here(target)

    def forget_here(self, target: str) -> int:
        """Delete jobs of this node with all that is known of them; return how many."""
        jobs = [kept for kept, _ in targets(self.keeping, target)]
        for kept in jobs:
            self.burying.add(kept.id, kept.spec.submitted_s, kept.expires_s, self.keepers_of(kept))
            self._forget(kept.id)
        return len(jobs)

    def _forget(self, job: bytes) -> None:
        kept = self.keeping.jobs[job]
        if not kept.ended:
            self._cancel_spans(kept, None, (), "forgotten")
        self.out += self.keeping.delete(job, "forgotten")
        self.listing.bury(job, kept.spec.submitted_s, kept.expires_s)

    def _keep_target(self, event: e.ClientSent, target: str, until: object) -> dict[str, Any] | None:
        if not isinstance(until, int | float) or not 0 <= until < UNIX_MAX_S:
            msg = f"until={until!r:.40}: expected unix seconds"
            raise GridError(msg, code="usage", next="for a week more: job.keep_until(time.time() + 7 * 86400)")
        jobs = targets(self.keeping, target)
        if len(jobs) != 1:
            raise NotFound(f"{target!r} names {len(jobs)} jobs, one is wanted", code="ambiguous")
        kept = jobs[0][0]
        answer = {"expires": max(kept.record.expires, float(until))}
        self.out.append(
            self.keeping.keep_until(kept, until, [self.parts.reply(event.client, m.ANSWER, event.id, answer)])
        )
        return None
