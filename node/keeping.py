"""Keeping: the records of the jobs accepted here, what is promised to whom, and who reads results.

Every change of a record goes into the journal; whoever was promised something hears of it when the rows are synced
(`promise`), never before. Results are given to readers at once, in windows: a reader that takes nothing in gets no more
than `window_bytes` and the rest when it asks for more, from memory or from disk.

Rule: this file knows neither workers nor the pool nor peers. It says which tasks are open; others run them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id
from p2pgrid.core.ids import job_name
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.record import BatchId, Inputs, Record, Results, Spec, State, Try, unpack_spec
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.events import Effect, Fetch, Outcome, Reply, Row, Send, Store

Job = bytes

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


@dataclass(frozen=True, slots=True)
class Source:
    """Which batch of which node outcomes came in; outcome number i of it is batch `number` + i."""

    node: str
    name: str
    incarnation: int
    number: int


@dataclass(slots=True)
class Watch:
    """A client that reads a job."""

    client: int
    sent: RangeSet
    unread: int = 0
    behind: bool = False
    fetching: int = 0
    ended: bool = False


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
    order: list[tuple[int, BatchId]] = field(default_factory=list)
    """Result batches by first index."""
    watches: dict[int, Watch] = field(default_factory=dict)
    state: str = RUNNING
    reason: str = ""
    refused: RangeSet = field(default_factory=RangeSet)
    logs: RangeSet = field(default_factory=RangeSet)
    programs: set[int] = field(default_factory=set)
    """Clients that opened it and are connected."""

    @property
    def total(self) -> int | None:
        """How many tasks the job has, once that is known."""
        return self.record.closed

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


Promise = Reply | Send
"""What is said once the rows are synced."""


class Keeping:
    """All jobs accepted by this node."""

    def __init__(self, node: str, node_name: str, options: KeepingOptions) -> None:
        self.jobs: dict[Job, Kept] = {}
        self.options = options
        self._node = node
        self._node_name = node_name
        self._incarnation = 0
        self._number = 0
        self._tokens = 0
        self._promises: dict[int, list[Promise]] = {}
        self._unsynced: dict[int, list[tuple[Job, BatchId]]] = {}
        self._inputs_at: dict[int, list[tuple[Job, int, int]]] = {}
        self._fetches: dict[int, tuple[Job, int]] = {}
        self._recent: OrderedDict[tuple[Job, BatchId], tuple[int, Any, int]] = OrderedDict()
        self._recent_size = 0
        self._pinned: set[tuple[Job, BatchId]] = set()
        self._retry: list[Row] = []

    # ---- a life begins ----------------------------------------------------------------------------------------------

    def load(self, rows: Sequence[Row], incarnation: int) -> None:
        """Rebuild every record from the journal. Rows of a job without a spec are passed over."""
        self._incarnation = incarnation
        for row in rows:
            if row.kind == "spec":
                spec = unpack_spec(row.meta)
                kept = Kept(row.job, job_name(row.job), spec, Record())
                kept.record.spec = row.meta
                kept.record.expires = spec.submitted_s + spec.ttl_s
                self.jobs[row.job] = kept
        for row in rows:
            if row.job in self.jobs and row.kind != "spec":
                self._load(self.jobs[row.job], row)
        for kept in self.jobs.values():
            kept.order.sort()

    def _load(self, kept: Kept, row: Row) -> None:
        record = kept.record
        match row.kind:
            case "input":
                lo = int.from_bytes(row.key, "big")
                hi, content = unpack(row.meta)
                record.inputs[lo] = Inputs(hi, content)
                kept.known.add(lo, hi)
                kept.durable.add(lo, hi)
            case "close":
                record.closed = unpack(row.meta)
            case "result":
                node, incarnation, number, lo, hi, failed, attempt, content, sealed = unpack(row.meta)
                self._note(kept, BatchId(node, incarnation, number), Results(lo, hi, failed, attempt, content))
                if sealed:
                    record.seals.join(lo, hi, (0, BatchId(node, incarnation, number)))
            case "seal":
                lo, hi, batch = unpack(row.meta)
                record.seals.join(lo, hi, (0, BatchId(*batch)))
            case "cancel":
                flat, _ = unpack(row.meta)
                if flat is None:
                    record.cancelled_all = True
                else:
                    kept.cancelled.update(RangeSet.from_flat(flat))
                    record.cancelled.update(kept.cancelled)
            case "state":
                kept.state, kept.reason = unpack(row.meta)
                record.state = State.CANCELLED if kept.state == CANCELLED else State.FINISHED
            case "try":
                task, *rest = unpack(row.meta)
                record.tries[task] = record.tries.get(task, frozenset()) | {Try(*rest)}
            case "attempt":
                lo, hi, attempt = unpack(row.meta)
                record.attempts.join(lo, hi, attempt)
            case "log":
                index = int.from_bytes(row.key, "big")
                kept.logs.add(index, index + 1)
            case _:
                pass  # a kind of a later minor version: kept, not understood

    def _note(self, kept: Kept, batch: BatchId, results: Results) -> None:
        kept.record.results[batch] = results
        kept.done.add(results.lo, results.hi)
        if results.failed:
            kept.failed.add(results.lo, results.hi)
        kept.order.append((results.lo, batch))

    # ---- promises ---------------------------------------------------------------------------------------------------

    def store(self, rows: Sequence[Row], promises: Iterable[Promise] = ()) -> tuple[int, Store]:
        """Return the effect that writes rows; `promises` are sent once they are synced."""
        self._tokens += 1
        promised = list(promises)
        if promised:
            self._promises[self._tokens] = promised
        return self._tokens, Store(self._tokens, rows)

    def stored(self, token: int) -> list[Effect]:
        """The rows of a token are synced: keep the promises that waited for them."""
        for key in self._unsynced.pop(token, ()):
            self._pinned.discard(key)
        self._trim()
        for job, lo, hi in self._inputs_at.pop(token, ()):
            if job in self.jobs:
                self.jobs[job].durable.add(lo, hi)
        return list(self._promises.pop(token, ()))

    def store_failed(self, token: int, reason: str) -> tuple[list[Effect], list[tuple[Job, int, int]]]:
        """The rows are not on disk: refuse what was not accepted yet. Returns effects and the inputs to forget."""
        error = {"code": "quota-exceeded", "message": reason, "next": "free some disk, or p2pgrid node --dir elsewhere"}
        out: list[Effect] = []
        for promise in self._promises.pop(token, ()):
            match promise:
                case Reply(client, m.ACK, _, body):
                    out.append(Reply(client, m.REFUSED, 0, [*body, error]))
                case Reply(client, _, id_, _):
                    out.append(Reply(client, m.ERROR, id_, error))
                case Send():
                    pass  # the peer keeps what it has and asks again
        lost = self._inputs_at.pop(token, [])
        for job, lo, hi in lost:
            kept = self.jobs.get(job)
            if kept is not None:
                kept.record.inputs.pop(lo, None)
                kept.known.discard(lo, hi)
        # Results stay pinned in memory: they are readable, and a restart runs their tasks again.
        self._unsynced.pop(token, None)
        return out, lost

    @property
    def unsettled(self) -> int:
        """How many promises wait for the disk."""
        return len(self._promises) + len(self._unsynced)

    # ---- what a client sends ----------------------------------------------------------------------------------------

    def open(self, job: Job, packed: bytes, client: int) -> tuple[Kept, list[Effect]]:
        """Accept a job, or meet it again. Raises PeerError if the spec is malformed."""
        ack = Reply(client, m.ACK, 0, [job, "spec", 0])
        kept = self.jobs.get(job)
        if kept is not None:
            kept.programs.add(client)
            return kept, [ack]
        spec = unpack_spec(packed)
        kept = self.jobs[job] = Kept(job, job_name(job), spec, Record())
        kept.record.spec = packed
        kept.record.expires = spec.submitted_s + spec.ttl_s
        kept.programs.add(client)
        return kept, [self.store([Row(job, "spec", b"", packed, b"")], [ack])[1]]

    def code(self, kept: Kept, code: bytes, union: bytes, client: int) -> list[Effect]:
        """Keep a function of a job."""
        ack = Reply(client, m.ACK, 0, [kept.id, "code", code])
        if code in kept.record.codes:
            return [ack]
        kept.record.codes[code] = union
        return [self.store([Row(kept.id, "code", code, b"", union)], [ack])[1]]

    def input(self, kept: Kept, lo: int, hi: int, data: bytes, client: int) -> tuple[bool, list[Effect]]:
        """Append a batch of inputs. Returns whether it is new, and effects."""
        ack = Reply(client, m.ACK, 0, [kept.id, "input", lo])
        if lo in kept.record.inputs:
            return False, [ack] if kept.durable.within(lo, lo + 1) else []
        content = content_id(data)
        kept.record.inputs[lo] = Inputs(hi, content)
        kept.known.add(lo, hi)
        row = Row(kept.id, "input", lo.to_bytes(8, "big"), pack([hi, content]), data)
        token, effect = self.store([row], [ack])
        self._inputs_at[token] = [(kept.id, lo, hi)]
        return True, [effect]

    def close(self, kept: Kept, count: int, client: int) -> list[Effect]:
        """The job gets no more tasks."""
        ack = Reply(client, m.ACK, 0, [kept.id, "close", 0])
        if kept.total is not None:
            return [ack]
        kept.record.closed = count
        return [self.store([Row(kept.id, "close", b"", pack(count), b"")], [ack])[1]]

    def cancel(
        self, kept: Kept, spans: RangeSet | None, promises: Iterable[Promise] = (), reason: str = ""
    ) -> tuple[RangeSet, list[Effect]]:
        """Cancel tasks (None: all of it). Returns which ones were not over yet, and effects."""
        if kept.ended:
            return RangeSet(), list(promises)
        fresh = kept.open_tasks
        if spans is None:
            kept.record.cancelled_all = True
            kept.reason = reason
        else:
            fresh = fresh & spans
            # What the client cancels before its inputs came counts as cancelled as well.
            kept.record.cancelled.update(spans - kept.done)
            kept.cancelled.update(spans - kept.done)
        kept.cancelled.update(fresh)
        flat = None if spans is None else spans.flat()
        key = b"" if spans is None else pack(flat)[:64]
        _, effect = self.store([Row(kept.id, "cancel", key, pack([flat, reason]), b"")], promises)
        return fresh, [effect]

    # ---- results ----------------------------------------------------------------------------------------------------

    def results(
        self,
        kept: Kept,
        outcomes: Sequence[Outcome],
        attempt: int,
        source: Source | None = None,
        promises: Iterable[Promise] = (),
    ) -> tuple[list[Span], list[Effect]]:
        """Record outcomes; the ones that tell nothing new are dropped.

        `source` names the batch that another node made. Returns the tasks that are done now, and effects: what readers
        get, and the store; `promises` are kept when it is synced, at once if there is nothing to write.
        """
        rows: list[Row] = []
        fresh: list[Outcome] = []
        entries: list[list[Any]] = []
        keys = []
        new: list[Span] = []
        name = source.name if source else self._node_name
        seal = bool(kept.watches)
        for position, outcome in enumerate(outcomes):
            lo, hi, shape, data = outcome
            if lo >= hi or (kept.cancelled and not kept.cancelled.missing(lo, hi)):
                continue
            open_spans = kept.done.missing(lo, hi)
            if not open_spans:
                continue
            if source:
                batch = BatchId(source.node, source.incarnation, source.number + position)
            else:
                self._number += 1
                batch = BatchId(self._node, self._incarnation, self._number)
            value = pack([shape, data])
            content = content_id(value)
            results = Results(lo, hi, shape == 2, attempt, content)
            kept.record.results[batch] = results
            new += open_spans
            kept.done.add(lo, hi)
            if shape == 2:
                kept.failed.add(lo, hi)
            if kept.order and kept.order[-1][0] > lo:
                insort(kept.order, (lo, batch))
            else:
                kept.order.append((lo, batch))
            if seal:
                kept.record.seals.join(lo, hi, (0, batch))
            meta = pack([*batch, lo, hi, shape == 2, attempt, content, seal])
            rows.append(Row(kept.id, "result", pack(batch), meta, value))
            self._remember(kept.id, batch, shape, data, len(value))
            keys.append((kept.id, batch))
            entries.append([lo, hi, shape, data, name, attempt])
        if not rows:
            return [], list(promises)
        token, effect = self.store(rows, promises)
        self._unsynced[token] = keys
        out = self._deliver(kept, entries)
        out.append(effect)
        return new, out

    def _remember(self, job: Job, batch: BatchId, shape: int, data: Any, size: int) -> None:
        self._recent[job, batch] = (shape, data, size)
        self._recent_size += size
        self._pinned.add((job, batch))

    def _trim(self) -> None:
        if self._recent_size <= self.options.recent_bytes:
            return
        for key in list(self._recent):
            if self._recent_size <= self.options.recent_bytes:
                break
            if key not in self._pinned:
                self._recent_size -= self._recent.pop(key)[2]

    def _deliver(self, kept: Kept, entries: list[list[Any]]) -> list[Effect]:
        out: list[Effect] = []
        for watch in kept.watches.values():
            if watch.behind or watch.fetching:
                continue  # it catches up in order when it asks for more
            if watch.unread > self.options.window_bytes:
                watch.behind = True
                continue
            send = entries
            if watch.sent:
                send = [e for e in entries if watch.sent.missing(e[0], e[1])]
            for entry in send:
                watch.sent.add(entry[0], entry[1])
                watch.unread += _size(entry[3])
            if send:
                out.append(Reply(watch.client, m.RESULT, 0, [kept.id, send]))
        return out

    # ---- readers ----------------------------------------------------------------------------------------------------

    def watch(self, kept: Kept, client: int, had: RangeSet) -> list[Effect]:
        """Let a client read a job from now on; it has the results `had` already."""
        watch = kept.watches[client] = Watch(client, had)
        watch.behind = True
        return self._catch_up(kept, watch)

    def got(self, kept: Kept, client: int, size: int) -> list[Effect]:
        """A reader took that many bytes in."""
        watch = kept.watches.get(client)
        if watch is None:
            return []
        watch.unread = max(0, watch.unread - size)
        return self._catch_up(kept, watch)

    def fetched(self, token: int, rows: Sequence[Row]) -> tuple[list[Effect], list[Span], Kept | None]:
        """Give a reader what came from disk. Returns effects, tasks whose result is gone, and their job."""
        job, client = self._fetches.pop(token, (b"", -1))
        kept = self.jobs.get(job)
        watch = kept.watches.get(client) if kept is not None else None
        if kept is None or watch is None:
            return [], [], None
        watch.fetching = 0
        entries = []
        for row in rows:
            batch = BatchId(*unpack(row.key))
            shape, data = unpack(row.value or b"")
            entries.append(self._entry(kept, batch, shape, data))
        return self._send(kept, watch, entries) + self._catch_up(kept, watch), [], kept

    def _entry(self, kept: Kept, batch: BatchId, shape: int, data: Any) -> list[Any]:
        results = kept.record.results[batch]
        name = self._node_name if batch.node == self._node else batch.node[-8:]
        return [results.lo, results.hi, shape, data, name, results.attempt]

    def _send(self, kept: Kept, watch: Watch, entries: list[list[Any]]) -> list[Effect]:
        for lo, hi, _, data, _, _ in entries:
            watch.sent.add(lo, hi)
            watch.unread += _size(data)
        return [Reply(watch.client, m.RESULT, 0, [kept.id, entries])] if entries else []

    def _catch_up(self, kept: Kept, watch: Watch) -> list[Effect]:
        """Send what a reader misses, from memory or by way of the disk, as far as its window allows."""
        out: list[Effect] = []
        if watch.fetching:
            return out
        if watch.behind:
            watch.behind = False
            entries: list[list[Any]] = []
            keys: list[tuple[Job, str, bytes]] = []
            budget = self.options.window_bytes - watch.unread
            for batch in self._missing(kept, watch.sent):
                if budget <= 0 or len(keys) >= 1024:
                    watch.behind = True
                    break
                recent = self._recent.get((kept.id, batch))
                if recent is None:
                    keys.append((kept.id, "result", pack(batch)))
                    budget -= self.options.step_bytes // 256
                else:
                    entries.append(self._entry(kept, batch, recent[0], recent[1]))
                    budget -= recent[2]
            out += self._send(kept, watch, entries)
            if keys:
                self._tokens += 1
                watch.fetching = self._tokens
                watch.behind = True
                self._fetches[self._tokens] = (kept.id, watch.client)
                out.append(Fetch(self._tokens, keys))
        if kept.ended and not watch.behind and not watch.ended:
            watch.ended = True
            out.append(Reply(watch.client, m.STATE, 0, [kept.id, kept.state, kept.reason]))
        return out

    def _missing(self, kept: Kept, had: RangeSet) -> Iterable[BatchId]:
        """Yield the batches whose tasks a reader lacks, in order of index, the counting one where two overlap."""
        missing = kept.done - had
        covered = RangeSet()
        for lo, hi in missing:
            at = bisect_left(kept.order, (lo, BatchId("", 0, 0)))
            while at > 0 and kept.record.results[kept.order[at - 1][1]].hi > lo:
                at -= 1
            for start, batch in kept.order[at:]:
                if start >= hi:
                    break
                results = kept.record.results[batch]
                if results.hi > lo and covered.missing(results.lo, results.hi):
                    covered.add(results.lo, results.hi)
                    yield batch

    def unwatch(self, client: int, kept: Kept | None = None) -> None:
        """A reader left (one job, or all)."""
        for one in [kept] if kept is not None else self.jobs.values():
            one.watches.pop(client, None)
            one.programs.discard(client)

    # ---- the end of a job -------------------------------------------------------------------------------------------

    def settle(self, kept: Kept) -> list[Effect]:
        """See whether a job has come to its end, and tell readers and journal if so."""
        if kept.ended:
            return []
        over = kept.done | kept.cancelled if kept.cancelled else kept.done
        if kept.record.cancelled_all:
            state = ABANDONED if kept.reason == ABANDONED else CANCELLED
        elif kept.total is None or over.size < kept.total:
            return []
        elif kept.cancelled.size >= max(kept.total, 1):
            state = CANCELLED
        else:
            state = FAILED if kept.failed else DONE
        kept.state = state
        kept.record.state = State.CANCELLED if state in (CANCELLED, ABANDONED) else State.FINISHED
        _, effect = self.store([Row(kept.id, "state", b"", pack([state, kept.reason]), b"")])
        out: list[Effect] = [effect]
        for watch in kept.watches.values():
            out += self._catch_up(kept, watch)
        return out

    def tried(self, kept: Kept, task: int, one: Try) -> Effect:
        """Remember a failed execution of a task; told twice, it counts once."""
        kept.record.tries[task] = kept.record.tries.get(task, frozenset()) | {one}
        row = Row(kept.id, "try", pack([task, *one])[:64], pack([task, *one]), b"")
        return Store(0, [row])

    def reissued(self, kept: Kept, spans: Iterable[Span]) -> list[Effect]:
        """Raise the attempt number of tasks that will run again."""
        rows = []
        for lo, hi in spans:
            attempt = 1 + max((v for a, b, v in kept.record.attempts if a < hi and lo < b), default=1)
            kept.record.attempts.join(lo, hi, attempt)
            rows.append(Row(kept.id, "attempt", lo.to_bytes(8, "big"), pack([lo, hi, attempt]), b""))
        return [Store(0, rows)] if rows else []

    def waits_for_disk(self, kept: Kept, source: Source, count: int) -> bool:
        """Whether a batch of another node came before and is not synced yet."""
        return any(
            (kept.id, BatchId(source.node, source.incarnation, source.number + i)) in self._pinned for i in range(count)
        )

    def next_number(self) -> int:
        """Return a number that names one event of this incarnation."""
        self._number += 1
        return self._number

    @property
    def incarnation(self) -> int:
        """This life of the node."""
        return self._incarnation

    def log(self, kept: Kept, logs: Sequence[tuple[int, bytes]]) -> Effect | None:
        """Keep the captured output of tasks."""
        rows = []
        for index, text in logs:
            kept.logs.add(index, index + 1)
            rows.append(Row(kept.id, "log", index.to_bytes(8, "big"), b"", text[-self.options.log_bytes :]))
        return Store(0, rows) if rows else None

    def expired(self, wall_s: float) -> tuple[list[Job], list[Effect]]:
        """Delete jobs whose time is over."""
        gone = [job for job, kept in self.jobs.items() if kept.expires_s <= wall_s]
        out: list[Effect] = []
        for job in gone:
            out += self.delete(job)
        return gone, out

    def delete(self, job: Job) -> list[Effect]:
        """Forget everything about a job, on disk as well."""
        kept = self.jobs.pop(job)
        for batch in kept.record.results:
            entry = self._recent.pop((job, batch), None)
            if entry is not None:
                self._recent_size -= entry[2]
            self._pinned.discard((job, batch))
        rows = [Row(job, "*", b"", b"", None)]
        return [Store(0, rows)]

    def entry_of(self, kept: Kept, task: int) -> Results | None:
        """Return the batch that counts for a task."""
        at = bisect_right(kept.order, (task, BatchId("\U0010ffff", 0, 0)))
        for _, batch in reversed(kept.order[:at]):
            results = kept.record.results[batch]
            if results.lo <= task < results.hi:
                return results
        return None


def _size(data: Any) -> int:
    return len(data) if isinstance(data, bytes) else sum(map(len, data)) + len(data)
