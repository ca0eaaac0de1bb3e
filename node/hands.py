"""The hands of the policies for objects: what they say is done here, and what came of it told them.

    Hands.perform(effects)  ->  storeroom (bytes, threads), network (frames)  ->  objects.handle(event)  ->  effects …

Who waits for an object or a place is `visitors`' business, who needs one `belongings`'; both are told by the hooks.

Rule: no bytes of objects pass here but those of `storeroom`; what is dropped and kept is decided in `shelf`.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.pieces import PIECE_BYTES, ObjectId
from p2pgrid.node.arena import Arena
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.events import Log, Send
from p2pgrid.node.network import Network
from p2pgrid.node.object_events import (
    Allocate,
    Damaged,
    Describe,
    Described,
    Gone,
    Key,
    NoRoom,
    Placed,
    Ready,
    Restore,
    Restored,
    Seek,
    SendPieces,
    Served,
    Spill,
    Spilled,
    Suspect,
)
from p2pgrid.node.object_files import ObjectFiles
from p2pgrid.node.objects import Effect, Objects
from p2pgrid.node.shelf import Shelf, ShelfOptions
from p2pgrid.node.storeroom import Event, Job, Order, Storeroom

MEMORY_OF_RAM = 4
IN_MEMORY_RAM_MIN = 2 * 1024**3
"""A machine with less keeps objects in an unlinked file, whose pages the system may write out."""
JOBS_AT_ONCE = 2
AHEAD_BYTES = 2 * PIECE_BYTES
UNUSED_S = 60.0
WARM_BYTES_MIN = 64 * 1024 * 1024
WARM_OF_USED = 4
WARM_REST = 1.0
"""Between two steps the warming rests for as long as the last one took, times this: tasks need the processor more."""
PEAK_HALF_S = 60.0
PRESSURE_S = 2.0
"""So often the memory of the machine is looked at, while objects use some of it."""
SHORT_OF_RAM = 10
"""The machine is short of memory when less than this part of it is available."""


class WhenWhole(Protocol):
    """Told that an object is here whole, or not to be had."""

    def __call__(self, id_: ObjectId, *, good: bool, full: bool = False) -> None: ...


def _nobody(id_: ObjectId, *, good: bool, full: bool = False) -> None:
    """Nobody wants to know."""


class Hands:
    """The objects of one node and what is under way with them."""

    def __init__(
        self, config: NodeConfig, me: str, network: Network, nursery: trio.Nursery, log: Callable[[Log], None]
    ) -> None:
        """Make the shared memory. Raises OSError: the system has none, or the disk is full."""
        self.net = network
        self.me = me
        self.nursery = nursery
        self.log = log
        self.files = ObjectFiles(config.dir)
        found = self.files.open()
        quota = config.quota or self.files.quota_bytes(sum(size for _, size in found))
        memory = max(1, min(quota, config.ram // MEMORY_OF_RAM))
        self.arena = Arena(memory, config.dir, in_memory=config.ram >= IN_MEMORY_RAM_MIN)
        self.shelf = Shelf(ShelfOptions(memory, quota))
        self.shelf.begin(found)
        self.room = Storeroom(self.arena, self.files)
        self.objects = Objects(me, self.shelf, random.Random(os.urandom(16)))
        self.limiter = trio.CapacityLimiter(JOBS_AT_ONCE)
        self.on_placed: Callable[[Key], None] = lambda _: None
        self.on_ready: Callable[[Key], None] = lambda _: None
        self.on_no_room: Callable[[Key, str], None] = lambda *_: None
        self.on_gone: Callable[[Gone], None] = lambda _: None
        self.on_named: Callable[[Key], None] = lambda _: None
        self.on_whole: WhenWhole = _nobody
        self.on_unneeded: Callable[[Key], None] = self.unneeded
        self.on_seek: Callable[[Seek], None] = lambda _: None
        self.on_held: Callable[[], None] = lambda: None
        """Called often; there may be something on the shelf."""
        self.waits: Callable[[], bool] = lambda: False
        """Whether somebody waits for an object or a place."""
        self._sending: dict[str, deque[SendPieces]] = {}
        self._unused: dict[Key, float] = {}
        """Objects that came from other nodes and that nobody looks at now: since when."""
        self.available = available_bytes
        self._ram = config.ram
        self._ticking = self._tidying = self._warming = self._watching = False
        self._peak = (0, time.monotonic())

    # ---- what the policies say ---------------------------------------------------------------------------------------

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out effects, and those that follow from them."""
        todo = deque(effects)
        sent = False
        while todo:
            effect = todo.popleft()
            match effect:
                case Placed(key):
                    self.on_placed(key)
                case Ready(key):
                    self._unused.pop(key, None)
                    self.on_ready(key)
                    if (known := self.shelf.items[key].id) is not None:
                        self.on_whole(known, good=True)
                case NoRoom(key, reason):
                    self.on_no_room(key, reason)
                    self.on_whole(ObjectId(key), good=False, full=True)
                case Gone():
                    self.on_gone(effect)
                    self.on_whole(effect.id, good=False)
                case Send():
                    self.net.perform(effect)
                    sent = True
                case SendPieces(peer):
                    self._send_pieces(peer, effect)
                case Seek():
                    self.on_seek(effect)
                case Suspect(peer):
                    self.log(Log("warning", f"a piece of an object from {peer} was wrong; it is fetched elsewhere"))
                case _:
                    outcome = self.room.perform(effect)
                    if callable(outcome):
                        self.nursery.start_soon(self._do, effect, outcome)
                    elif outcome is not None:
                        todo += self.objects.handle(outcome, time.monotonic())
        if sent:
            self.net.flush()
        self.look()
        self.on_held()

    def look(self) -> None:
        """Begin to look at the time, if somebody waits."""
        if not self._ticking and (self.waits() or self.objects.busy):
            self._ticking = True
            self.nursery.start_soon(self._tick)

    def warm(self) -> None:
        """Have as much memory ready as may be asked for next: pages that were never touched are slow."""
        if not self._watching:
            self._watching = True
            self.nursery.start_soon(self._watch_memory)
        if not self._warming and self.arena.in_memory and self.arena.space.warm.total < self._ahead_bytes():
            self._warming = True
            self.nursery.start_soon(self._warm)

    def _ahead_bytes(self) -> int:
        peak, at_s = self._peak
        now = time.monotonic()
        peak = max(self.arena.space.used, int(peak * 0.5 ** ((now - at_s) / PEAK_HALF_S)))
        self._peak = peak, now
        return max(WARM_BYTES_MIN, peak // WARM_OF_USED)

    async def _warm(self) -> None:
        while (span := self.arena.wants_warmth(self._ahead_bytes())) is not None:
            start_s = time.monotonic()
            done = await trio.to_thread.run_sync(self.arena.warm_up, span, limiter=self.limiter)
            self.arena.warmed(span, done=done)
            if not done or self._shortage():
                break
            await trio.sleep((time.monotonic() - start_s) * WARM_REST)
        self._warming = False

    def _shortage(self) -> int:
        """Return of how many bytes the machine is short, as far as it says."""
        available = self.available()
        return 0 if available is None else max(0, self._ram // SHORT_OF_RAM - available)

    async def _watch_memory(self) -> None:
        while self.shelf.memory_bytes or self.arena.space.warm.total:
            await trio.sleep(PRESSURE_S)
            if shortage := self._shortage():
                await self.relieve(shortage)
        self._watching = False

    async def relieve(self, shortage: int) -> None:
        """Move objects that nobody has mapped out of memory, and give that back to the system."""
        self.perform(self.shelf.pressure(shortage))
        while shortage > 0 and (span := self.arena.give_back(min(shortage, WARM_BYTES_MIN))) is not None:
            done = await trio.to_thread.run_sync(self.arena.cool_down, span, limiter=self.limiter)
            self.arena.cooled(span, done=done)
            if not done:
                break
            shortage -= span[1] - span[0]

    async def _do(self, effect: Order, job: Job) -> None:
        try:
            event: Event = await trio.to_thread.run_sync(job, limiter=self.limiter)
        except OSError as error:
            self.log(Log("warning", f"an object could not be moved: {error.strerror or error}"))
            event = _failed(effect, str(error.strerror or error))
        self.perform(self.objects.handle(self.room.settled(event), time.monotonic()))
        if isinstance(event, Described | Spilled):
            self.on_named(event.key)

    async def _tick(self) -> None:
        """Look after who waits, as long as somebody does."""
        beat_s = self.objects.options.beat_s
        while self.waits() or self.objects.busy:
            due_s = time.monotonic() + beat_s
            await trio.sleep(beat_s)
            if (late_s := time.monotonic() - due_s) > beat_s:
                self.objects.stalled(late_s)  # that nothing came meanwhile was our own fault
            self.perform(self.objects.tick(time.monotonic()))
        self._ticking = False

    def unneeded(self, key: Key) -> None:
        """Drop what nobody needs or looks at; what came from another node is kept a while: the next may want it."""
        item = self.shelf.items.get(key)
        if item is None or item.pins or item.maps:
            return
        if key != item.id:
            self.perform(self.shelf.drop(key))
            return
        self._unused[key] = time.monotonic()
        if not self._tidying:
            self._tidying = True
            self.nursery.start_soon(self._tidy)

    async def _tidy(self) -> None:
        """Drop what came from other nodes and nobody has looked at for a minute."""
        while self._unused:
            await trio.sleep(UNUSED_S / 4)
            late_s = time.monotonic() - UNUSED_S
            for key in [key for key, since_s in self._unused.items() if since_s < late_s]:
                del self._unused[key]
                if key in self.shelf.items:
                    self.perform(self.shelf.drop(key))
            self.perform(self.objects.serving.tidy())
        self._tidying = False

    # ---- other nodes -------------------------------------------------------------------------------------------------

    def peer_up(self, peer: str, *, keeps: bool) -> None:
        """A member is connected."""
        self.perform(self.objects.peer_up(peer, time.monotonic(), keeps=keeps))

    def peer_down(self, peer: str) -> None:
        """A member is not connected any more."""
        self._sending.pop(peer, None)
        self.perform(self.objects.peer_down(peer, time.monotonic()))

    def received(self, peer: str, kind: int, body: Any) -> None:
        """Take a frame of a member about objects."""
        now = time.monotonic()
        if kind == m.O_SKIP:
            self.room.skip(peer, *body)
        elif kind != m.O_PIECE:
            self.perform(self.objects.received(peer, kind, body, now))
            if kind == m.O_FREE:
                for key in self.shelf.twins(body[0]):
                    self.on_unneeded(key)
        elif (came := self.room.came(peer, *body)) is not None:
            self.perform(self.objects.handle(came, now))

    def _send_pieces(self, peer: str, effect: SendPieces) -> None:
        waiting = self._sending.get(peer)
        if waiting is not None:
            waiting.append(effect)
            return
        self._sending[peer] = deque([effect])
        self.nursery.start_soon(self._feed, peer, self._sending[peer])

    async def _feed(self, peer: str, waiting: deque[SendPieces]) -> None:
        """Send pieces to a member as fast as they leave: never more than a few are in memory."""
        while waiting and self._sending.get(peer) is waiting:
            effect = waiting.popleft()
            for kind, body in self.room.sends(effect, self.shelf.find(effect.id) or effect.id):
                if self.net.links is None or not await self.net.links.room(peer, AHEAD_BYTES):
                    break
                self.net.send(peer, kind, body)
                if kind == m.O_LACK:
                    self.perform(self.objects.handle(Damaged(effect.id), time.monotonic()))
                await trio.lowlevel.checkpoint()
            count = sum(hi - lo for lo, hi in effect.pieces)
            self.perform(self.objects.handle(Served(peer, count), time.monotonic()))
        if self._sending.get(peer) is waiting:
            del self._sending[peer]

    def is_used(self, peer: str) -> bool:
        """Whether objects come from or go to a member now."""
        return peer in self._sending or self.objects.is_used(peer)

    def dial(self, holders: Iterable[str]) -> None:
        """Connect with those who are said to have an object."""
        for holder in holders:
            addresses = [f"{address}/p2p/{holder}" for address in self.net.known_at(holder)]
            if holder not in self.net.members and addresses and self.net.links is not None:
                self.net.soon(self.net.reach, addresses)

    def stats(self) -> dict[str, int]:
        """Return the figures of `status`."""
        return {
            "count": len(self.shelf.items),
            "bytes": self.shelf.held_bytes,
            "pinned": sum(item.size for item in self.shelf.items.values() if item.pins),
            "on_disk": sum(item.size for item in self.shelf.items.values() if item.disk),
            "quota": self.shelf.quota_bytes,
            "arena": self.arena.memory_bytes,
            "arena_used": self.shelf.memory_bytes,
            "arena_resident": self.arena.resident_bytes(),
            "fetching": len(self.objects.sought),
            "kept_for_others": len(self.objects.copies.wishes),
            "wrong_pieces": sum(self.objects.wrong_pieces.values()),
        }

    def key_of(self, name: bytes) -> Key | None:
        """Return the key of an object that is whole here, by its key or its id."""
        return name if name in self.shelf.items and self.shelf.items[name].whole else self.shelf.find(ObjectId(name))


def available_bytes() -> int | None:
    """Return how much memory the machine has for whoever asks next; None: it does not say (no /proc)."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _failed(effect: Order, reason: str) -> Any:
    """Return the event of a job that the system made fail."""
    match effect:
        case Spill(key):
            return Spilled(key, None, reason)
        case Restore(key):
            return Restored(key, good=False)
        case Describe(key):
            return Described(key, None)
        case Allocate(key):
            return NoRoom(key, reason)
    raise AssertionError(effect)
