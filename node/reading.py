"""Readers: who reads which job, and how results reach them: at once, in windows, from memory or by way of the disk.

A reader that takes nothing in gets no more than `window_bytes` and the rest when it asks for more. Results that are not
synced yet stay in memory, synced ones as long as there is room.

Rule: this file records nothing; what is done, failed or cancelled it reads from the job it is handed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import ResultLost
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.large import outcome_bytes
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId
from p2pgrid.core.shapes import FAILURE
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.events import Effect, Fetch, Reply, Row
from p2pgrid.node.kept import Job, KeepingOptions, Kept, Watch

OVERHEAD = 512
"""Bytes that a result costs in memory besides its value, about."""
FETCH_MAX = 1024
"""Results asked of the disk at once."""
TRIES_MAX = 256
"""How many results that may not leave memory yet are passed over in one go."""

Key = tuple[Job, BatchId]


class Readers:
    """All readers of the jobs kept here."""

    def __init__(
        self, jobs: dict[Job, Kept], node: str, node_name: str, options: KeepingOptions, token: Callable[[], int]
    ) -> None:
        self.jobs = jobs
        self.options = options
        self._node = node
        self._node_name = node_name
        self._token = token
        self.names: dict[str, str] = {}
        """Names of the other nodes that made results."""
        self.seal: Callable[[Kept, Iterable[BatchId]], list[Effect]] = lambda *_: []
        """Told what a reader is given."""
        self.when_sealed: Callable[[Kept, Iterable[BatchId], Reply], list[Effect]] = lambda *_: []
        """Seals results, and gives them to a reader once that is on two disks."""
        self.when_ended: Callable[[Kept, Sequence[Reply]], list[Effect]] = lambda *_: []
        """Tells a reader the end of a job after everything that it was to be given before."""
        self.mend: Callable[[Kept, BatchId], bool] = lambda *_: False
        """Whether a damaged result is being had from another keeper."""
        self._fetches: dict[int, tuple[Job, int, list[BatchId]]] = {}
        self._recent: OrderedDict[Key, tuple[int, Any, int]] = OrderedDict()
        self._recent_size = 0
        self._pinned: set[Key] = set()

    def unpin(self, keys: Iterable[Key]) -> None:
        """These results are synced: they may leave memory."""
        self._pinned.difference_update(keys)
        self.trim()

    def recent(self, key: Key) -> tuple[int, Any] | None:
        """Return shape and data of a result that is in memory."""
        known = self._recent.get(key)
        return None if known is None else known[:2]

    def is_pinned(self, key: Key) -> bool:
        """Whether a result is here and not synced yet."""
        return key in self._pinned

    def forget(self, keys: Iterable[Key]) -> None:
        """Let go of these results."""
        for key in keys:
            entry = self._recent.pop(key, None)
            if entry is not None:
                self._recent_size -= entry[2] + OVERHEAD
            self._pinned.discard(key)

    def remember(self, job: Job, batch: BatchId, shape: int, data: Any, size: int) -> None:
        self._recent[job, batch] = (shape, data, size)
        self._recent_size += size + OVERHEAD
        self._pinned.add((job, batch))

    def trim(self) -> None:
        tries = TRIES_MAX
        while self._recent_size > self.options.recent_bytes and self._recent and tries:
            key, entry = self._recent.popitem(last=False)
            if key in self._pinned:
                self._recent[key] = entry
                tries -= 1
            else:
                self._recent_size -= entry[2] + OVERHEAD

    def deliver(self, kept: Kept, entries: list[list[Any]], *, local: bool = False) -> list[Effect]:
        """Give readers results; `local`: those on this machine only."""
        out: list[Effect] = []
        for watch in kept.watches.values():
            if local and watch.client < 0:
                continue
            if watch.fetching:
                continue  # it catches up in order when that is here
            if watch.stable:
                watch.behind = True  # it catches up when they are synced
                continue
            if watch.behind or watch.unread > watch.window_bytes:
                watch.behind = True
                send = [e for e in entries if watch.wanted is not None and e[0] <= watch.wanted < e[1]]
            else:
                send = entries
            if watch.sent:
                send = [e for e in send if watch.sent.missing(e[0], e[1])]
            for entry in send:
                watch.sent.add(entry[0], entry[1])
                watch.unread += outcome_bytes(entry[2], entry[3])
                if kept.copied:
                    kept.given.add(entry[0], entry[1])
            if send:
                out.append(Reply(watch.client, m.RESULT, 0, [kept.id, send]))
        return out

    def watch(
        self, kept: Kept, client: int, had: RangeSet, window_bytes: int | None = None, *, stable: bool = False
    ) -> list[Effect]:
        """Let a client read a job from now on; it has the results `had` already."""
        watch = kept.watches[client] = Watch(client, had, window_bytes or self.options.window_bytes, stable=stable)
        watch.behind = True
        out: list[Effect] = []
        if kept.cancelled and not kept.ended:
            out.append(Reply(client, m.CANCELLED, 0, [kept.id, kept.cancelled.flat()]))
        return out + self.catch_up(kept, watch)

    def got(self, kept: Kept, client: int, size: int, wanted: int | None = None) -> list[Effect]:
        """A reader took that many bytes in, and may wait for one result before it can take in those it has."""
        watch = kept.watches.get(client)
        if watch is None:
            return []
        watch.unread = max(0, watch.unread - size)
        watch.wanted = wanted
        return self.catch_up(kept, watch)

    def fetched(self, token: int, rows: Sequence[Row]) -> list[Effect]:
        """Give a reader what came from disk."""
        job, client, batches = self._fetches.pop(token, (b"", -1, []))
        kept = self.jobs.get(job)
        watch = kept.watches.get(client) if kept is not None else None
        if kept is None or watch is None or watch.fetching != token:
            return []
        watch.fetching = 0
        values = {row.key: row.value for row in rows}
        entries = []
        for batch in batches:
            value = values.get(pack(batch))
            if value is not None:
                entries.append(self._entry(kept, batch, *unpack(value)))
            elif self.mend(kept, batch):
                kept.torn.add(batch)
            else:
                entries += self._lost(kept, batch, watch.sent)
        given = [batch for batch in batches if batch not in kept.torn]
        return self._give(kept, watch, entries, given) + self.catch_up(kept, watch)

    def give_up(self, kept: Kept) -> list[Effect]:
        """Nobody has what was damaged here: its readers are told."""
        torn, kept.torn = kept.torn, set()
        out: list[Effect] = []
        for watch in list(kept.watches.values()):
            for batch in torn:
                out += self._send(kept, watch, self._lost(kept, batch, watch.sent))
            watch.behind = True
            out += self.catch_up(kept, watch)
        return out

    def _lost(self, kept: Kept, batch: BatchId, sent: RangeSet) -> list[list[Any]]:
        """The only copy is damaged: its readers are told, they do not wait for ever."""
        results = kept.record.results[batch]
        error = ResultLost("the result of this task is damaged on disk", next="submit it again")
        data = pack(encode_exception(error))
        return [
            [i, i + 1, FAILURE, data, self._node_name, results.attempt]
            for lo, hi in sent.missing(results.lo, results.hi)
            for i in range(lo, hi)
        ]

    def _entry(self, kept: Kept, batch: BatchId, shape: int, data: Any) -> list[Any]:
        results = kept.record.results[batch]
        return [results.lo, results.hi, shape, data, self.name_of(batch.node), results.attempt]

    def name_of(self, node: str) -> str:
        """Return the name of a node that made results."""
        return self._node_name if node == self._node else self.names.get(node, node[-8:])

    def _give(self, kept: Kept, watch: Watch, entries: list[list[Any]], given: list[BatchId]) -> list[Effect]:
        """Send a reader results, which are sealed with that; a stable one gets them after it."""
        out = self._send(kept, watch, entries)
        if watch.stable:
            return [effect for one in out for effect in self.when_sealed(kept, given, one)]
        return [*out, *self.seal(kept, given)] if given and kept.copied else [*out]

    def _send(self, kept: Kept, watch: Watch, entries: list[list[Any]]) -> list[Reply]:
        for lo, hi, shape, data, _, _ in entries:
            watch.sent.add(lo, hi)
            watch.unread += outcome_bytes(shape, data)
            if kept.copied:
                kept.given.add(lo, hi)
        return [Reply(watch.client, m.RESULT, 0, [kept.id, entries])] if entries else []

    def synced(self, jobs: Iterable[Job]) -> list[Effect]:
        """Results of these jobs are on disk: stable readers may have them."""
        kept = [self.jobs[job] for job in jobs if job in self.jobs]
        stable = [(one, watch) for one in kept for watch in list(one.watches.values()) if watch.stable]
        return [effect for one, watch in stable for effect in self.catch_up(one, watch)]

    def catch_up(self, kept: Kept, watch: Watch) -> list[Effect]:
        """Send what a reader misses, from memory or by way of the disk, as far as its window allows."""
        out: list[Effect] = []
        if watch.fetching:
            return out
        if watch.behind:
            watch.behind = False
            entries: list[list[Any]] = []
            given: list[BatchId] = []
            batches: list[BatchId] = []
            budget = watch.window_bytes - watch.unread
            step = self.options.step_bytes
            unsynced = False
            for batch, size in self._missing(kept, watch.sent):
                results = kept.record.results[batch]
                if batch in kept.torn:
                    continue
                if watch.stable and (kept.id, batch) in self._pinned:
                    unsynced = True
                    continue
                is_wanted = watch.wanted is not None and results.lo <= watch.wanted < results.hi
                if (budget <= 0 and not is_wanted) or step <= 0 or len(batches) >= FETCH_MAX:
                    watch.behind = True
                    break
                budget -= size
                recent = self._recent.get((kept.id, batch))
                if recent is None:
                    batches.append(batch)
                    step -= size
                else:
                    entries.append(self._entry(kept, batch, recent[0], recent[1]))
                    given.append(batch)
            watch.behind |= unsynced
            out += self._give(kept, watch, entries, given)
            if batches:
                watch.fetching = self._token()
                watch.behind = True
                self._fetches[watch.fetching] = (kept.id, watch.client, batches)
                out.append(Fetch(watch.fetching, [(kept.id, "result", pack(batch)) for batch in batches]))
        if kept.ended and kept.is_whole and not watch.behind and not watch.ended and not kept.torn:
            watch.ended = True
            told = Reply(watch.client, m.STATE, 0, [kept.id, kept.state, kept.reason])
            out += self.when_ended(kept, [told]) if watch.stable else [told]
        return out

    def _missing(self, kept: Kept, had: RangeSet) -> Iterable[tuple[BatchId, int]]:
        """Yield the batches whose tasks a reader lacks and their sizes, in order of index, one where two overlap."""
        missing = kept.done - had
        covered = RangeSet()
        if kept.overlaps:
            yield from self._chosen(kept, missing)
            return
        for lo, hi in missing:
            at = bisect_left(kept.order, (lo, BatchId("", 0, 0), 0))
            while at > 0 and kept.record.results[kept.order[at - 1][1]].hi > lo:
                at -= 1
            for place in range(at, len(kept.order)):
                start, batch, size = kept.order[place]
                if start >= hi:
                    break
                results = kept.record.results[batch]
                if results.hi > lo and covered.missing(results.lo, results.hi):
                    covered.add(results.lo, results.hi)
                    yield batch, size

    @staticmethod
    def _chosen(kept: Kept, missing: RangeSet) -> Iterable[tuple[BatchId, int]]:
        """Yield the batches that count for tasks of which some have more than one result: sealed ones, then the first.

        What a seal names is given to every reader, whichever copy of the record he reads.
        """
        seals, results = kept.record.seals, kept.record.results
        sealed = {batch for _, _, (_, batch) in seals}
        left = missing.copy()
        for _, batch, size in sorted(kept.order, key=lambda one: (one[1] not in sealed, one[1])):
            lo, hi = results[batch].lo, results[batch].hi
            if left.within(lo, hi):
                left.discard(lo, hi)
                yield batch, size

    def dismiss(self, kept: Kept, state: str, reason: str) -> list[Effect]:
        """A job is deleted: whoever reads it and was not told its end gets no more of it."""
        waiting = [watch for watch in kept.watches.values() if not watch.ended]
        for watch in waiting:
            watch.ended = True
        return [Reply(watch.client, m.STATE, 0, [kept.id, state, reason]) for watch in waiting]

    def unwatch(self, client: int, kept: Kept | None = None) -> None:
        """A reader left (one job, or all)."""
        for one in [kept] if kept is not None else self.jobs.values():
            one.watches.pop(client, None)
            one.programs.discard(client)
