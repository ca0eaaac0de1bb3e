"""What is promised to whom, and the rows it rests on: a promise leaves once these are synced, and never before.

    rows --store--> token, Store  …  Stored(token) --stored--> the promises, or copies first  (`spread`)
                                     StoreFailed   --store_failed--> refusals; what is true anyway is written again

Rule: this file knows rows, tokens and what rests on what; what the rows mean its heirs know (`keeping`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.record import BatchId
from p2pgrid.node.events import Effect, Reply, Row, Send, Store
from p2pgrid.node.kept import Job, KeepingOptions, Kept, Mark, Promise
from p2pgrid.node.reading import Readers

AGAIN = frozenset({"state", "try", "attempt", "seal", "cancel", "expiry", "taken", "orphan"})
"""Kinds of rows that say what is true already: they are written again when the disk took none."""
DIGESTS = frozenset({m.P_COPIES, m.P_TAGS})
"""Frames that say what is on disk here."""
FOR_READERS = frozenset({m.RESULT, m.STATE})
"""What stable readers are given once it is on disk, whenever that takes it."""


@dataclass(frozen=True, slots=True)
class Appended:
    """An input batch whose row is on its way to the disk."""

    job: Job
    lo: int
    hi: int
    fns: frozenset[bytes]


@dataclass(slots=True)
class Unsynced:
    """Results whose rows are on their way to the disk."""

    keys: list[tuple[Job, BatchId]]
    rows: list[Row]
    promises: list[Promise]
    told: set[tuple[str, Job]] = field(default_factory=set)
    """The disk did not take them: which of the other keepers were given those of a job all the same."""


class Refused(NamedTuple):
    """What a failed store takes back: effects, input batches, and jobs as a whole."""

    effects: list[Effect]
    inputs: list[tuple[Job, int, int]]
    jobs: list[Job]


class Promising:
    """The jobs of this node, what of them is on its way to the disk, and what is promised once it is there."""

    def __init__(self, node: str, node_name: str, options: KeepingOptions) -> None:
        self.jobs: dict[Job, Kept] = {}
        self.options = options
        self._tokens = 0
        self._promises: dict[int, list[Promise]] = {}
        self._unsynced: dict[int, Unsynced] = {}
        self._appended: dict[int, Appended] = {}
        self._marked: dict[int, tuple[Job, Mark]] = {}
        self._failed: list[Unsynced] = []
        self.readers = Readers(self.jobs, node, node_name, options, self._token)
        self.is_shared = False
        """Whether other nodes keep copies: then what is synced here goes to them."""
        self.spread: Callable[[Sequence[Row], list[Promise]], list[Effect]] = lambda _, promises: list(promises)
        """Copies synced rows to other keepers; returns what may be said at once, with promises that need no copy."""
        self.spread_unsynced: Callable[[Sequence[Row], set[tuple[str, Job]]], None] = lambda *_: None
        """Copies rows that the disk here did not take to keepers that were not given them; notes who is."""
        self.spread_logs: Callable[[Sequence[Row]], None] = lambda _: None
        """Copies synced logs to another keeper."""
        self._logs: dict[int, list[Row]] = {}
        self._fresh: dict[int, Sequence[Row]] = {}
        """Rows that go to other keepers once they are synced here."""
        self._written: dict[int, tuple[Sequence[Row], bool]] = {}
        """Rows on their way to the disk that were no part of a copy before, and whether they are this node's own."""

    def store(
        self, rows: Sequence[Row], promises: Iterable[Promise] = (), *, copied: bool = True
    ) -> tuple[int, Store]:  # fmt: skip
        """Return the effect that writes rows; `promises` are sent once they are synced, `copied`: on two keepers."""
        token = self._token()
        if rows:
            there = {job: self.jobs[job].rows for job in {row.job for row in rows} if job in self.jobs}
            new = [
                row for row in rows if not copied or row.job not in there or (row.kind, row.key) not in there[row.job]
            ]
            self._written[token] = new, copied
            if self.is_shared and copied:
                self._fresh[token] = rows
        for row in rows:
            kept = self.jobs.get(row.job)
            if kept is not None:
                kept.rows.put(row)
        promised = list(promises)
        if promised:
            self._promises[token] = promised
        return token, Store(token, rows)

    def _token(self) -> int:
        self._tokens += 1
        return self._tokens

    def stored(self, token: int) -> list[Effect]:
        """The rows of a token are synced: keep the promises that waited for them."""
        self._written.pop(token, None)
        unsynced = self._unsynced.pop(token, None)
        if unsynced is not None:
            self.readers.unpin(unsynced.keys)
        appended = self._appended.pop(token, None)
        if appended is not None and appended.job in self.jobs:
            self.jobs[appended.job].durable.add(appended.lo, appended.hi)
        job, mark = self._marked.pop(token, (b"", ("", b"")))
        if job in self.jobs:
            self.jobs[job].synced.add(mark)
        if token in self._logs:
            self.spread_logs(self._logs.pop(token))
        promises = list(self._promises.pop(token, ()))
        rows = self._fresh.pop(token, ())
        out: list[Effect] = self.spread(rows, promises) if rows else [*promises]
        return out + self.readers.synced({key[0] for key in unsynced.keys}) if unsynced is not None else out

    def store_failed(self, token: int, reason: str) -> Refused:
        """The rows are not on disk: refuse what is not accepted without them."""
        error = {"code": "quota-exceeded", "message": reason, "next": "free some disk, or p2pgrid node --dir elsewhere"}
        refused = Refused([], [], [])
        unsynced = self._unsynced.pop(token, None)
        self._not_on_disk(token, unsynced)
        if unsynced is not None:
            # Results stay in memory, readable, and are written again; whoever sent them keeps them until then.
            self._failed.append(unsynced)
            self._promises.pop(token, None)
        job, mark = self._marked.pop(token, (b"", ("", b"")))
        kept = self.jobs.get(job)
        if kept is not None and mark not in kept.synced:
            self._take_back(kept, mark, error, refused)
        self._refuse(token, error, refused)
        self._tell_unsynced()
        return refused

    def _tell_unsynced(self) -> None:
        """Let the other keepers have what waits for a disk that takes it: readers there do not wait for this disk."""
        for one in self._failed if self.is_shared else ():
            self.spread_unsynced(one.rows, one.told)

    def untold(self, peer: str) -> None:
        """A keeper is there (again) that may lack what waits for the disk here."""
        for one in (*self._failed, *self._unsynced.values()):
            one.told = {pair for pair in one.told if pair[0] != peer}

    def _not_on_disk(self, token: int, unsynced: Unsynced | None) -> None:
        """Rows are no part of this copy as yet: no digest counts them, whatever is asked about them is asked elsewhere.

        What this node knows by itself is written again. Rows of another keeper are had from it again (`_refuse`).
        """
        self._fresh.pop(token, None)
        self._logs.pop(token, None)
        rows, own = self._written.pop(token, ((), False))
        for row in rows:
            if row.job in self.jobs and row.value is not None:
                self.jobs[row.job].rows.put(row._replace(value=None))
        again = [row for row in rows if row.kind in AGAIN] if own and unsynced is None else []
        late: list[Promise] = [
            one for one in self._promises.get(token, ()) if isinstance(one, Reply) and one.kind in FOR_READERS
        ]
        if late:
            self._promises.pop(token)
        if again or late:
            self._failed.append(Unsynced([], again, late))
        if rows:  # what was about to be said of this copy is not so
            for promises in self._promises.values():
                promises[:] = [one for one in promises if not (isinstance(one, Send) and one.kind in DIGESTS)]

    def _take_back(self, kept: Kept, mark: Mark, error: dict[str, str], refused: Refused) -> None:
        """Something that later rows rest on is not on disk: what is on its way goes with it."""
        what, key = mark
        if what == "close" and not kept.ended:
            kept.record.closed = None
        elif what == "code":
            kept.record.codes.pop(key, None)
            for token, appended in list(self._appended.items()):
                if appended.job == kept.id and key in appended.fns:
                    self._refuse(token, error, refused)
        elif what == "spec":
            for token, promises in list(self._promises.items()):
                if any(isinstance(one, Reply) and one.kind == m.ACK and one.body[0] == kept.id for one in promises):
                    self._refuse(token, error, refused)
            refused.jobs.append(kept.id)

    def _refuse(self, token: int, error: dict[str, str], refused: Refused) -> None:
        for promise in self._promises.pop(token, ()):
            match promise:
                case Reply(client, m.ACK, _, body):
                    refused.effects.append(Reply(client, m.REFUSED, 0, [*body, error]))
                case Reply(client, _, id_, _):
                    refused.effects.append(Reply(client, m.ERROR, id_, error))
                case Send(peer, m.P_SYNCED, [done, more]):
                    refused.effects.append(Send(peer, m.P_SYNCED, [[], [*done, *more]]))
                case Send():
                    pass  # the peer keeps what it has and says it again
        self._marked.pop(token, None)
        appended = self._appended.pop(token, None)
        kept = self.jobs.get(appended.job) if appended is not None else None
        if appended is None or kept is None or appended.lo in kept.durable:
            return
        kept.record.inputs.pop(appended.lo, None)
        kept.known.discard(appended.lo, appended.hi)
        refused.inputs.append((appended.job, appended.lo, appended.hi))
        gone = Row(appended.job, "input", appended.lo.to_bytes(8, "big"), b"", None)
        kept.rows.put(gone)
        refused.effects.append(Store(0, [gone]))

    def write_again(self) -> list[Effect]:
        """Write the results whose rows failed."""
        failed, self._failed = self._failed, []
        out: list[Effect] = []
        for one in failed:
            keys = [key for key in one.keys if key[0] in self.jobs]
            rows = [row for row in one.rows if row.job in self.jobs]
            token, effect = self.store(rows, one.promises)
            self._unsynced[token] = Unsynced(keys, rows, one.promises, one.told)
            out.append(effect)
        return out

    @property
    def must_write_again(self) -> bool:
        """Whether results wait for a disk that takes them."""
        return bool(self._failed)

    @property
    def unsettled(self) -> int:
        """How many promises wait for the disk."""
        return len(self._promises) + len(self._unsynced)
