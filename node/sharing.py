"""Objects in the daemon: what programs of this machine ask about them, and the shell that does what the policies say.

Made when somebody asks for shared memory the first time; a node whose programs put nothing has neither the memory nor
the modules. A program gets the memory over a connection of its own (`arena`) and names that connection by a token of
its choice in all it asks; when the connection ends, so do its pins, its mappings and the places it was writing to.

Rule: no bytes of objects pass here but those of `storeroom`; what is dropped and kept is decided in `shelf`.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, ObjectLost, PeerError, QuotaExceeded, error_to_wire
from p2pgrid.core.mapped import handed
from p2pgrid.core.pieces import OBJECT_BYTES_MAX, PIECE_BYTES, ObjectId, is_id, read_manifest
from p2pgrid.core.wire import Frame, frame
from p2pgrid.node.arena import Arena
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.events import Log, Reply, Send
from p2pgrid.node.local import LocalServer
from p2pgrid.node.network import Network
from p2pgrid.node.object_events import (
    Allocate,
    Damaged,
    Describe,
    Described,
    Gone,
    Key,
    NoRoom,
    Owner,
    Placed,
    Ready,
    Restore,
    Restored,
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
from p2pgrid.node.workers import WorkerPool
from p2pgrid.node.workers_child import Child

KEY_BYTES = 16
MEMORY_OF_RAM = 4
IN_MEMORY_RAM_MIN = 2 * 1024**3
"""A machine with less keeps objects in an unlinked file, whose pages the system may write out."""
LIMITS_S = 60.0
COOL_STEP_BYTES = 64 * 1024 * 1024
JOBS_AT_ONCE = 2
HOLDERS_MAX = 8
"""Of those who are said to have an object, so many are dialled."""
AHEAD_BYTES = 2 * PIECE_BYTES
FEED_S = 0.001
UNUSED_S = 60.0
LET_GO_S = 0.5


@dataclass(slots=True)
class Process:
    """A program that has the memory mapped."""

    number: int
    owner: Owner
    """Of what it has put."""
    writing: set[Key] = field(default_factory=set)
    has_memory: bool = False
    """For a worker: the descriptor was handed over."""

    @property
    def getting(self) -> Owner:
        """The owner of what it waits for, until that is mapped."""
        return "get", self.owner[1]


@dataclass(frozen=True, slots=True)
class Asker:
    """Who waits for an answer; a client by its number, or a worker child."""

    client: int
    id: int
    process: Process
    child: tuple[WorkerPool, Child] | None = None


class Sharing:
    """The objects of this node."""

    def __init__(
        self,
        config: NodeConfig,
        me: str,
        server: LocalServer,
        network: Network,
        nursery: trio.Nursery,
        log: Callable[[Log], None],
    ) -> None:
        """Make the shared memory. Raises OSError: the system has none, or the disk is full."""
        self._quota = config.quota
        self._server = server
        self._net = network
        self._me = me
        self._nursery = nursery
        self._log = log
        self.files = ObjectFiles(config.dir)
        found = self.files.open()
        quota = self._quota or self.files.quota_bytes(sum(size for _, size in found))
        memory = max(1, min(quota, config.ram // MEMORY_OF_RAM))
        self.arena = Arena(memory, config.dir, in_memory=config.ram >= IN_MEMORY_RAM_MIN)
        self.shelf = Shelf(ShelfOptions(memory, quota))
        self.shelf.begin(found)
        self.room = Storeroom(self.arena, self.files)
        self.objects = Objects(me, self.shelf, random.Random(os.urandom(16)))
        self._limits_at_s = time.monotonic() + LIMITS_S
        self._by_token: dict[bytes, Process] = {}
        self._by_number: dict[int, Process] = {}
        self._places: dict[Key, Asker] = {}
        self._wants: dict[ObjectId, list[Asker]] = {}
        self._wanted_as: dict[Key, ObjectId] = {}
        self._sending: dict[str, deque[SendPieces]] = {}
        self._unused: dict[Key, float] = {}
        """Objects that came from other nodes and that nobody looks at now: since when."""
        self._ticking = self._tidying = False
        self._cooling = False
        self._limiter = trio.CapacityLimiter(JOBS_AT_ONCE)
        self._verbs: dict[str, Callable[[int, int, dict[str, Any]], dict[str, Any] | None]] = {
            "arena": self._arena, "place": self._place, "written": self._written, "want": self._want,
            "let_go": self._let_go,
        }  # fmt: skip
        server.on_gone = self.gone
        network.keeper = self
        for peer in network.members:
            self.peer_up(peer)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def answer(self, client: int, id_: int, verb: str, arguments: dict[str, Any]) -> None:
        """Answer a request, now or when there is an answer."""
        try:
            body = self._verbs[verb](client, id_, arguments)
        except GridError as error:
            self._refuse(client, id_, error)
        except PeerError as error:
            self._refuse(client, id_, GridError(str(error), code="usage", next="p2pgrid --version"))
        else:
            if body is not None:
                self._reply(client, id_, body)

    def _reply(self, client: int, id_: int, body: dict[str, Any]) -> None:
        self._server.reply(Reply(client, m.ANSWER, id_, body))
        self._server.flush()

    def _refuse(self, client: int, id_: int, error: GridError) -> None:
        self._server.reply(Reply(client, m.ERROR, id_, dict(error_to_wire(error))))
        self._server.flush()

    def _arena(self, client: int, _id: int, arguments: dict[str, Any]) -> None:
        token = _bytes(arguments, "token", KEY_BYTES)
        if token in self._by_token or client in self._by_number:
            raise PeerError("shared memory was handed over already")
        self._by_token[token] = self._by_number[client] = Process(client, ("session", token))
        self._server.send_descriptor(client, handed(self.arena.size), self.arena.fd)

    def _process(self, arguments: dict[str, Any]) -> Process:
        process = self._by_token.get(_bytes(arguments, "token", KEY_BYTES))
        if process is None:
            raise GridError("this node does not know that mapping", code="arena-unknown", next="try again")
        return process

    def _place(self, client: int, id_: int, arguments: dict[str, Any]) -> None:
        process = self._process(arguments)
        key, size = _bytes(arguments, "key", KEY_BYTES), arguments.get("size")
        if type(size) is not int or not 0 < size <= OBJECT_BYTES_MAX:
            raise PeerError("a malformed size")
        if key in self.shelf.items:
            raise PeerError("that place is taken")
        now = time.monotonic()
        if self._quota is None and now >= self._limits_at_s:
            self._limits_at_s = now + LIMITS_S
            self.shelf.limits(self.files.quota_bytes(self.shelf.held_bytes))
        if not self._admit(Asker(client, id_, process), key, size, last=False):
            self._nursery.start_soon(self._admit_later, Asker(client, id_, process), key, size)

    def _admit(self, asker: Asker, key: Key, size: int, *, last: bool) -> bool:
        """Make room; False: not now, but somebody may be about to let go. Raises QuotaExceeded."""
        try:
            effects = self.shelf.admit(key, size, asker.process.owner, time.monotonic())
        except QuotaExceeded:
            if last or not any(item.maps and not item.pins for item in self.shelf.items.values()):
                raise
            return False
        self._places[key] = asker
        asker.process.writing.add(key)
        self.perform(effects)
        return True

    async def _admit_later(self, asker: Asker, key: Key, size: int) -> None:
        """Try again for a moment: views end a little later than those who had them say."""
        until_s = time.monotonic() + LET_GO_S
        while self._by_number.get(asker.process.number) is asker.process and key not in self.shelf.items:
            await trio.sleep(LET_GO_S / 20)
            try:
                if self._admit(asker, key, size, last=time.monotonic() >= until_s):
                    return
            except QuotaExceeded as error:
                self._refuse(asker.client, asker.id, error)
                return

    def _written(self, _client: int, _id: int, arguments: dict[str, Any]) -> dict[str, Any]:
        process = self._process(arguments)
        key, packed = _bytes(arguments, "key", KEY_BYTES), arguments.get("manifest")
        if key not in process.writing or key in self._places or not isinstance(packed, bytes):
            raise PeerError("nothing is being written there")
        manifest = read_manifest(_object_id(arguments.get("id")), packed)
        if manifest.size != self.shelf.items[key].size:
            raise PeerError("an object of another size than its place")
        process.writing.discard(key)
        self.objects.serving.manifests[manifest.id] = manifest
        twin = self.shelf.find(manifest.id)
        if twin is not None and self.shelf.items[twin].memory and self.shelf.items[twin].settled:
            if process.owner not in self.shelf.items[twin].pins:
                self.shelf.pin(twin, process.owner)
            self.perform(self.shelf.abandon(key))  # one of two equal ones is enough
        else:
            self.perform(self.shelf.written(key, manifest.id))
        return {}

    def _want(self, client: int, id_: int, arguments: dict[str, Any]) -> None:
        process = self._process(arguments)
        wanted, holders = _object_id(arguments.get("id")), arguments.get("holders", [])
        if not isinstance(holders, list) or any(type(one) is not str for one in holders):
            raise PeerError("malformed holders")
        if self.shelf.find(wanted) is None:
            self._look_for(wanted, holders)
        self._wants.setdefault(wanted, []).append(Asker(client, id_, process))
        self._want_now(wanted, process, holders)

    # ---- workers -----------------------------------------------------------------------------------------------------

    def worker_asks(self, pool: WorkerPool, child: Child, asks: list[Frame]) -> None:
        """Take what a worker child says."""
        number = -child.process.pid
        process = self._by_number.get(number)
        if process is None:
            token = os.urandom(KEY_BYTES)
            process = self._by_token[token] = self._by_number[number] = Process(number, ("session", token))
        for one in asks:
            match one.kind, one.body:
                case m.W_NEED, [int(id_), bytes(object_id), list(holders)] if is_id(object_id):
                    asker = Asker(0, id_, process, (pool, child))
                    wanted = ObjectId(object_id)
                    try:
                        if self.shelf.find(wanted) is None:
                            self._look_for(wanted, holders)
                    except GridError as error:
                        self._say(asker, 0, 0, error)
                        continue
                    self._wants.setdefault(wanted, []).append(asker)
                    self._want_now(wanted, process, holders)
                case m.W_LET_GO, list(views):
                    for object_id, times in views:
                        self._unmap(_object_id(object_id), process, times)

    def _say(self, asker: Asker, offset: int, size: int, error: GridError | None) -> None:
        """Tell who wanted an object where it is, or why not."""
        if asker.child is None:
            if error is None:
                self._reply(asker.client, asker.id, {"offset": offset, "size": size})
            else:
                self._refuse(asker.client, asker.id, error)
            return
        pool, child = asker.child
        why = None if error is None else dict(error_to_wire(error))
        data = frame(m.W_AT, [asker.id, offset, size, why, self.arena.size])
        if asker.process.has_memory or error is not None:
            child.tell(data)
            pool.push(child)
        else:
            asker.process.has_memory = True
            self._nursery.start_soon(self._hand, asker.process, child, data)

    async def _hand(self, process: Process, child: Child, data: bytes) -> None:
        """Give the memory to a worker. It waits for that, and reads what is queued before."""
        while self._by_number.get(process.number) is process and not child.hand(data, self.arena.fd):  # noqa: ASYNC110
            await trio.sleep(FEED_S)

    def _look_for(self, wanted: ObjectId, holders: list[str]) -> None:
        """Connect with those who are said to have it. Raises ObjectLost: that can only have been this node."""
        others = [holder for holder in holders if holder != self._me]
        if not others and not self._net.members:
            raise _lost(wanted, holders)
        for holder in others[:HOLDERS_MAX]:
            addresses = [f"{address}/p2p/{holder}" for address in self._net.known_at(holder)]
            if holder not in self._net.members and addresses and self._net.links is not None:
                self._net.soon(self._net.reach, addresses)

    def _want_now(self, wanted: ObjectId, process: Process, holders: list[str]) -> None:
        effects = self.objects.want(wanted, process.getting, holders, time.monotonic())
        self._wanted_as[self.shelf.find(wanted) or wanted] = wanted
        self.perform(effects)

    def _let_go(self, _client: int, _id: int, arguments: dict[str, Any]) -> dict[str, Any]:
        process = self._process(arguments)
        views, refs, keys = (arguments.get(name, []) for name in ("views", "refs", "keys"))
        if not all(isinstance(one, list) for one in (views, refs, keys)):
            raise PeerError("malformed names of objects")
        for view in views:
            match view:
                case [bytes(object_id), int(times)]:
                    self._unmap(_object_id(object_id), process, times)
                case _:
                    raise PeerError("a malformed view")
        for object_id in map(_object_id, refs):
            for key in self.shelf.twins(object_id):
                self.shelf.unpin(key, process.owner)
                self.perform(self.shelf.drop(key))
        for key in keys:
            if isinstance(key, bytes):
                self._abandon(key, process)
        if arguments.get("leave") is True:
            self._leave(process)
        return {}

    def _leave(self, process: Process) -> None:
        """Its session is over: it needs nothing any more, whatever it may still look at."""
        for key in list(process.writing):
            self._abandon(key, process)
        for key in self.shelf.unpin_all(process.owner):
            self._unlooked(key)

    def _unmap(self, object_id: ObjectId, process: Process, times: int) -> None:
        for key in self.shelf.twins(object_id):
            while times and process.number in self.shelf.items[key].maps:
                times -= 1
                self.perform(self.shelf.unmap(key, process.number))
            self._unlooked(key)

    def _unlooked(self, key: Key) -> None:
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
            self._nursery.start_soon(self._tidy)

    def _abandon(self, key: Key, process: Process) -> None:
        if key in process.writing:
            process.writing.discard(key)
            self._places.pop(key, None)
            self.perform(self.shelf.abandon(key))

    def gone(self, client: int) -> None:
        """A connection ended. If it was the one of a mapping, the program needs nothing any more."""
        process = self._by_number.pop(client, None)
        if process is None:
            return
        del self._by_token[process.owner[1]]
        for wanted, askers in list(self._wants.items()):
            left = self._wants[wanted] = [asker for asker in askers if asker.process is not process]
            if len(left) < len(askers):
                self.perform(self.objects.unwant(wanted, process.getting))
        self._wants = {wanted: askers for wanted, askers in self._wants.items() if askers}
        looked_at = [key for key, item in self.shelf.items.items() if process.number in item.maps]
        self.perform(self.shelf.process_gone(process.number))
        self._leave(process)
        for key in looked_at:
            self._unlooked(key)
        if self._is_unused and not self._cooling:
            self._cooling = True
            self._nursery.start_soon(self._cool_down)

    # ---- what the policies say ---------------------------------------------------------------------------------------

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out effects, and those that follow from them."""
        todo = deque(effects)
        sent = False
        while todo:
            effect = todo.popleft()
            match effect:
                case Placed(key):
                    self._placed(key)
                case Ready(key):
                    self._ready(key)
                case NoRoom(key, reason):
                    self._no_room(key, reason)
                case Gone(id_, last):
                    for asker in self._wants.pop(id_, ()):
                        self._say(asker, 0, 0, _lost(id_, last))
                case Send():
                    self._net.perform(effect)
                    sent = True
                case SendPieces(peer):
                    self._send_pieces(peer, effect)
                case Suspect(peer):
                    self._log(Log("warning", f"a piece of an object from {peer} was wrong; it is fetched elsewhere"))
                case _:
                    outcome = self.room.perform(effect)
                    if callable(outcome):
                        self._nursery.start_soon(self._do, effect, outcome)
                    elif outcome is not None:
                        todo += self.objects.handle(outcome, time.monotonic())
        if sent:
            self._net.flush()
        if not self._ticking and (self._places or self._wants or self.objects.busy):
            self._ticking = True
            self._nursery.start_soon(self._tick)

    def _placed(self, key: Key) -> None:
        asker = self._places.pop(key, None)
        found = self.arena.where(key)
        if asker is not None and found is not None:
            self._reply(asker.client, asker.id, {"offset": found[0]})

    def _ready(self, key: Key) -> None:
        wanted = self._wanted_as.pop(key, None)
        found = self.arena.where(key)
        if wanted is None or found is None:
            return
        self._unused.pop(key, None)
        askers = self._wants.pop(wanted, [])
        for asker in askers:
            self.shelf.map(key, asker.process.number)
            self._say(asker, *found, None)
        for owner in {asker.process.getting for asker in askers}:
            self.perform(self.objects.unwant(wanted, owner))

    def _no_room(self, key: Key, reason: str) -> None:
        asker = self._places.pop(key, None)
        if asker is not None:
            asker.process.writing.discard(key)
            self._refuse(asker.client, asker.id, QuotaExceeded(reason, next=_ADVICE))
        wanted = self._wanted_as.pop(key, None)
        for asker in self._wants.pop(wanted, ()) if wanted is not None else ():
            self._say(asker, 0, 0, QuotaExceeded(reason, next=_ADVICE))

    async def _do(self, effect: Order, job: Job) -> None:
        try:
            event: Event = await trio.to_thread.run_sync(job, limiter=self._limiter)
        except OSError as error:
            self._log(Log("warning", f"an object could not be moved: {error.strerror or error}"))
            event = _failed(effect, str(error.strerror or error))
        self.perform(self.objects.handle(self.room.settled(event), time.monotonic()))

    async def _tick(self) -> None:
        """Look after who waits, as long as somebody does."""
        beat_s = self.objects.options.beat_s
        while self._places or self._wants or self.objects.busy:
            due_s = time.monotonic() + beat_s
            await trio.sleep(beat_s)
            if (late_s := time.monotonic() - due_s) > beat_s:
                self.objects.stalled(late_s)  # that nothing came meanwhile was our own fault
            self.perform(self.objects.tick(time.monotonic()))
        self._ticking = False

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

    def peer_up(self, peer: str) -> None:
        """A member is connected."""
        self.perform(self.objects.peer_up(peer, time.monotonic(), keeps=False))

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
        elif (came := self.room.came(peer, *body)) is not None:
            self.perform(self.objects.handle(came, now))

    def _send_pieces(self, peer: str, effect: SendPieces) -> None:
        waiting = self._sending.get(peer)
        if waiting is not None:
            waiting.append(effect)
            return
        self._sending[peer] = deque([effect])
        self._nursery.start_soon(self._feed, peer, self._sending[peer])

    async def _feed(self, peer: str, waiting: deque[SendPieces]) -> None:
        """Send pieces to a member as fast as they leave: never more than a few are in memory."""
        while waiting and self._sending.get(peer) is waiting:
            effect = waiting.popleft()
            for kind, body in self.room.sends(effect, self.shelf.find(effect.id) or effect.id):
                while (queued := self._queued_bytes(peer)) is not None and queued > AHEAD_BYTES:  # noqa: ASYNC110 - rare
                    await trio.sleep(FEED_S)
                if queued is None:
                    break
                self._net.send(peer, kind, body)
                if kind == m.O_LACK:
                    self.perform(self.objects.handle(Damaged(effect.id), time.monotonic()))
                await trio.lowlevel.checkpoint()
            count = sum(hi - lo for lo, hi in effect.pieces)
            self.perform(self.objects.handle(Served(peer, count), time.monotonic()))
        if self._sending.get(peer) is waiting:
            del self._sending[peer]

    def _queued_bytes(self, peer: str) -> int | None:
        return None if self._net.links is None else self._net.links.queued_bytes(peer)

    @property
    def _is_unused(self) -> bool:
        """Whether no program has the memory mapped; workers, whose numbers are below zero, keep theirs."""
        return all(number < 0 for number in self._by_number)

    async def _cool_down(self) -> None:
        """Give the memory back to the system, once no program has it mapped."""
        while self._is_unused and (span := self.arena.give_back(COOL_STEP_BYTES)) is not None:
            done = await trio.to_thread.run_sync(self.arena.cool_down, span, limiter=self._limiter)
            self.arena.cooled(span, done=done)
            if not done:
                break
        self._cooling = False


_ADVICE = "drop references you no longer need, or give the node more: p2pgrid node --quota"


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


def _object_id(value: Any) -> ObjectId:
    if not is_id(value):
        raise PeerError("a malformed name of an object")
    return ObjectId(value)


def _bytes(arguments: dict[str, Any], name: str, length: int) -> bytes:
    value = arguments.get(name)
    if not isinstance(value, bytes) or len(value) != length:
        raise PeerError(f"a malformed {name}")
    return value


def _lost(id_: bytes, last_holders: Iterable[str], why: str = "") -> ObjectLost:
    holders = ", ".join(last_holders)
    return ObjectLost(
        f"object {id_.hex()[2:14]} is not here any more"
        + (f": {why}" if why else "")
        + (f"; last known at {holders}" if holders else "")
    )
