"""The shelf: which objects this node has, who needs them, and which of them go when room is needed.

    held     in memory, on disk, or both; the size of each counts once against the quota, wherever it is
    pinned   somebody needs it (a job, a session, a task, the grid's copies): never dropped
    mapped   a process looks at it, or writes it: stays in memory, where it is

Room in memory is made by moving out what was used least recently and nobody has mapped: released if it is on disk
already, spilled if it is pinned, dropped otherwise. Whoever asks for room that is not there yet waits in line, first
come, first served, and not for ever. A quota that is used up by what is pinned is an error at once: to the writer,
before anything of his was accepted.

Rule: this file knows keys and sizes, neither bytes nor peers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.pieces import ObjectId
from p2pgrid.core.units import format_size
from p2pgrid.node.object_events import (
    Allocate,
    Key,
    NoRoom,
    Owner,
    Placed,
    Ready,
    Release,
    Remove,
    Restore,
    ShelfEffect,
    Spill,
)


@dataclass(frozen=True, slots=True)
class ShelfOptions:
    """Bytes, and seconds."""

    memory_bytes: int
    quota_bytes: int
    wait_s: float = 30.0
    """How long somebody waits for others to let go of what they have mapped."""
    waiting_max: int = 4096


class Doing(Enum):
    """What the shell does with an object now."""

    NOTHING = auto()
    QUEUED = auto()
    """It waits for room in memory."""
    PLACING = auto()
    WRITING = auto()
    """By a client, a worker, or pieces from peers."""
    SPILLING = auto()
    RESTORING = auto()


@dataclass(slots=True)
class Item:
    """One object."""

    size: int
    id: ObjectId | None = None
    memory: bool = False
    """It has a place there, or the shell was told to make one."""
    disk: bool = False
    doing: Doing = Doing.NOTHING
    pins: dict[Owner, int] = field(default_factory=dict)
    maps: dict[int, int] = field(default_factory=dict)
    wanted: bool = False
    """Somebody waits for it to be in memory."""
    lingers: bool = False
    """Kept while there is room, though nobody needs it."""
    dropped: bool = False
    """Let go of while the shell was busy with it: it goes as soon as the shell is done."""

    @property
    def settled(self) -> bool:
        return self.doing is Doing.NOTHING

    @property
    def whole(self) -> bool:
        """Whether all of it is here, in memory or on disk."""
        return self.disk or (self.memory and self.doing in (Doing.NOTHING, Doing.SPILLING))

    @property
    def movable(self) -> bool:
        """Whether its place in memory can be given up."""
        return self.memory and self.settled and not self.maps and not self.wanted


class Shelf:
    """All objects of one node, least recently used first."""

    def __init__(self, options: ShelfOptions) -> None:
        self.options = options
        self.items: OrderedDict[Key, Item] = OrderedDict()
        self.held_bytes = 0
        self.memory_bytes = 0
        self._quota = options.quota_bytes
        self._keys: dict[ObjectId, dict[Key, None]] = {}
        """Two programs may put the same value: two keys, one id, one file."""
        self._in_memory: OrderedDict[Key, None] = OrderedDict()  # in the same order
        self._spilling_bytes = 0
        self._line: deque[tuple[Key, float]] = deque()

    @property
    def quota_bytes(self) -> int:
        """How much may be held."""
        return self._quota

    def begin(self, found: list[tuple[ObjectId, int]]) -> None:
        """Start a life with what the former one left on disk. Pins come back with the jobs that need them."""
        for id_, size in found:
            self.items[id_] = Item(size, id_, disk=True)
            self._keys[id_] = {id_: None}
            self.held_bytes += size

    def find(self, id_: ObjectId) -> Key | None:
        """Return the key of an object with that id that is whole here, or None."""
        return next(iter(self._keys.get(id_, ())), None)

    def twins(self, id_: ObjectId) -> list[Key]:
        """Return the keys of all objects with that id that are whole here."""
        return list(self._keys.get(id_, ()))

    def __iter__(self) -> Iterator[Key]:
        return iter(self.items)

    # ---- coming ------------------------------------------------------------------------------------------------------

    def admit(self, key: Key, size: int, owner: Owner, now: float) -> list[ShelfEffect]:
        """Make room for a new object, pinned by `owner`; Placed follows when it can be written, or NoRoom.

        Raises:
            QuotaExceeded: it does not fit, whatever happens.
        """
        assert key not in self.items
        if size > self.options.memory_bytes:
            raise QuotaExceeded(
                f"an object of {format_size(size)}, more than the {format_size(self.options.memory_bytes)} of shared"
                " memory that this node may use",
                next="put it in smaller parts, or use a machine with more memory",
            )
        if len(self._line) >= self.options.waiting_max:
            raise QuotaExceeded(f"{len(self._line)} objects wait for room already", next="try again later")
        out = self._room_in_quota(size)
        self.items[key] = Item(size, doing=Doing.QUEUED, pins={owner: 1})
        self.held_bytes += size
        self._line.append((key, now))
        return out + self._advance()

    def _room_in_quota(self, size: int) -> list[ShelfEffect]:
        """Drop what nobody needs until `size` more fit."""
        missing = self.held_bytes + size - self._quota
        if missing <= 0:
            return []
        goes: list[Key] = []
        for key, item in self.items.items():
            if missing <= 0:
                break
            if not item.pins and not item.maps and item.settled and not item.wanted:
                goes.append(key)
                missing -= item.size
        if missing > 0:
            pinned = sum(item.size for item in self.items.values() if item.pins)
            raise QuotaExceeded(
                f"no room for {format_size(size)}: jobs and programs need {format_size(pinned)} of this node's"
                f" {format_size(self._quota)}",
                next="drop references you no longer need, or give the node more: p2pgrid node --quota",
            )
        return [effect for key in goes for effect in self._drop(key)]

    def allocated(self, key: Key) -> list[ShelfEffect]:
        """The shell has made the place."""
        item = self.items[key]
        assert item.doing is Doing.PLACING
        if item.dropped:
            item.doing = Doing.NOTHING
            return [*self._drop(key), *self._advance()]
        item.doing = Doing.WRITING
        return [Placed(key)]

    def no_memory(self, key: Key, reason: str) -> list[ShelfEffect]:
        """The shell could not make the place: the system has less memory than we thought."""
        item = self.items[key]
        assert item.doing in (Doing.PLACING, Doing.RESTORING)
        self._out_of_memory(key, item)
        item.doing, item.wanted = Doing.NOTHING, False
        goes = self._drop(key) if item.dropped or not item.disk else []
        return [NoRoom(key, reason), *goes, *self._advance()]

    def written(self, key: Key, id_: ObjectId | None = None) -> list[ShelfEffect]:
        """The writer is done: the object can be read from now on. `id_` if the writer knows it."""
        item = self.items[key]
        assert item.doing is Doing.WRITING
        item.doing = Doing.NOTHING
        if id_ is not None:
            self.named(key, id_)
        self.touch(key)
        if item.dropped:
            return [*self._drop(key), *self._advance()]
        ready: list[ShelfEffect] = [Ready(key)] if item.wanted else []
        item.wanted = False
        return ready + self._advance()

    def named(self, key: Key, id_: ObjectId) -> None:
        """The id of an object is known: it was hashed."""
        self.items[key].id = id_
        self._keys.setdefault(id_, {})[key] = None

    def touch(self, key: Key) -> None:
        """An object was used."""
        self.items.move_to_end(key)
        if key in self._in_memory:
            self._in_memory.move_to_end(key)

    # ---- being needed ------------------------------------------------------------------------------------------------

    def pin(self, key: Key, owner: Owner) -> None:
        """Somebody needs the object; counted."""
        item = self.items[key]
        item.pins[owner] = item.pins.get(owner, 0) + 1
        item.dropped = False
        self.touch(key)

    def unpin(self, key: Key, owner: Owner) -> None:
        """Somebody needs it no longer. It stays until its room is needed."""
        item = self.items.get(key)
        if item is None or owner not in item.pins:
            return
        item.pins[owner] -= 1
        if not item.pins[owner]:
            del item.pins[owner]

    def unpin_all(self, owner: Owner) -> list[Key]:
        """A job, session or task is over; return what it had pinned."""
        return [key for key, item in self.items.items() if item.pins.pop(owner, 0)]

    def want(self, key: Key, now: float) -> list[ShelfEffect]:
        """Have an object in memory, to be mapped: Ready follows, at once if it is there. `map` it then."""
        item = self.items[key]
        self.touch(key)
        if item.memory and item.doing in (Doing.NOTHING, Doing.SPILLING):
            return [Ready(key)]
        item.wanted = True
        if not item.settled:
            return []
        item.doing = Doing.QUEUED
        self._line.append((key, now))
        return self._advance()

    def map(self, key: Key, process: int) -> None:
        """A process looks at an object in memory."""
        item = self.items[key]
        assert item.memory
        item.maps[process] = item.maps.get(process, 0) + 1

    def unmap(self, key: Key, process: int) -> list[ShelfEffect]:
        """A process looks at it no longer (once)."""
        item = self.items.get(key)
        if item is None or process not in item.maps:
            return []
        item.maps[process] -= 1
        if not item.maps[process]:
            del item.maps[process]
        return self._advance() if not item.maps else []

    def process_gone(self, process: int) -> list[ShelfEffect]:
        """A client or worker ended: it looks at nothing any more. What it was writing is for `abandon`."""
        for item in self.items.values():
            item.maps.pop(process, None)
        return self._advance()

    def abandon(self, key: Key) -> list[ShelfEffect]:
        """The writer will not finish."""
        item = self.items.get(key)
        if item is None:
            return []
        assert item.doing in (Doing.QUEUED, Doing.PLACING, Doing.WRITING)
        item.pins.clear()
        waits: list[ShelfEffect] = [NoRoom(key, "its writer ended")] if item.wanted else []
        item.wanted = False
        if item.doing is Doing.PLACING:
            item.dropped = True
            return waits
        item.doing = Doing.NOTHING
        return [*waits, *self._drop(key), *self._advance()]

    # ---- moving ------------------------------------------------------------------------------------------------------

    def spilled(self, key: Key, id_: ObjectId | None) -> list[ShelfEffect]:
        """The shell has written it to disk, or could not (None): then it stays in memory."""
        item = self.items[key]
        assert item.doing is Doing.SPILLING
        self._spilling_bytes -= item.size
        item.doing = Doing.NOTHING
        if id_ is not None:
            item.disk = True
            self.named(key, id_)
        if item.dropped:
            return [*self._drop(key), *self._advance()]
        return self._advance(spill=id_ is not None)

    def restored(self, key: Key, *, good: bool) -> list[ShelfEffect]:
        """The shell has read it from disk; not `good`: it is lost here, and forgotten."""
        item = self.items[key]
        assert item.doing is Doing.RESTORING
        item.doing = Doing.NOTHING
        wanted, item.wanted = item.wanted, False
        if good and not item.dropped:
            return [*([Ready(key)] if wanted else []), *self._advance()]
        if not good:
            item.disk = False
            self._out_of_memory(key, item)
        return [*([NoRoom(key, "its file was damaged")] if wanted else []), *self._drop(key), *self._advance()]

    def damaged(self, key: Key) -> list[ShelfEffect]:
        """The file of an object is gone; without a place in memory it is lost here, whoever needs it."""
        item = self.items[key]
        item.disk = False
        return [] if item.memory or not item.settled else [*self._drop(key), *self._advance()]

    def tick(self, now: float) -> list[ShelfEffect]:
        """Refuse who has waited too long."""
        out: list[ShelfEffect] = []
        while self._line and now - self._line[0][1] >= self.options.wait_s:
            key, _ = self._line.popleft()
            item = self.items.get(key)
            if item is None or item.doing is not Doing.QUEUED:
                continue
            item.doing, item.wanted = Doing.NOTHING, False
            out.append(NoRoom(key, "all of this node's shared memory is in use"))
            if not item.disk:
                out += self._drop(key)
        return out + self._advance()

    def save(self, key: Key) -> list[ShelfEffect]:
        """Have an object on disk as well; Spilled says what came of it. Nothing, if it is, or the shell is busy."""
        item = self.items[key]
        if item.disk or not item.memory or not item.settled:
            return []
        item.doing = Doing.SPILLING
        self._spilling_bytes += item.size
        return [Spill(key)]

    def put_away(self, key: Key) -> list[ShelfEffect]:
        """Give up the place in memory of an object that is on disk, if nobody has it mapped."""
        item = self.items[key]
        if not (item.disk and item.movable):
            return []
        self._out_of_memory(key, item)
        return [Release(key), *self._advance()]

    def limits(self, quota_bytes: int) -> None:
        """The disk has more or less room than before. What is pinned stays; the next writer hears of it."""
        self._quota = quota_bytes

    def pressure(self, shortage_bytes: int) -> list[ShelfEffect]:
        """The machine is short of so much memory: move out what can be."""
        return self._move_out(shortage_bytes)

    def drop(self, key: Key) -> list[ShelfEffect]:
        """Forget an object that nobody needs or has mapped; what the shell is busy with goes when it is done."""
        item = self.items[key]
        if item.maps or item.pins or item.wanted:
            return []
        if not item.settled:
            item.dropped = True
            return []
        return [*self._drop(key), *self._advance()]

    def _advance(self, *, spill: bool = True) -> list[ShelfEffect]:
        """Serve the line, as far as there is room, and make room for its head."""
        out: list[ShelfEffect] = []
        while self._line:
            key, _ = self._line[0]
            item = self.items.get(key)
            if item is None or item.doing is not Doing.QUEUED:
                self._line.popleft()
                continue
            missing = self.memory_bytes + item.size - self.options.memory_bytes
            if missing > 0:
                out += self._move_out(missing, spill=spill)
                if self.memory_bytes + item.size > self.options.memory_bytes:
                    break  # spilled or let go of first
            self._line.popleft()
            item.memory = True
            self._in_memory[key] = None
            self.memory_bytes += item.size
            if item.disk and item.id is not None:
                item.doing = Doing.RESTORING
                out.append(Restore(key, item.id, item.size))
            else:
                item.doing = Doing.PLACING
                out.append(Allocate(key, item.size))
        return out

    def _move_out(self, missing: int, *, spill: bool = True) -> list[ShelfEffect]:
        """Release and drop at once, spill what has to be kept."""
        out: list[ShelfEffect] = []
        missing -= self._spilling_bytes
        goes: list[Key] = []
        for key in self._in_memory:
            if missing <= 0:
                break
            item = self.items[key]
            if item.movable and (item.disk or spill or not item.pins):
                goes.append(key)
                missing -= item.size
        for key in goes:
            item = self.items[key]
            if item.disk:
                self._out_of_memory(key, item)
                out.append(Release(key))
            elif not item.pins:
                out += self._drop(key)
            else:
                item.doing = Doing.SPILLING
                self._spilling_bytes += item.size
                out.append(Spill(key))
        return out

    def _out_of_memory(self, key: Key, item: Item) -> None:
        item.memory = False
        del self._in_memory[key]
        self.memory_bytes -= item.size

    def _drop(self, key: Key) -> list[ShelfEffect]:
        item = self.items.pop(key)
        self.held_bytes -= item.size
        out: list[ShelfEffect] = []
        if item.memory:
            self._out_of_memory(key, item)
            out.append(Release(key))
        if item.id is not None:
            twins = self._keys[item.id]
            del twins[key]
            if item.disk and not any(self.items[twin].disk for twin in twins):
                out.append(Remove(item.id))
            if not twins:
                del self._keys[item.id]
        return out
