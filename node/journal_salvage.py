"""A damaged journal: every row that can still be read goes to a new file, the old one is set aside, never deleted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from p2pgrid.node.events import Row
from p2pgrid.node.journal_file import is_whole, open_file, put_meta, put_rows

SALVAGE_STEPS_MAX = 200_000


def raise_unless_damage(error: sqlite3.DatabaseError) -> None:
    """Raise an error again that says something else than that the file is damaged."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        raise error


def finish_salvage(path: Path) -> None:
    """A salvage that was interrupted between its two renames is finished; one before them is begun anew."""
    fresh = path.with_name("journal.new")
    if path.exists():
        _remove(fresh)
    elif fresh.exists():
        fresh.rename(path)


def salvage(path: Path) -> str:
    """Copy every readable row to a new file, set the damaged one aside, and return a line for people."""
    fresh = path.with_name("journal.new")
    _remove(fresh)
    rows, unread, incarnation = _readable(path)
    good = [row for row, summed in rows if is_whole(row, summed, heavy_too=True)]
    db, _ = open_file(fresh)
    with contextlib.closing(db):
        db.execute("BEGIN IMMEDIATE")
        put_rows(db, {row[:3]: row for row in good})
        if incarnation is not None:
            put_meta(db, "incarnation", incarnation)
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
