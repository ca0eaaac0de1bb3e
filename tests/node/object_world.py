"""A heap and a seed for objects: nodes that share data over links which have a rate, lose frames, lie and end.

Every frame is packed, unpacked and read before it is acted on. Pieces leave a node one after the other at its rate.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core import pieces
from p2pgrid.core.object_shapes import of_objects
from p2pgrid.core.pieces import Manifest, ObjectId, manifest_of
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.events import Send
from p2pgrid.node.object_events import (
    Allocate,
    Allocated,
    Describe,
    Described,
    Expect,
    Forget,
    Gone,
    NoRoom,
    PieceCame,
    Placed,
    Ready,
    Release,
    Remove,
    Restore,
    Restored,
    Seek,
    SendPieces,
    Served,
    Sighted,
    Spill,
    Spilled,
    Suspect,
)
from p2pgrid.node.objects import Effect, Objects, ObjectsOptions
from p2pgrid.node.shelf import Shelf, ShelfOptions


class World:
    """All nodes and the heap; everybody is connected with everybody who is not `apart`.

    `seek` is asked for whom the DHT names, and how long that takes; nobody, and no time, unless it is set.
    """

    def __init__(self, seed: int, count: int, *, loss: float = 0.0, rtt_s: float = 0.002, rate: float = 1e6) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.rtt_s = rtt_s
        self.rate = rate
        """Bytes per second that a node can send."""
        self.now = 1000.0
        self.sent: Counter[int] = Counter()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._arrived_s: dict[tuple[str, str], float] = {}
        self.nodes: dict[str, Node] = {}
        self.seek: Callable[[str, Seek], tuple[list[str], float]] = lambda _name, _seek: ([], 0.0)
        for number in range(count):
            self.add(f"n{number}")

    def add(
        self,
        name: str,
        options: ObjectsOptions | None = None,
        shelf: ShelfOptions | None = None,
        *,
        apart: bool = False,
    ) -> Node:
        node = Node(self, name, options, shelf or ShelfOptions(10**9, 10**9))
        self.nodes[name] = node
        for other in self.nodes:
            if other != name and not apart:
                self._join(name, other)
        self.at(self.now + 0.5, node.beat)
        return node

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Go on until the condition holds; return whether it does."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            if until():
                return True
        self.now = end
        return until()

    def kill(self, name: str) -> None:
        self.nodes[name].running = False
        for node in self.nodes.values():
            if node.running:
                node.perform(node.objects.peer_down(name, self.now))

    def cut(self, a: str, b: str) -> None:
        """End the connection of two nodes, and make a new one a moment later."""
        for one, other in ((a, b), (b, a)):
            self.nodes[one].perform(self.nodes[one].objects.peer_down(other, self.now))
        self.at(self.now + 0.2, lambda: self._join(a, b))

    def _join(self, a: str, b: str) -> None:
        if self.nodes[a].running and self.nodes[b].running:
            for one, other in ((a, b), (b, a)):
                self.nodes[one].perform(self.nodes[one].objects.peer_up(other, self.now))

    def sight(self, name: str, seek: Seek) -> None:
        """Look in the DHT for a node; it dials whom it finds."""
        found, took_s = self.seek(name, seek)

        def over() -> None:
            for peer in found:
                if peer in self.nodes and self.nodes[peer].running:
                    self.at(self.now + 2 * self.rtt_s, lambda peer=peer: self._join(name, peer))  # type: ignore[misc]
            if self.nodes[name].running:
                self.nodes[name].perform(self.nodes[name].objects.handle(Sighted(seek.id, found), self.now))

        self.at(self.now + took_s, over)

    def deliver(self, source: str, target: str, kind: int, body: Any) -> None:
        self.sent[kind] += 1
        if self.rng.random() < self.loss:
            return
        read = of_objects(kind, unpack(pack(body)))
        at_s = self.now + self.rtt_s / 2 * self.rng.uniform(1.0, 1.2)
        at_s = self._arrived_s[source, target] = max(at_s, self._arrived_s.get((source, target), 0.0))  # in order
        self.at(at_s, lambda: self.nodes[target].arrived(source, kind, read))


class Node:
    """Objects of one node, and a shell that keeps bytes in dictionaries."""

    def __init__(self, world: World, name: str, options: ObjectsOptions | None, shelf: ShelfOptions) -> None:
        self.world = world
        self.name = name
        self.running = True
        self.lies = 0.0
        """Share of the pieces that it sends with a bit flipped."""
        self.objects = Objects(name, Shelf(shelf), random.Random(world.rng.random()), options)
        self.memory: dict[bytes, bytearray] = {}
        self.files: dict[ObjectId, bytes] = {}
        self.said: list[Effect] = []
        self._expected: dict[ObjectId, Manifest] = {}
        self._line_free_s = 0.0
        self._skipped: set[tuple[str, ObjectId, int]] = set()

    # ---- what the tests do ----

    def put(self, data: bytes) -> ObjectId:
        """As a local client: make a place, write, say so."""
        id_ = manifest_of(data).id
        self.perform(self.objects.shelf.admit(id_, len(data), ("session", b"s"), self.world.now))
        self.memory[id_][:] = data
        self.perform(self.objects.shelf.written(id_, id_))
        return id_

    def want(self, id_: ObjectId, holders: Sequence[str] = (), owner: bytes = b"j") -> None:
        self.perform(self.objects.want(id_, ("job", owner), holders, self.world.now))

    def has(self, id_: ObjectId) -> bool:
        return self.objects.shelf.find(id_) is not None

    def heard(self, kind: type) -> list[Any]:
        return [effect for effect in self.said if isinstance(effect, kind)]

    # ---- the shell ----

    def beat(self) -> None:
        if self.running:
            self.perform(self.objects.tick(self.world.now))
            self.world.at(self.world.now + 0.5, self.beat)

    def arrived(self, sender: str, kind: int, body: Any) -> None:
        if not self.running:
            return
        if kind == m.O_PIECE:
            self._piece(sender, *body)
        elif kind == m.O_SKIP:
            self._skipped |= {(sender, body[0], piece) for lo, hi in body[1] for piece in range(lo, hi)}
        else:
            self.perform(self.objects.received(sender, kind, body, self.world.now))

    def _piece(self, sender: str, id_: ObjectId, piece: int, data: bytes) -> None:
        manifest = self._expected.get(id_)
        if manifest is None:
            return
        good = manifest.fits(piece, data)
        if good:
            lo, hi = manifest.span(piece)
            self.memory[id_][lo:hi] = data
        self.perform(self.objects.handle(PieceCame(sender, id_, piece, good), self.world.now))

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self.said.append(effect)
            self._obey(effect)

    def _obey(self, effect: Effect) -> None:
        objects, now = self.objects, self.world.now
        match effect:
            case Send(peer, kind, body):
                self.world.deliver(self.name, peer, kind, body)
            case Allocate(key, size):
                self.memory[key] = bytearray(size)
                self.perform(objects.handle(Allocated(key), now))
            case Expect(id_, manifest):
                self._expected[id_] = manifest
            case Forget(id_):
                del self._expected[id_]
            case Spill(key):
                data = bytes(self.memory[key])
                id_ = manifest_of(data).id
                self.files[id_] = data
                self.perform(objects.handle(Spilled(key, id_), now))
            case Restore(key, id_):
                self.memory[key] = bytearray(self.files[id_])
                self.perform(objects.handle(Restored(key, good=True), now))
            case Release(key):
                del self.memory[key]
            case Remove(id_):
                del self.files[id_]
            case Describe(key, _):
                held = self.memory.get(key)
                data = self.files[ObjectId(key)] if held is None else bytes(held)
                self.perform(objects.handle(Described(key, manifest_of(data)), now))
            case SendPieces(peer, id_, spans):
                for lo, hi in spans:
                    for piece in range(lo, hi):
                        self._send_piece(peer, id_, piece)
            case Seek():
                self.world.sight(self.name, effect)
            case Placed() | Ready() | NoRoom() | Gone() | Suspect():
                pass

    def _send_piece(self, peer: str, id_: ObjectId, piece: int) -> None:
        self._skipped.discard((peer, id_, piece))
        self._line_free_s = max(self._line_free_s, self.world.now) + pieces.PIECE_BYTES / self.world.rate
        self.world.at(self._line_free_s, lambda: self._leaves(peer, id_, piece))

    def _leaves(self, peer: str, id_: ObjectId, piece: int) -> None:
        if not self.running:
            return
        key = self.objects.shelf.find(id_) or id_
        held = self.memory.get(key)
        data = bytes(held) if held is not None else self.files.get(id_)
        if data is None:
            self.world.deliver(self.name, peer, m.O_LACK, [id_, [piece, piece + 1]])
        elif (peer, id_, piece) not in self._skipped:
            part = bytearray(data[piece * pieces.PIECE_BYTES : (piece + 1) * pieces.PIECE_BYTES])
            if self.world.rng.random() < self.lies:
                part[self.world.rng.randrange(len(part))] ^= 1
            self.world.deliver(self.name, peer, m.O_PIECE, [id_, piece, bytes(part)])
        self.perform(self.objects.handle(Served(peer, 1), self.world.now))


def whole(nodes: Sequence[Node], id_: ObjectId) -> Callable[[], bool]:
    """Whether all of these nodes have the object."""
    return lambda: all(node.has(id_) for node in nodes if node.running)
