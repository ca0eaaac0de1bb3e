"""One seed of one scenario: builds the world, lets it happen, and says what became of it."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from p2pgrid import __version__
from p2pgrid.core.chains import OBSERVE
from p2pgrid.simulations import checkers, faults, workloads
from p2pgrid.simulations.checkers import Safety
from p2pgrid.simulations.checks_of_copies import must_be_copied
from p2pgrid.simulations.checks_of_room import must_be_tidy
from p2pgrid.simulations.clock import Standstill
from p2pgrid.simulations.faults import Storm
from p2pgrid.simulations.figures import Figures
from p2pgrid.simulations.node import Node
from p2pgrid.simulations.scenario import Course, Drawn, Grid, Scenario, draw
from p2pgrid.simulations.workloads import Scene
from p2pgrid.simulations.world import Violation, World

MEET_S = 180.0
"""All nodes have to know each other within."""
GARBAGE = (50_000, 20, 20)
"""Thresholds of Python's garbage collector meanwhile."""


@dataclass(frozen=True)
class Less:
    """A smaller run than the seed draws: what shrinking tries, and what `--nodes` asks for."""

    nodes: int | None = None
    tasks: float = 1.0
    """Times that many."""
    without: tuple[str, ...] = ()
    """Kinds of faults and of work that are left out, as `fault:crash` or `work:map`."""

    def flags(self) -> str:
        """Return it as flags of the command line."""
        words = [f"--nodes {self.nodes}"] if self.nodes is not None else []
        words += [f"--tasks {self.tasks:g}"] if self.tasks != 1.0 else []
        return " ".join([*words, *(f"--without {one}" for one in self.without)])


@dataclass(frozen=True)
class Outcome:
    """What became of one seed. Everything in it depends on scenario and seed alone."""

    scenario: str
    seed: int
    digest: str
    virtual_s: float
    steps: int
    nodes: int
    looks: int
    """Samples that the checkers took."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each kind struck."""
    work: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    invariant: str = ""
    what: str = ""
    last: Mapping[str, list[str]] = field(default_factory=dict)
    less: Less = field(default_factory=Less)

    @property
    def failed(self) -> bool:
        """Whether an invariant did not hold."""
        return bool(self.invariant)

    @property
    def node_hours(self) -> float:
        """Return how much was simulated."""
        return self.nodes * self.virtual_s / 3600

    @property
    def reproducer(self) -> str:
        """Return the command that shows it again."""
        return " ".join(f"p2pgrid sim run {self.scenario} --seed {self.seed}@{__version__} {self.less.flags()}".split())

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        row: dict[str, Any] = {
            "seed": self.seed, "ok": not self.failed, "sha256": self.digest, "virtual_s": round(self.virtual_s, 6),
            "steps": self.steps, "nodes": self.nodes, "faults": dict(self.faults), "work": list(self.work),
            "figures": dict(self.figures),
        }  # fmt: skip
        if self.failed:
            row |= {"invariant": self.invariant, "what": self.what, "last": dict(self.last), "run": self.reproducer}
        return row


def run_seed(scenario: Scenario, seed: int, less: Less | None = None, *, watched: bool = False) -> Outcome:
    """Run one seed; a broken invariant is part of the outcome."""
    usual = gc.get_threshold()
    gc.set_threshold(*GARBAGE)  # a world lives long and makes few circles: looking for them is a tenth of the time
    try:
        return Run(scenario, seed, less or Less(), watched=watched).outcome()
    finally:
        gc.set_threshold(*usual)


class Run:
    """One seed while it runs."""

    def __init__(self, scenario: Scenario, seed: int, less: Less, *, watched: bool = False) -> None:
        self.less = less
        self.seed = seed
        self.drawn = drawn = _lessen(
            draw(scenario, random.Random(f"{seed} {scenario.drawn_as or scenario.name}")), less
        )
        self.world = World(seed, preset=drawn.grid.preset)
        self.world.watched = watched
        wires = drawn.network
        self.world.network.latency_s = {
            "in": (wires.latency_ms / 1e3, (wires.latency_ms + wires.spread_ms) / 1e3),
            "between": (wires.between_ms / 1e3, (wires.between_ms + wires.between_spread_ms) / 1e3),
        }
        self.world.network.uplink = wires.uplink
        self.safety = Safety(self.world)
        self.figures = Figures(self.world)
        self.storm: Storm | None = None

    def outcome(self) -> Outcome:
        """Let it happen."""
        broken: Violation | None = None
        try:
            self._happen()
        except Violation as violation:
            broken = violation
        except Standstill as found:
            busiest = max(self.world.nodes.values(), key=lambda node: node.recent[-1][0] if node.recent else 0.0)
            broken = Violation("time goes on", str(found), [busiest])
        world = self.world
        world.write(json.dumps(sorted((job.job.hex(), job.state, len(job.got)) for job in world.jobs)).encode())
        figures = self.figures.result(self.drawn)
        if broken is None:
            broken = _unexpected(self.drawn, figures)
        return Outcome(
            self.drawn.name, self.seed, world.digest(), world.now, world.steps, len(world.nodes), self.safety.looks,
            dict(self.storm.struck) if self.storm is not None else {}, tuple(one.kind for one in self.drawn.work),
            figures, broken.invariant if broken else "", broken.what if broken else "", broken.last if broken else {},
            self.less,
        )  # fmt: skip

    def _happen(self) -> None:
        world, course = self.world, self.drawn.run
        owners = self._people(self.drawn.grid)
        self.figures.met()
        scene = Scene(world, owners, world.rng("work"), self.less.tasks)
        for work in self.drawn.work:
            workloads.KINDS[work.kind](work, scene)
        if self.drawn.fault:
            self.storm = storm = Storm(world, world.rng("faults"), owners, world.now + course.storm_s)
            for fault in self.drawn.fault:
                faults.KINDS[fault.kind](fault, storm)
            world.pause(course.storm_s)
            storm.mend()
        submitted_s = max((work.at_s + work.jobs * work.every_s for work in self.drawn.work), default=0.0)
        world.pause(max(self.figures.met_s + submitted_s - world.now, 0.0))
        checkers.must_end(world, course.deadline_s)
        self.figures.worked()
        checkers.must_be_right(world)
        checkers.must_agree(world, course.agree_s)
        checkers.must_be_idle(world, course.idle_s)
        must_be_copied(world, course.copies_s)
        must_be_tidy(world, course.copies_s)
        self._last_acts(course)

    def _last_acts(self, course: Course) -> None:
        if course.calm_s:
            self.figures.calm(course.calm_s)
        if course.kill_last:
            victims = list(self.world.nodes.values())[-course.kill_last :]
            self.figures.detect(victims)

    def _people(self, grid: Grid) -> list[Node]:
        """Have the nodes start and meet; return those that take jobs."""
        world, rng = self.world, self.world.rng("people")
        nodes: list[Node] = []
        owners = min(grid.owners, grid.nodes)
        leaves, nat = (round(share * (grid.nodes - owners)) for share in (grid.leaves, grid.nat))
        lookers = round(grid.lookers * (grid.nodes - owners))
        slow = round(grid.slow_share * grid.nodes)
        for number in range(grid.nodes):
            late = number >= owners
            speed = rng.lognormvariate(0.0, grid.sigma) if grid.sigma else 1.0
            if number >= grid.nodes - slow:
                speed /= grid.slow_factor
            config: dict[str, Any] = {
                "slots": grid.slots, "site": number % grid.sites, "speed": speed, "speculate": grid.speculate,
                "nat": late and number < owners + nat,
            }  # fmt: skip
            if late and number >= grid.nodes - leaves:
                config["preset"] = "edge"
            if owners <= number < owners + lookers:
                config["roles"] = OBSERVE
            node = world.join(*nodes[:1], start=False, **config)
            nodes.append(node)
            world.at(rng.uniform(0.1, max(grid.join_s, 0.1)) if number else 0.0, node.start)

        def met() -> bool:
            return all(node.alive for node in nodes) and world.agreed(nodes)

        if not world.run(met, grid.join_s + MEET_S, look_s=0.1):
            checkers.must_agree(world, 0.0)
        return nodes[:owners]


def _lessen(drawn: Drawn, less: Less) -> Drawn:
    fault = tuple(one for one in drawn.fault if f"fault:{one.kind}" not in less.without)
    work = tuple(one for one in drawn.work if f"work:{one.kind}" not in less.without)
    nodes = drawn.grid.nodes if less.nodes is None else less.nodes
    return replace(drawn, grid=replace(drawn.grid, nodes=nodes), fault=fault, work=work)


def _unexpected(drawn: Drawn, figures: Mapping[str, float]) -> Violation | None:
    for name, (least, most) in drawn.expect.items():
        if name in figures and not least <= figures[name] <= most:
            return Violation("a figure as expected", f"{name} is {figures[name]:g}, not within [{least:g}, {most:g}]")
    return None
