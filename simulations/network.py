"""The network: connections that take time, end, are cut and made again, and lose, double, delay and reorder frames.

A connection joins two nodes; each end knows of it by itself. It ends for the other side when that is told: at once by a
reset, after some 9 to 15 s when nothing comes any more. Frames arrive in order unless `reorder` lets some be overtaken;
those above 64 KiB take a stream of their own, at the rate of the sender's uplink. A node behind NAT can dial and not be
dialled. Who is dialled is who sits at the address.

Loss is harsher here than on TCP, where it shows as delay: a frame that is lost is lost.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from p2pgrid.core import messages as m
from p2pgrid.core.wire import pack, unpack

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

BULK_BYTES = 64 << 10
SMALL_BYTES = 16
"""About what a frame of liveness takes."""
PLAIN = frozenset({m.P_PING, m.P_ACK, m.P_PING_REQ, m.P_NACK, m.P_CLOCK, m.P_CLOCK_IS, m.P_WORK})
"""Frames of nothing but numbers, names and lists of them: nobody changes them, so they need not be copied."""
NOTICED_S = (9.0, 15.0)
"""Until a connection on which nothing arrives is given up: keep-alive and its answer."""
DIAL_TIMEOUT_S = 5.0
REPORT_S = 1.0
"""A lost peer is reported down after that, if nobody answers at its address."""
REPLAYED_KEPT = 256


@dataclass(frozen=True)
class Weather:
    """What happens to frames: probabilities, and seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """So often a frame may be overtaken by those after it."""
    spike: float = 0.0
    spike_s: float = 2.0
    """So often a frame takes up to that much longer, and with it those behind it."""
    replay: float = 0.0
    """So often an old frame of the same sender to the same receiver arrives once more."""

    calm: bool = field(init=False)
    """Whether frames just arrive."""

    def __post_init__(self) -> None:
        calm = not (self.loss or self.duplicate or self.reorder or self.spike or self.replay)
        object.__setattr__(self, "calm", calm)


class Link:
    """A connection of two nodes."""

    __slots__ = ("bulk_free_s", "cut", "dialled_by", "ends", "free_s", "hello_s", "latency_s", "open", "spread_s")

    def __init__(self, a: Node, b: Node, latency_s: float, spread_s: float) -> None:
        self.ends = (a, b)
        self.dialled_by = a.name
        self.latency_s = latency_s
        self.spread_s = spread_s
        self.free_s = {a.name: 0.0, b.name: 0.0}
        """When the frame before will have arrived, by sender; of large frames apart."""
        self.bulk_free_s = self.free_s.copy()
        self.hello_s = self.free_s.copy()
        """When the introduction arrives, by who said it: no frame comes before it."""
        self.cut: dict[str, bool] = {}
        """By sender: nothing of it arrives."""
        self.open = True

    def other(self, node: Node) -> Node:
        """Return who is at the other end."""
        return self.ends[1] if self.ends[0] is node else self.ends[0]


class Network:
    """All connections, and what happens on them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng("network")
        self.weather = Weather()
        self.latency_s = {"in": (0.0005, 0.002), "between": (0.05, 0.06)}
        """Least and most, one way: within a site, and between two."""
        self.at: dict[str, Node] = {}
        """Who sits at which address."""
        self.uplink: float = 0.0
        """Bytes per second of large frames, by sender; 0: no limit."""
        self.sent: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()
        """By kind of frame."""
        self.watch: dict[int, list[Callable[[Node, Any], None]]] = {}
        """Who looks at frames of which kind as they are sent."""
        self._cuts: Counter[tuple[str, str]] = Counter()
        """By sender and receiver."""
        self._old: dict[tuple[str, str], list[tuple[int, Any]]] = {}

    # ---- weather and cuts -------------------------------------------------------------------------------------------

    def turn(self, **changes: float) -> None:
        """Change the weather."""
        self.weather = replace(self.weather, **changes)  # type: ignore[arg-type]

    def cut(self, source: Node, target: Node) -> None:
        """Let nothing of `source` arrive at `target` any more."""
        self._cuts[source.name, target.name] += 1
        link = source.links.get(target.name) or target.links.get(source.name)
        if link is not None:
            link.cut[source.name] = True
            self.world.at(self.rng.uniform(*NOTICED_S), self._starved, link)

    def mend(self, source: Node, target: Node) -> None:
        """Undo one cut."""
        pair = (source.name, target.name)
        self._cuts[pair] -= 1
        if self._cuts[pair] <= 0:
            del self._cuts[pair]
            link = source.links.get(target.name) or target.links.get(source.name)
            if link is not None:
                link.cut.pop(source.name, None)

    def whole(self, a: Node, b: Node) -> bool:
        """Whether frames pass both ways."""
        return not self._cuts or ((a.name, b.name) not in self._cuts and (b.name, a.name) not in self._cuts)

    def _starved(self, link: Link) -> None:
        if link.open and link.cut:
            self.end(link)

    # ---- connections ------------------------------------------------------------------------------------------------

    def times(self, a: Node, b: Node) -> tuple[float, float]:
        """Return least and most seconds one way."""
        return self.latency_s["in" if a.site == b.site else "between"]

    def dial(self, node: Node, address: str, wanted: str | None) -> tuple[float, Node | None, bool]:
        """Return after what time a dial ends, who is there, and whether the address refused."""
        peer = self.at.get(address)
        if peer is None or peer.nat or not peer.present or not self.whole(node, peer):
            return DIAL_TIMEOUT_S, None, False
        least, most = self.times(node, peer)
        if not peer.alive:
            return 2 * most, None, True
        if peer.frozen is not None:
            return DIAL_TIMEOUT_S, None, False
        return 4 * least, peer if wanted in (None, peer.name) else None, False

    def connect(self, node: Node, peer: Node) -> None:
        """Join two nodes that reach each other."""
        old = node.links.get(peer.name), peer.links.get(node.name)
        if old[0] is not None and old[0] is old[1]:
            return  # both dialled; one connection is enough
        for one, other, link in ((node, peer, old[0]), (peer, node, old[1])):
            if link is not None:  # of a former life of the other
                self.end(link)
                one.gone(other)
        least, most = self.times(node, peer)
        link = Link(node, peer, least, most - least)
        node.links[peer.name] = peer.links[node.name] = link
        for one, other in ((node, peer), (peer, node)):
            takes_s = least + self.rng.random() * (most - least)
            link.hello_s[other.name] = self.world.now + takes_s
            self.world.at(takes_s, one.met, other, link, other.card, other.roles)

    def end(self, link: Link, *, refused: Node | None = None, silent: Node | None = None) -> None:
        """End a connection; its ends are told. `refused`: that one's process is gone, which its peer finds out at once.

        `silent`: that one's machine is gone: no answer at its address.
        """
        if not link.open:
            return
        link.open = False
        for node in link.ends:
            peer = link.other(node)
            if node.links.get(peer.name) is link:
                del node.links[peer.name]
                if node.alive:
                    gone = refused is peer
                    delay_s = 2 * self.times(node, peer)[1] + 0.01 if gone else REPORT_S if silent is peer else 0.01
                    self.world.at(delay_s, node.lost, peer, gone)

    def end_silent(self, link: Link, vanished: Node) -> None:
        """End a connection with a machine that vanished, if that was not found out before."""
        self.end(link, silent=vanished)

    # ---- frames -----------------------------------------------------------------------------------------------------

    def send(self, node: Node, peer: str, kind: int, body: Any) -> None:
        """Carry a frame."""
        link = node.links.get(peer)
        if link is None:
            return
        if kind in PLAIN:
            size, mark = SMALL_BYTES, 0
        else:
            packed = pack(body)
            size, mark = len(packed), zlib.crc32(packed)
            body = unpack(packed)
        self.sent[kind] += 1
        self.bytes[kind] += size
        node.said += 1
        if link.cut and node.name in link.cut:
            return
        world, rng = self.world, self.rng
        arrives_s = world.now + link.latency_s + rng.random() * link.spread_s
        target = link.ends[1] if link.ends[0] is node else link.ends[0]
        if target.lag_s:
            arrives_s += rng.random() * target.lag_s
        if size > BULK_BYTES and self.uplink:
            node.uplink_s = max(node.uplink_s, world.now) + size / self.uplink
            arrives_s += node.uplink_s - world.now
        free_s = link.bulk_free_s if size > BULK_BYTES else link.free_s
        copies, ordered = 1, True
        weather = self.weather
        if not weather.calm:
            copies, arrives_s, ordered = self._storm(weather, link, free_s[node.name], arrives_s)
            if weather.replay:
                self._replay(node, target, link, kind, body)
        if ordered:
            arrives_s = free_s[node.name] = max(arrives_s, free_s[node.name])
        arrives_s = max(arrives_s, link.hello_s[node.name])
        if copies == 1:
            rng.random()
            world.at(arrives_s - world.now, target.receive, link, node.name, kind, body, mark)
            return
        for copy in range(copies):
            again = body if copy == 0 or kind in PLAIN else unpack(pack(body))
            later_s = arrives_s - world.now + copy * rng.random() * link.latency_s
            world.at(later_s, target.receive, link, node.name, kind, again, mark)

    def _storm(self, weather: Weather, link: Link, before_s: float, arrives_s: float) -> tuple[int, float, bool]:
        """Return how many copies arrive and when, and whether in order; `before_s`: when the one before does."""
        draw = self.rng.random
        if weather.loss and draw() < weather.loss:
            return 0, before_s, True
        copies = 2 if weather.duplicate and draw() < weather.duplicate else 1
        if weather.spike and draw() < weather.spike:
            arrives_s += draw() * weather.spike_s
        if weather.reorder and draw() < weather.reorder:
            return copies, arrives_s + draw() * 20 * (link.latency_s + link.spread_s), False
        return copies, arrives_s, True

    def _replay(self, node: Node, target: Node, link: Link, kind: int, body: Any) -> None:
        old = self._old.setdefault((node.name, target.name), [])
        if old and self.rng.random() < self.weather.replay:
            before, what = old[self.rng.randrange(len(old))]
            takes_s = max(link.latency_s, link.hello_s[node.name] - self.world.now)
            self.world.at(takes_s, target.receive, link, node.name, before, unpack(pack(what)), 1)
        if len(old) < REPLAYED_KEPT:
            old.append((kind, body))
        else:
            old[self.rng.randrange(REPLAYED_KEPT)] = (kind, body)
