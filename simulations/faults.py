"""What goes wrong: kinds of faults, each a function that strikes from time to time until the storm is over.

A kind is a function `(fault, storm)` registered under its name; its parameters are fields of `Fault`. Every fault is
mended when the storm ends (`Storm.mend`), so that what has to happen then can be asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pgrid.core.chains import WORK
from p2pgrid.node import events as e
from p2pgrid.simulations.clock import UNIX_0
from p2pgrid.simulations.forging import Forger
from p2pgrid.simulations.node import CHAIN, GRID
from p2pgrid.simulations.world import Violation

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World


HEARD_S = 3.0
"""All that run have heard within that a role was taken."""


@dataclass(frozen=True)
class Fault:
    """One `[[fault]]` of a scenario; times in seconds, shares from 0 to 1."""

    kind: str
    every_s: float = 30.0
    """Between two strikes at one node (or, where a fault strikes the grid, at it), on average."""
    lasts_s: float = 10.0
    """How long each lasts, on average."""
    share: float = 1.0
    """Of the nodes that may be struck."""
    owners: bool = False
    """Whether nodes that took jobs are struck as well."""
    optional: bool = True
    """Whether a swarm may leave it out."""
    reset: float = 0.5
    """crash: so often seen at once, as a killed process; else the machine vanishes."""
    torn: float = 0.5
    """crash: so often some of what was being written is on disk after all."""
    wiped: float = 0.0
    """crash: so often the disk is empty afterwards."""
    gone: float = 0.0
    """crash: so often it never comes back, also not when the storm is over."""
    old: float = 0.0
    """crash: so often the disk is an old copy of itself."""
    whole: float = 0.3
    """pause: so often the whole machine sleeps, its workers too."""
    oneway: float = 0.0
    """part, isolate: so often frames still pass in one direction."""
    factor: float = 10.0
    """slow: so many times slower."""
    lag_s: float = 0.2
    """slow: and up to that late for everything."""
    skew_s: float = 300.0
    """clock: wrong by up to so much."""
    epoch: float = 0.2
    """clock: so often it stands at 1970 instead."""
    loss: float = 0.0
    """weather, here and below: see `network.Weather`."""
    duplicate: float = 0.0
    reorder: float = 0.0
    spike: float = 0.0
    spike_s: float = 2.0
    replay: float = 0.0
    for_ever: bool = False
    """weather: it stays when the storm is over."""
    rate: float = 2.0
    """forge: frames per second of each forger; liar: so often a result is wrong, at most 1."""


class Storm:
    """What faults share: the world, whom they may strike, chance, and when it is over."""

    def __init__(self, world: World, rng: random.Random, owners: list[Node], end_s: float) -> None:
        self.world = world
        self.rng = rng
        self.owners = dict.fromkeys(node.name for node in owners)
        self.end_s = end_s
        self.struck: dict[str, int] = {}
        """How often each kind struck."""
        self.gone: dict[str, None] = {}
        """Nodes that are gone for good."""
        self._mends: dict[int, Callable[[], None]] = {}
        self._count = 0

    def victims(self, fault: Fault) -> list[Node]:
        """Return whom this fault may strike."""
        able = [node for node in self.world.nodes.values() if fault.owners or node.name not in self.owners]
        return able[: max(1, round(fault.share * len(able)))] if able else []

    def often(self, fault: Fault, strike: Callable[[], None]) -> None:
        """Strike again and again, with pauses drawn around `every_s`, until the storm is over."""

        def again() -> None:
            if self.world.now < self.end_s:
                self.struck[fault.kind] = self.struck.get(fault.kind, 0) + 1
                strike()
                self.world.at(self.rng.expovariate(1 / fault.every_s), again)

        self.world.at(self.rng.expovariate(1 / fault.every_s), again)

    def lasts(self, fault: Fault, mend: Callable[[], None]) -> None:
        """Mend it after a time drawn around `lasts_s`, at the latest when the storm ends."""
        self._count += 1
        number = self._count
        self._mends[number] = mend
        self.world.at(self.rng.expovariate(1 / fault.lasts_s), self._mend, number)

    def _mend(self, number: int) -> None:
        mend = self._mends.pop(number, None)
        if mend is not None:
            mend()

    def mend(self) -> None:
        """End all faults: every node runs, every wire carries, every clock goes on as it is."""
        for number in list(self._mends):
            self._mend(number)
        for node in self.world.nodes.values():
            if node.name not in self.gone:
                node.start()

    def chance(self, probability: float) -> bool:
        """Draw."""
        return self.rng.random() < probability


Kind = Callable[[Fault, Storm], None]


def crash(fault: Fault, storm: Storm) -> None:
    """Kill nodes; they come back with their disk, an old copy of it, or none."""
    images: dict[str, Any] = {}

    def strike(node: Node) -> None:
        if not node.alive:
            return
        node.crash(reset=storm.chance(fault.reset), torn=storm.chance(fault.torn))
        if storm.chance(fault.wiped):
            node.disk.restore(({}, 0))
            node.saved.clear()
        elif node.name in images and storm.chance(fault.old):
            node.disk.restore(images[node.name])
        images[node.name] = node.disk.copy()
        if storm.chance(fault.gone):
            storm.gone[node.name] = None
        else:
            storm.lasts(fault, node.start)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def blackout(fault: Fault, storm: Storm) -> None:
    """Take the power from all machines at once; each comes back by itself."""

    def strike() -> None:
        for node in storm.world.nodes.values():
            if node.alive:
                node.crash(reset=False, torn=storm.chance(fault.torn))
                storm.lasts(fault, node.start)

    storm.often(fault, strike)


def leave(fault: Fault, storm: Storm) -> None:
    """Stop nodes on purpose; they come back."""

    def strike(node: Node) -> None:
        if node.alive and node.frozen is None:
            node.stop(1.0)
            storm.lasts(fault, node.start)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def pause(fault: Fault, storm: Storm) -> None:
    """SIGSTOP a daemon, or send its whole machine to sleep."""

    def strike(node: Node) -> None:
        if not node.alive or node.frozen is not None:
            return
        whole, life = storm.chance(fault.whole), node.life
        node.freeze(workers=whole)
        storm.lasts(fault, lambda: node.thaw(workers=whole) if node.life == life else None)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def slow(fault: Fault, storm: Storm) -> None:
    """Make nodes slow, their workers and their loops."""

    def strike(node: Node) -> None:
        speed, lag_s = node.speed, node.lag_s
        if lag_s:
            return
        node.speed, node.lag_s = speed / fault.factor, fault.lag_s

        def mend() -> None:
            node.speed, node.lag_s = speed, lag_s

        storm.lasts(fault, mend)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def part(fault: Fault, storm: Storm) -> None:
    """Cut the grid in two."""

    def strike() -> None:
        nodes = list(storm.world.nodes.values())
        storm.rng.shuffle(nodes)
        at = storm.rng.randint(1, len(nodes) - 1)
        cut(fault, storm, nodes[:at], nodes[at:])

    if len(storm.world.nodes) > 1:
        storm.often(fault, strike)


def halves(fault: Fault, storm: Storm) -> None:
    """Cut the grid in the middle, once; before it is mended each half has to take the other for dead."""
    nodes = list(storm.world.nodes.values())
    some, others = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
    network = storm.world.network
    pairs = [pair for a in some for b in others for pair in ((a, b), (b, a))]

    def strike() -> None:
        storm.struck[fault.kind] = 1
        for a, b in pairs:
            network.cut(a, b)
        storm.world.at(fault.lasts_s, mend)

    def mend() -> None:
        for half, rest in ((some, others), (others, some)):
            seen = {node: node.sees() for node in half if node.alive}
            living = [(node, b) for node in seen for b in rest if seen[node].get(b.name) not in (None, "dead")]
            lacking = [(node, a) for node in seen for a in half if a.alive and seen[node].get(a.name) != "alive"]
            for node, other in [*living, *lacking]:
                what = f"{node.name} sees {other.name} as {seen[node].get(other.name)} after {fault.lasts_s:g} s"
                raise Violation("L3 a half sees its half", what, [node, other])
        for a, b in pairs:
            network.mend(a, b)

    storm.world.at(fault.every_s, strike)


def isolate(fault: Fault, storm: Storm) -> None:
    """Cut one node off from some of the others."""

    def strike(node: Node) -> None:
        others = [one for one in storm.world.nodes.values() if one is not node and storm.chance(0.7)]
        cut(fault, storm, [node], others)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def cut(fault: Fault, storm: Storm, some: list[Node], others: list[Node]) -> None:
    """Let nothing pass between two sets of nodes, or only from the second to the first."""
    network = storm.world.network
    pairs = [(a, b) for a in some for b in others]
    if not storm.chance(fault.oneway):
        pairs += [(b, a) for a, b in pairs]
    for a, b in pairs:
        network.cut(a, b)

    def mend() -> None:
        for a, b in pairs:
            network.mend(a, b)

    storm.lasts(fault, mend)


def weather(fault: Fault, storm: Storm) -> None:
    """Lose, double, reorder, delay and replay frames: all the time."""
    network = storm.world.network
    storm.struck["weather"] = 1
    network.turn(
        loss=fault.loss, duplicate=fault.duplicate, reorder=fault.reorder, spike=fault.spike, spike_s=fault.spike_s,
        replay=fault.replay,
    )  # fmt: skip
    if fault.for_ever:
        return
    storm.world.at(
        storm.end_s - storm.world.now,
        lambda: network.turn(loss=0.0, duplicate=0.0, reorder=0.0, spike=0.0, replay=0.0),
    )


def clock(fault: Fault, storm: Storm) -> None:
    """Set wall clocks wrong, now and then; monotonic time goes on. They stay as they are when the storm ends."""

    def strike(node: Node) -> None:
        if storm.chance(fault.epoch):
            node.skew_s = -UNIX_0 - storm.world.now
        else:
            node.skew_s = storm.rng.uniform(-fault.skew_s, fault.skew_s)
        storm.lasts(fault, lambda: right(node))

    def right(node: Node) -> None:
        node.skew_s = storm.rng.uniform(-1.0, 1.0)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def disk_full(fault: Fault, storm: Storm) -> None:
    """Let disks take nothing for a while."""

    def strike(node: Node) -> None:
        node.disk.full = True

        def mend() -> None:
            node.disk.full = False

        storm.lasts(fault, mend)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def disk_slow(fault: Fault, storm: Storm) -> None:
    """Let commits take up to `lag_s` longer."""

    def strike(node: Node) -> None:
        node.disk.slow_s = storm.rng.uniform(0, fault.lag_s)

        def mend() -> None:
            node.disk.slow_s = 0.0

        storm.lasts(fault, mend)

    for node in storm.victims(fault):
        storm.often(fault, lambda node=node: strike(node))  # type: ignore[misc]


def liar(fault: Fault, storm: Storm) -> None:
    """Have workers of some nodes return something wrong: it must do no harm but to these results."""
    storm.struck["liar"] = 1
    for node in storm.victims(fault):
        node.lies = min(fault.rate, 1.0)


def forge(fault: Fault, storm: Storm) -> None:
    """Have some members send what no machine would: frames of others changed, and garbage."""
    storm.struck["forge"] = 1
    for node in storm.victims(fault):
        Forger(node, storm.world, random.Random(storm.rng.random()), storm.end_s).begin(fault.rate)


def revoke(fault: Fault, storm: Storm) -> None:
    """Take the role `work` from some members for good; they and the others hear of it within `HEARD_S`."""
    world = storm.world

    def strike() -> None:
        able = [node for node in storm.victims(fault) if node.name not in world.revoked]
        if len(able) < 2:  # noqa: PLR2004 - somebody has to work
            return
        node = storm.rng.choice(able)
        world.revoked[node.name] = world.now
        node.roles &= ~WORK
        for other in world.nodes.values():
            world.at(storm.rng.uniform(0, HEARD_S), heard, other, node)

    def heard(other: Node, node: Node) -> None:
        if not other.alive:
            return  # it is told when they meet
        if other is node:
            other.handle(e.Belongs(GRID, "sim", node.roles, CHAIN))
        else:
            other.handle(e.PeerRoles(node.name, node.roles))

    storm.often(fault, strike)


KINDS: dict[str, Kind] = {
    "crash": crash,
    "blackout": blackout,
    "leave": leave,
    "pause": pause,
    "slow": slow,
    "part": part,
    "halves": halves,
    "isolate": isolate,
    "weather": weather,
    "clock": clock,
    "disk-full": disk_full,
    "disk-slow": disk_slow,
    "liar": liar,
    "forge": forge,
    "revoke": revoke,
}
