"""The shelf: what is needed stays, what is mapped stays where it is, and room is made for the rest."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.pieces import Manifest, ObjectId
from p2pgrid.node.object_events import (
    Allocate,
    NoRoom,
    Placed,
    Ready,
    Release,
    Remove,
    Restore,
    ShelfEffect,
    Spill,
)
from p2pgrid.node.shelf import Doing, Shelf, ShelfOptions

JOB, OTHER = ("job", b"1"), ("job", b"2")


def id_of(key: bytes) -> ObjectId:
    return Manifest(1, key.ljust(32, b"\0")[:32]).id


class Shell:
    """Obeys at once, unless told to hold back."""

    def __init__(self, memory: int = 100, quota: int = 300, wait_s: float = 30.0) -> None:
        self.shelf = Shelf(ShelfOptions(memory, quota, wait_s))
        self.in_memory: set[bytes] = set()
        self.files: set[bytes] = set()
        self.said: list[ShelfEffect] = []
        self.later: deque[ShelfEffect] = deque()
        self.held_back: tuple[type, ...] = ()
        self.disk_full = False

    def do(self, effects: list[ShelfEffect]) -> None:
        for effect in effects:
            self.said.append(effect)
            if isinstance(effect, self.held_back):
                self.later.append(effect)
            else:
                self.obey(effect)

    def let_go(self) -> None:
        if self.later:
            self.obey(self.later.popleft())

    def obey(self, effect: ShelfEffect) -> None:
        shelf = self.shelf
        match effect:
            case Allocate(key):
                self.in_memory.add(key)
                self.do(shelf.allocated(key))
            case Spill(key) if self.disk_full:
                self.do(shelf.spilled(key, None))
            case Spill(key):
                assert key in self.in_memory
                id_ = shelf.items[key].id or id_of(key)
                self.files.add(id_)
                self.do(shelf.spilled(key, id_))
            case Restore(key, id_):
                good = id_ in self.files
                if good:
                    self.in_memory.add(key)
                self.do(shelf.restored(key, good=good))
            case Release(key):
                assert key not in shelf.items or not shelf.items[key].maps
                self.in_memory.remove(key)
            case Remove(id_):
                self.files.remove(id_)
            case _:
                pass

    def put(self, key: bytes, size: int, owner: tuple[str, bytes] = JOB, id_: ObjectId | None = None) -> None:
        self.do(self.shelf.admit(key, size, owner, 0.0))
        if key in self.shelf.items and self.shelf.items[key].doing is Doing.WRITING:
            self.do(self.shelf.written(key, id_))

    def heard(self, kind: type) -> list[ShelfEffect]:
        return [effect for effect in self.said if isinstance(effect, kind)]


def test_a_new_object_has_a_place_before_it_is_written() -> None:
    """Admit, Allocate, Placed, written; and it can be mapped."""
    shell = Shell()
    shell.put(b"a", 60)
    shell.do(shell.shelf.want(b"a", 0.0))

    assert shell.said == [Allocate(b"a", 60), Placed(b"a"), Ready(b"a")]


def test_the_least_recently_used_goes_and_comes_back() -> None:
    """What a job needs is written to disk, not dropped."""
    shell = Shell()
    shell.put(b"a", 60)
    shell.put(b"b", 30)
    shell.do(shell.shelf.want(b"a", 0.0))
    shell.put(b"c", 20)

    assert shell.heard(Spill) == [Spill(b"b")]
    assert shell.in_memory == {b"a", b"c"}
    shell.do(shell.shelf.want(b"b", 0.0))
    assert shell.heard(Restore) == [Restore(b"b", id_of(b"b"), 30)]
    assert shell.said[-1] == Ready(b"b")
    assert shell.in_memory == {b"b", b"c"}


def test_what_nobody_needs_is_dropped_instead() -> None:
    """Without a word to the disk."""
    shell = Shell()
    shell.put(b"a", 60)
    shell.shelf.unpin(b"a", JOB)
    shell.put(b"b", 60)

    assert not shell.heard(Spill)
    assert b"a" not in shell.shelf.items


def test_what_is_mapped_stays_and_others_wait_for_it() -> None:
    """In line, first come, first served; a large one is not overtaken for ever by small ones."""
    shell = Shell()
    shell.put(b"a", 80)
    shell.shelf.map(b"a", 7)
    shell.shelf.unpin_all(JOB)
    shell.put(b"b", 70)
    shell.put(b"c", 10)
    assert not shell.heard(Spill)
    assert shell.in_memory == {b"a"}

    shell.do(shell.shelf.unmap(b"a", 7))

    assert shell.in_memory == {b"b", b"c"}


def test_nobody_waits_for_ever() -> None:
    """After a while the writer gets an error, and the one behind him his place."""
    shell = Shell(wait_s=5.0)
    shell.put(b"a", 80)
    shell.shelf.map(b"a", 7)
    shell.put(b"b", 70)
    shell.do(shell.shelf.admit(b"c", 10, JOB, 3.0))
    shell.do(shell.shelf.tick(5.0))

    assert [effect.key for effect in shell.said if isinstance(effect, NoRoom)] == [b"b"]
    assert shell.said[-1] == Placed(b"c")
    assert shell.shelf.held_bytes == 90


def test_a_used_up_quota_is_an_error_before_anything_is_accepted() -> None:
    """Nothing is dropped for one who cannot be served anyway."""
    shell = Shell(memory=100, quota=150)
    shell.put(b"a", 90)
    shell.put(b"b", 40, OTHER)
    shell.shelf.unpin_all(OTHER)
    with pytest.raises(QuotaExceeded, match="150"):
        shell.put(b"c", 70)
    with pytest.raises(QuotaExceeded, match="shared memory"):
        shell.put(b"d", 101)

    assert sorted(shell.shelf) == [b"a", b"b"]
    shell.put(b"e", 60)
    assert sorted(shell.shelf) == [b"a", b"e"]


def test_a_full_disk_loses_nothing() -> None:
    """What cannot be spilled stays in memory; the newcomer waits, and is refused in the end."""
    shell = Shell(wait_s=1.0)
    shell.put(b"a", 80)
    shell.disk_full = True
    shell.put(b"b", 50)
    shell.do(shell.shelf.tick(2.0))

    assert shell.in_memory == {b"a"}
    assert [type(effect) for effect in shell.said[-1:]] == [NoRoom]
    shell.disk_full = False
    shell.put(b"c", 50)
    assert shell.in_memory == {b"c"}


def test_no_memory_after_all() -> None:
    """The system may have less than was promised: an error to that writer; on disk it stays."""
    shell = Shell()
    shell.held_back = (Allocate, Restore)
    shell.do(shell.shelf.admit(b"a", 60, JOB, 0.0))
    shell.do(shell.shelf.no_memory(b"a", "none"))
    assert shell.said[-1] == NoRoom(b"a", "none")
    assert not list(shell.shelf)

    shell.shelf.begin([(id_of(b"x"), 50)])
    shell.do(shell.shelf.want(id_of(b"x"), 0.0))
    shell.do(shell.shelf.no_memory(id_of(b"x"), "none"))
    assert list(shell.shelf) == [id_of(b"x")]
    assert shell.shelf.memory_bytes == 0


def test_a_damaged_file_is_a_lost_object() -> None:
    """Who waits for it hears of it."""
    shell = Shell()
    id_ = id_of(b"x")
    shell.shelf.begin([(id_, 50)])
    shell.do(shell.shelf.want(id_, 0.0))

    assert shell.said == [Restore(id_, id_, 50), NoRoom(id_, "its file was damaged")]
    assert shell.shelf.find(id_) is None
    assert (shell.shelf.memory_bytes, shell.shelf.held_bytes) == (0, 0)


def test_a_writer_that_ends_leaves_nothing() -> None:
    """Whether its place was there already or not."""
    shell = Shell()
    shell.held_back = (Allocate,)
    shell.do(shell.shelf.admit(b"a", 60, JOB, 0.0))
    shell.do(shell.shelf.abandon(b"a"))
    shell.let_go()
    shell.held_back = ()
    shell.do(shell.shelf.admit(b"b", 60, JOB, 0.0))
    shell.do(shell.shelf.want(b"b", 0.0))
    shell.do(shell.shelf.abandon(b"b"))

    assert shell.said[-2:] == [NoRoom(b"b", "its writer ended"), Release(b"b")]
    assert not shell.in_memory
    assert shell.shelf.held_bytes == shell.shelf.memory_bytes == 0


def test_equal_values_share_a_file() -> None:
    """It goes with the last of them."""
    shell = Shell(memory=100, quota=1000)
    for key in (b"a", b"b"):
        shell.put(key, 60, id_=id_of(b"same"))
    shell.put(b"c", 60)
    assert shell.shelf.find(id_of(b"same")) == b"a"
    for key in (b"a", b"b"):
        shell.shelf.unpin(key, JOB)
    shell.do(shell.shelf.drop(b"a"))
    assert id_of(b"same") in shell.files
    assert shell.shelf.find(id_of(b"same")) == b"b"
    shell.do(shell.shelf.drop(b"b"))
    assert id_of(b"same") not in shell.files


def test_under_pressure_memory_is_moved_out() -> None:
    """What nobody has mapped."""
    shell = Shell()
    shell.put(b"a", 30)
    shell.put(b"b", 30)
    shell.shelf.map(b"a", 1)
    shell.do(shell.shelf.pressure(50))
    shell.do(shell.shelf.pressure(50))

    assert shell.in_memory == {b"a"}
    assert shell.shelf.held_bytes == 60


class AnySequence(RuleBasedStateMachine):
    """Whatever clients, workers, disk and memory do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell(memory=100, quota=250, wait_s=10.0)
        self.shell.held_back = (Allocate, Spill, Restore)
        self.now = 0.0
        self.count = 0

    def pick(self, at: int) -> bytes | None:
        keys = list(self.shell.shelf)
        return keys[at % len(keys)] if keys else None

    @rule(size=st.integers(1, 110), owner=st.sampled_from([JOB, OTHER]))
    def admit(self, size: int, owner: tuple[str, bytes]) -> None:
        self.count += 1
        shelf = self.shell.shelf
        pinned = sum(i.size for i in shelf.items.values() if i.pins or i.maps or not i.settled or i.wanted)
        try:
            self.shell.do(shelf.admit(b"%d" % self.count, size, owner, self.now))
        except QuotaExceeded:
            assert size > 100 or pinned + size > 250

    @rule(at=st.integers(0, 99), known=st.booleans())
    def write(self, at: int, known: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        key = self.pick(at)
        if key is not None and self.shell.shelf.items[key].doing is Doing.WRITING:
            self.shell.do(self.shell.shelf.written(key, id_of(b"%d" % (at % 3)) if known else None))

    @rule(at=st.integers(0, 99))
    def abandon(self, at: int) -> None:
        key = self.pick(at)
        writing = (Doing.QUEUED, Doing.WRITING, Doing.PLACING)
        if key is not None and self.shell.shelf.items[key].doing in writing and not self.shell.shelf.items[key].disk:
            self.shell.do(self.shell.shelf.abandon(key))

    @rule(at=st.integers(0, 99), process=st.integers(1, 3))
    def want_and_map(self, at: int, process: int) -> None:
        key = self.pick(at)
        if key is None:
            return
        self.shell.do(self.shell.shelf.want(key, self.now))
        if self.shell.said and self.shell.said[-1] == Ready(key):
            self.shell.shelf.map(key, process)

    @rule(at=st.integers(0, 99), process=st.integers(1, 3))
    def unmap(self, at: int, process: int) -> None:
        key = self.pick(at)
        if key is not None:
            self.shell.do(self.shell.shelf.unmap(key, process))

    @rule(at=st.integers(0, 99))
    def unpin(self, at: int) -> None:
        key = self.pick(at)
        if key is not None:
            self.shell.shelf.unpin(key, JOB)

    @rule(owner=st.sampled_from([JOB, OTHER]))
    def end_of_job(self, owner: tuple[str, bytes]) -> None:
        self.shell.shelf.unpin_all(owner)

    @rule(full=st.booleans())
    def shell_is_done(self, full: bool) -> None:  # noqa: FBT001 - Hypothesis calls it
        self.shell.disk_full = full
        self.shell.let_go()

    @rule(process=st.integers(1, 3))
    def process_ends(self, process: int) -> None:
        self.shell.do(self.shell.shelf.process_gone(process))

    @rule(shortage=st.integers(1, 100))
    def pressure(self, shortage: int) -> None:
        self.shell.do(self.shell.shelf.pressure(shortage))

    @rule(at=st.integers(0, 99))
    def drop(self, at: int) -> None:
        key = self.pick(at)
        if key is not None:
            self.shell.do(self.shell.shelf.drop(key))

    @rule(seconds=st.sampled_from([0.1, 20.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.shell.do(self.shell.shelf.tick(self.now))

    @invariant()
    def it_adds_up(self) -> None:
        shelf, shell = self.shell.shelf, self.shell
        items = shelf.items
        assert set(shelf._in_memory) == {key for key, i in items.items() if i.memory}
        assert shelf._spilling_bytes == sum(i.size for i in items.values() if i.doing is Doing.SPILLING)
        assert shelf.memory_bytes == sum(i.size for i in items.values() if i.memory) <= 100
        assert shelf.held_bytes == sum(i.size for i in items.values()) <= 250
        under_way = {e.key for e in shell.later if isinstance(e, Allocate | Restore)}
        assert {key for key, i in items.items() if i.memory} == shell.in_memory | under_way
        assert all(i.id in shell.files for i in items.values() if i.disk)
        assert shell.files <= {i.id for i in items.values()}
        assert all(i.memory for i in items.values() if i.maps)

    def teardown(self) -> None:
        shelf = self.shell.shelf
        self.shell.held_back, self.shell.disk_full = (), False
        while self.shell.later:
            self.shell.let_go()
        for key, item in list(shelf.items.items()):
            if item.doing is Doing.WRITING:
                self.shell.do(shelf.written(key))
        for process in (1, 2, 3):
            self.shell.do(shelf.process_gone(process))
        for _ in range(len(shelf.items)):
            for key, item in list(shelf.items.items()):
                if item.doing is Doing.WRITING:
                    self.shell.do(shelf.written(key))
        assert all(item.settled for item in shelf.items.values()), "somebody waits although there is room"


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
