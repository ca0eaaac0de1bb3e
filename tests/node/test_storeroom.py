"""Policies and shell together: two and three nodes with real arenas, files and bytes, in one process."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.object_shapes import of_objects
from p2pgrid.core.objects import load, serialise
from p2pgrid.core.pieces import ObjectId, manifest_of
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.arena import Arena
from p2pgrid.node.events import Send
from p2pgrid.node.object_events import Damaged, Gone, NoRoom, Placed, Ready, Seek, SendPieces, Served, Sighted, Suspect
from p2pgrid.node.object_files import ObjectFiles
from p2pgrid.node.objects import Effect, Objects
from p2pgrid.node.shelf import Shelf, ShelfOptions
from p2pgrid.node.storeroom import Storeroom

MIB = 1024 * 1024
JOB = ("job", b"1")


class Grid:
    """Nodes that hand each other frames, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self.frames: deque[tuple[str, str, int, Any]] = deque()
        self.now = 0.0

    def add(self, name: str, memory: int = 8 * MIB, quota: int = 64 * MIB) -> Node:
        node = self.nodes[name] = Node(self, name, memory, quota)
        for other in list(self.nodes.values()):
            if other is not node:
                node.perform(node.objects.peer_up(other.name, self.now))
                other.perform(other.objects.peer_up(name, self.now))
        return node

    def run(self, seconds: float = 0.0) -> None:
        end = self.now + seconds
        while True:
            while self.frames:
                source, target, kind, body = self.frames.popleft()
                self.nodes[target].arrived(source, kind, of_objects(kind, unpack(pack(body))))
            if self.now >= end:
                return
            self.now += 0.5
            for node in self.nodes.values():
                node.perform(node.objects.tick(self.now))


class Node:
    """One node, its shell obeying in the calling thread."""

    def __init__(self, grid: Grid, name: str, memory: int, quota: int) -> None:
        self.grid = grid
        self.name = name
        folder = grid.folder / name
        folder.mkdir(exist_ok=True)
        files = ObjectFiles(folder)
        shelf = Shelf(ShelfOptions(memory, quota))
        shelf.begin(files.open())
        self.room = Storeroom(Arena(memory, folder), files)
        self.mapped = Mapped(self.room.arena.fd, self.room.arena.size)
        self.objects = Objects(name, shelf, random.Random(1))
        self.said: list[Effect] = []

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.said.append(effect)
            match effect:
                case Send(peer, kind, body):
                    self.grid.frames.append((self.name, peer, kind, body))
                case SendPieces(peer, id_, spans):
                    key = self.objects.shelf.find(id_) or id_
                    for kind, body in self.room.sends(effect, key):
                        self.grid.frames.append((self.name, peer, kind, body))
                        if kind == m.O_LACK:
                            self.perform(self.objects.handle(Damaged(id_), self.grid.now))
                    self.perform(self.objects.handle(Served(peer, sum(hi - lo for lo, hi in spans)), self.grid.now))
                case Seek(id_):
                    self.perform(self.objects.handle(Sighted(id_, []), self.grid.now))
                case NoRoom() | Placed() | Ready() | Gone() | Suspect():
                    pass
                case _:
                    outcome = self.room.perform(effect)
                    event = self.room.settled(outcome()) if callable(outcome) else outcome
                    if event is not None:
                        self.perform(self.objects.handle(event, self.grid.now))

    def arrived(self, sender: str, kind: int, body: Any) -> None:
        match kind:
            case m.O_PIECE:
                event = self.room.came(sender, *body)
                if event is not None:
                    self.perform(self.objects.handle(event, self.grid.now))
            case m.O_SKIP:
                self.room.skip(sender, *body)
            case _:
                self.perform(self.objects.received(sender, kind, body, self.grid.now))

    def put(self, value: object, key: bytes = b"", *, named: bool = True) -> ObjectId:
        """As a client does (`named`), or as a worker that cannot hash."""
        done = serialise(value)
        id_ = manifest_of(done.joined()).id
        self.perform(list(self.objects.shelf.admit(key or id_, done.size, JOB, self.grid.now)))
        assert self.said[-1] == Placed(key or id_)
        offset, _ = self.room.arena.where(key or id_) or (0, 0)
        self.mapped.write(offset, done)
        self.perform(list(self.objects.shelf.written(key or id_, id_ if named else None)))
        return id_

    def value(self, id_: ObjectId) -> Any:
        key = self.objects.shelf.find(id_)
        assert key is not None
        self.perform(list(self.objects.shelf.want(key, self.grid.now)))
        self.objects.shelf.map(key, 1)
        offset, size = self.room.arena.where(key) or (0, 0)
        shelf = self.objects.shelf
        return load(self.mapped.view(offset, size, lambda: self.perform(list(shelf.unmap(key, 1)))))


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


def test_put_on_one_get_on_another(grid: Grid) -> None:
    """A nested value with arrays, mapped read-only where its pieces arrived."""
    one, two = grid.add("one"), grid.add("two")
    value: dict[str, Any] = {"a": np.arange(200_000), "b": [np.ones((300, 400), order="F"), "text"]}
    id_ = one.put(value)
    two.perform(two.objects.want(id_, JOB, ["one"], grid.now))
    grid.run()

    got = two.value(id_)
    assert np.array_equal(got["a"], value["a"])
    assert np.array_equal(got["b"][0], value["b"][0])
    assert not got["a"].flags.writeable


def test_what_a_worker_wrote_is_hashed_when_it_leaves(grid: Grid) -> None:
    """Under a key of its own; the id comes from the shell, and by it others find it."""
    one, two = grid.add("one"), grid.add("two")
    id_ = one.put(np.arange(100_000), b"k" * 16, named=False)
    assert one.objects.shelf.find(id_) is None
    one.perform(list(one.objects.serving.name(b"k" * 16)))
    assert one.objects.shelf.find(id_) == b"k" * 16
    two.perform(two.objects.want(id_, JOB, ["one"], grid.now))
    grid.run()

    assert two.value(id_).sum() == 100_000 * 99_999 // 2
    assert not one.objects.shelf.items[b"k" * 16].maps


def test_more_than_memory_goes_to_disk_and_comes_back(grid: Grid) -> None:
    """Ten objects of 2 MB in 8 MB: all are there, in this life and the next, and others get them."""
    one = grid.add("one")
    ids = [one.put(np.full(250_000, number)) for number in range(10)]
    assert one.room.arena.space.used <= 8 * MIB
    assert [int(one.value(id_)[-1]) for id_ in ids] == list(range(10))

    again, two = grid.add("one"), grid.add("two")
    there = [id_ for id_ in ids if again.objects.shelf.find(id_) is not None]
    assert len(there) >= 6
    two.perform(two.objects.want(there[0], JOB, [], grid.now))
    grid.run()
    assert int(two.value(there[0])[0]) == ids.index(there[0])


def test_what_is_viewed_stays_where_it_is(grid: Grid) -> None:
    """A writer that needs its place waits until the last view is gone, and has it then."""
    one = grid.add("one")
    ids = [one.put(np.full(250_000, number)) for number in range(3)]
    views = [one.value(id_) for id_ in ids]
    one.perform(list(one.objects.shelf.admit(b"late", 4_000_000, JOB, grid.now)))
    assert Placed(b"late") not in one.said
    assert [int(view[0]) for view in views] == [0, 1, 2]
    views.pop(1)

    assert one.said[-1] == Placed(b"late")
    assert [int(view[0]) for view in views] == [0, 2]


def test_a_full_quota_is_refused_before_anything_is_written(grid: Grid) -> None:
    """And what was there stays."""
    one = grid.add("one", quota=3 * MIB)
    id_ = one.put(np.zeros(250_000))
    with pytest.raises(QuotaExceeded):
        one.put(np.zeros(250_000) + 1)
    assert one.value(id_).shape == (250_000,)


def test_a_damaged_file_is_fetched_elsewhere(grid: Grid) -> None:
    """The holder finds it out when it is asked, and says so; another has it."""
    one, two, three = grid.add("one"), grid.add("two"), grid.add("three")
    value = np.arange(500_000)
    id_ = one.put(value)
    two.put(value)
    for number in range(4):
        one.put(np.full(250_000, number))
    path = one.room.files.folder / id_.hex()
    content = bytearray(path.read_bytes())
    content[300_000] ^= 1
    path.write_bytes(content)
    three.perform(three.objects.want(id_, JOB, ["one", "two"], grid.now))
    grid.run(5)

    assert np.array_equal(three.value(id_), value)
    assert not any(isinstance(effect, Suspect) for effect in three.said)
    assert not path.exists()
    grid.run(5)
    assert np.array_equal(one.value(id_), value), "a job here needs it: it was fetched again"


def test_a_damaged_file_is_no_answer(grid: Grid) -> None:
    """Who wants the object waits while it is fetched from another; only if there is none he hears that it is lost."""
    one, two = grid.add("one"), grid.add("two")
    ids = [one.put(np.full(250_000, number)) for number in range(8)]
    two.put(np.full(250_000, 0))
    for id_ in ids[:2]:
        path = one.room.files.folder / id_.hex()
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
        one.perform(one.objects.want(id_, JOB, [], grid.now))
    grid.run(12)

    assert Ready(ids[0]) in one.said
    assert int(one.value(ids[0])[-1]) == 0
    assert [effect.id for effect in one.said if isinstance(effect, Gone)] == [ids[1]]
    assert not any(isinstance(effect, NoRoom) for effect in one.said)
