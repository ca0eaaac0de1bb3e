"""Going to another grid and leaving one, when something is in the way: a full disk, an end between two writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from p2pgrid.core.errors import GridError
from p2pgrid.node import charter_members, identity, migration
from p2pgrid.node import events as e
from p2pgrid.node.identity import Identity, peer_id, read_way
from p2pgrid.node.network import Network
from tests.node.boxes import HERE, USER, WEEK, Box, grid_of


class Moving:
    """A network that does not run, and what it told the machine."""

    def __init__(self, box: Box) -> None:
        self.events: list[e.Event] = []
        self.said: list[str] = []
        me = SimpleNamespace(id=peer_id(box.public), name=box.name, public=box.public, key=box.key)
        talk = SimpleNamespace(event=lambda _plain, event, **_: self.said.append(event), log=lambda _entry: None)
        config = SimpleNamespace(dir=box.folder, listen=(), advertise=(), mdns=False, embedded=True)
        self.network = Network(cast("Any", config), cast("Identity", me), box.charter, cast("Any", talk), self._told)

    def _told(self, events: Any) -> None:
        self.events += events


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the disk full."""

    def full(path: Path, data: bytes) -> None:
        raise GridError(f"{path} cannot be used: no space left", code="directory-unusable")

    return lambda: monkeypatch.setattr(identity, "write_private", full)


def test_a_full_disk_lets_nobody_leave_half(tmp_path: Path, fill: Callable[[], None]) -> None:
    """Nobody is told good-bye: the grid is as it was, and the error says why."""
    founder, _ = grid_of(tmp_path, "f", "a")
    moving = Moving(founder)
    fill()
    with pytest.raises(GridError, match="no space left"):
        trio.run(moving.network.migration.leave)

    assert moving.events == []
    assert moving.said == []


def test_a_full_disk_lets_nobody_join_half(tmp_path: Path, fill: Callable[[], None]) -> None:
    founder, _ = grid_of(tmp_path, "f", "a")
    box = Box(tmp_path, "x")
    moving, joining = Moving(box), box.charter.join(founder.charter.invite(USER, WEEK, 0, HERE)[0])
    before = box.charter.grid
    fill()
    with pytest.raises(GridError, match="no space left"):
        moving.network.migration._adopt(joining)

    assert moving.events == []
    assert box.charter.grid == before


def test_who_ends_between_two_writes_knows_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the new grid, with nobody met: the addresses of the invite were written before the membership."""
    founder, _ = grid_of(tmp_path, "f", "a")
    box = Box(tmp_path, "x")
    moving, joining = Moving(box), box.charter.join(founder.charter.invite(USER, WEEK, 0, HERE)[0])

    def ends(_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(moving.network.migration, "_arrive", ends)
    with pytest.raises(SystemExit):
        moving.network.migration._adopt(joining)
    box.start()

    assert box.charter.grid == founder.charter.grid
    assert read_way(box.folder, box.charter.grid) == HERE


def test_who_is_refused_after_it_was_ready_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time it is an error of the start; later it is a warning, for somebody may use the node by then."""
    monkeypatch.setattr(migration, "PATIENCE_S", 0.05)
    moving = Moving(Box(tmp_path, "x"))
    warned: list[str] = []
    monkeypatch.setattr(moving.network, "warn", warned.append)

    async def refuses(_text: str, *, leave: bool) -> None:
        await later.wait()
        raise GridError("the invite was revoked", next="ask for a new one", code="bad-invite")

    monkeypatch.setattr(moving.network.migration, "join", refuses)

    async def start() -> None:
        async with trio.open_nursery() as nursery:
            moving.network._nursery = nursery
            await moving.network.migration.follow("an invite")
            later.set()

    later = trio.Event()
    trio.run(start)
    assert warned == ["the invite was revoked; ask for a new one"]
    monkeypatch.setattr(migration, "PATIENCE_S", 60.0)
    with pytest.raises(ExceptionGroup) as caught:
        trio.run(start)
    assert caught.group_contains(GridError, match="revoked")
    assert len(warned) == 1


def test_joined_is_said_once_and_after_ready(tmp_path: Path) -> None:
    moving = Moving(Box(tmp_path, "x"))
    moving.network.migration._met_any = True
    moving.network.migration._say_joined()
    assert moving.said == []
    moving.network.migration.announce()
    assert moving.said == ["joined"]


def test_what_was_learned_is_written_while_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the disk takes, and if it takes nothing it is told once and tried again."""
    founder, a = grid_of(tmp_path, "f", "a")
    moving = Moving(founder)
    warned: list[str] = []
    monkeypatch.setattr(moving.network, "warn", warned.append)
    begun, released = threading.Event(), threading.Event()

    def slowly(*_: Any, **__: Any) -> None:
        begun.set()
        assert released.wait(60), "the loop waits for the disk"
        raise GridError("no space left", code="directory-unusable")

    monkeypatch.setattr(charter_members, "write_kept", slowly)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(moving.network.keep)
            assert await trio.to_thread.run_sync(begun.wait, 60)
            released.set()
        await moving.network.keep()

    founder.charter.saw(peer_id(a.public), HERE)
    trio.run(main)
    assert [line.partition(";")[0] for line in warned] == ["no space left"]
    assert founder.charter.unwritten() is not None
