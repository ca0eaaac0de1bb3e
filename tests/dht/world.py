"""A heap driver for the DHT: many machines in virtual time, on a network that loses what is sent to the dead."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any

from p2pgrid.dht import events as e
from p2pgrid.dht.keys import KEY_BITS, key_of, peer_id_of
from p2pgrid.dht.machine import Machine, Options
from p2pgrid.dht.records import Namespace, Open
from p2pgrid.dht.wire import Contact

RTT_S = 0.05
UNIX_S = 1_800_000_000.0


def peer_id(number: int) -> bytes:
    return peer_id_of(sha256(b"node %d" % number).digest())


def contact(number: int) -> Contact:
    return Contact(peer_id(number), (b"\x04\x7f\x00\x00\x01\x06" + number.to_bytes(2, "big"),))


@dataclass(eq=False)
class Node:
    contact: Contact
    machine: Machine
    alive: bool = True
    timer_s: float | None = None
    results: dict[int, e.Result] = field(default_factory=dict)
    ended_s: dict[int, float] = field(default_factory=dict)

    @property
    def id(self) -> bytes:
        return self.contact.id


class World:
    """Nodes, a clock, and a heap of what happens next."""

    def __init__(self, seed: int = 1, options: Options | None = None) -> None:
        self.rng = random.Random(seed)
        self.options = options or Options()
        self.now = 1000.0
        self.nodes: dict[bytes, Node] = {}
        self.ticket = 0
        self.messages = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._token = 0
        self._requests: dict[int, tuple[Node, int]] = {}
        self._unfilled: dict[bytes, None] = {}
        self._sorted: list[tuple[int, bytes]] = []

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node(self, number: int, namespaces: Mapping[str, Namespace] | None = None, peer: bytes = b"") -> Node:
        where = contact(number)._replace(id=peer or peer_id(number))
        rng = random.Random(self.rng.random())
        node = Node(where, Machine(where.id, namespaces or {"": Open()}, rng, self.options))
        self.nodes[where.id] = node
        self.tell(node, e.Clock(UNIX_S - self.now))
        self.tell(node, e.Listens(where.addresses))
        return node

    def join(self, number: int, via: Node, namespaces: Mapping[str, Namespace] | None = None) -> Node:
        node = self.node(number, namespaces)
        self.tell(node, e.Started())
        self.tell(node, e.MemberUp(via.contact))
        return node

    def fill_tables(self) -> None:
        """Give every node the table it would have after a long life: of each bucket k at random. Done when touched."""
        self._sorted = sorted((key_of(peer), peer) for peer in self.nodes)
        self._unfilled = dict.fromkeys(self.nodes)

    def _fill(self, node: Node) -> None:
        del self._unfilled[node.id]
        me, lo, hi, start = key_of(node.id), 0, len(self._sorted), 0
        for bit in range(KEY_BITS - 1, -1, -1):
            middle = start | 1 << bit
            cut = bisect_left(self._sorted, (middle, b""), lo, hi)
            ours, other = ((cut, hi), (lo, cut)) if me >> bit & 1 else ((lo, cut), (cut, hi))
            known = self._sorted[other[0] : other[1]]
            for _, peer in self.rng.sample(known, min(len(known), self.options.table.k)):
                node.machine.table.answered(self.nodes[peer].contact, self.now)
                node.machine._patience.answered(peer, RTT_S)
            (lo, hi), start = ours, middle if me >> bit & 1 else start
            if hi - lo <= 1:
                return

    # ---- time --------------------------------------------------------------------------------------------------------

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._heap, (when_s, self._count, what))

    def step(self) -> None:
        self.now, _, what = heappop(self._heap)
        what()

    def run(self, seconds: float) -> None:
        end_s = self.now + seconds
        while self._heap and self._heap[0][0] <= end_s:
            self.step()
        self.now = end_s

    def command(self, node: Node, kind: Callable[..., Any], *words: Any, **more: Any) -> int:
        self.ticket += 1
        self.tell(node, kind(self.ticket, *words, **more))
        return self.ticket

    def ask(self, node: Node, kind: Callable[..., Any], *words: Any, within_s: float = 60, **more: Any) -> Any:
        """Give a command and return its result."""
        ticket, end_s = self.command(node, kind, *words, **more), self.now + within_s
        while ticket not in node.results:
            assert self._heap, "nothing will happen any more"
            assert self._heap[0][0] <= end_s, f"no result in {within_s} s"
            self.step()
        return node.results[ticket]

    # ---- the network -------------------------------------------------------------------------------------------------

    def tell(self, node: Node, event: e.Event) -> None:
        if not node.alive:
            return
        if node.id in self._unfilled:
            self._fill(node)
        for effect in node.machine.handle(event, self.now):
            match effect:
                case e.Ask(token, peer, message):
                    self._token += 1
                    self._requests[self._token] = (node, token)
                    self.messages += 1
                    target = self.nodes.get(peer.id)
                    if target is not None:
                        request = e.Requested(self._token, node.contact, message)
                        self._later(target, request)
                case e.Answer(token, message):
                    asker, its_token = self._requests.pop(token)
                    self.messages += 1
                    self._later(asker, e.Failed(its_token) if message is None else e.Answered(its_token, message))
                case e.SetTimer(at_s):
                    node.timer_s = at_s
                    self.at(max(at_s, self.now), lambda at_s=at_s: self._tick(node, at_s))  # type: ignore[misc]
                case e.Done(ticket, result):
                    node.results[ticket], node.ended_s[ticket] = result, self.now

    def _later(self, node: Node, event: e.Event) -> None:
        self.at(self.now + RTT_S / 2, lambda: self.tell(node, event))

    def _tick(self, node: Node, at_s: float) -> None:
        if node.timer_s == at_s:
            node.timer_s = None
            self.tell(node, e.Tick())
