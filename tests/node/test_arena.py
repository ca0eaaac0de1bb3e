"""The arena with its readers and writers in one process; other processes are in test_arena_process.py."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from p2pgrid.client.arena import take_over
from p2pgrid.core.errors import PeerError, QuotaExceeded
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import load, serialise
from p2pgrid.node.arena import Arena, hand_over
from p2pgrid.node.arena_space import GRANULE_BYTES

MIB = 1024 * 1024


@pytest.fixture(params=[True, False], ids=["memfd", "file"])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    made = Arena(8 * MIB, tmp_path, in_memory=request.param)
    assert made.in_memory is request.param
    assert list(tmp_path.iterdir()) == []
    yield made
    made.close()


def put(arena: Arena, mapped: Mapped, key: bytes, value: object) -> None:
    done = serialise(value)
    place = arena.allocate(key, done.size)
    if place.cold:
        arena.reserve(place)
    mapped.write(place.offset, done)


def test_what_is_written_is_mapped_by_others(arena: Arena) -> None:
    """Large and small, without a copy, read-only down to the hardware, released with the last view."""
    writer, reader = Mapped(arena.fd, arena.size), Mapped(arena.fd, arena.size)
    large, small = np.arange(300_000.0), [np.arange(5), "text"]
    put(arena, writer, b"large", large)
    put(arena, writer, b"small", small)
    put(arena, writer, b"small 2", small)
    released: list[bytes] = []

    where = arena.where(b"large")
    assert where is not None
    value = load(reader.view(*where, lambda: released.append(b"large")))
    part = value[10:20]
    where = arena.where(b"small 2")
    assert where is not None
    other = load(reader.view(*where, lambda: released.append(b"small 2")))

    assert np.array_equal(value, large)
    assert not value.flags.writeable
    assert other[0].tolist() == [0, 1, 2, 3, 4]
    assert other[1] == "text"
    del value, other
    gc.collect()
    assert released == [b"small 2"]
    assert part.tolist() == list(range(10, 20))
    del part
    gc.collect()
    assert released == [b"small 2", b"large"]
    writer.close()
    reader.close()


def test_nobody_writes_what_others_read(arena: Arena) -> None:
    """A wild pointer into a view is stopped by the hardware: it ends the process that has it, and no other's data."""
    mapped = Mapped(arena.fd, arena.size)
    put(arena, mapped, b"x", np.arange(30_000))
    array = load(mapped.view(*(arena.where(b"x") or (0, 0)), lambda: None))
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.memset(array.ctypes.data, 1, 8)
        os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert array[0] == 0


def test_readers_keep_no_descriptors(arena: Arena) -> None:
    """A thousand results in a client would be a thousand files otherwise."""
    mapped = Mapped(arena.fd, arena.size)
    put(arena, mapped, b"x", np.arange(3))
    where = arena.where(b"x")
    assert where is not None
    before = len(list(Path("/proc/self/fd").iterdir()))

    views = [mapped.view(*where, lambda: None) for _ in range(100)]

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(load(view).tolist() == [0, 1, 2] for view in views)


def test_views_outlive_the_arena(tmp_path: Path) -> None:
    """A client whose node was killed keeps what it has."""
    arena = Arena(MIB, tmp_path)
    mapped = Mapped(arena.fd, arena.size)
    put(arena, mapped, b"x", np.arange(30_000))
    value = load(mapped.view(*(arena.where(b"x") or (0, 0)), lambda: None))
    mapped.close()
    arena.close()

    assert value.sum() == 30_000 * 29_999 // 2


def test_pieces_come_and_go_without_a_mapping(arena: Arena) -> None:
    """As the daemon moves them."""
    place = arena.allocate(b"x", 300_000)
    arena.reserve(place)
    arena.write(b"x", 262_144, b"b" * (300_000 - 262_144))
    arena.write(b"x", 0, b"a" * 262_144)

    assert arena.read(b"x", 262_140, 262_148) == b"aaaabbbb"


def test_a_place_is_reused(arena: Arena) -> None:
    """After free, the next one of that size lies there, on warm pages."""
    first = arena.allocate(b"x", 3 * MIB)
    arena.free(b"x")
    assert arena.where(b"x") is None

    again = arena.allocate(b"y", 3 * MIB)

    assert (again.offset, again.cold) == (first.offset, False)


def test_no_room_is_an_error_to_the_one_who_asks(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hole, or no memory."""
    with pytest.raises(QuotaExceeded):
        arena.allocate(b"x", arena.size + 1)
    place = arena.allocate(b"y", MIB)

    def full(fd: int, at: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(QuotaExceeded):
        arena.reserve(place)


def test_warmth_is_made_ahead_and_given_back(arena: Arena) -> None:
    """In steps, up to what was asked for and never beyond the memory it may use."""
    asked = 0
    while (span := arena.wants_warmth(20 * MIB)) is not None:
        assert arena.warm_up(span)
        arena.warmed(span, done=True)
        asked += span[1] - span[0]

    assert asked == 8 * MIB
    assert arena.resident_bytes() >= 8 * MIB
    assert not arena.allocate(b"x", 2 * MIB).cold

    while (span := arena.give_back(MIB)) is not None:
        arena.cooled(span, done=arena.cool_down(span))
    assert arena.resident_bytes() <= 2 * MIB + GRANULE_BYTES
    assert arena.space.warm.total == 0


def test_nobody_can_cut_it_short(tmp_path: Path) -> None:
    """A task that truncates what it inherited would kill all readers."""
    arena = Arena(MIB, tmp_path)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)
    arena.close()


def test_without_memfd_it_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the node's directory, without a name; a former life's is removed."""

    def refused(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "no such thing")

    monkeypatch.setattr(os, "memfd_create", refused)
    (tmp_path / "arena.1").touch()
    arena = Arena(MIB, tmp_path)

    assert not arena.in_memory
    assert list(tmp_path.iterdir()) == []
    arena.close()


def test_over_a_socket() -> None:
    """A client gets the descriptor, or an error if something else comes."""
    ours, theirs = socket.socketpair()
    arena = Arena(MIB, Path("/nonexistent"))
    with ours, theirs:
        hand_over(ours, arena.fd, arena.size)
        taken = take_over(theirs)
        put(arena, taken, b"x", np.arange(4))
        assert load(taken.view(*(arena.where(b"x") or (0, 0)), lambda: None)).tolist() == [0, 1, 2, 3]
        taken.close()
        ours.send(b"something else")
        with pytest.raises(PeerError):
            take_over(theirs)
        socket.send_fds(ours, [b"x" * 12], [arena.fd])
        with pytest.raises(PeerError):
            take_over(theirs)
    arena.close()
