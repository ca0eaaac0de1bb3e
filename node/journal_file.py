"""The file of a journal: its tables, rows with sums of their own, how it is opened, and what goes wrong in words.

Rules: a row that fails its sums is absent, never wrong. A file of a newer schema is not touched.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from zlib import crc32

from p2pgrid.core.errors import GridError
from p2pgrid.node.events import HEAVY, Job, Row

SCHEMA = 1
ROWS_PER_STATEMENT = 64
"""sqlite3 takes and gives the GIL once per statement: row by row, a busy loop would let one row pass per 5 ms."""
BLOB_BYTES = 64 * 1024
"""Values above this are read by blob handles, which copy without the GIL."""

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

Key = tuple[Job, str, bytes]


# ---- rows and sums --------------------------------------------------------------------------------------------------


def _sum(row: Row) -> int:
    """Two sums in one number, so that the rest of a row can be checked without reading its value."""
    return _sum_of_rest(row) << 32 | crc32(row.value or b"")


def _sum_of_rest(row: Row) -> int:
    return crc32(row.meta, crc32(row.key, crc32(row.job, crc32(row.kind.encode())))) & 0x7FFFFFFF


def is_whole(row: Row, summed: int, *, heavy_too: bool) -> bool:
    """Whether a row is as it was written; of a heavy one without its value only the rest is looked at."""
    if heavy_too or row.kind not in HEAVY:
        return summed == _sum(row)
    return summed >> 32 == _sum_of_rest(row)


def named(key: Key) -> str:
    """Return what a warning calls a row."""
    job, kind, rest = key
    return f"job {job.hex()} {kind} {rest.hex()[:32]}"


@cache
def _insert(count: int) -> str:
    places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * count)
    return f"INSERT OR REPLACE INTO entries (job, kind, key, sum, meta, value) VALUES {places}"  # noqa: S608 - no data


def put_rows(db: sqlite3.Connection, rows: Mapping[Key, Row]) -> None:
    """Write or delete rows, in the transaction that is open."""
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


def find_row(db: sqlite3.Connection, key: Key) -> tuple[Row, int] | None:
    """Return a row and its sums, if it is there. Raises sqlite3.Error."""
    found = db.execute(_FIND, (BLOB_BYTES, *key)).fetchone()
    if found is None:
        return None
    rowid, summed, meta, length, value = found
    if length > BLOB_BYTES:
        with db.blobopen("entries", "value", rowid, readonly=True) as blob:
            value = blob.read()
    return Row(*key, meta, value), summed


def put_meta(db: sqlite3.Connection, name: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))


# ---- opening --------------------------------------------------------------------------------------------------------


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection that may write. Raises sqlite3.Error."""
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


def open_file(path: Path) -> tuple[sqlite3.Connection, list[tuple[Row, int]]]:
    """Make the file if there is none; return a connection and all rows, without the values of heavy ones."""
    # SQLite gives the -wal and -shm files, which hold values too, the mode that the journal has when they are made.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    db = connect(path)
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


def refuse_newer(path: Path) -> None:
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
def explained(folder: Path) -> Iterator[None]:
    """Translate what SQLite and the file system say while the journal is opened."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise GridError(
            f"the journal in {folder} cannot be opened: {reason_of(error)}",
            next="make room and the folder writable, or use another: p2pgrid node --dir DIR",
            code="directory-unusable",
        ) from error


def reason_of(error: Exception) -> str:
    """Return in words why the disk did not take or give something."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return "it is not writable"
    if code == sqlite3.SQLITE_IOERR:
        return f"the disk refuses to write ({error})"
    return " ".join(str(error).split()) or type(error).__name__
