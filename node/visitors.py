"""Visitors: programs and worker children of this machine that have the shared memory mapped, and what they ask.

A program gets the memory over a connection of its own (`arena`) and names that connection by a token of its choice in
all it asks; when the connection ends, so do its pins, its mappings and the places it was writing to. A worker child is
numbered by its negative pid.

Rule: what is dropped and kept is decided in `shelf`; which results and jobs need what, in `belongings`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, ObjectLost, PeerError, QuotaExceeded, error_to_wire
from p2pgrid.core.mapped import handed
from p2pgrid.core.pieces import OBJECT_BYTES_MAX, ObjectId, is_id, read_manifest
from p2pgrid.core.wire import Frame, frame
from p2pgrid.node.events import Reply
from p2pgrid.node.hands import Hands
from p2pgrid.node.local import LocalServer
from p2pgrid.node.object_events import Gone, Key, Owner
from p2pgrid.node.workers import WorkerPool
from p2pgrid.node.workers_child import Child

KEY_BYTES = 16
SESSION_BYTES = 16
LIMITS_S = 60.0
COOL_STEP_BYTES = 64 * 1024 * 1024
HOLDERS_MAX = 8
"""Of those who are said to have an object, so many are dialled."""
LET_GO_S = 0.5
HAND_S = 0.001


@dataclass(slots=True)
class Process:
    """A program that has the memory mapped."""

    number: int
    owner: Owner
    """Of what it has put."""
    session: bytes = b""
    """Of the program's Grid; b"" until it says so, and for a worker."""
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


class Visitors:
    """All that has this node's memory mapped."""

    def __init__(self, hands: Hands, server: LocalServer, *, adapts: bool) -> None:
        """Serve them. `adapts`: the quota follows what is free on the disk."""
        self.hands = hands
        self.shelf = hands.shelf
        self.attached: dict[int, Process] = {}
        """The connections over which results come, of programs that have the memory mapped."""
        self.make_way: Callable[[int], None] = lambda _: None
        """Asked to drop what is needed least, before so much is placed."""
        self.on_mapped: Callable[[Process, Key], None] = lambda *_: None
        self.on_left: Callable[[Process, list[ObjectId] | None], None] = lambda *_: None
        """Told which Refs a program let go of, or that it left."""
        self.on_unmapped: Callable[[Key], None] = hands.unneeded
        self._server = server
        self._adapts = adapts
        self._limits_at_s = time.monotonic() + LIMITS_S
        self._by_token: dict[bytes, Process] = {}
        self._by_number: dict[int, Process] = {}
        self._places: dict[Key, Asker] = {}
        self._wants: dict[bytes, list[Asker]] = {}
        """By the name that was asked for: an id, or a key."""
        self._wanted_as: dict[Key, bytes] = {}
        self._cooling = False
        self._verbs: dict[str, Callable[[int, int, dict[str, Any]], dict[str, Any] | None]] = {
            "arena": self._arena, "attach": self._attach, "place": self._place, "written": self._written,
            "want": self._want, "let_go": self._let_go,
        }  # fmt: skip
        hands.on_placed, hands.on_ready = self._placed, self._ready
        hands.on_no_room, hands.on_gone = self._no_room, self._gone
        hands.waits = lambda: bool(self._places or self._wants)

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
        self.hands.warm()
        self._server.send_descriptor(client, handed(self.hands.arena.size), self.hands.arena.fd)

    def _attach(self, client: int, _id: int, arguments: dict[str, Any]) -> dict[str, Any]:
        process = self._process(arguments)
        process.session = _bytes(arguments, "session", SESSION_BYTES)
        self.attached[client] = process
        return {}

    def _process(self, arguments: dict[str, Any]) -> Process:
        process = self._by_token.get(_bytes(arguments, "token", KEY_BYTES))
        if process is None:
            raise GridError("this node does not know that mapping", code="arena-unknown", next="try again")
        return process

    def _place(self, client: int, id_: int, arguments: dict[str, Any]) -> None:
        process = self._process(arguments)
        self._place_for(Asker(client, id_, process), arguments.get("key"), arguments.get("size"))

    def _place_for(self, asker: Asker, key: Any, size: Any) -> None:
        """Begin to make a place. Raises PeerError or QuotaExceeded."""
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise PeerError("a malformed key")
        if type(size) is not int or not 0 < size <= OBJECT_BYTES_MAX:
            raise PeerError("a malformed size")
        if key in self.shelf.items:
            raise PeerError("that place is taken")
        now = time.monotonic()
        if self._adapts and now >= self._limits_at_s:
            self._limits_at_s = now + LIMITS_S
            self.shelf.limits(self.hands.files.quota_bytes(self.shelf.held_bytes))
        self.make_way(size)
        if not self._admit(asker, key, size, last=False):
            self.hands.nursery.start_soon(self._admit_later, asker, key, size)

    def _admit(self, asker: Asker, key: Key, size: int, *, last: bool) -> bool:
        """Make room; False: not now, but somebody may be about to let go. Raises QuotaExceeded."""
        owner = asker.process.owner if asker.child is None else ("task", key)  # a result outlives its worker
        try:
            effects = self.shelf.admit(key, size, owner, time.monotonic())
        except QuotaExceeded:
            if last or not any(item.maps and not item.pins for item in self.shelf.items.values()):
                raise
            return False
        self._places[key] = asker
        asker.process.writing.add(key)
        self.hands.perform(effects)
        self.hands.warm()
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
                self._say(asker, 0, 0, error)
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
        self.hands.objects.serving.manifests[manifest.id] = manifest
        twin = self.shelf.find(manifest.id)
        if twin is not None and self.shelf.items[twin].memory and self.shelf.items[twin].settled:
            self.pin(twin, process)
            self.hands.perform(self.shelf.abandon(key))  # one of two equal ones is enough
        else:
            self.hands.perform(self.shelf.written(key, manifest.id))
        return {}

    def pin(self, key: Key, process: Process) -> None:
        """Keep an object for a program, until it lets go of its Ref or leaves."""
        if process.owner not in self.shelf.items[key].pins:
            self.shelf.pin(key, process.owner)

    def _want(self, client: int, id_: int, arguments: dict[str, Any]) -> None:
        process = self._process(arguments)
        holders = arguments.get("holders", [])
        if not isinstance(holders, list) or any(type(one) is not str for one in holders):
            raise PeerError("malformed holders")
        self._want_for(Asker(client, id_, process), _name(arguments.get("id")), holders)

    def _want_for(self, asker: Asker, name: bytes, holders: list[str]) -> None:
        """Have somebody told where an object is. Raises ObjectLost."""
        key = self.hands.key_of(name)
        if key is None:
            self._look_for(name, holders)
        self._wants.setdefault(name, []).append(asker)
        self._wanted_as[key or name] = name
        if key is not None and not is_id(name):
            self.hands.perform(self.shelf.want(key, time.monotonic()))
            return
        effects = self.hands.objects.want(ObjectId(name), asker.process.getting, holders, time.monotonic())
        self._wanted_as[self.shelf.find(ObjectId(name)) or name] = name
        self.hands.perform(effects)

    def _look_for(self, name: bytes, holders: list[str]) -> None:
        """Connect with those who are said to have it. Raises ObjectLost: that can only have been this node."""
        others = [holder for holder in holders if holder != self.hands.me]
        if not is_id(name) or (not others and not self.hands.net.members):
            raise lost(name, holders)
        self.hands.dial(others[:HOLDERS_MAX])

    def _let_go(self, _client: int, _id: int, arguments: dict[str, Any]) -> dict[str, Any]:
        process = self._process(arguments)
        if "session" in arguments:
            process.session = _bytes(arguments, "session", SESSION_BYTES)
        views, refs, keys = (arguments.get(name, []) for name in ("views", "refs", "keys"))
        if not all(isinstance(one, list) for one in (views, refs, keys)):
            raise PeerError("malformed names of objects")
        for view in views:
            match view:
                case [bytes(name), int(times)]:
                    self._unmap(_name(name), process, times)
                case _:
                    raise PeerError("a malformed view")
        ids = [_object_id(one) for one in refs]
        self.on_left(process, ids)
        for object_id in ids:
            for key in self.shelf.twins(object_id):
                self.shelf.unpin(key, process.owner)
                self.on_unmapped(key)
        for key in keys:
            if isinstance(key, bytes):
                self._abandon(key, process)
        if arguments.get("leave") is True:
            self._leave(process)
        return {}

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
                    self._try(Asker(0, id_, process, (pool, child)), self._want_for, object_id, holders)
                case m.W_PLACE, [int(id_), key, size]:
                    self._try(Asker(0, id_, process, (pool, child)), self._place_for, key, size)
                case m.W_LET_GO, list(views):
                    for name, times in views:
                        self._unmap(_name(name), process, times)

    def _try(self, asker: Asker, do: Callable[[Asker, Any, Any], None], *what: Any) -> None:
        try:
            do(asker, *what)
        except GridError as error:
            self._say(asker, 0, 0, error)
        except PeerError as error:
            self._say(asker, 0, 0, GridError(str(error), code="usage", next="p2pgrid --version"))

    def _say(self, asker: Asker, offset: int, size: int, error: GridError | None) -> None:
        """Tell who wanted an object or a place where it is, or why not."""
        if asker.child is None:
            if error is None:
                self._reply(asker.client, asker.id, {"offset": offset, "size": size})
            else:
                self._refuse(asker.client, asker.id, error)
            return
        pool, child = asker.child
        why = None if error is None else dict(error_to_wire(error))
        data = frame(m.W_AT, [asker.id, offset, size, why, self.hands.arena.size])
        if asker.process.has_memory or error is not None:
            child.tell(data)
            pool.push(child)
        else:
            asker.process.has_memory = True
            self.hands.nursery.start_soon(self._hand, asker.process, child, data)

    async def _hand(self, process: Process, child: Child, data: bytes) -> None:
        """Give the memory to a worker. It waits for that, and reads what is queued before."""
        fd = self.hands.arena.fd
        while self._by_number.get(process.number) is process and not child.hand(data, fd):  # noqa: ASYNC110
            await trio.sleep(HAND_S)

    def finished(self, key: Key) -> bool:
        """The writer of a place is done: what is there can be read. False: there is no such place any more."""
        process = next((one for one in self._by_number.values() if key in one.writing), None)
        if process is None or key in self._places or key not in self.shelf.items:
            return False
        process.writing.discard(key)
        self.hands.perform(self.shelf.written(key))
        return True

    # ---- mapping and letting go --------------------------------------------------------------------------------------

    def map_now(self, process: Process, key: Key) -> int | None:
        """Count a mapping of an object that lies in memory; return where. None: it is not there now."""
        item, found = self.shelf.items[key], self.hands.arena.where(key)
        if found is None or not item.memory or not item.whole:
            return None
        self.shelf.map(key, process.number)
        self.on_mapped(process, key)
        return found[0]

    def _unmap(self, name: bytes, process: Process, times: int) -> None:
        for key in [name] if name in self.shelf.items else self.shelf.twins(ObjectId(name)):
            while times and process.number in self.shelf.items[key].maps:
                times -= 1
                self.hands.perform(self.shelf.unmap(key, process.number))
            self.on_unmapped(key)

    def _leave(self, process: Process) -> None:
        """Its session is over: it needs nothing any more, whatever it may still look at."""
        for key in list(process.writing):
            self._abandon(key, process)
        for key in self.shelf.unpin_all(process.owner):
            self.on_unmapped(key)
        self.on_left(process, None)

    def _abandon(self, key: Key, process: Process) -> None:
        if key in process.writing:
            process.writing.discard(key)
            self._places.pop(key, None)
            self.hands.perform(self.shelf.abandon(key))

    def gone(self, client: int) -> None:
        """A connection ended. If it was the one of a mapping, the program needs nothing any more."""
        self.attached.pop(client, None)
        process = self._by_number.pop(client, None)
        if process is None:
            return
        del self._by_token[process.owner[1]]
        self.attached = {number: one for number, one in self.attached.items() if one is not process}
        for name, askers in list(self._wants.items()):
            left = self._wants[name] = [asker for asker in askers if asker.process is not process]
            if len(left) < len(askers) and is_id(name):
                self.hands.perform(self.hands.objects.unwant(ObjectId(name), process.getting))
        self._wants = {name: askers for name, askers in self._wants.items() if askers}
        looked_at = [key for key, item in self.shelf.items.items() if process.number in item.maps]
        self.hands.perform(self.shelf.process_gone(process.number))
        self._leave(process)
        for key in looked_at:
            self.on_unmapped(key)
        if self._is_unused and not self._cooling:
            self._cooling = True
            self.hands.nursery.start_soon(self._cool_down)

    # ---- what the policies say ---------------------------------------------------------------------------------------

    def _placed(self, key: Key) -> None:
        asker = self._places.pop(key, None)
        found = self.hands.arena.where(key)
        if asker is not None and found is not None:
            self._say(asker, *found, None)

    def _ready(self, key: Key) -> None:
        name = self._wanted_as.pop(key, None)
        found = self.hands.arena.where(key)
        if name is None or found is None:
            return
        askers = self._wants.pop(name, [])
        for asker in askers:
            self.shelf.map(key, asker.process.number)
            self._say(asker, *found, None)
            self.on_mapped(asker.process, key)
        if is_id(name):
            for owner in {asker.process.getting for asker in askers}:
                self.hands.perform(self.hands.objects.unwant(ObjectId(name), owner))

    def _no_room(self, key: Key, reason: str) -> None:
        error = QuotaExceeded(reason, next=_ADVICE)
        asker = self._places.pop(key, None)
        if asker is not None:
            asker.process.writing.discard(key)
            self._say(asker, 0, 0, error)
        name = self._wanted_as.pop(key, None)
        for asker in self._wants.pop(name, ()) if name is not None else ():
            self._say(asker, 0, 0, error)

    def _gone(self, gone: Gone) -> None:
        for asker in self._wants.pop(gone.id, ()):
            self._say(asker, 0, 0, lost(gone.id, gone.last_holders))

    @property
    def _is_unused(self) -> bool:
        """Whether no program has the memory mapped; workers, whose numbers are below zero, keep theirs."""
        return all(number < 0 for number in self._by_number)

    async def _cool_down(self) -> None:
        """Give the memory back to the system, once no program has it mapped."""
        arena = self.hands.arena
        while self._is_unused and (span := arena.give_back(COOL_STEP_BYTES)) is not None:
            done = await trio.to_thread.run_sync(arena.cool_down, span, limiter=self.hands.limiter)
            arena.cooled(span, done=done)
            if not done:
                break
        self._cooling = False


_ADVICE = "drop references you no longer need, or give the node more: p2pgrid node --quota"


def _object_id(value: Any) -> ObjectId:
    if not is_id(value):
        raise PeerError("a malformed name of an object")
    return ObjectId(value)


def _name(value: Any) -> bytes:
    """Return the name of an object: its id, or a key."""
    if not is_id(value) and not (isinstance(value, bytes) and len(value) == KEY_BYTES):
        raise PeerError("a malformed name of an object")
    return bytes(value)


def _bytes(arguments: dict[str, Any], name: str, length: int) -> bytes:
    value = arguments.get(name)
    if not isinstance(value, bytes) or len(value) != length:
        raise PeerError(f"a malformed {name}")
    return value


def lost(name: bytes, last_holders: Iterable[str], why: str = "") -> ObjectLost:
    """Return the error of an object that is not to be had."""
    holders = ", ".join(last_holders)
    return ObjectLost(
        f"object {name.hex()[2:14]} is not here any more"
        + (f": {why}" if why else "")
        + (f"; last known at {holders}" if holders else "")
    )
