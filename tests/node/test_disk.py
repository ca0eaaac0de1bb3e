"""The journal: what it promises is there after whatever happens to process, disk and file."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from p2pgrid.core.errors import GridError
from p2pgrid.node.disk import Journal
from p2pgrid.node.events import Event, Fetched, Log, Row, Stored, StoreFailed
from p2pgrid.node.journal_file import SCHEMA

JOB = b"j" * 16
WALL_S = 1_800_000_000.0
DEADLINE_S = 60.0


class Heard:
    """What the journal's threads delivered; `until` waits for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.logs: list[Log] = []
        self.crashes: list[BaseException] = []
        self._changed = threading.Condition()

    def deliver(self, events: Sequence[Event], logs: Sequence[Log]) -> None:
        with self._changed:
            self.events += events
            self.logs += logs
            self._changed.notify_all()

    def until(self, done: Callable[[list[Event]], bool]) -> list[Event]:
        with self._changed:
            assert self._changed.wait_for(lambda: done(self.events), DEADLINE_S), self.events
            return list(self.events)


def started(folder: Path) -> tuple[Journal, Heard]:
    journal, heard = Journal.open(folder, WALL_S), Heard()
    journal.start(heard.deliver, heard.crashes.append)
    return journal, heard


def row(kind: str, key: int, value: bytes | None = b"value", meta: bytes = b"meta") -> Row:
    return Row(JOB, kind, key.to_bytes(8, "big"), meta, value)


def fill(folder: Path, count: int, value: bytes = b"v" * 300) -> None:
    journal, heard = started(folder)
    for i in range(count):
        journal.store(i + 1, [row("spec", i, value)])
    heard.until(lambda events: len(events) == count)
    journal.close()


def loaded(folder: Path) -> list[Row]:
    journal = Journal.open(folder, WALL_S)
    rows = journal.load()
    journal.close()
    return rows


def test_stored_rows_are_loaded_in_the_next_life(tmp_path: Path) -> None:
    """What was stored is there again; values of heavy kinds stay on disk."""
    journal, heard = started(tmp_path)
    journal.store(1, [row("spec", 0), row("input", 1)])
    events = heard.until(lambda events: len(events) == 1)
    journal.close()

    assert events == [Stored(1)]
    assert loaded(tmp_path) == [row("spec", 0), row("input", 1, b"")]


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    """A store that was queued right before the end is not lost."""
    journal, _ = started(tmp_path)
    journal.store(0, [row("spec", 0)])
    journal.close()

    assert loaded(tmp_path) == [row("spec", 0)]


def test_the_last_of_several_stores_of_a_row_counts(tmp_path: Path) -> None:
    """Rows are unique by job, kind and key; None deletes."""
    journal, _ = started(tmp_path)
    journal.store(0, [row("state", 0, b"old"), row("state", 1)])
    journal.store(0, [row("state", 0, b"new"), row("state", 1, None)])
    journal.close()

    assert loaded(tmp_path) == [row("state", 0, b"new")]


def test_token_zero_wants_no_answer(tmp_path: Path) -> None:
    """Only stores with a token are answered, and in their order."""
    journal, heard = started(tmp_path)
    for token in (1, 0, 2, 0, 3):
        journal.store(token, [row("state", token)])
    events = heard.until(lambda events: len(events) >= 3)
    journal.close()

    assert events == [Stored(1), Stored(2), Stored(3)]


@pytest.mark.parametrize("size", [0, 10, 64 * 1024, 64 * 1024 + 1, 5_000_000])
def test_fetch_sees_what_was_stored_just_before(tmp_path: Path, size: int) -> None:
    """A fetch waits for the stores queued before it, and reads values of any size."""
    journal, heard = started(tmp_path)
    value = os.urandom(size)
    journal.store(0, [row("result", 0, value)])
    journal.fetch(9, [row("result", 0)[:3], row("result", 1)[:3]])
    events = heard.until(lambda events: len(events) == 1)
    journal.close()

    assert events == [Fetched(9, [row("result", 0, value)])]


def test_a_fetch_after_a_delete_finds_nothing(tmp_path: Path) -> None:
    """A missing row is absent, not an error."""
    journal, heard = started(tmp_path)
    journal.store(0, [row("result", 0)])
    journal.store(0, [row("result", 0, None)])
    journal.fetch(9, [row("result", 0)[:3]])
    events = heard.until(lambda events: len(events) == 1)
    journal.close()

    assert events == [Fetched(9, [])]


def test_incarnations_only_grow(tmp_path: Path) -> None:
    """The clock gives the incarnation, unless it went back."""
    first = Journal.open(tmp_path, WALL_S)
    first.close()
    second = Journal.open(tmp_path, WALL_S - 1000)
    second.close()

    assert (first.incarnation, second.incarnation) == (int(WALL_S), int(WALL_S) + 1)


def test_small_things_are_remembered(tmp_path: Path) -> None:
    """A chosen port survives."""
    first = Journal.open(tmp_path, WALL_S)
    first.remember("port", b"9471")
    first.close()
    second = Journal.open(tmp_path, WALL_S)
    port, other = second.remembered("port"), second.remembered("other")
    second.close()

    assert (port, other) == (b"9471", None)


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """Inputs and results are nobody else's business."""
    tmp_path.chmod(0o755)  # a folder that its user made, open to read
    before = os.umask(0o022)
    try:
        journal, _ = started(tmp_path)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        journal.close()
    finally:
        os.umask(before)

    assert modes == dict.fromkeys(["journal.db", "journal.db-shm", "journal.db-wal"], 0o600)


def test_too_much_waiting_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded in bytes, and says so long before clients are read from no more."""
    monkeypatch.setattr("p2pgrid.node.disk.PENDING_BYTES_MAX", 1000)
    journal, _ = started(tmp_path)
    failed = journal.store(7, [row("input", 0, bytes(1001))])
    journal.close()

    assert failed == StoreFailed(7, "the disk is too slow: more than 1 GiB waits to be written")


def test_a_used_up_quota_refuses_new_work_only(tmp_path: Path) -> None:
    """Inputs are refused; results of what was taken are kept."""
    journal, heard = started(tmp_path)
    journal.quota = 1
    journal.store(1, [row("input", 0)])
    journal.store(2, [row("result", 0)])
    events = heard.until(lambda events: len(events) == 2)
    journal.close()

    assert set(events) == {StoreFailed(1, "the quota of this node is used up"), Stored(2)}


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_a_newer_journal_is_not_touched(tmp_path: Path) -> None:
    """A schema of a later program ends the start with code 2 and changes no byte."""
    fill(tmp_path, 1)
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(GridError) as caught:
        Journal.open(tmp_path, WALL_S)

    assert (caught.value.code, caught.value.exit_code) == ("journal-newer", 2)
    assert path.read_bytes() == before


def test_a_flipped_bit_makes_a_row_absent_not_wrong(tmp_path: Path) -> None:
    """A value that fails its checksum is left out and named in a log line."""
    journal, _ = started(tmp_path)
    journal.store(0, [row("result", 0, b"right" * 100), row("result", 1, b"other")])
    journal.close()
    path = tmp_path / "journal.db"
    path.write_bytes(path.read_bytes().replace(b"right", b"wrong", 1))
    journal, heard = started(tmp_path)
    journal.fetch(9, [row("result", 0)[:3], row("result", 1)[:3]])
    events = heard.until(lambda events: len(events) == 1)
    journal.close()

    assert events == [Fetched(9, [row("result", 1, b"other")])]
    assert "fails its checksum" in heard.logs[0].text


def test_a_flipped_bit_is_seen_at_the_start(tmp_path: Path) -> None:
    """Rows that are loaded whole are checked whole."""
    fill(tmp_path, 3, b"unharmed")
    path = tmp_path / "journal.db"
    path.write_bytes(path.read_bytes().replace(b"unharmed", b"unharmeD", 1))
    journal = Journal.open(tmp_path, WALL_S)
    rows, notes = journal.load(), journal.notes
    journal.close()

    assert len(rows) == 2
    assert notes == ["1 rows of the journal fail their checksum and are left out"]


def test_what_can_be_read_around_damage_is_saved(tmp_path: Path) -> None:
    """The damaged file is kept, every row outside the damage goes on."""
    fill(tmp_path, 1000)
    path = tmp_path / "journal.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 2 * 4096] = b"\xff" * (2 * 4096)
    path.write_bytes(data)
    journal = Journal.open(tmp_path, WALL_S - 1000)
    rows, notes, incarnation = journal.load(), journal.notes, journal.incarnation
    journal.close()

    assert 900 <= len(rows) < 1000
    assert incarnation == int(WALL_S) + 1
    assert notes[0].startswith(f"the journal was damaged: {len(rows)} rows saved")
    assert (tmp_path / "journal.corrupt-1").read_bytes()[middle : middle + 2 * 4096] == b"\xff" * (2 * 4096)
    assert len(loaded(tmp_path)) == len(rows)


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    """Nothing can be saved of it, and the node starts."""
    (tmp_path / "journal.corrupt-1").write_bytes(b"an earlier one")
    (tmp_path / "journal.db").write_bytes(b"garbage " * 1000)
    journal = Journal.open(tmp_path, WALL_S)
    rows, notes = journal.load(), journal.notes
    journal.close()

    assert rows == []
    assert notes[0].endswith(f"the damaged file is kept as {tmp_path / 'journal.corrupt-2'}")
    assert (tmp_path / "journal.corrupt-2").read_bytes() == b"garbage " * 1000


def test_a_salvage_killed_between_its_renames_is_finished(tmp_path: Path) -> None:
    """The saved rows are waiting under their interim name."""
    fill(tmp_path, 5)
    (tmp_path / "journal.db").rename(tmp_path / "journal.new")

    assert len(loaded(tmp_path)) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    """One line that names it, exit code 2."""
    tmp_path.chmod(0o500)
    with pytest.raises(GridError) as caught:
        Journal.open(tmp_path, WALL_S)

    assert (caught.value.code, caught.value.exit_code) == ("directory-unusable", 2)


# ---- a full disk, a kill --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_fails_the_large_store_and_takes_the_small_one(small_disk: Path) -> None:
    """The failure is told, the thread lives, and what fits later is stored."""
    journal, heard = started(small_disk)
    journal.store(1, [row("input", 0, os.urandom(2_000_000))])
    journal.store(2, [row("spec", 1)])
    events = heard.until(lambda events: len(events) == 2)
    journal.store(3, [row("spec", 2)])
    heard.until(lambda events: len(events) == 3)
    journal.close()

    assert set(events) == {StoreFailed(1, "the disk is full"), Stored(2)}
    assert heard.crashes == []
    assert loaded(small_disk) == [row("spec", 1), row("spec", 2)]


_STORE_FOR_EVER = """
import itertools, sys, threading
from pathlib import Path
from p2pgrid.node.disk import Journal
from p2pgrid.node.events import Row
turn = threading.Semaphore(500)
def deliver(events, logs):
    sys.stdout.write("".join(f"{event.token}\\n" for event in events))
    sys.stdout.flush()
    turn.release(len(events))
journal = Journal.open(Path(sys.argv[1]), 0.0)
journal.start(deliver, print)
for token in itertools.count(1):
    turn.acquire()
    journal.store(token, [Row(b"j" * 16, "result", token.to_bytes(8, "big"), b"", bytes(200))])
"""


@pytest.mark.slow
def test_what_was_reported_as_stored_survives_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of commits, five times: every reported row is there."""
    for life in range(5):
        folder = tmp_path / str(life)
        folder.mkdir()
        command = [sys.executable, "-c", _STORE_FOR_EVER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = [int(child.stdout.readline()) for _ in range(400 + 371 * life)]
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read()
        told += [int(line) for line in rest.split("\n")[:-1]]
        kept = {int.from_bytes(row.key, "big") for row in loaded(folder)}

        assert set(told) <= kept
