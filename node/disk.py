"""The journal: what a node must not forget, in one SQLite file under its directory.

A store is queued by the loop and answered (`Stored`) once its transaction is fsynced; everything that arrives while one
is being written goes into the next (group commit). One thread writes, one reads, each with its own connection, and
neither ever waits for the loop:

    loop --store--> queue --> writer: gather ≤ 20 ms, one transaction, fsync --> deliver([Stored, Stored, …])
    loop --fetch--> queue --> reader: wait for the stores before it, read, check sums --> deliver([Fetched])

What the file is like stands in `journal_file`, what becomes of a damaged one in `journal_salvage`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from p2pgrid.node.events import Event, Fetched, Log, Row, Stored, StoreFailed
from p2pgrid.node.journal_file import (
    Key,
    connect,
    explained,
    find_row,
    is_whole,
    named,
    open_file,
    put_meta,
    put_rows,
    reason_of,
    refuse_newer,
)
from p2pgrid.node.journal_salvage import finish_salvage, raise_unless_damage, salvage

GATHER_S = 0.02
"""From the begin of one commit to that of the next (DESIGN §7): the first store after a quiet time is synced at once,
under load one sync serves all that came meanwhile."""
PENDING_BYTES_MAX = 1024 * 1024 * 1024
"""Not yet written; beyond it a store fails at once. The local socket stops reading long before (`congested`)."""
CONGESTED_BYTES = 256 * 1024 * 1024
GROUP_BYTES_MAX = 64 * 1024 * 1024
GROUP_STORES_MAX = 1024
ROW_OVERHEAD_BYTES = 100

_NEW_WORK = frozenset({"code", "input"})
"""What a client adds; these are refused when the quota is used up. Results and states of jobs are always taken."""

Deliver = Callable[[Sequence[Event], Sequence[Log]], None]


@dataclass(frozen=True, slots=True)
class _Pending:
    token: int
    rows: Sequence[Row]
    size: int


class Journal:
    """The journal of one directory. `open` it, take `load()`, then `start` the threads; `close` flushes.

    Attributes:
        incarnation: of this life, already on disk; greater than that of any earlier life.
        notes: one line each about what had to be mended at the start.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, rows: list[Row], notes: list[str], incarnation: int) -> None:
        self.path = path
        self.incarnation = incarnation
        self.notes = notes
        self.quota: int | None = None
        self._db = db
        self._rows: list[Row] | None = rows
        self._queue: deque[_Pending] = deque()
        self._awake = False
        self._wake = threading.Lock()  # as a binary semaphore: released once for each time `_awake` turns true
        self._wake.acquire()
        self._closing = False
        self._queued = 0
        self._queued_bytes = 0  # written by the loop only
        self._done_bytes = 0  # written by the writer only
        self._done = 0
        self._done_before = 0
        self._progress = threading.Condition()
        self._asked: SimpleQueue[tuple[int, int, Sequence[Key]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._deliver: Deliver = lambda _events, _logs: None

    # ---- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path, wall_s: float) -> Journal:
        """Open or create the journal under `folder`; `wall_s` is unix time.

        Raises:
            GridError: not writable, full, or written by a newer program; the message is one line with the next step.
        """
        path = folder / "journal.db"
        notes: list[str] = []
        with explained(folder):
            finish_salvage(path)
            if path.exists():
                try:
                    refuse_newer(path)
                except sqlite3.DatabaseError as error:
                    raise_unless_damage(error)
            try:
                db, rows = open_file(path)
            except sqlite3.DatabaseError as error:
                raise_unless_damage(error)
                notes.append(salvage(path))
                db, rows = open_file(path)
            good = [row for row, summed in rows if is_whole(row, summed, heavy_too=False)]
            if len(good) < len(rows):
                notes.append(f"{len(rows) - len(good)} rows of the journal fail their checksum and are left out")
            last = db.execute("SELECT value FROM meta WHERE name = 'incarnation'").fetchone()
            incarnation = max(int(last[0]) + 1 if last else 0, int(wall_s))
            put_meta(db, "incarnation", str(incarnation).encode())
        return cls(db, path, good, notes, incarnation)

    def load(self) -> list[Row]:
        """Return the rows found at the start, values of HEAVY kinds empty. They are handed out once."""
        assert self._rows is not None, "the journal is loaded once"
        rows, self._rows = self._rows, None
        return rows

    def remembered(self, name: str) -> bytes | None:
        """Return a small thing about the node itself (a chosen port). Before `start` only."""
        assert not self._threads
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return bytes(found[0]) if found else None

    def remember(self, name: str, value: bytes) -> None:
        """Keep a small thing about the node itself. Before `start` only."""
        assert not self._threads
        with explained(self.path.parent):
            put_meta(self._db, name, value)

    # ---- from the loop ----------------------------------------------------------------------------------------------

    def start(self, deliver: Deliver, crashed: Callable[[BaseException], None]) -> None:
        """Start both threads. They call `deliver(events, logs)`, and `crashed` if they end by a bug of ours."""
        self._deliver = deliver

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - a thread has no other way to end the node
                crashed(error)

        for name, work in (("journal-writer", self._write), ("journal-reader", self._read)):
            thread = threading.Thread(target=guarded, args=(work,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def congested(self) -> bool:
        """Whether so much waits for the disk that nothing more should be read from clients."""
        return self._queued_bytes - self._done_bytes > CONGESTED_BYTES

    def is_starved(self) -> bool:
        """Whether stores wait and none was written since this was asked last.

        A loop that lets go of the GIL often, but never for long, can keep the writer from ever getting it: it is woken
        each time, comes too late each time, and so never waits long enough to demand it.
        """
        before, self._done_before = self._done_before, self._done
        return self._queued > self._done == before

    def store(self, token: int, rows: Sequence[Row]) -> StoreFailed | None:
        """Queue rows for the next commit. Returns the failure at once if too much waits already."""
        size = 0
        for row in rows:
            size += ROW_OVERHEAD_BYTES + len(row[3]) + len(row[4] or b"")
        if self._queued_bytes - self._done_bytes + size > PENDING_BYTES_MAX:
            return StoreFailed(token, "the disk is too slow: more than 1 GiB waits to be written")
        self._queue.append(_Pending(token, rows, size))
        self._queued += 1
        self._queued_bytes += size
        self._wake_writer()
        return None

    def fetch(self, token: int, keys: Sequence[Key]) -> None:
        """Have rows read; whatever was stored before is seen."""
        self._asked.put((self._queued, token, keys))

    def close(self) -> None:
        """Write what is queued, end both threads and close the file."""
        self._closing = True
        self._wake_writer()
        self._asked.put(None)
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(sqlite3.Error):  # a full disk: the WAL stays beside the file and is read next time
            self._db.close()

    def _wake_writer(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.release()

    # ---- the writer thread ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        begun_s = 0.0
        while True:
            self._wake.acquire()
            pause_s = begun_s + GATHER_S - time.monotonic()
            if pause_s > 0 and not self._closing:
                time.sleep(pause_s)
            begun_s = time.monotonic()
            # From here on whoever stores wakes us again: what comes during a commit gathers for the next one.
            self._awake = False
            is_more = True
            while is_more:
                group, is_more = self._take()
                events = self._commit(group) if group else []
                self._done_bytes += sum(pending.size for pending in group)
                with self._progress:
                    self._done += len(group)
                    self._progress.notify_all()
                if events:
                    self._deliver(events, ())
            if self._closing and not self._queue:
                return

    def _take(self) -> tuple[list[_Pending], bool]:
        """Return the stores for one transaction, and whether its bounds left some behind."""
        group: list[_Pending] = []
        size = 0
        while self._queue:
            if size >= GROUP_BYTES_MAX or len(group) >= GROUP_STORES_MAX:
                return group, True
            group.append(self._queue.popleft())
            size += group[-1].size
        return group, False

    def _commit(self, group: list[_Pending]) -> list[Event]:
        """Write a group as one transaction; if that fails, each store alone, so that the small ones still fit."""
        if self.quota is not None and self._used() > self.quota:
            refused = [p for p in group if any(row.kind in _NEW_WORK and row.value for row in p.rows)]
            if refused:
                failed: list[Event] = [StoreFailed(p.token, "the quota of this node is used up") for p in refused]
                taken = [p for p in group if p not in refused]
                return failed + (self._transact(taken) if taken else [])
        return self._transact(group)

    def _transact(self, group: list[_Pending]) -> list[Event]:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            put_rows(db, {row[:3]: row for pending in group for row in pending.rows})
            db.execute("COMMIT")
        except (sqlite3.Error, MemoryError, OverflowError) as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after most failures
                db.execute("ROLLBACK")
            if len(group) > 1:
                return [event for pending in group for event in self._transact([pending])]
            return [StoreFailed(group[0].token, reason_of(error))] if group[0].token else []
        return [Stored(pending.token) for pending in group if pending.token]

    def _used(self) -> int:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
        return (pages - free) * size

    # ---- the reader thread ------------------------------------------------------------------------------------------

    def _read(self) -> None:
        with contextlib.closing(connect(self.path)) as db:
            while (asked := self._asked.get()) is not None:
                after, token, keys = asked
                with self._progress:
                    self._progress.wait_for(lambda after=after: self._done >= after)  # type: ignore[misc]
                rows: list[Row] = []
                logs: list[Log] = []
                for key in keys:
                    try:
                        row = find_row(db, key)
                    except sqlite3.Error as error:
                        logs.append(Log("warning", f"a row of the journal cannot be read ({named(key)}): {error}"))
                        continue
                    if row is None:
                        continue
                    if is_whole(row[0], row[1], heavy_too=True):
                        rows.append(row[0])
                    else:
                        logs.append(Log("warning", f"a row of the journal fails its checksum: {named(key)}"))
                self._deliver([Fetched(token, rows)], logs)
