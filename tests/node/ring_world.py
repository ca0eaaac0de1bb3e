"""A heap and a seed for liveness and member view: nodes that know nothing else, on a network that loses frames.

Nodes are wired as the machine will wire them: verdicts of the one go to the other, frames are read before they are
acted on. They can crash, stand still (SIGSTOP), starve (frames in and out are late), and be cut off from each other.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from p2pgrid.core.member import ALIVE, DEAD, SUSPECT, Card, Update, Verdict
from p2pgrid.core.member_shapes import from_neighbour
from p2pgrid.node import pace, patience
from p2pgrid.node.events import Send
from p2pgrid.node.liveness import Liveness
from p2pgrid.node.pace import ViewOptions
from p2pgrid.node.patience import LivenessOptions
from p2pgrid.node.view import Cloned, Forgotten, View

UNIX_0 = 1_800_000_000


def nothing_is_cut(a: str, b: str) -> bool:
    return False


class World:
    """All nodes and the heap."""

    def __init__(self, seed: int, loss: float = 0.0, delay_s: tuple[float, float] = (0.001, 0.02)) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay_s = delay_s
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.cut: Callable[[str, str], bool] = nothing_is_cut
        self.sent: Counter[str] = Counter()
        self.said: list[tuple[float, str, Verdict]] = []
        """When, by whom it was learned, what."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def add(self, name: str, preset: str = "lan", *, id: str = "") -> Node:  # noqa: A002
        """Add a node; two may share an `id`, then frames to it reach either."""
        node = self.nodes[name] = Node(self, id or name, patience.PRESETS[preset], pace.PRESETS[preset])
        return node

    def grid(self, count: int, preset: str = "lan") -> list[Node]:
        """Add nodes that know each other already and have nothing to tell."""
        nodes = [self.add(f"node-{len(self.nodes):03}", preset) for _ in range(count)]
        cards = [Update(n.name, n.liveness.incarnation, ALIVE, n.name, n.view.card) for n in self.nodes.values()]
        for node in self.nodes.values():
            node.perform(node.view.received("nobody", 116, ([], cards), self.now), of_view=True)
        for node in nodes:
            node.view._news.clear()
        return nodes

    def deliver(self, source: Node, effect: Send) -> None:
        self.sent[source.name] += 1
        if self.rng.random() < self.loss or self.cut(source.name, effect.peer):
            return
        target = self.nodes.get(effect.peer)
        if target is None:
            target = self.rng.choice([node for node in self.nodes.values() if node.name == effect.peer])
        leaves_s = max(self.now, source.blocked_s)
        self.at(leaves_s + self.rng.uniform(*self.delay_s), lambda: target.arrived(source.name, effect))

    # ---- what the tests ask ----

    def deaths(self) -> list[tuple[float, str, str]]:
        """Return when which node took which for dead."""
        return [(at, by, said.id) for at, by, said in self.said if said.status == DEAD]

    def suspicions(self) -> list[tuple[float, str, str]]:
        return [(at, by, said.id) for at, by, said in self.said if said.status == SUSPECT]

    def pictures(self) -> list[dict[str, Any]]:
        """Return what each running node knows of those that it takes for alive."""
        return [dict(node.view.live()) for node in self.nodes.values() if node.running]

    def agree(self) -> bool:
        pictures = self.pictures()
        return all(picture == pictures[0] for picture in pictures)


class Node:
    """Liveness and view of one node."""

    def __init__(self, world: World, name: str, lives: LivenessOptions, views: ViewOptions) -> None:
        self.world = world
        self.name = name
        rng = random.Random(world.rng.random())
        self.liveness = Liveness(name, lives, rng)
        self.view = View(name, views, rng)
        self.running = True
        self.frozen_s: float | None = None
        self.blocked_s = 0.0
        self.clones: list[Cloned] = []
        self._inbox: list[tuple[str, Send]] = []
        self._wakes_s: float | None = None
        verdict = self.liveness.begin(0, UNIX_0, world.now)
        life = rng.randbytes(8)
        facts = {"name": name, "slots": 4}
        card = Card(verdict.incarnation, 0, life, lives.leaf, (f"/ip4/10.0.0.1/tcp/{len(world.nodes)}",), facts, (0,))
        self.view.begin(card, world.now)
        self._rewake()

    def perform(self, effects: list[Any], *, of_view: bool) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.world.deliver(self, effect)
                case Verdict() if of_view:
                    self.world.said.append((self.world.now, self.name, effect))
                    self.perform(self.liveness.judged(effect, self.world.now), of_view=False)
                case Verdict():
                    self.world.said.append((self.world.now, self.name, effect))
                    self.perform(self.view.judged(effect, self.world.now), of_view=True)
                case Forgotten():
                    self.liveness.forget(effect.id)
                case Cloned():
                    self.clones.append(effect)
        self._rewake()

    def join(self, seed: str) -> None:
        """Connect to a node for the first time."""
        self.perform(self.view.met(seed, self.world.now), of_view=True)

    def arrived(self, sender: str, effect: Send) -> None:
        now = self.world.now
        if not self.running:
            return
        if self.frozen_s is not None:
            self._inbox.append((sender, effect))
            return
        if self.blocked_s > now:
            self.world.at(self.blocked_s, lambda: self.arrived(sender, effect))
            return
        body = from_neighbour(effect.kind, effect.body)
        if effect.kind < 114:
            self.perform(self.liveness.received(sender, effect.kind, body, now), of_view=False)
        else:
            self.liveness.heard(sender, now)
            self.perform(self.view.received(sender, effect.kind, body, now), of_view=True)

    def _rewake(self) -> None:
        due = min((at for at in (self.liveness.next_s(), self.view.next_s()) if at is not None), default=None)
        if due is not None and (self._wakes_s is None or due < self._wakes_s):
            self._wakes_s = due
            self.world.at(max(due, self.world.now), lambda: self._wake(due))

    def _wake(self, due: float) -> None:
        if due != self._wakes_s or not self.running or self.frozen_s is not None:
            return
        self._wakes_s = None
        self.perform(self.liveness.tick(self.world.now), of_view=False)
        self.perform(self.view.tick(self.world.now), of_view=True)

    # ---- what happens to it ----

    def crash(self) -> None:
        self.running = False

    def stop(self) -> None:
        """SIGSTOP."""
        self.frozen_s = self.world.now

    def go_on(self) -> None:
        """SIGCONT: the shell sees how long it stood still, then reads what has come meanwhile."""
        assert self.frozen_s is not None
        stall = self.world.now - self.frozen_s
        self.frozen_s = None
        self.liveness.stalled(stall)
        self.view.stalled(stall)
        inbox, self._inbox = self._inbox, []
        for sender, effect in inbox:
            self.arrived(sender, effect)
        self._wakes_s = None
        self._rewake()

    def starve(self, mean_s: float) -> None:
        """From now on be blocked now and then: frames wait in both directions while time goes on."""

        def block() -> None:
            self.blocked_s = self.world.now + self.world.rng.expovariate(1 / mean_s)
            self.world.at(self.blocked_s + self.world.rng.expovariate(1 / mean_s), block)

        self.world.at(self.world.now + self.world.rng.uniform(0, mean_s), block)
