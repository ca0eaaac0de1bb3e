"""The heap driver with a network of connections: nodes that know an address, dial, are cut off, frozen and killed.

What the shell does is done here in virtual time: `Connect` keeps a connection as long as both ends live and nothing is
cut, `PeerUp` brings the card that was introduced, a reset is told only where a new connection was refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pgrid.core.chains import ALL_ROLES
from p2pgrid.core.member import Card
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.simulations.node import CHAIN, GRID, NameSeal
from tests.node.driver import UNIX_0, Faults, Node, World

REDIAL_S = 1.0


class GridWorld(World):
    """Nodes and the connections between them."""

    nodes: dict[str, GridNode]  # type: ignore[assignment]

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        super().__init__(seed, faults)
        self.links: dict[frozenset[str], int] = {}
        """The connections there are, each with a number of its own."""
        self._links_made = 0
        self.cut: set[frozenset[str]] = set()
        self.dht: dict[bytes, tuple[str, ...]] = {}
        """Who keeps which job, as nodes have published it."""
        self.greeting_s = 0.0
        """Within which time each end of a new connection hears of it, as on machines that have much else to do."""

    def join(self, name: str, *known: str, **config: Any) -> GridNode:
        """Add a node that was told the addresses of `known` ones."""
        node = self.nodes[name] = GridNode(self, name, config, known)
        node.start()
        return node

    def grid(self, count: int, **config: Any) -> list[GridNode]:
        """Add nodes that join by the first, and wait until all see all."""
        nodes = [self.join(f"n{i}", *(["n0"] if i else []), **config) for i in range(count)]
        assert self.run(lambda: all(node.sees("alive") == count for node in nodes), 10.0), "they never met"
        return nodes

    def part(self, some: list[GridNode], others: list[GridNode]) -> None:
        """Cut every connection between two sets of nodes: silence, no reset."""
        for a in some:
            for b in others:
                pair = frozenset((a.name, b.name))
                self.cut.add(pair)
                self.at(5.0, lambda pair=pair: self.broken(pair))  # type: ignore[misc]

    def broken(self, pair: frozenset[str]) -> None:
        """Notice that a cut connection is dead."""
        if pair in self.links and pair in self.cut:
            self.lost(pair, sorted(pair), reset=False)

    def made(self, pair: frozenset[str]) -> int:
        """Make a connection; one that is there has lost an end, and goes."""
        if pair in self.links:
            self.lost(pair, sorted(pair), reset=False)
        self._links_made += 1
        self.links[pair] = self._links_made
        return self._links_made

    def lost(self, pair: frozenset[str], told: list[str], *, reset: bool) -> None:
        """End a connection, and tell those who thought it was up."""
        del self.links[pair]
        for name in told:
            (other,) = pair - {name}
            if self.nodes[name].up.get(other) is not None:
                del self.nodes[name].up[other]
                self.nodes[name].hear(e.PeerDown(other, reset=reset))

    def heal(self) -> None:
        self.cut.clear()

    def strike(self, node: GridNode, keeps_disk: Callable[[], bool]) -> None:
        """Kill, freeze or isolate a node for a while."""
        kind = self.rng.choice(["kill", "kill", "freeze", "cut"])
        lasts_s = self.rng.choice([0.3, 3.0, 8.0, 25.0])
        if kind == "kill":
            node.crash(with_disk=keeps_disk(), reset=self.rng.random() < 0.6)
            self.at(lasts_s, node.start)
        elif kind == "freeze":
            node.freeze()
            self.at(lasts_s, node.thaw)
        else:
            others = [other for other in self.nodes.values() if other is not node and self.rng.random() < 0.7]
            self.part([node], others)
            self.at(lasts_s, self.heal)

    def deliver(self, source: Node, effect: e.Send) -> None:
        if frozenset((source.name, effect.peer)) in self.links:
            super().deliver(source, effect)

    def _arrive(self, source: Node, life: int, effect: e.Send, body: Any) -> None:
        pair = frozenset((source.name, effect.peer))
        target = self.nodes[effect.peer]
        number = self.links.get(pair)
        if number is not None and target.up.get(source.name) == number and pair not in self.cut and source.life == life:
            said = e.PeerSent(source.name, effect.kind, body)
            if number in target.early:
                target.early[number].append(said)
            else:
                target.hear(said)


class GridNode(Node):
    """A node that belongs to a grid."""

    world: GridWorld

    def __init__(self, world: GridWorld, name: str, config: dict[str, Any], known: tuple[str, ...]) -> None:
        told = {key: value for key, value in config.items() if key not in {"roles", "clock_s"}}
        super().__init__(world, name, {"seal": NameSeal(name), **told})
        self.known = known
        self.roles = config.get("roles", ALL_ROLES)
        self.clock_s = config.get("clock_s", 0.0)
        self.card: Card | None = None
        self.wanted: set[str] = set()
        self.up: dict[str, int] = {}
        """The connections that this life knows of."""
        self.early: dict[int, list[e.Event]] = {}
        """What came over connections that it is yet to hear of."""
        self.dropped: list[tuple[str, str]] = []
        self.offset_s: float | None = None
        self.frozen: list[e.Event] | None = None
        self._frozen_s = 0.0

    def start(self) -> None:
        """Begin a life."""
        peers, self.world.nodes = self.world.nodes, {}  # nobody is met but by dialling
        try:
            super().start()
        finally:
            self.world.nodes = peers
        self.wanted = set(self.known)
        self.up = {}
        self.handle(e.WallClock(UNIX_0 - self.world.now + 1000.0 + self.clock_s))
        self.handle(e.Belongs(GRID, "test-grid", self.roles, CHAIN))
        self.handle(e.Listens((f"/ip4/10.0.0.{len(peers)}/tcp/9471",)))
        self._dial(self.life)

    def _dial(self, life: int) -> None:
        if not self.alive or self.life != life:
            return
        for name in sorted(self.wanted):
            self._connect(name)
        self.world.at(REDIAL_S * self.world.rng.uniform(0.5, 1.5), lambda: self._dial(life))

    def _connect(self, name: str) -> None:
        pair = frozenset((self.name, name))
        other = self.world.nodes.get(name)
        able = other is not None and other.alive and other.frozen is None and self.frozen is None
        number = self.world.links.get(pair)
        if name == self.name or not able or pair in self.world.cut:
            return
        assert other is not None
        if number is not None and self.up.get(name, number) == other.up.get(self.name, number) == number:
            return
        number = self.world.made(pair)
        self._greet(other, number)
        other._greet(self, number)

    def _greet(self, peer: GridNode, number: int) -> None:
        card, life = peer.card, self.life
        assert card is not None, "a node without a card cannot be met"

        def greet() -> None:
            early = self.early.pop(number, ())
            if self.alive and self.life == life and self.world.links.get(frozenset((self.name, peer.name))) == number:
                self.up[peer.name] = number
                self.hear(e.PeerUp(peer.name, card.facts, card, peer.roles))
                for said in early:
                    self.hear(said)

        self.up[peer.name] = number
        takes_s = 0.005
        if self.world.greeting_s:
            self.early[number] = []
            takes_s = self.world.rng.uniform(takes_s, self.world.greeting_s)
        self.world.at(takes_s, greet)

    def hear(self, event: e.Event) -> None:
        """Take in an event of the network, now or when the loop goes on."""
        if self.frozen is not None:
            self.frozen.append(event)
        elif self.alive:
            self.handle(event)

    def handle(self, event: e.Event) -> None:
        if self.frozen is not None:
            self.frozen.append(event)
            return
        super().handle(event)

    def _perform(self, effect: e.Effect) -> None:
        match effect:
            case e.Connect(peer, _):
                self.wanted.add(peer)
                self.world.at(0.002, lambda: self._connect(peer) if self.alive else None)
            case e.Disconnect(peer):
                self.wanted.discard(peer)
            case e.Introduce(card):
                self.card = card
            case e.Drop(peer, why):
                self.dropped.append((peer, why))
            case e.Publish(job, keepers):
                self.world.dht[job] = tuple(keepers)
            case e.Locate(job):
                self._later(0.05, e.Located(job, self.world.dht.get(job, ())))
            case e.GridClock(offset_s):
                self.offset_s = offset_s
            case e.Send(peer, kind, body):
                super()._perform(e.Send(peer, kind, unpack(pack(body))))
            case _:
                super()._perform(effect)

    # ---- what happens to it ----

    def crash(self, *, with_disk: bool = True, reset: bool = True) -> None:
        """Die; with `reset` its peers are told at once and refused when they dial again."""
        self.alive = False
        self.life += 1
        if not with_disk:
            self.disk.clear()
        for client in self.clients.values():
            client.connected = False
        self.clients.clear()
        self.up.clear()
        for pair, number in [item for item in self.world.links.items() if self.name in item[0]]:
            (other,) = pair - {self.name}

            def lost(pair: frozenset[str] = pair, number: int = number, other: str = other) -> None:
                if self.world.links.get(pair) == number:
                    self.world.lost(pair, [other], reset=reset and not self.alive)

            self.world.at(0.02 if reset else 10.0, lost)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = []
        self._frozen_s = self.world.now

    def thaw(self) -> None:
        """SIGCONT: the shell sees the stall first, then what has queued."""
        queued, self.frozen = self.frozen or [], None
        self.handle(e.Stalled(self.world.now - self._frozen_s))
        for event in queued:
            self.handle(event)

    # ---- what it sees ----

    def rows(self) -> dict[str, str]:
        return {row["id"]: row["status"] for row in self.machine.member_rows(self.world.now)}

    def sees(self, status: str) -> int:
        return sum(one == status for one in self.rows().values())
