"""What a picture of a run is made of: who was busy with what, what was said, how many copies of each record there were.

    run = Run(scenario, seed, Less())
    film = Film(run.world)
    outcome = run.outcome()
    film.bars(), film.rates(), film.copies

It looks once per `every_s` of virtual time and draws nothing from any generator, so a run that is filmed does what it
does unfilmed. Drawing is the business of the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet

if TYPE_CHECKING:
    from p2pgrid.node.events import Send
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

FIRST, STOLEN, AGAIN = "first", "stolen", "again"


class Bar(NamedTuple):
    """A task at a worker of a node; times in virtual seconds."""

    node: str
    worker: int
    began_s: float
    ended_s: float
    kind: str
    """first; stolen: it came from another holder; again: it had been begun before, here or elsewhere."""


class Down(NamedTuple):
    """A time in which a node was not alive."""

    node: str
    began_s: float
    ended_s: float


class Film:
    """What was seen of one run."""

    def __init__(self, world: World, every_s: float = 1.0) -> None:
        self.world = world
        self.every_s = every_s
        self.at_s: list[float] = []
        """When it looked."""
        self.sent: list[int] = []
        """Frames sent until then, by all nodes."""
        self.copies: dict[bytes, list[tuple[float, int]]] = {}
        """By job: when, and how many live nodes had a copy of its record."""
        self.downs: list[Down] = []
        self._stolen: dict[tuple[str, bytes], RangeSet] = {}
        self._down_s: dict[str, float] = {}
        world.watched = True
        world.observers.append(self)
        world.network.watch.setdefault(m.P_HANDOVER, []).append(self._handed_over)
        self._look()

    # ---- what it is told --------------------------------------------------------------------------------------------

    def lived(self, node: Node) -> None:
        """A life begins."""
        began_s = self._down_s.pop(node.name, None)
        if began_s is not None:
            self.downs.append(Down(node.name, began_s, self.world.now))

    def died(self, node: Node) -> None:
        """A life ends."""
        self._down_s[node.name] = self.world.now

    def replied(self, node: Node, effect: object) -> None:
        """What clients are told is not in the picture."""

    def handled(self, node: Node, peer: Node, kind: int, effects: list[object]) -> None:
        """Nor is this."""

    def storing(self, node: Node, effect: object) -> None:
        """Nor this."""

    def _handed_over(self, node: Node, effect: Send) -> None:
        _, _, job, _, ranges, *_ = effect.body
        stolen = self._stolen.setdefault((effect.peer, job), RangeSet())
        for lo, hi, *_ in ranges:
            stolen.add(lo, hi)

    def _look(self) -> None:
        world = self.world
        self.at_s.append(world.now)
        self.sent.append(sum(world.network.sent.values()))
        alive = [node for node in world.nodes.values() if node.alive]
        for job in [job for job in world.jobs if job.of is None]:
            copies = sum(job.job in node.machine.keeping.jobs for node in alive)
            self.copies.setdefault(job.job, []).append((world.now, copies))
        world.at(self.every_s, self._look)

    # ---- what is drawn ----------------------------------------------------------------------------------------------

    def bars(self) -> Iterator[Bar]:
        """Yield every execution, in order of its begin."""
        names = {node.number: node.name for node in self.world.nodes.values()}
        begun: set[tuple[bytes, int]] = set()
        for busy in self.world.busy:
            task, node = (busy.job, busy.index), names[busy.node]
            kind = AGAIN if task in begun else FIRST
            if kind == FIRST and busy.index in self._stolen.get((node, busy.job), ()):
                kind = STOLEN
            begun.add(task)
            ended_s = self.world.now if busy.ended_s is None else busy.ended_s
            yield Bar(node, busy.worker, busy.began_s, ended_s, kind)

    def all_downs(self) -> list[Down]:
        """Return when nodes were not alive, also those that still are not."""
        now = self.world.now
        return [*self.downs, *(Down(node, began_s, now) for node, began_s in self._down_s.items())]

    def rates(self) -> list[tuple[float, float]]:
        """Return frames per second of all nodes together: when a second ended, and how many there were."""
        pairs = zip(self.at_s, self.at_s[1:], self.sent, self.sent[1:], strict=False)
        return [(now, (after - before) / (now - then)) for then, now, before, after in pairs if now > then]
