"""The world: nodes, the network between them, their clients, and what is written down of them.

    world = World(seed=1)
    nodes = world.grid(5, slots=2)
    job = world.client(nodes[0]).submit(100, 0.2)
    nodes[3].crash(reset=False)
    assert world.run(lambda: job.ended, 120)

A broken invariant raises `Violation`, which says what the nodes concerned did last.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from p2pgrid.node import events as e
from p2pgrid.simulations.client import Client, Job
from p2pgrid.simulations.clock import Clock
from p2pgrid.simulations.network import Network
from p2pgrid.simulations.node import Node
from p2pgrid.simulations.truth import Plan, Truth

KINDS = {kind: number for number, kind in enumerate(get_args(e.Event))}
LAST = 12
"""Events of a node that a violation shows."""
WIDE = 160


@dataclasses.dataclass
class Busy:
    """A task that ran at a node, for the figures and the picture."""

    node: int
    worker: int
    job: bytes
    index: int
    attempt: int
    began_s: float
    ended_s: float | None = None


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str, nodes: Sequence[Node] = (), event: Any = None) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what
        self.last = {node.name: last_events(node, event if number == 0 else None) for number, node in enumerate(nodes)}
        """What the nodes concerned did last, one line each."""


def last_events(node: Node, event: Any = None) -> list[str]:
    """Return the last events of a node and what it did then, one line each."""
    lines = [_line(at_s, one, effects) for at_s, one, effects in list(node.recent)[-LAST:]]
    return [*lines, _line(node.world.now, event, [])] if event is not None else lines


def _line(at_s: float, event: Any, effects: Sequence[Any]) -> str:
    then = ", ".join(_short(effect) for effect in effects[:4]) + (" …" if len(effects) > 4 else "")  # noqa: PLR2004
    text = f"{at_s:10.4f}  {_short(event)}  ->  {then or 'nothing'}"
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"


def _short(one: Any) -> str:
    text = repr(one)
    return text if len(text) <= WIDE // 2 else text[: WIDE // 2 - 1] + "…"


class World(Clock):
    """All there is."""

    def __init__(self, seed: int = 1, *, preset: str = "lan") -> None:
        super().__init__(seed)
        self.preset = preset
        self.kinds = KINDS
        self.network = Network(self)
        self.nodes: dict[str, Node] = {}
        self.clients: list[Client] = []
        self.truths: dict[bytes, Truth] = {}
        self.forged: dict[bytes, Truth] = {}
        """Of jobs that nobody submitted."""
        self.jobs: list[Job] = []
        self.busy: list[Busy] = []
        """Every execution, in order of its begin, if `watched`."""
        self.watched = False
        self.forgers: dict[str, None] = {}
        """Members that send what no machine would."""
        self.forgotten: dict[bytes, None] = {}
        """Jobs that some program has asked to be forgotten."""
        self.revoked: dict[str, float] = {}
        """Since when members have not had the role `work` any more."""
        self.restart_s = (1.0, 10.0)
        """A node that a task brought down is back after that."""
        self.fallen: Counter[str] = Counter()
        self.used_s = 0.0
        """Seconds that workers were busy."""
        self._running: dict[tuple[int, int], Busy] = {}
        self._last_to_agree: Node | None = None
        self.observers: list[Any] = []
        """Whoever wants to know what happens: objects with `lived`, `died`, `replied`, `handled`, `storing`."""

    # ---- nodes and clients ------------------------------------------------------------------------------------------

    def join(self, *known: Node, name: str = "", start: bool = True, **config: Any) -> Node:
        """Add a node that was told the addresses of `known` ones."""
        number = len(self.nodes)
        name = name or f"n{number}"
        node = self.nodes[name] = Node(self, number, name, {"known": [one.address for one in known], **config})
        self.network.at[node.address] = node
        if start:
            node.start()
        return node

    def grid(self, count: int, *, settle_s: float = 60.0, **config: Any) -> list[Node]:
        """Add nodes that join by the first, and wait until all see all. A list gives each node its own value."""
        nodes: list[Node] = []
        for number in range(count):
            own = {
                key: value[number % len(value)] if isinstance(value, list) else value for key, value in config.items()
            }
            nodes.append(self.join(*nodes[:1], **own))
        assert self.run(lambda: self.agreed(nodes), settle_s, look_s=0.01), "they never met"
        return nodes

    def agreed(self, nodes: Iterable[Node] | None = None) -> bool:
        """Whether every live node sees exactly the live ones as alive."""
        nodes = list(self.nodes.values() if nodes is None else nodes)
        alive = sum(node.alive for node in nodes)
        last = self._last_to_agree
        if last is not None and last.alive and last in nodes and last.sees_alive() != alive:
            return False  # who did not know all a moment ago: the others need not be asked again
        self._last_to_agree = next((node for node in nodes if node.alive and node.sees_alive() != alive), None)
        return self._last_to_agree is None

    def client(self, node: Node) -> Client:
        """Start a program at a node."""
        number = len(self.clients) + 1
        client = Client(node, number, self.rng("session", number).randbytes(16))
        self.clients.append(client)
        client.connect()
        return client

    def job_name(self) -> bytes:
        """Return a new job's id."""
        return self.rng("job", len(self.truths)).randbytes(16)

    def truth(self, job: bytes) -> Truth:
        """Return what really happened to a job; nodes may be given tasks of one that nobody submitted."""
        known = self.truths.get(job)
        return self.forged.setdefault(job, Truth(job, lambda _: Plan(0.1), forged=True)) if known is None else known

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.run(limit_s=seconds)

    # ---- what is told to whoever looks ------------------------------------------------------------------------------

    def began(self, node: Node, worker: int, job: bytes, index: int, attempt: int) -> None:
        """Note that a task begins."""
        busy = self._running[node.number, worker] = Busy(node.number, worker, job, index, attempt, self.now)
        if self.watched:
            self.busy.append(busy)

    def finished(self, node: Node, worker: int) -> None:
        """Note that it ends, well or not."""
        busy = self._running.pop((node.number, worker), None)
        if busy is not None:
            busy.ended_s = self.now
            self.used_s += self.now - busy.began_s

    def fell(self, node: Node) -> None:
        """A task brings its node down; it comes back."""
        self.fallen[node.name] += 1
        node.crash(reset=node.rng.random() < 0.5)  # noqa: PLR2004 - as often seen as not
        self.at(node.rng.uniform(*self.restart_s), node.start)

    def lived(self, node: Node) -> None:
        """Note that a life begins."""
        for observer in self.observers:
            observer.lived(node)

    def died(self, node: Node) -> None:
        """Note that a life ended."""
        for observer in self.observers:
            observer.died(node)

    def replied(self, node: Node, effect: e.Reply) -> None:
        """Note what a node tells a client."""
        for observer in self.observers:
            observer.replied(node, effect)

    def handled(self, node: Node, peer: Node, kind: int) -> None:
        """Note what a node did at a frame of a member that may only look."""
        for observer in self.observers:
            observer.handled(node, peer, kind, node.recent[-1][2])

    def storing(self, node: Node, effect: e.Store) -> None:
        """Note that a node deletes a job."""
        for observer in self.observers:
            observer.storing(node, effect)

    def broken(self, invariant: str, what: str, node: Node, event: Any = None) -> Violation:
        """Return the violation to raise."""
        return Violation(invariant, what, [node], event)


Until = Callable[[], bool]
