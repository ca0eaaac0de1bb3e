"""Figures of a run: how much was sent, how well the nodes were used, how fast a death was noticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from p2pgrid.core import messages as m
from p2pgrid.simulations.truth import OK

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.scenario import Drawn
    from p2pgrid.simulations.world import World

LOOK_S = 0.1
KNOWN_WITHIN_S = 300.0
APART_S = 30.0
"""Who has just missed somebody is slow to blame the next (Lifeguard's local health)."""


class Figures:
    """What is counted while a run goes on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.met_s = 0.0
        self.ended_s: float | None = None
        self._sent_met = 0
        self._bytes_met = 0
        self._steals_met = 0
        self._results: dict[str, float] = {}

    def _sent(self) -> int:
        return sum(self.world.network.sent.values())

    def _steals(self) -> int:
        return self.world.network.sent[m.P_STEAL]

    def met(self) -> None:
        """All nodes know each other: from now on it counts."""
        self.met_s = self.world.now
        self._results["settle_s"] = self.world.now
        self._sent_met = self._sent()
        self._bytes_met = sum(self.world.network.bytes.values())
        self._steals_met = self._steals()

    def worked(self) -> None:
        """All work has ended."""
        self.ended_s = self.world.now
        world = self.world
        tasks = sum(job.count for job in world.jobs if job.of is None)
        if tasks:
            self._results["bytes_per_task"] = (sum(world.network.bytes.values()) - self._bytes_met) / tasks
            self._results["steal_requests"] = (self._steals() - self._steals_met) / len(world.nodes)

    def calm(self, seconds: float) -> None:
        """Let nothing happen, and count what is said meanwhile."""
        before, steals, said = self._sent(), self._steals(), {n.name: n.said for n in self.world.nodes.values()}
        self.world.pause(seconds)
        nodes = [node for node in self.world.nodes.values() if node.alive]
        self._results["messages"] = (self._sent() - before) / len(nodes) / seconds
        self._results["messages_most"] = max(node.said - said[node.name] for node in nodes) / seconds
        self._results["steal_polls"] = float(self._steals() - steals)
        leaves = [node for node in nodes if node.more.get("preset") == "edge"]
        if leaves:
            self._results["messages_leaf"] = sum(n.said - said[n.name] for n in leaves) / len(leaves) / seconds
            others = [node for node in nodes if node not in leaves]
            if others:
                told = sum(n.said - said[n.name] for n in others)
                self._results["messages"] = told / len(others) / seconds
        self._results["false_deaths"] = float(self._false_deaths())

    def _false_deaths(self) -> int:
        alive = {name for name, node in self.world.nodes.items() if node.alive}
        return sum(
            status in ("dead", "left") and name in alive
            for node in self.world.nodes.values() if node.alive for name, status in node.sees().items()
        )  # fmt: skip

    def detect(self, victims: list[Node]) -> None:
        """Kill nodes without a sound, half a minute apart; take the time until each other has each for dead.

        Leaves are told of it when they say something next, and are not waited for.
        """
        took = []
        for victim in victims:
            self.world.pause(APART_S)
            victim.crash(reset=False)
            began_s = self.world.now
            self.world.run(lambda victim=victim: self._known_dead(victim), KNOWN_WITHIN_S, look_s=LOOK_S)  # type: ignore[misc]
            took.append(self.world.now - began_s)
        self._results["detection_s"] = max(took)

    def _known_dead(self, victim: Node) -> bool:
        others = (n for n in self.world.nodes.values() if n.alive and n.more.get("preset") != "edge")
        return all(n.sees().get(victim.name) in ("dead", None) for n in others)

    def result(self, drawn: Drawn) -> Mapping[str, float]:
        """Return all figures, rounded so that they read well."""
        world = self.world
        found = dict(self._results)
        truths = list(world.truths.values())
        begun = sum(sum(truth.runs.values()) for truth in truths)
        touched = sum(len(truth.runs) for truth in truths)
        if touched:
            found["executions"] = begun / touched
            found["tasks"] = touched
            well = [
                runs for truth in truths for index, runs in truth.runs.items() if truth.plan(index).outcome == OK
            ]  # a task that brings its worker or node down is meant to run again
            found["executions_well"] = sum(well) / max(len(well), 1)
        done = [job for job in world.jobs if job.state == "done" and job.ended_s is not None and job.of is None]
        if done and self.ended_s is not None:
            began_s = min(job.began_s for job in done)
            ended_s = max(job.ended_s for job in done if job.ended_s is not None)
            work_s = sum(world.truths[job.job].plan(i).seconds for job in done for i in range(job.count))
            speed = sum(node.speed * node.slots for node in world.nodes.values())
            found["makespan_s"] = ended_s - began_s
            found["efficiency"] = work_s / speed / max(ended_s - began_s, 1e-9)
        return {name: float(f"{value:.6g}") for name, value in sorted(found.items())}
