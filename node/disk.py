"""The journal: what a node must not forget, in one SQLite file under its directory.

A store is queued by the loop and answered (`Stored`) once its transaction is fsynced; everything that arrives while one
is being written goes into the next (group commit). One thread writes, one reads, each with its own connection, and
neither ever waits for the loop:

    loop --store--> queue --> writer: gather ≤ 20 ms, one transaction, fsync --> deliver([Stored, Stored, …])
    loop --fetch--> queue --> reader: wait for the stores before it, read, check sums --> deliver([Fetched])

Rules: a row is kept with sums of its own, and one that fails them is absent, never wrong. A file of a newer schema is
not touched. A damaged file is set aside, never deleted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from zlib import crc32

from p2pgrid.core.errors import GridError
from p2pgrid.node.events import HEAVY, Event, Fetched, Job, Log, Row, Stored, StoreFailed

SCHEMA = 1
GATHER_S = 0.02
"""From the begin of one commit to that of the next (DESIGN §7): the first store after a quiet time is synced at once,
under load one sync serves all that came meanwhile."""
PENDING_BYTES_MAX = 1024 * 1024 * 1024
"""Not yet written; beyond it a store fails at once. The local socket stops reading long before (`congested`)."""
CONGESTED_BYTES = 256 * 1024 * 1024
GROUP_BYTES_MAX = 64 * 1024 * 1024
GROUP_STORES_MAX = 1024
ROWS_PER_STATEMENT = 64
"""sqlite3 takes and gives the GIL once per statement: row by row, a busy loop would let one row pass per 5 ms."""
BLOB_BYTES = 64 * 1024
"""Values above this are read by blob handles, which copy without the GIL."""
SALVAGE_STEPS_MAX = 200_000
ROW_OVERHEAD_BYTES = 100

_TABLES = (
    """CREATE TABLE IF NOT EXISTS entries (
        job BLOB NOT NULL, kind TEXT NOT NULL, key BLOB NOT NULL, sum INTEGER NOT NULL, meta BLOB NOT NULL,
        value BLOB NOT NULL, UNIQUE (job, kind, key))""",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
)
# `value` is the last column, so that a row is read without its value's pages when only the rest is wanted.
_HEAVY = ", ".join(f"'{kind}'" for kind in sorted(HEAVY))
_LIGHT = f"CASE WHEN kind IN ({_HEAVY}) THEN x'' ELSE value END"
_LOAD = f"SELECT job, kind, key, sum, meta, {_LIGHT} FROM entries ORDER BY rowid"  # noqa: S608 - no data in it
_DELETE = "DELETE FROM entries WHERE job = ? AND kind = ? AND key = ?"
_FIND = (
    "SELECT rowid, sum, meta, length(value), CASE WHEN length(value) <= ? THEN value END"
    " FROM entries WHERE job = ? AND kind = ? AND key = ?"
)
_NEW_WORK = frozenset({"code", "input"})
"""What a client adds; these are refused when the quota is used up. Results and states of jobs are always taken."""

Key = tuple[Job, str, bytes]
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
        with _explained(folder):
            _finish_salvage(path)
            if path.exists():
                try:
                    _refuse_newer(path)
                except sqlite3.DatabaseError as error:
                    _raise_unless_damage(error)
            try:
                db, rows = _open(path)
            except sqlite3.DatabaseError as error:
                _raise_unless_damage(error)
                notes.append(_salvage(path))
                db, rows = _open(path)
            good = [row for row, summed in rows if _is_whole(row, summed, heavy_too=False)]
            if len(good) < len(rows):
                notes.append(f"{len(rows) - len(good)} rows of the journal fail their checksum and are left out")
            last = db.execute("SELECT value FROM meta WHERE name = 'incarnation'").fetchone()
            incarnation = max(int(last[0]) + 1 if last else 0, int(wall_s))
            _put_meta(db, "incarnation", str(incarnation).encode())
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
        with _explained(self.path.parent):
            _put_meta(self._db, name, value)

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
            _put(db, {row[:3]: row for pending in group for row in pending.rows})
            db.execute("COMMIT")
        except (sqlite3.Error, MemoryError, OverflowError) as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after most failures
                db.execute("ROLLBACK")
            if len(group) > 1:
                return [event for pending in group for event in self._transact([pending])]
            return [StoreFailed(group[0].token, _reason(error))] if group[0].token else []
        return [Stored(pending.token) for pending in group if pending.token]

    def _used(self) -> int:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (int(self._db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
        return (pages - free) * size

    # ---- the reader thread ------------------------------------------------------------------------------------------

    def _read(self) -> None:
        with contextlib.closing(_connect(self.path)) as db:
            while (asked := self._asked.get()) is not None:
                after, token, keys = asked
                with self._progress:
                    self._progress.wait_for(lambda after=after: self._done >= after)  # type: ignore[misc]
                rows: list[Row] = []
                logs: list[Log] = []
                for key in keys:
                    try:
                        row = _find(db, key)
                    except sqlite3.Error as error:
                        logs.append(Log("warning", f"a row of the journal cannot be read ({_named(key)}): {error}"))
                        continue
                    if row is None:
                        continue
                    if _is_whole(row[0], row[1], heavy_too=True):
                        rows.append(row[0])
                    else:
                        logs.append(Log("warning", f"a row of the journal fails its checksum: {_named(key)}"))
                self._deliver([Fetched(token, rows)], logs)


# ---- rows and sums --------------------------------------------------------------------------------------------------


def _sum(row: Row) -> int:
    """Two sums in one number, so that the rest of a row can be checked without reading its value."""
    return _sum_of_rest(row) << 32 | crc32(row.value or b"")


def _sum_of_rest(row: Row) -> int:
    return crc32(row.meta, crc32(row.key, crc32(row.job, crc32(row.kind.encode())))) & 0x7FFFFFFF


def _is_whole(row: Row, summed: int, *, heavy_too: bool) -> bool:
    if heavy_too or row.kind not in HEAVY:
        return summed == _sum(row)
    return summed >> 32 == _sum_of_rest(row)


def _named(key: Key) -> str:
    job, kind, rest = key
    return f"job {job.hex()} {kind} {rest.hex()[:32]}"


@cache
def _insert(count: int) -> str:
    places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * count)
    return f"INSERT OR REPLACE INTO entries (job, kind, key, sum, meta, value) VALUES {places}"  # noqa: S608 - no data


def _put(db: sqlite3.Connection, rows: Mapping[Key, Row]) -> None:
    values: list[object] = []
    for row in rows.values():
        if row.value is None:
            db.execute(_DELETE, row[:3])
            continue
        values += (row.job, row.kind, row.key, _sum(row), row.meta, row.value)
        if len(values) == 6 * ROWS_PER_STATEMENT:
            db.execute(_insert(ROWS_PER_STATEMENT), values)
            values = []
    if values:
        db.execute(_insert(len(values) // 6), values)


def _find(db: sqlite3.Connection, key: Key) -> tuple[Row, int] | None:
    found = db.execute(_FIND, (BLOB_BYTES, *key)).fetchone()
    if found is None:
        return None
    rowid, summed, meta, length, value = found
    if length > BLOB_BYTES:
        with db.blobopen("entries", "value", rowid, readonly=True) as blob:
            value = blob.read()
    return Row(*key, meta, value), summed


def _put_meta(db: sqlite3.Connection, name: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))


# ---- files ----------------------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    # Opened by one thread and used by another, never by two at once.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _open(path: Path) -> tuple[sqlite3.Connection, list[tuple[Row, int]]]:
    # SQLite gives the -wal and -shm files, which hold values too, the mode that the journal has when they are made.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    db = _connect(path)
    try:
        # Schema and number in one transaction: a file that is killed half made has number 0 and no tables.
        db.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            db.execute(table)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("COMMIT")
        rows = [(Row(job, kind, key, meta, value), summed) for job, kind, key, summed, meta, value in db.execute(_LOAD)]
    except sqlite3.Error:
        db.close()
        raise
    return db, rows


def _refuse_newer(path: Path) -> None:
    """Look at the schema number through a connection that cannot write."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        number = db.execute("PRAGMA user_version").fetchone()[0]
    if number > SCHEMA:
        raise GridError(
            f"the journal {path} was written by a newer p2pgrid (schema {number}, this program knows {SCHEMA})",
            next="install that version again, or start with another directory: p2pgrid node --dir DIR",
            code="journal-newer",
        )


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Translate what SQLite and the file system say while the journal is opened."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise GridError(
            f"the journal in {folder} cannot be opened: {_reason(error)}",
            next="make room and the folder writable, or use another: p2pgrid node --dir DIR",
            code="directory-unusable",
        ) from error


def _reason(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return "it is not writable"
    if code == sqlite3.SQLITE_IOERR:
        return f"the disk refuses to write ({error})"
    return " ".join(str(error).split()) or type(error).__name__


# ---- damage ---------------------------------------------------------------------------------------------------------


def _raise_unless_damage(error: sqlite3.DatabaseError) -> None:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        raise error


def _finish_salvage(path: Path) -> None:
    """A salvage that was interrupted between its two renames is finished; one before them is begun anew."""
    fresh = path.with_name("journal.new")
    if path.exists():
        _remove(fresh)
    elif fresh.exists():
        fresh.rename(path)


def _salvage(path: Path) -> str:
    """Copy every readable row to a new file, set the damaged one aside, and return a line for people."""
    fresh = path.with_name("journal.new")
    _remove(fresh)
    rows, unread, incarnation = _readable(path)
    good = [row for row, summed in rows if _is_whole(row, summed, heavy_too=True)]
    db, _ = _open(fresh)
    with contextlib.closing(db):
        db.execute("BEGIN IMMEDIATE")
        _put(db, {row[:3]: row for row in good})
        if incarnation is not None:
            _put_meta(db, "incarnation", incarnation)
        db.execute("COMMIT")
    number = 1
    while path.with_name(f"journal.corrupt-{number}").exists():
        number += 1
    aside = path.with_name(f"journal.corrupt-{number}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        beside = Path(f"{path}{suffix}")
        if beside.exists():
            beside.rename(f"{aside}{suffix}")
    fresh.rename(path)
    _sync(path.parent)
    lost = len(rows) - len(good) + unread
    return (
        f"the journal was damaged: {len(good)} rows saved, {f'at least {lost}' if lost else 'an unknown number'} lost;"
        f" the damaged file is kept as {aside}"
    )


def _readable(path: Path) -> tuple[list[tuple[Row, int]], int, bytes | None]:
    """Read row by row around the damage: (rows, rows known to be unreadable, incarnation).

    Ranges of row ids are halved until they can be read or hold one row; what lies beyond `SALVAGE_STEPS_MAX` is lost.
    """
    rows: list[tuple[Row, int]] = []
    unread = 0
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        incarnation = _one(db, "SELECT value FROM meta WHERE name = 'incarnation'")
        last = _one(db, "SELECT max(rowid) FROM entries")
        ranges = [(1, last if isinstance(last, int) else 1 << 20)]
        for _ in range(SALVAGE_STEPS_MAX):
            if not ranges:
                break
            lo, hi = ranges.pop()
            try:
                found = db.execute(
                    "SELECT job, kind, key, sum, meta, value FROM entries WHERE rowid BETWEEN ? AND ?", (lo, hi)
                ).fetchall()
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                    break  # no table can be seen at all
                if lo == hi:
                    unread += 1
                else:
                    middle = (lo + hi) // 2
                    ranges += [(middle + 1, hi), (lo, middle)]
                continue
            rows += [(Row(job, kind, key, meta, value), summed) for job, kind, key, summed, meta, value in found]
    return rows, unread, incarnation if isinstance(incarnation, bytes) else None


def _one(db: sqlite3.Connection, query: str) -> object:
    try:
        found = db.execute(query).fetchone()
    except sqlite3.Error:
        return None
    return found[0] if found else None


def _remove(path: Path) -> None:
    for each in (path, *(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm"))):
        each.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
