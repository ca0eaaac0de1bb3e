"""The machine: everything a node decides, in one place that touches nothing. `handle(event, now) -> effects`.

It composes policies that do not know each other: `pool` (what is ready, in which order), `running` (workers of this
node), `keeping` (records, promises, readers), `leases` (what others hold of ours), `holding` (what we hold of theirs).
The shells that drive it are the daemon and the heap driver of the tests.

Rules: time comes in as `now` (monotonic seconds), chance as a `random.Random`. No promise leaves before `Stored`.
A malformed frame costs its sender the connection (PeerError); an AssertionError here is our bug and ends the node.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, InputBatch, decode_batch, encode_batch, python_minor
from p2pgrid.core.errors import (
    GridError,
    MissingModule,
    ObjectLost,
    PeerError,
    QuotaExceeded,
    TaskMemoryExceeded,
    TaskTimeout,
    Unschedulable,
    WorkerCrashed,
    error_to_wire,
)
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.options import unmet, why_nowhere
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.record import Try
from p2pgrid.core.shapes import CRASH, FAILURE, from_client, from_peer, lineage
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import answers
from p2pgrid.node import events as e
from p2pgrid.node.holding import Holding, HoldingOptions
from p2pgrid.node.keeping import ABANDONED, Keeping, KeepingOptions, Kept, Promise, Source
from p2pgrid.node.leases import SETTLED, Lapsed, LeaseOptions, Leases
from p2pgrid.node.pool import Lane, Pool, Taken, Work
from p2pgrid.node.running import RunInfo, Running, RunningOptions


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
    orphan_after_s: float = 60.0
    linger_s: float = 2.0
    notice_after_s: float = 10.0
    worker_crashes_max: int = 3
    node_crashes_max: int = 5
    running: RunningOptions = field(default_factory=RunningOptions)
    keeping: KeepingOptions = field(default_factory=KeepingOptions)
    leases: LeaseOptions = field(default_factory=LeaseOptions)
    holding: HoldingOptions = field(default_factory=HoldingOptions)


@dataclass(slots=True)
class Client:
    """A connected client."""

    session: bytes
    program: str


DAY_S = 86400.0
LOGS_MAX = 10_000
"""Tasks whose output one request returns, the last ones."""


class Machine:
    """One node's mind."""

    def __init__(self, config: MachineConfig, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        self.pool = Pool()
        resources = config.facts.get("resources", {})
        self.running = Running(config.slots, resources, config.running)
        self.keeping = Keeping(config.node_id, config.name, config.keeping)
        self.leases = Leases(config.leases)
        self.holding = Holding(config.holding)
        self.clients: dict[int, Client] = {}
        self.peers: dict[str, Mapping[str, Any]] = {}
        self.wall_offset_s = 0.0
        self.loaded = False
        self._told: dict[str, None] = {}
        self._out: list[e.Effect] = []
        self._timers: dict[tuple[Any, ...], float] = {}
        self._restoring: dict[int, bytes] = {}
        self._held_back: dict[bytes, list[e.ClientSent]] = {}
        """Inputs that came before the functions of their job were read from disk."""
        self._log_requests: dict[int, tuple[int, int]] = {}
        self._tokens = 1 << 40  # apart from those of `keeping`
        self._stopping = False
        self._hungry = False
        self._stopped = False
        self._events: dict[type, Callable[[Any, float], None]] = {
            e.Loaded: self._on_loaded,
            e.Stored: self._on_stored,
            e.StoreFailed: self._on_store_failed,
            e.Fetched: self._on_fetched,
            e.ClientJoined: self._on_client_joined,
            e.ClientSent: self._on_client_sent,
            e.ClientGone: self._on_client_gone,
            e.WorkerReady: self._on_worker_ready,
            e.WorkerDone: self._on_worker_done,
            e.WorkerDied: self._on_worker_died,
            e.TimerFired: self._on_timer,
            e.PeerUp: self._on_peer_up,
            e.PeerDown: self._on_peer_down,
            e.PeerSent: self._on_peer_sent,
            e.Stop: self._on_stop,
        }
        self._frames: dict[int, Callable[[int, Any, float], None]] = {
            m.OPEN: self._open,
            m.CODE: self._code,
            m.INPUT: self._input,
            m.CLOSE: self._close,
            m.WATCH: self._watch,
            m.UNWATCH: self._unwatch,
            m.CANCEL: self._cancel,
            m.GOT: self._got,
            m.GOODBYE: lambda *_: None,
        }
        self._peer_frames: dict[int, Callable[[str, Any, float], None]] = {
            m.P_WANT: self._want,
            m.P_GRANT: self._granted,
            m.P_GRANT_ACK: self._grant_ack,
            m.P_NONE: self._none,
            m.P_CLAIM: self._claim,
            m.P_RESULTS: self._peer_results,
            m.P_RESULTS_ACK: self._results_ack,
            m.P_DROP: self._drop,
            m.P_WORK: self._work,
            m.P_RETURN: self._return,
        }

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Take in one event; return what the shell shall do, in order."""
        self._out = []
        kind = type(event)
        self._hungry = kind is not e.Stored  # the one frequent event that gives workers nothing new
        self._events[kind](event, now)
        if self.loaded:
            if self._hungry:
                self._feed(now)
            if self._stopping:
                self._settle_stop()
        return self._out

    def wall(self, now: float) -> float:
        """Return unix time."""
        return now + self.wall_offset_s

    # ---- a life begins ----------------------------------------------------------------------------------------------

    def _on_loaded(self, event: e.Loaded, now: float) -> None:
        self.wall_offset_s = event.wall_offset_s
        self.keeping.load(event.rows, event.incarnation)
        self.holding.begin(event.incarnation)
        self.loaded = True
        for kept in self.keeping.jobs.values():
            if kept.ended:
                continue
            self._restore(kept, [row for row in event.rows if row.job == kept.id])
            if not kept.spec.detach:
                self._timer(("orphan", kept.spec.session), now + self.config.orphan_after_s)
        self._expire(now)
        if self.config.embedded:
            self._timer(("linger",), now + 5 * self.config.linger_s)

    def _restore(self, kept: Kept, rows: Sequence[e.Row]) -> None:
        """Read what the open tasks of a job need; they may have been started before, so their attempt number rises."""
        open_tasks = kept.open_tasks
        self._out += self.keeping.reissued(kept, open_tasks)
        self._out += self.keeping.settle(kept)
        if kept.ended:
            return
        keys = [(kept.id, "code", row.key) for row in rows if row.kind == "code"]
        for lo, inputs in sorted(kept.record.inputs.items()):
            if open_tasks.within(lo, inputs.hi):
                keys.append((kept.id, "input", lo.to_bytes(8, "big")))
        self._restoring[self._token()] = kept.id
        self._held_back[kept.id] = []
        self._out.append(e.Fetch(self._tokens, keys))

    def _restored(self, kept: Kept, rows: Sequence[e.Row], now: float) -> None:
        work = self._work_of(kept)
        work.attempts = kept.record.attempts
        for row in rows:
            if row.kind == "code":
                kept.record.codes[row.key] = row.value or b""
                kept.synced.add(("code", row.key))
        for row in rows:
            if row.kind == "input":
                lo = int.from_bytes(row.key, "big")
                batch = decode_batch(lo, kept.record.inputs[lo].hi, row.value or b"")
                if all(run.fn in work.codes for run in batch.runs):
                    self.pool.append(work, batch)
        lost: list[Span] = []
        for lo, hi in kept.open_tasks:
            at = lo
            while at < hi:
                found = work.locate(at)
                end = min(hi, found[0].hi) if found else at + 1
                if found is None:
                    lost.append((at, end))
                at = end
            self.pool.make_ready(work, lo, hi)
        for lo, hi in kept.done | kept.cancelled:
            self.pool.finished(work, lo, hi)
        if lost:
            error = ObjectLost("the inputs of this task are damaged on disk", next="submit it again")
            self._fail(kept, lost, error)
        for task, tries in kept.record.tries.items():
            if any(one.kind in "wn" for one in tries) and task in kept.open_tasks:
                self.pool.make_ready(work, task, task + 1, alone=True)
        self._consider_lanes(kept, list(work.lanes.values()), now)

    def _work_of(self, kept: Kept) -> Work:
        work = self.pool.open(kept.id, kept.name, (kept.spec.owner, kept.spec.session), None)
        work.codes = kept.record.codes
        return work

    def _token(self) -> int:
        self._tokens += 1
        return self._tokens

    # ---- disk -------------------------------------------------------------------------------------------------------

    def _on_stored(self, event: e.Stored, now: float) -> None:
        self._out += self.keeping.stored(event.token)

    def _on_store_failed(self, event: e.StoreFailed, now: float) -> None:
        refused = self.keeping.store_failed(event.token, event.reason)
        self._out += refused.effects
        self._out.append(e.Log("warning", event.reason))
        if self.keeping.must_write_again:
            self._timer_unless_set(("write",), now + self.config.keeping.retry_s)
        for job, lo, hi in refused.inputs:
            self._take_out(job, RangeSet([(lo, hi)]))
            self._out += self.running.cancel(job, RangeSet([(lo, hi)]))
        for job in refused.jobs:
            self._forget(job)

    def _take_out(self, job: bytes, spans: RangeSet) -> None:
        """These tasks need not run any more: let go of what they needed."""
        work = self.pool.works.get(job)
        if work is not None:
            for lo, hi in spans:
                self.pool.remove(work, lo, hi)
                self.pool.finished(work, lo, hi)

    def _forget(self, job: bytes) -> None:
        """A job is no longer kept here: stop it everywhere."""
        self.pool.close(job)
        self._out += self.running.cancel(job, None)
        for peer in self.leases.forget(job):
            self._out.append(e.Send(peer, m.P_DROP, [job, None]))

    def _on_fetched(self, event: e.Fetched, now: float) -> None:
        if event.token in self._restoring:
            job = self._restoring.pop(event.token)
            kept = self.keeping.jobs.get(job)
            if kept is not None and not kept.ended:
                self._restored(kept, event.rows, now)
            for held_back in self._held_back.pop(job):
                self._on_client_sent(held_back, now)
        elif event.token in self._log_requests:
            client, id_ = self._log_requests.pop(event.token)
            logs = [[int.from_bytes(row.key, "big"), row.value] for row in event.rows]
            self._out.append(e.Reply(client, m.ANSWER, id_, {"logs": sorted(logs)}))
        else:
            self._out += self.keeping.fetched(event.token, event.rows)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _on_client_joined(self, event: e.ClientJoined, now: float) -> None:
        self.clients[event.client] = Client(event.session, event.program)
        if event.session:
            self._timer(("orphan", event.session), None)
        self._timer(("linger",), None)
        welcome = {
            "v": 1, "id": self.config.node_id, "name": self.config.name, "grid": self.config.grid,
            "slots": self._grid_slots(), "nodes": 1 + len(self.peers), "version": self.config.version,
            "python": list(self.config.python), "embedded": self.config.embedded, "pid": self.config.pid,
        }  # fmt: skip
        self._out.append(e.Reply(event.client, m.WELCOME, 0, welcome))

    def _grid_slots(self) -> int:
        return self.config.slots + sum(int(facts.get("slots", 0)) for facts in self.peers.values())

    def _on_client_gone(self, event: e.ClientGone, now: float) -> None:
        client = self.clients.pop(event.client, None)
        self.keeping.unwatch(event.client)
        if client is None:
            return
        if client.session and not any(c.session == client.session for c in self.clients.values()):
            wait = 0.0 if event.goodbye else self.config.orphan_after_s
            if self._orphans(client.session):
                self._timer(("orphan", client.session), now + wait)
        if self.config.embedded and not self.clients:
            self._timer(("linger",), now + self.config.linger_s)

    def _orphans(self, session: bytes) -> list[Kept]:
        return [
            k for k in self.keeping.jobs.values() if k.spec.session == session and not k.spec.detach and not k.ended
        ]

    def _abandon(self, session: bytes) -> None:
        """The client of a session is gone for good: what it did not detach is cancelled."""
        if any(client.session == session for client in self.clients.values()):
            return
        for kept in self._orphans(session):
            work = self.pool.works.get(kept.id)
            if work is None:
                self._cancel_spans(kept, None, (), ABANDONED)
                continue
            detached = self._detached(kept, work)
            if not detached:
                self._cancel_spans(kept, None, (), ABANDONED)
                continue
            # What is detached ends the list; what never came before it is cancelled with the rest.
            count = (kept.known.last() or (0, 0))[1]
            self._out += self.keeping.close(kept, count, None)
            self._cancel_spans(kept, (RangeSet([(0, count)]) - kept.done) - detached, ())

    @staticmethod
    def _detached(kept: Kept, work: Work) -> RangeSet:
        """Return the open tasks that outlive their client, each by its own option."""
        open_tasks = kept.open_tasks
        return RangeSet(
            span for run, lane in work.runs if lane.options.detach for span in open_tasks.within(run.lo, run.hi)
        )

    def _on_client_sent(self, event: e.ClientSent, now: float) -> None:
        try:
            body = from_client(event.kind, event.body)
            if event.kind == m.REQUEST:
                self._request(event, body, now)
            elif event.kind == m.INPUT and body[0] in self._held_back:
                self._held_back[body[0]].append(event)
            else:
                self._frames[event.kind](event.client, body, now)
        except PeerError as error:
            refusal = {"code": "version-mismatch", "message": f"the node does not understand: {error}",
                       "next": "install the same version on both sides: p2pgrid --version"}  # fmt: skip
            self._out.append(e.Reply(event.client, m.ERROR, event.id, refusal))

    def _kept(self, job: bytes, client: int) -> Kept | None:
        kept = self.keeping.jobs.get(job)
        if kept is None:
            self._out.append(e.Reply(client, m.STATE, 0, [job, "unknown", ""]))
        return kept

    def _open(self, client: int, body: Any, now: float) -> None:
        job, spec = body
        if job not in self.keeping.jobs and len(self.keeping.jobs) >= self.config.keeping.jobs_max:
            full = QuotaExceeded(f"this node keeps {len(self.keeping.jobs)} jobs", next="p2pgrid forget some of them")
            self._out.append(e.Reply(client, m.REFUSED, 0, [job, "spec", 0, dict(error_to_wire(full))]))
            return
        kept, effects = self.keeping.open(job, spec, client)
        self._out += effects
        if not kept.ended:
            self._work_of(kept)

    def _code(self, client: int, body: Any, now: float) -> None:
        job, code, union = body
        python_minor(union)  # a kind of function that this version does not know is refused now
        kept = self._kept(job, client)
        if kept is not None:
            self._out += self.keeping.code(kept, code, union, client)

    def _input(self, client: int, body: Any, now: float) -> None:
        job, lo, hi, data = body
        kept = self._kept(job, client)
        if kept is None:
            return
        if kept.ended:
            ack = e.Reply(client, m.ACK, 0, [job, "input", lo])
            self._out += self.keeping.when_ended(kept, [ack])
            return
        if lo in kept.record.inputs:
            self._out += self.keeping.input(kept, lo, hi, data, frozenset(), client)
            return
        batch = decode_batch(lo, hi, data)
        if kept.known.within(lo, hi) or (kept.total is not None and hi > kept.total):
            raise PeerError(f"inputs of tasks {lo} to {hi}, which are there already or beyond the end of the job")
        fns = frozenset(run.fn for run in batch.runs)
        if not fns <= kept.record.codes.keys():
            raise PeerError("inputs for a function that was not sent")
        work = self._work_of(kept)
        new = self._append(work, batch)
        effects = self.keeping.input(kept, lo, hi, data, fns, client)
        wanted = [(lo, hi)]
        if kept.cancelled:  # before they came
            wanted = kept.cancelled.missing(lo, hi)
            for a, b in kept.cancelled.within(lo, hi):
                self.pool.finished(work, a, b)
        for a, b in wanted:
            self.pool.make_ready(work, a, b)
        found = [work.locate(run.lo) for run in batch.runs]
        strict = [one[1] for one in found if one is not None and one[1].options.strict]
        if new or strict:
            self._consider_lanes(kept, list(dict.fromkeys([*new, *strict])), now)
        self._feed(now)  # the tasks leave for the workers before their inputs leave for the disk
        self._out += effects

    def _append(self, work: Work, batch: InputBatch) -> list[Lane]:
        try:
            return self.pool.append(work, batch)
        except ValueError as error:
            raise PeerError(str(error)) from error

    def _close(self, client: int, body: Any, now: float) -> None:
        job, count = body
        kept = self._kept(job, client)
        if kept is not None:
            if kept.ended:
                self._out += self.keeping.when_ended(kept, [e.Reply(client, m.ACK, 0, [job, "close", 0])])
                return
            self._out += self.keeping.close(kept, count, client)
            self._settle(kept)

    def _watch(self, client: int, body: Any, now: float) -> None:
        job, had = body
        kept = self._kept(job, client)
        if kept is not None:
            self._out += self.keeping.watch(kept, client, had)

    def _unwatch(self, client: int, body: Any, now: float) -> None:
        kept = self.keeping.jobs.get(body[0])
        if kept is not None:
            self.keeping.unwatch(client, kept)

    def _got(self, client: int, body: Any, now: float) -> None:
        kept = self.keeping.jobs.get(body[0])
        if kept is not None:
            self._out += self.keeping.got(kept, client, body[1])

    def _cancel(self, client: int, body: Any, now: float) -> None:
        job, spans = body
        kept = self._kept(job, client)
        if kept is not None:
            self._cancel_spans(kept, spans, [e.Reply(client, m.ACK, 0, [job, "cancel", 0])])

    def _cancel_spans(
        self, kept: Kept, spans: RangeSet | None, promises: Sequence[Promise], reason: str = ""
    ) -> RangeSet:
        fresh, effects = self.keeping.cancel(kept, spans, promises, reason)
        self._take_out(kept.id, fresh)
        self._out += self.running.cancel(kept.id, None if spans is None else fresh)
        for peer, held in self.leases.covering(kept.id, fresh):
            self._out.append(e.Send(peer, m.P_DROP, [kept.id, None if spans is None else held.flat()]))
        for lo, hi in fresh:
            self.leases.finished(kept.id, lo, hi)
        self._out += effects
        self._settle(kept)
        return fresh

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _request(self, event: e.ClientSent, body: tuple[str, dict[str, Any]], now: float) -> None:
        try:
            answer = self._answer(event, *body, now)
        except GridError as error:
            self._out.append(e.Reply(event.client, m.ERROR, event.id, dict(error_to_wire(error))))
            return
        if answer is not None:
            self._out.append(e.Reply(event.client, m.ANSWER, event.id, answer))

    def _answer(self, event: e.ClientSent, verb: str, arguments: dict[str, Any], now: float) -> dict[str, Any] | None:
        if verb == "stop":
            self._out.append(e.Reply(event.client, m.ANSWER, event.id, {}))
            grace = arguments.get("grace")
            self._on_stop(e.Stop(float(grace) if isinstance(grace, int | float) and 0 <= grace < DAY_S else 2.0), now)
            return None
        if verb == "cancel":
            return self._cancel_target(event, str(arguments.get("target", "")))
        if verb == "logs":
            return self._logs(event, str(arguments.get("target", "")))
        return answers.answer(self, verb, arguments, now)

    def _cancel_target(self, event: e.ClientSent, target: str) -> dict[str, Any] | None:
        count = 0
        jobs = answers.targets(self, target)
        for kept, span in jobs:
            spans = None if span is None else RangeSet([span])
            count += self._cancel_spans(kept, spans, ()).size
        _, effect = self.keeping.store([], [e.Reply(event.client, m.ANSWER, event.id, {"cancelled": count})])
        self._out.append(effect)
        return None

    def _logs(self, event: e.ClientSent, target: str) -> dict[str, Any] | None:
        keys: list[tuple[bytes, str, bytes]] = []
        for kept, span in answers.targets(self, target):
            wanted = list(kept.logs) if span is None else kept.logs.within(*span)
            newest = (i for lo, hi in reversed(wanted) for i in range(hi - 1, lo - 1, -1))
            keys += [(kept.id, "log", i.to_bytes(8, "big")) for i in islice(newest, LOGS_MAX - len(keys))]
        if not keys:
            return {"logs": []}
        self._log_requests[self._token()] = (event.client, event.id)
        self._out.append(e.Fetch(self._tokens, keys))
        return None

    # ---- feeding workers, asking and offering -----------------------------------------------------------------------

    def _feed(self, now: float) -> None:
        self._hungry = False
        self._out += self.running.feed(self.pool, self._eligible, now)
        if self.peers:
            self._feed_peers(now)

    def _feed_peers(self, now: float) -> None:
        if self.running.free_slots() and not self._stopping:
            asks = self.holding.ask(self.running.free_slots(), self.running.speed(), now)
            self._out += asks
            if asks:
                self._timer(("ask",), now + self.config.holding.ask_again_s)
        if self.holding.owes():
            self._timer_unless_set(("beat",), now + self.config.holding.beat_s)
        if len(self._told) < len(self.peers) and self.pool.waits and not self._stopping:
            for peer in sorted(self.peers.keys() - self._told.keys()):
                # Who could run none of it is not asked to ask: it would be told again at once, for ever.
                if any(self._fits(lane, peer) for lane in self.pool.candidates(foreign=False)):
                    self._told[peer] = None
                    self._out.append(e.Send(peer, m.P_WORK, []))
            self._timer_unless_set(("offer",), now + self.config.holding.ask_again_s)
        if ("lease",) not in self._timers:
            due = self.leases.next_s()
            if due is not None:
                self._timer(("lease",), due)

    def _fits(self, lane: Lane, peer: str) -> bool:
        facts = self.peers.get(peer, {})
        return peer not in lane.unfit and not self._lacks(lane, facts, facts.get("minor"))

    def _eligible(self, lane: Lane) -> bool:
        if lane.fits is None:
            lane.fits = not self._lacks(lane, self.config.facts, self.config.python[1])
        return lane.fits and self.config.node_id not in lane.unfit

    @staticmethod
    def _lacks(lane: Lane, facts: Mapping[str, Any], minor: int | None) -> list[str]:
        missing = unmet(lane.options.resources, lane.options.where, facts)
        if lane.minor is not None and minor is not None and lane.minor != minor:
            missing.append(f"Python 3.{lane.minor} for a function pickled there (workers here run 3.{minor})")
        return missing

    def fits_somewhere(self, lane: Lane) -> bool:
        """Whether any member known now may run the tasks of a lane."""
        if self._eligible(lane):
            return True
        return any(self._fits(lane, peer) for peer in self.peers)

    def why_waits(self, lane: Lane) -> str:
        """Return, clause by clause, why no node may run the tasks of a lane."""
        everyone = [self.config.facts, *self.peers.values()]
        text = why_nowhere(lane.options, everyone)
        if lane.minor is not None and lane.minor != self.config.python[1]:
            having = sum(facts.get("minor") == lane.minor for facts in self.peers.values())
            need = f"Python 3.{lane.minor} for its function ({having or 'none'} of {len(everyone)} has it)"
            text = f"{text}; {need}" if ":" in text else f"{having} of {len(everyone)} nodes: {need}"
        return text

    def _consider_lanes(self, kept: Kept, lanes: Sequence[Lane], now: float, *, known: bool = False) -> None:
        """Tasks that no node may run: refuse them now if asked to, else say so after a while.

        `known`: they could run a moment ago; a node that is away for a moment fails no task.
        """
        for lane in lanes:
            if not lane.ready or self.fits_somewhere(lane):
                continue
            if lane.options.strict and not known:
                self._fail(kept, list(lane.ready), Unschedulable(self.why_waits(lane)))
            else:
                self._timer_unless_set(("stuck", kept.id, lane.number), now + self.config.notice_after_s)

    def _notice(self, job: bytes, number: int, now: float) -> None:
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if kept is None or work is None:
            return
        lane = next((one for one in work.lanes.values() if one.number == number), None)
        if lane is None or not lane.ready or self.fits_somewhere(lane):
            return
        if lane.unfit:
            self._unfit_everywhere(work, lane)
            return
        text = self.why_waits(lane)
        self._out.append(e.Log("info", f"{kept.name} waits: {text}"))
        for client in sorted(set(kept.watches) | kept.programs):
            self._out.append(e.Reply(client, m.NOTICE, 0, [job, text]))

    # ---- workers of this node ---------------------------------------------------------------------------------------

    def _on_worker_ready(self, event: e.WorkerReady, now: float) -> None:
        self.running.worker_ready(event.worker)

    def _on_worker_done(self, event: e.WorkerDone, now: float) -> None:
        info = self.running.find(event.worker, event.run)
        if info is None:
            return  # of a run that was taken from it meanwhile
        self.running.progressed(info, event.outcomes, event.busy_s, self.pool)
        returned = list(event.returned)
        for lo, hi in returned:
            info.left.discard(lo, hi)
        if event.final:
            assert not info.left, "a worker ended a run and kept tasks"
            self.running.ended(event.worker, info)
        work = info.taken.work
        if returned:
            self.pool.put_back(info.taken, self._wanted(work, returned))
        if event.unfit:
            self._unfit(info, event.unfit)
        self._feed(now)  # the next grain leaves before the results are looked at
        if event.logs and work.keeper is None and work.job in self.keeping.jobs:
            effect = self.keeping.log(self.keeping.jobs[work.job], event.logs)
            if effect is not None:
                self._out.append(effect)
        if event.outcomes:
            self._outcomes(work, event.outcomes, info.taken.attempt)

    def _wanted(self, work: Work, spans: Sequence[Span]) -> list[Span]:
        """Return which of these tasks are still to be run here."""
        if work.keeper is not None:
            debt = self.holding.debts.get(work.keeper)
            held = debt.held.get(work.job, RangeSet()) if debt else RangeSet()
            return list(held & RangeSet(spans))
        kept = self.keeping.jobs.get(work.job)
        if kept is None or kept.ended:
            return []
        return list((RangeSet(spans) - kept.done) - kept.cancelled)

    def _unfit(self, info: RunInfo, why: str) -> None:
        lane, work = info.taken.lane, info.taken.work
        lane.unfit[self.config.node_id] = why
        if work.keeper is not None:
            gone = self.holding.drop(work.keeper, work.job, lane.ready.copy())
            for lo, hi in gone:
                self.pool.remove(work, lo, hi)
            self._out.append(e.Send(work.keeper, m.P_RETURN, [work.job, gone.flat(), why]))
        else:
            self._unfit_everywhere(work, lane)

    def _unfit_everywhere(self, work: Work, lane: Lane) -> None:
        """If no node is left that can load the function, its tasks fail with the reason."""
        kept = self.keeping.jobs.get(work.job)
        if kept is None or self.fits_somewhere(lane):
            return
        why = "; ".join(f"{node[-8:]}: {text}" for node, text in sorted(lane.unfit.items()))
        if len(lane.unfit) == 1:
            why = next(iter(lane.unfit.values()))
        self._fail(kept, list(lane.ready), MissingModule(f"the function cannot be loaded on any node: {why}"))

    def _on_worker_died(self, event: e.WorkerDied, now: float) -> None:
        runs = self.running.died(event.worker)
        for position, info in enumerate(runs):
            left = info.left
            culprit = None
            if event.cause != "killed":
                if event.index is not None and event.run == info.run and event.index in left:
                    culprit = event.index
                elif position == 0 and left.size == 1:
                    culprit = left.first()[0]  # type: ignore[index]
            if culprit is not None:
                left.discard(culprit, culprit + 1)
            work = info.taken.work
            wanted = self._wanted(work, list(left))
            unknown = position == 0 and culprit is None and event.cause != "killed"
            kept = None if work.keeper else self.keeping.jobs.get(work.job)
            if unknown and kept is not None and wanted:
                self._reissue(kept, wanted, alone=True)  # one of them has begun
                continue
            for lo, hi in wanted:
                self.pool.make_ready(work, lo, hi, alone=unknown or info.taken.alone)
            if culprit is not None:
                data = pack([event.cause, event.detail, event.stderr[-4096:]])
                crash = e.Outcome(culprit, culprit + 1, CRASH, data)
                self._outcomes(work, [crash], info.taken.attempt)

    # ---- outcomes, of this node's workers and of others -------------------------------------------------------------

    def _outcomes(self, work: Work, outcomes: Sequence[e.Outcome], attempt: int) -> None:
        if work.keeper is not None:
            if self.holding.holds(work.keeper, work.job):
                number = self.keeping.next_number()
                for _ in outcomes:  # every outcome of a batch has a number of its own
                    self.keeping.next_number()
                self._out += self.holding.finished(work.keeper, work.job, number, attempt, outcomes)
                for outcome in outcomes:
                    self.pool.remove(work, outcome.lo, outcome.hi)
                    self.pool.finished(work, outcome.lo, outcome.hi)
            return
        kept = self.keeping.jobs.get(work.job)
        if kept is not None:
            self._accept(kept, outcomes, attempt)

    def _accept(
        self, kept: Kept, outcomes: Sequence[e.Outcome], attempt: int, source: Source | None = None,
        promises: Sequence[Promise] = (),
    ) -> None:  # fmt: skip
        """Record outcomes of a job kept here; failures that are to be tried again make their tasks ready."""
        if kept.ended:
            self._out += self.keeping.when_ended(kept, promises)
            return
        for position, outcome in enumerate(outcomes):
            if outcome.shape in (FAILURE, CRASH):
                outcomes = self._judge(kept, outcomes, position, source)
                break
        new, effects = self.keeping.results(kept, outcomes, attempt, source, promises)
        self._out += effects
        work = self.pool.works.get(kept.id)
        for lo, hi in new:
            if work is not None:
                self.pool.remove(work, lo, hi)
                self.pool.finished(work, lo, hi)
            self.leases.finished(kept.id, lo, hi)
        if new:
            self._settle(kept)

    def _judge(
        self, kept: Kept, outcomes: Sequence[e.Outcome], first: int, source: Source | None
    ) -> Sequence[e.Outcome]:
        """Return the outcomes that stand, crashes that are final as failures among them; the others run again."""
        stand = list(outcomes[:first])
        for position in range(first, len(outcomes)):
            outcome = outcomes[position]
            if outcome.shape not in (FAILURE, CRASH) or outcome.lo in kept.done:
                stand.append(outcome)
                continue
            verdict = self._verdict(kept, outcome, position, source)
            # A placeholder keeps every outcome's position, which names it when it came from another node.
            stand.append(verdict or e.Outcome(outcome.lo, outcome.lo, 0, []))
        return stand

    def _verdict(self, kept: Kept, outcome: e.Outcome, position: int, source: Source | None) -> e.Outcome | None:
        """Decide what a failed execution means: a final failure, or None: it runs again."""
        task = outcome.lo
        work = self.pool.works.get(kept.id)
        found = work.locate(task) if work is not None else None
        if work is None or found is None:
            return outcome if outcome.shape == FAILURE else self._crash_failure(kept, outcome)
        options = found[1].options
        if outcome.shape == FAILURE:
            if not options.retries:
                return outcome
            kind = "e"
            retriable = options.retries_on(lineage(outcome.data))
        else:
            cause = unpack(outcome.data)[0]
            kind = {"timeout": "t", "memory": "m"}.get(cause, "w")
            retriable = options.retries_on(_MRO[kind])
        number = source.number + position if source else self.keeping.next_number()
        one = Try(kind, source.node if source else self.config.node_id,
                  source.incarnation if source else self.keeping.incarnation, number)  # fmt: skip
        if one in kept.record.tries.get(task, ()):
            return None  # told twice: it was decided before
        self._out.append(self.keeping.tried(kept, task, one))
        if kind == "w":
            again = kept.record.crashes(task, "w") < self.config.worker_crashes_max
        else:
            again = retriable and sum(kept.record.crashes(task, k) for k in "etm") <= options.retries
        if not again:
            return outcome if outcome.shape == FAILURE else self._crash_failure(kept, outcome)
        self._reissue(kept, [(task, task + 1)], alone=kind == "w")
        return None

    def _crash_failure(self, kept: Kept, outcome: e.Outcome) -> e.Outcome:
        cause, detail, stderr = unpack(outcome.data)
        task = f"{kept.name}/{outcome.lo}"
        last = f"; its last lines: {stderr.strip()}" if stderr.strip() else ""
        error: GridError
        if cause == "timeout":
            error = TaskTimeout(f"{task}: {detail}")
        elif cause == "memory":
            error = TaskMemoryExceeded(f"{task}: {detail}")
        else:
            error = WorkerCrashed(f"{task}: the worker process was {detail}{last}", next=f"p2pgrid logs {task}")
        return e.Outcome(outcome.lo, outcome.hi, FAILURE, pack(encode_exception(error)))

    def _fail(self, kept: Kept, spans: Sequence[Span], error: GridError) -> None:
        data = pack(encode_exception(error))
        outcomes = [e.Outcome(i, i + 1, FAILURE, data) for lo, hi in spans for i in range(lo, hi)]
        new, effects = self.keeping.results(kept, outcomes, 1)
        self._out += effects
        self._take_out(kept.id, RangeSet(new))
        self._settle(kept)

    def _reissue(self, kept: Kept, spans: Sequence[Span], *, alone: bool) -> None:
        """Let tasks run again, under a higher attempt number."""
        self._hungry = True
        work = self._work_of(kept)
        self._out += self.keeping.reissued(kept, spans)
        work.attempts = kept.record.attempts
        for lo, hi in spans:
            self.pool.make_ready(work, lo, hi, alone=alone)

    def _settle(self, kept: Kept) -> None:
        self._out += self.keeping.settle(kept)
        if kept.ended:
            self.pool.close(kept.id)
            for peer in self.leases.forget(kept.id):
                self._out.append(e.Send(peer, m.P_DROP, [kept.id, None]))

    # ---- members: keeper's side -------------------------------------------------------------------------------------

    def _on_peer_up(self, event: e.PeerUp, now: float) -> None:
        self.peers[event.peer] = event.facts
        self._told.pop(event.peer, None)
        self.holding.back(event.peer)
        self._timer(("debt", event.peer), None)
        for work in self.pool.works.values():  # it may have been started again with what it lacked
            for lane in work.lanes.values():
                lane.unfit.pop(event.peer, None)

    def _on_peer_down(self, event: e.PeerDown, now: float) -> None:
        self.peers.pop(event.peer, None)
        self._told.pop(event.peer, None)
        self.holding.gone(event.peer)
        if event.peer in self.holding.debts:
            self._timer(("debt", event.peer), now + self.config.holding.forget_s)
        for kept in [k for k in self.keeping.jobs.values() if not k.ended]:
            work = self.pool.works.get(kept.id)
            if work is not None and work.hot:
                self._consider_lanes(kept, list(work.lanes.values()), now, known=True)
        self.leases.down(event.peer, now, reset=event.reset)
        due = self.leases.next_s()
        if due is not None:
            self._timer(("lease",), due)

    def _on_peer_sent(self, event: e.PeerSent, now: float) -> None:
        try:
            body = from_peer(event.kind, event.body)
            if body is not None:
                self._peer_frames[event.kind](event.peer, body, now)
        except PeerError as error:
            self._out.append(e.Log("warning", f"a malformed frame of type {event.kind} from {event.peer}: {error}"))

    def _want(self, peer: str, body: Any, now: float) -> None:
        rid, slots, _ = body
        before = self.leases.answered(peer, rid)
        if before is not None:
            if before is not SETTLED:
                self._out.append(e.Send(peer, m.P_GRANT, before))
            return
        for lane in () if self._stopping else self.pool.candidates(foreign=False):
            if not self._fits(lane, peer):
                continue
            share = max(1, slots)
            ours = -(-lane.ready.size * share // (2 * max(self._grid_slots(), share)))
            per_slot = self.running.grain(lane)
            taken = self.pool.take(lane, max(1, min(ours, 64 * per_slot * share)))
            grant = self._grant_body(rid, taken)
            self.leases.grant(peer, rid, taken.work.job, taken.spans, grant, now)
            self._out.append(e.Send(peer, m.P_GRANT, grant))
            return
        self._told.pop(peer, None)
        self._out.append(e.Send(peer, m.P_NONE, [list(rid)]))

    @staticmethod
    def _grant_body(rid: tuple[int, int], taken: Taken) -> list[Any]:
        """Return ranges with all a holder needs to run them; a packed run travels whole, however little is granted."""
        work = taken.work
        batches = []
        codes: dict[bytes, bytes] = {}
        for start, hi in taken.spans:
            lo = start
            while lo < hi:
                found = work.locate(lo)
                assert found is not None, "a granted task without inputs"
                run, lane = found
                end = min(hi, run.hi)
                codes[run.fn] = work.codes[run.fn]
                a, b = (lo, end) if run.shape == CALLS else (run.lo, run.hi)
                data, _ = run.cut(a, b)
                batches.append([a, b, encode_batch([run.fn], [lane.raw], [(b - a, 0, 0, run.shape, data)])])
                lo = end
        ranges = [[lo, hi, taken.attempt, taken.alone] for lo, hi in taken.spans]
        return [list(rid), work.job, work.name, ranges, [list(item) for item in codes.items()], batches]

    def _grant_ack(self, peer: str, body: Any, now: float) -> None:
        rid, seq = body
        self.leases.acknowledged(peer, rid, seq, now)

    def _claim(self, peer: str, body: Any, now: float) -> None:
        incarnation, seq, interval, named = body
        for job in list(named):
            kept = self.keeping.jobs.get(job)
            if kept is None or kept.ended:
                self._out.append(e.Send(peer, m.P_DROP, [job, None]))
                del named[job]
                continue
            over = (named[job][0] & kept.done) | (named[job][0] & kept.cancelled)
            if over:
                # What is done elsewhere or cancelled need not run there; what it did itself it hears of by its acks.
                self._out.append(e.Send(peer, m.P_DROP, [job, over.flat()]))
        dropped = self.leases.claim(peer, (incarnation, seq), interval, named, now)
        if dropped is None:
            return
        for lapsed in dropped:
            self._uncover(lapsed)
        for job, (held, _) in named.items():
            work = self.pool.works.get(job)
            if work is not None:  # claimed by a holder that we took for dead: it is covered again
                for lo, hi in held:
                    self.pool.remove(work, lo, hi)

    def _uncover(self, lapsed: Lapsed) -> None:
        """Nobody holds these tasks any more: they run again."""
        kept = self.keeping.jobs.get(lapsed.job)
        if kept is None or kept.ended:
            return
        others = self.leases.covered(lapsed.job) | self.running.spans(lapsed.job)
        spans = ((lapsed.spans - kept.done) - kept.cancelled) - others
        if not spans:
            return
        charged = lapsed.running & spans
        if not charged and spans.size == 1:
            charged = spans
        if lapsed.vanished:
            for lo, hi in charged:
                for task in range(lo, hi):
                    self._charge(kept, task, lapsed.holder)
            spans = spans - kept.done
        if not kept.ended:
            self._reissue(kept, list(spans), alone=lapsed.vanished)

    def _charge(self, kept: Kept, task: int, holder: str) -> None:
        """A node vanished while it ran this task."""
        one = Try("n", holder, self.keeping.incarnation, self.keeping.next_number())
        self._out.append(self.keeping.tried(kept, task, one))
        if kept.record.crashes(task, "n") >= self.config.node_crashes_max:
            error = WorkerCrashed(f"{kept.name}/{task}: {self.config.node_crashes_max} nodes vanished while running it")
            self._fail(kept, [(task, task + 1)], error)

    def _peer_results(self, peer: str, body: Any, now: float) -> None:
        self.leases.heard(peer, now)
        for job, (incarnation, number), attempt, outcomes in body:
            ack = e.Send(peer, m.P_RESULTS_ACK, [[job, incarnation, number]])
            kept = self.keeping.jobs.get(job)
            if kept is None:
                self._out.append(ack)
                continue
            if any(kept.known.missing(lo, hi) for lo, hi, _, _ in outcomes):
                raise PeerError("results of tasks that nobody submitted")
            name = str(self.peers.get(peer, {}).get("name", peer[-8:]))
            source = Source(peer, name, incarnation, number)
            if self.keeping.waits_for_disk(kept, source, len(outcomes)):
                continue  # the first arrival will be acknowledged
            parsed = [e.Outcome(*outcome) for outcome in outcomes]
            self._accept(kept, parsed, attempt, source, [ack])

    def _return(self, peer: str, body: Any, now: float) -> None:
        job, given, why = body
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if kept is None or kept.ended or work is None:
            return
        spans = (self.leases.returned(peer, job, given) - kept.done) - kept.cancelled
        for lo, hi in spans:
            found = work.locate(lo)
            if why and found is not None:
                found[1].unfit[peer] = why
            self.pool.make_ready(work, lo, hi)
        for lane in list(work.lanes.values()):
            if lane.unfit and lane.ready:
                self._unfit_everywhere(work, lane)

    # ---- members: holder's side -------------------------------------------------------------------------------------

    def _work(self, peer: str, body: Any, now: float) -> None:
        self.holding.hint(peer)

    def _none(self, peer: str, body: Any, now: float) -> None:
        self.holding.refused(peer, body[0])

    def _granted(self, peer: str, body: Any, now: float) -> None:
        rid, job, name, ranges, codes, batches = body
        decoded = [decode_batch(lo, hi, data) for lo, hi, data in batches]
        unions = dict(codes)
        for union in unions.values():
            python_minor(union)
        inputs = RangeSet((run.lo, run.hi) for batch in decoded for run in batch.runs if run.fn in unions)
        if not inputs >= RangeSet((lo, hi) for lo, hi, _, _ in ranges):
            raise PeerError("a grant without the inputs or functions of its tasks")
        before = self.pool.works.get(job)
        if job in self.keeping.jobs or (before is not None and before.keeper != peer) or self._stopping:
            return  # not acknowledged, it goes back to the keeper
        work = self.pool.open(job, name, (peer.encode(), job), peer)
        work.codes.update(unions)
        for batch in decoded:
            self._append(work, batch)
        fresh, acks = self.holding.granted(peer, rid, job, [(lo, hi) for lo, hi, _, _ in ranges])
        self._out += acks
        for lo, hi, attempt, alone in ranges:
            if attempt > 1:
                work.attempts.join(lo, hi, attempt)
            for a, b in RangeSet([(lo, hi)]) & RangeSet(fresh):
                self.pool.make_ready(work, a, b, alone=alone)
        self._tidy_foreign(peer, job)

    def _results_ack(self, peer: str, body: Any, now: float) -> None:
        for job, _ in self.holding.acknowledged(peer, body):
            self._tidy_foreign(peer, job)

    def _drop(self, peer: str, body: Any, now: float) -> None:
        job, spans = body
        gone = self.holding.drop(peer, job, spans)
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer:
            self._take_out(job, gone)
            self._out += self.running.cancel(job, gone)
        self._tidy_foreign(peer, job)

    def _tidy_foreign(self, peer: str, job: bytes) -> None:
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer and not self.holding.holds(peer, job):
            self.pool.close(job)

    # ---- time -------------------------------------------------------------------------------------------------------

    def _timer(self, key: tuple[Any, ...], at_s: float | None) -> None:
        if at_s is None:
            if self._timers.pop(key, None) is not None:
                self._out.append(e.SetTimer(key, None))
            return
        self._timers[key] = at_s
        self._out.append(e.SetTimer(key, at_s))

    def _timer_unless_set(self, key: tuple[Any, ...], at_s: float) -> None:
        if key not in self._timers:
            self._timer(key, at_s)

    def _on_timer(self, event: e.TimerFired, now: float) -> None:
        self._timers.pop(event.key, None)
        match event.key:
            case ("recall",):
                self._out += self.running.recall(now)
            case ("beat",):
                foreign = [job for job, work in self.pool.works.items() if work.keeper is not None]
                running = {job: self.running.first_of_each(job) for job in foreign}
                self._out += self.holding.beat(running)
            case ("ask",):
                pass  # feeding asks again
            case ("offer",):
                self._told.clear()
            case ("lease",):
                self._leases_due(now)
            case ("orphan", bytes(session)):
                self._abandon(session)
            case ("stuck", bytes(job), int(lane)):
                self._notice(job, lane, now)
            case ("expire",):
                self._expire(now)
            case ("write",):
                self._out += self.keeping.write_again()
            case ("debt", str(peer)):
                for job in self.holding.forget(peer):
                    self.pool.close(job)
                    self._out += self.running.cancel(job, None)
            case ("grace",):
                self._out += self.running.kill_all()
            case ("linger",):
                self._linger(now)
            case _:
                msg = f"a timer nobody set: {event.key}"
                raise AssertionError(msg)

    def _leases_due(self, now: float) -> None:
        again, lost = self.leases.due(now)
        for peer, body in again:
            self._out.append(e.Send(peer, m.P_GRANT, body))
        for lapsed in lost:
            self._uncover(lapsed)
        for lapsed in self.leases.lapse(now):
            self._uncover(lapsed)

    def _expire(self, now: float) -> None:
        gone, effects = self.keeping.expired(self.wall(now))
        self._out += effects
        for job in gone:
            self._forget(job)
        self._timer(("expire",), now + 600.0)

    def _linger(self, now: float) -> None:
        """An embedded node ends after its last client and its last detached job."""
        if not self.clients and not any(self._outlives(kept) for kept in self.keeping.jobs.values()):
            self._on_stop(e.Stop(0.0), now)
        elif not self.clients:
            self._timer(("linger",), now + self.config.linger_s)

    def _outlives(self, kept: Kept) -> bool:
        if kept.ended:
            return False
        work = self.pool.works.get(kept.id)
        return kept.spec.detach or (work is not None and bool(self._detached(kept, work)))

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _on_stop(self, event: e.Stop, now: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._out += self.running.stop()
        if self.running.busy():
            self._timer(("grace",), now + event.grace_s)

    def _settle_stop(self) -> None:
        if not self._stopped and not self.running.busy() and not self.keeping.unsettled:
            self._stopped = True
            waiting = [answers.hand_over(kept) for kept in self.keeping.jobs.values() if not kept.ended]
            self._out.append(e.Stopped(waiting))


_MRO = {
    kind: [[cls.__module__, cls.__qualname__] for cls in error.__mro__]
    for kind, error in (("t", TaskTimeout), ("m", TaskMemoryExceeded), ("w", WorkerCrashed))
}
