"""Keeping: the records of the jobs accepted here, what is promised to whom, and who reads results.

Every change of a record goes into the journal; whoever was promised something hears of it when the rows are synced
(`promising`), never before; what rows mean stands in `merging`. Results are given to readers at once, in windows: a
reader that takes nothing in gets no more than `window_bytes` and the rest when it asks for more, from memory or disk.

Rule: this file knows neither workers nor the pool nor peers. It says which tasks are open; others run them.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id
from p2pgrid.core.errors import PeerError
from p2pgrid.core.ids import job_name
from p2pgrid.core.keeper_shapes import check_spec
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.record import BatchId, Inputs, Record, Results, Spec, State, Try, unpack_spec
from p2pgrid.core.shapes import FAILURE, failure_text
from p2pgrid.core.wire import pack
from p2pgrid.node.events import Effect, Freed, Outcome, Reply, Row, Store
from p2pgrid.node.kept import (
    ABANDONED,
    CANCELLED,
    DONE,
    FAILED,
    Fresh,
    Job,
    KeepingOptions,
    Kept,
    Mark,
    Promise,
    Source,
)
from p2pgrid.node.merging import merge
from p2pgrid.node.promising import Appended, Promising, Refused, Unsynced

REASONS_MAX = 1000
"""Failures of a job whose text is kept at hand."""


class Keeping(Promising):
    """All jobs accepted by this node."""

    def __init__(self, node: str, node_name: str, options: KeepingOptions) -> None:
        super().__init__(node, node_name, options)
        self._node = node
        self._node_name = node_name
        self._incarnation = 0
        self._number = 0
        self.readers.seal = self.seal
        self.readers.when_sealed = self.when_sealed
        self.readers.when_ended = self.when_ended
        self.changed: Callable[[Kept], None] = lambda _: None
        """Hears of every job that is new here, has ended, or is kept for longer."""
        self.logged: Callable[[Kept, Sequence[tuple[int, bytes]]], None] = lambda *_: None
        """Hears what tasks have printed, before it is kept."""
        self.deleted: Callable[[Job], None] = lambda _: None
        """Hears of every job that is not kept here any more."""
        self.copies_pending: Callable[[Job], bool] = lambda _: False
        """Whether something of a job that was promised waits for a second copy."""

    # ---- a life begins ----------------------------------------------------------------------------------------------

    def load(self, rows: Sequence[Row], incarnation: int, objects: Container[bytes] = ()) -> None:
        """Rebuild every record from the journal. Rows of a job without a spec are passed over.

        `objects` are those on disk; a result that was no more than another in memory is lost with it.
        """
        self._incarnation = incarnation
        for row in rows:
            if row.kind == "spec":
                kept = self.begin(row.job, unpack_spec(row.meta), row.meta)
                kept.accepted = kept.accepted or self._node  # written before there were owners
                kept.synced.add(("spec", b""))
                kept.rows.put(row)

        def lost(large: Large) -> bool:
            return large.name not in objects and set(large.holders) <= {self._node}

        for row in rows:
            if row.job in self.jobs and row.kind != "spec":
                self.jobs[row.job].rows.put(row)
                merge(self.jobs[row.job], row, self.readers.names, lost)
        for kept in self.jobs.values():
            kept.order.sort()
            self.changed(kept)

    def begin(self, job: Job, spec: Spec, packed: bytes, *, serving: bool = True) -> Kept:
        """Keep the record of a job from now on: so far it is its spec."""
        accepted = spec.owner.decode(errors="replace")
        kept = self.jobs[job] = Kept(job, job_name(job), spec, Record(), accepted=accepted, serving=serving)
        kept.record.spec = packed
        kept.record.expires = spec.submitted_s + spec.ttl_s
        return kept

    def merge(self, kept: Kept, row: Row) -> None:
        """Take what a row of another keeper says into the record."""
        merge(kept, row, self.readers.names)

    def store_failed(self, token: int, reason: str) -> Refused:
        """As of `Promising`; of a job that was not accepted nothing stays."""
        refused = super().store_failed(token, reason)
        for job in refused.jobs:
            refused.effects.extend(self.delete(job, ""))  # its client hears why from the refusal
        return refused

    # ---- what a client sends ----------------------------------------------------------------------------------------
    # Whatever is said again before it is synced is written again: the promise belongs to the connection it came by.

    def _mark(self, kept: Kept, mark: Mark, row: Row, ack: Reply) -> list[Effect]:
        if mark in kept.synced and (not self.is_shared or mark[0] == "spec"):
            return [ack]  # the copies of a spec come with what rests on it
        token, effect = self.store([row], [ack])
        self._marked[token] = kept.id, mark
        return [effect]

    def open(self, job: Job, packed: bytes, client: int) -> tuple[Kept, list[Effect]]:
        """Accept a job, or meet it again. Raises PeerError if the spec is malformed."""
        kept = self.jobs.get(job)
        if kept is None:
            spec = replace(unpack_spec(packed), owner=self._node.encode())
            check_spec(spec)
            kept = self.begin(job, spec, spec.packed())
            self.changed(kept)
        kept.programs.add(client)
        row = Row(job, "spec", b"", kept.record.spec or packed, b"")
        return kept, self._mark(kept, ("spec", b""), row, Reply(client, m.ACK, 0, [job, "spec", 0]))

    def code(self, kept: Kept, code: bytes, union: bytes, client: int) -> list[Effect]:
        """Keep a function of a job."""
        union = kept.record.codes.setdefault(code, union)
        row = Row(kept.id, "code", code, b"", union)
        return self._mark(kept, ("code", code), row, Reply(client, m.ACK, 0, [kept.id, "code", code]))

    def input(self, kept: Kept, lo: int, hi: int, data: bytes, fns: frozenset[bytes], client: int) -> list[Effect]:
        """Append a batch of inputs, or meet it again. Raises PeerError if it is not the one that was appended."""
        ack = Reply(client, m.ACK, 0, [kept.id, "input", lo])
        content = content_id(data)
        known = kept.record.inputs.setdefault(lo, Inputs(hi, content))
        if (known.hi, known.content) != (hi, content):
            msg = f"another batch of inputs than the one appended at {lo}"
            raise PeerError(msg)
        if lo in kept.durable and not self.is_shared:
            return [ack]
        kept.known.add(lo, hi)
        row = Row(kept.id, "input", lo.to_bytes(8, "big"), pack([hi, content]), data)
        token, effect = self.store([row], [ack])
        self._appended[token] = Appended(kept.id, lo, hi, fns)
        return [effect]

    def close(self, kept: Kept, count: int, client: int | None) -> list[Effect]:
        """The job gets no more tasks. Raises PeerError if it has more, or was closed with another count."""
        last = kept.known.last()
        if kept.total not in (None, count) or (last is not None and last[1] > count):
            msg = f"a job that is closed with {count} tasks and has others"
            raise PeerError(msg)
        kept.record.closed = count
        row = Row(kept.id, "close", pack(count), pack(count), b"")
        if client is None:
            return [self.store([row])[1]]
        return self._mark(kept, ("close", b""), row, Reply(client, m.ACK, 0, [kept.id, "close", 0]))

    def when_ended(self, kept: Kept, promises: Sequence[Promise]) -> list[Effect]:
        """Promise something that holds because the job has ended: once that is on disk."""
        return [self.store([self._end(kept)], promises)[1]] if promises else []

    @staticmethod
    def _end(kept: Kept) -> Row:
        meta = pack([kept.state, kept.reason])
        return Row(kept.id, "state", content_id(meta), meta, b"")

    def cancel(
        self, kept: Kept, spans: RangeSet | None, promises: Sequence[Promise] = (), reason: str = ""
    ) -> tuple[RangeSet, list[Effect]]:
        """Cancel tasks (None: all of it). Returns which ones were not over yet, and effects."""
        if kept.ended:
            return RangeSet(), self.when_ended(kept, promises)
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
        meta = pack([None if spans is None else spans.flat(), reason])
        _, effect = self.store([Row(kept.id, "cancel", content_id(meta), meta, b"")], promises)
        return fresh, [effect]

    # ---- results ----------------------------------------------------------------------------------------------------

    def deliver(
        self, kept: Kept, outcomes: Sequence[Outcome], attempt: int, source: Source | None = None
    ) -> tuple[Fresh, list[Effect]]:
        """Take in outcomes and give them to readers at once; the ones that tell nothing new are dropped.

        `source` names the batch that another node made. What is returned is to be kept (`keep`) before anything else.
        """
        fresh = Fresh(attempt, bool(kept.watches))
        entries: list[list[Any]] = []
        name = source.name if source else self._node_name
        if source:
            self.readers.names[source.node] = source.name
        for position, outcome in enumerate(outcomes):
            lo, hi, shape, data = outcome
            if lo >= hi or (kept.cancelled and not kept.cancelled.missing(lo, hi)):
                continue
            open_spans = kept.done.missing(lo, hi)
            if not open_spans:
                continue
            fresh.new += open_spans
            if sum(b - a for a, b in open_spans) < hi - lo:
                kept.overlaps = True  # some of them had run before
            kept.done.add(lo, hi)
            if shape == FAILURE:
                kept.failed.add(lo, hi)
                if len(kept.reasons) < REASONS_MAX:
                    kept.reasons[lo] = failure_text(data)
            if source:
                batch = BatchId(source.node, source.incarnation, source.number + position)
            else:
                self._number += 1
                batch = BatchId(self._node, self._incarnation, self._number)
            fresh.batches.append((batch, outcome))
            entries.append([lo, hi, shape, data, name, attempt])
        return fresh, self.readers.deliver(kept, entries) if entries else []

    def show(self, kept: Kept, outcome: Outcome, attempt: int) -> list[Effect]:
        """Give readers on this machine a result that is yet to be recorded."""
        lo, hi, shape, data = outcome
        if kept.ended or kept.done.within(lo, hi) or kept.cancelled.within(lo, hi):
            return []
        return self.readers.deliver(kept, [[lo, hi, shape, data, self._node_name, attempt]], local=True)

    def keep(self, kept: Kept, fresh: Fresh, promises: Iterable[Promise] = ()) -> list[Effect]:
        """Put what was taken in into record and journal.

        `promises` are kept when it is synced, at once if there is nothing to write.
        """
        rows: list[Row] = []
        keys = []
        for batch, (lo, hi, shape, data) in fresh.batches:
            value = pack([shape, data])
            content = content_id(value)
            failed = shape == FAILURE
            large = read_large(data) if shape == LARGE else None
            refs = (large.name,) if large else ()
            kept.record.results[batch] = Results(lo, hi, failed, fresh.attempt, content, refs)
            size = large.size if large else len(value)
            if large:
                kept.objects.append(large)
            if kept.order and kept.order[-1][0] > lo:
                insort(kept.order, (lo, batch, size))
            else:
                kept.order.append((lo, batch, size))
            if fresh.seal:
                kept.record.seals.join(lo, hi, (0, batch))
            name = self.readers.names.get(batch.node, "")
            more = [data] if large else []
            meta = pack([*batch, lo, hi, failed, fresh.attempt, content, fresh.seal, size, name, *more])
            rows.append(Row(kept.id, "result", pack(batch), meta, value))
            self.readers.remember(kept.id, batch, shape, data, len(value))
            keys.append((kept.id, batch))
        promises = list(promises)
        if not rows:
            # What tells nothing new may rest on rows that are on their way: its promise waits for them.
            waits = fresh.awaited or self._unsynced
            return [self.store([], promises)[1]] if promises and waits else [*promises]
        token, effect = self.store(rows, promises)
        self._unsynced[token] = Unsynced(keys, rows, promises)
        return [effect]

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
            state = ABANDONED if kept.orphaned else FAILED if kept.failed else DONE
        kept.state = state
        kept.record.state = State.CANCELLED if state in (CANCELLED, ABANDONED) else State.FINISHED
        _, effect = self.store([self._end(kept)])
        self.changed(kept)
        out: list[Effect] = [effect]
        for watch in kept.watches.values():
            out += self.readers.catch_up(kept, watch)
        return out

    def tried(self, kept: Kept, task: int, one: Try) -> Effect:
        """Remember a failed execution of a task; told twice, it counts once."""
        kept.record.tries[task] = kept.record.tries.get(task, frozenset()) | {one}
        meta = pack([task, *one])
        return self.store([Row(kept.id, "try", content_id(meta), meta, b"")])[1]

    def reissued(self, kept: Kept, spans: Iterable[Span], *, raised: bool = False) -> list[Effect]:
        """Raise the attempt number of tasks that will run again, or (`raised`) may have been begun before."""
        rows = []
        for lo, hi in spans:
            attempt = 1 + max((v for _, _, v in kept.record.attempts.within(lo, hi)), default=1)
            kept.record.attempts.join(lo, hi, attempt)
            if raised:
                kept.raised.join(lo, hi, attempt)
            meta = pack([lo, hi, attempt, *([True] if raised else [])])
            rows.append(Row(kept.id, "attempt", meta, meta, b""))
        return [self.store(rows)[1]] if rows else []

    def waits_for_disk(self, kept: Kept, source: Source, count: int) -> bool:
        """Whether a batch of another node came before and is not synced yet, or on one keeper only."""
        batches = [BatchId(source.node, source.incarnation, source.number + i) for i in range(count)]
        if self.copies_pending(kept.id) and any(batch in kept.record.results for batch in batches):
            return True
        return any(self.readers.is_pinned((kept.id, batch)) for batch in batches)

    def note(self, kept: Kept, kind: str) -> Effect:
        """Write down something that is true of a job from now on: it was "taken" over, or is an "orphan"."""
        row = Row(kept.id, kind, b"", b"", b"")
        self.merge(kept, row)
        return self.store([row])[1]

    def seal(self, kept: Kept, batches: Iterable[BatchId]) -> list[Effect]:
        """A reader is given these results: where a task may have more than one, it is these that count from now on."""
        rows = []
        for batch in batches:
            results = kept.record.results[batch]
            attempts = kept.record.attempts.within(results.lo, results.hi)
            if not (kept.overlaps or attempts) or kept.record.seals.get(results.lo) is not None:
                continue
            kept.record.seals.join(results.lo, results.hi, (0, batch))
            rows.append(_seal(kept, results.lo, results.hi, batch))
        return [self.store(rows)[1]] if rows else []

    def seal_given(self, kept: Kept, lo: int, hi: int) -> list[Effect]:
        """There is another result for some of these tasks: what readers here were given of them counts from now on."""
        rows = []
        for task in (task for span in kept.given & kept.done & RangeSet([(lo, hi)]) for task in range(*span)):
            batch = self.batch_of(kept, task)
            if batch is not None and kept.record.seals.get(task) is None:
                results = kept.record.results[batch]
                kept.record.seals.join(results.lo, results.hi, (0, batch))
                rows.append(_seal(kept, results.lo, results.hi, batch))
        return [self.store(rows)[1]] if rows else []

    def when_sealed(self, kept: Kept, batches: Iterable[BatchId], given: Reply) -> list[Effect]:
        """Seal these results whatever else there is, and give them to a reader once that is on two disks."""
        rows = []
        for batch in batches:
            results = kept.record.results[batch]
            kept.record.seals.join(results.lo, results.hi, (0, batch))
            rows.append(_seal(kept, results.lo, results.hi, batch))
        return [self.store(rows, [given])[1]]

    def next_number(self) -> int:
        """Return a number that names one event of this incarnation."""
        self._number += 1
        return self._number

    @property
    def incarnation(self) -> int:
        """The number of this life of the node."""
        return self._incarnation

    def log(self, kept: Kept, logs: Sequence[tuple[int, bytes]]) -> Effect | None:
        """Keep the captured output of tasks."""
        self.logged(kept, logs)
        rows = []
        for index, text in logs:
            kept.logs.add(index, index + 1)
            rows.append(Row(kept.id, "log", index.to_bytes(8, "big"), b"", text[-self.options.log_bytes :]))
        if not rows or not self.is_shared:
            return Store(0, rows) if rows else None
        token = self._token()
        self._logs[token] = rows
        return Store(token, rows)

    def logs_of(self, kept: Kept, rows: Iterable[Row]) -> list[Row]:
        """Return the logs among rows of another keeper that are to be kept here as well."""
        taken = []
        for row in rows:
            index = int.from_bytes(row.key, "big")
            if row.kind != "log" or index not in kept.known or not row.value:
                continue
            if kept.serving and index in kept.logs:
                continue  # here is what the task said last
            kept.logs.add(index, index + 1)
            taken.append(Row(kept.id, "log", index.to_bytes(8, "big"), b"", row.value[-self.options.log_bytes :]))
        return taken

    def expired(self, wall_s: float) -> tuple[list[Job], list[Effect]]:
        """Delete jobs whose time is over."""
        gone = [job for job, kept in self.jobs.items() if kept.expires_s <= wall_s]
        out: list[Effect] = []
        for job in gone:
            kept = self.jobs[job]
            out += self.delete(job, "expired", state="unknown" if kept.ended else ABANDONED)
        return gone, out

    def keep_until(self, kept: Kept, until_s: float, promises: Iterable[Promise]) -> Effect:
        """Let a job expire at `until_s`, in unix seconds, or later: its time only grows."""
        kept.record.expires = max(kept.record.expires, until_s)
        self.changed(kept)
        meta = pack(kept.record.expires)
        return self.store([Row(kept.id, "expiry", meta, meta, b"")], promises)[1]

    @staticmethod
    def let_go(kept: Kept, *, inputs: bool, here: bool = False) -> list[Effect]:
        """A job needs its objects no longer (`inputs`: those that its inputs name); `here`: it does at other nodes."""
        freed: list[Effect] = [Freed(kept.id, inputs=True, here=here)] if kept.refs else []
        return freed if inputs or not kept.objects else [*freed, Freed(kept.id, here=here)]

    def refs(self, kept: Kept, objects: Iterable[Large]) -> list[Row]:
        """Note objects that inputs name; return the rows that say so."""
        rows = []
        for large in objects:
            kept.refs[large.name] = large
            rows.append(Row(kept.id, "refs", large.name, large.packed(), b""))
        return rows

    def delete(self, job: Job, reason: str, state: str = "unknown", *, here: bool = False) -> list[Effect]:
        """Forget everything about a job, on disk as well; its readers are told a state and the reason, if any.

        `here`: other nodes keep it, so that its objects are not dropped by all who have them.
        """
        kept = self.jobs.pop(job)
        self.deleted(job)
        self.readers.forget((job, batch) for batch in kept.record.results)
        rows = [Row(job, "*", b"", b"", None)]
        told = self.readers.dismiss(kept, state, reason) if reason else []
        return [*told, Store(0, rows), *self.let_go(kept, inputs=False, here=here)]

    def entry_of(self, kept: Kept, task: int) -> tuple[Results, str] | None:
        """Return the batch that counts for a task, and the name of the node that made it."""
        batch = self.batch_of(kept, task)
        return None if batch is None else (kept.record.results[batch], self.readers.name_of(batch.node))

    def batch_of(self, kept: Kept, task: int) -> BatchId | None:
        """Return the name of the batch that counts for a task, if it is done."""
        if task not in kept.done:
            return None
        at = bisect_right(kept.order, (task, BatchId("\U0010ffff", 0, 0), 0))
        for place in range(at - 1, -1, -1):
            batch = kept.order[place][1]
            results = kept.record.results[batch]
            if results.lo <= task < results.hi:
                return batch
        return None


def _seal(kept: Kept, lo: int, hi: int, batch: BatchId) -> Row:
    meta = pack([lo, hi, list(batch)])
    return Row(kept.id, "seal", content_id(meta), meta, b"")
