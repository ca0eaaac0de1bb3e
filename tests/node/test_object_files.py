"""Objects on disk: whole or absent, verified whenever read, and nothing half written stays."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.pieces import PIECE_BYTES, manifest_of
from p2pgrid.node.object_files import ObjectFiles

DATA = random.Random(5).randbytes(2 * PIECE_BYTES + 77)


def files_in(folder: Path) -> ObjectFiles:
    files = ObjectFiles(folder)
    files.open()
    return files


def restored(files: ObjectFiles, id_: object) -> bytes | None:
    out = bytearray(len(DATA))

    def write(at: int, data: bytes) -> None:
        out[at : at + len(data)] = data

    return bytes(out) if files.restore(id_, write) else None  # type: ignore[arg-type]


def test_what_was_saved_is_there_in_the_next_life(tmp_path: Path) -> None:
    """By its id, with its size, piece by piece or whole."""
    id_ = files_in(tmp_path).save(len(DATA), lambda lo, hi: DATA[lo:hi])
    assert id_ == manifest_of(DATA).id

    files = ObjectFiles(tmp_path)
    assert files.open() == [(id_, len(DATA))]
    assert files.manifest(id_) == manifest_of(DATA)
    assert [files.read(id_, piece) for piece in (2, 0, 3)] == [DATA[2 * PIECE_BYTES :], DATA[:PIECE_BYTES], None]
    assert restored(files, id_) == DATA
    assert [path.stat().st_mode & 0o777 for path in files.folder.iterdir()] == [0o600]
    assert list(files) == [id_]

    files.remove(id_)
    assert files.read(id_, 0) is None
    assert files.open() == []


@pytest.mark.parametrize("at", [0, PIECE_BYTES, len(DATA) - 1, len(DATA) + 5, -9, -6, -1])
def test_a_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    """In content, manifest or trailer: the file goes and counts as lost."""
    files = files_in(tmp_path)
    id_ = files.save(len(DATA), lambda lo, hi: DATA[lo:hi])
    path = files.folder / id_.hex()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)

    assert restored(files, id_) is None
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 3, 8, 100, len(DATA)])
def test_a_file_cut_short_is_lost(tmp_path: Path, size: int) -> None:
    """As after a crash of a machine whose disk did not sync what it said."""
    files = files_in(tmp_path)
    id_ = files.save(len(DATA), lambda lo, hi: DATA[lo:hi])
    os.truncate(files.folder / id_.hex(), size)

    assert files.manifest(id_) is None
    assert restored(files, id_) is None
    assert files.open() == []


def test_a_new_life_removes_what_is_unfinished(tmp_path: Path) -> None:
    """And whatever else has no business there."""
    files = files_in(tmp_path)
    id_ = files.save(3, lambda lo, hi: b"abc"[lo:hi])
    for name in (".17.1", "junk", "ff" * 33):
        (files.folder / name).write_bytes(b"unfinished")

    assert files.open() == [(id_, 3)]
    assert len(list(files.folder.iterdir())) == 1


def test_a_full_disk_is_the_writers_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QuotaExceeded, whichever write failed."""
    files = files_in(tmp_path)
    writes = iter([None, None, OSError(errno.ENOSPC, "full")])
    write = os.write

    def failing(fd: int, data: bytes) -> int:
        if (error := next(writes)) is not None:
            raise error
        return write(fd, data)

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(QuotaExceeded):
        files.save(len(DATA), lambda lo, hi: DATA[lo:hi])

    assert list(files.folder.iterdir()) == []


def test_quota(tmp_path: Path) -> None:
    """A tenth of what would be free without us, and never more than 10 GB."""
    files = files_in(tmp_path)
    assert 0 < files.quota_bytes(0) <= 10 * 1000**3
    assert files.quota_bytes(10**15) == 10 * 1000**3
