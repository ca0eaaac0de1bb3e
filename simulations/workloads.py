"""What is given to a grid: kinds of work, each a function that submits jobs and says what shall become of them.

A kind is a function `(work, scene)` registered under its name; its parameters are fields of `Work`. To add one, write
the function, add it to `KINDS`, and use it in a scenario (docs/simulator.md shows how).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pgrid.core.deps import TaskId
from p2pgrid.simulations import truth as t
from p2pgrid.simulations.truth import Plan

if TYPE_CHECKING:
    from p2pgrid.simulations.client import Client, Job
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

AGAIN_S = 2.0
"""Who asked for something that has to be answered asks again after that."""
PARETO = 1.5
LONGEST = 0.05
"""No task of an uneven job is a larger part of all its work."""
ACKNOWLEDGED_S = 0.005
"""So often it is looked whether a job is acknowledged."""
ORPHANED_S = 60.0
"""After so long a node cancels what a client left behind that never said goodbye."""


@dataclass(frozen=True)
class Work:
    """One `[[work]]` of a scenario; times in seconds."""

    kind: str
    jobs: int = 1
    tasks: int = 100
    seconds: float = 0.2
    """Of a task, on average, on a worker of speed 1."""
    spread: str = "even"
    """even, random (0.2 to 1.8 times the average) or uneven (Pareto)."""
    at_s: float = 0.0
    every_s: float = 5.0
    """Between the jobs."""
    packed: float = 0.5
    """So often the inputs come as one packed list, as `map` sends them."""
    rate: float = 50.0
    """submits: tasks per second."""
    share: float = 0.05
    """poison: of the tasks; depends: of them, those that need one of another job."""
    times: int = 1 << 30
    """poison, killer: so many executions end badly, later ones do not."""
    size: int = 0
    """Bytes of each result."""
    fickle: float = 0.0
    """So often a job's tasks return another value each time."""
    wait_s: float = 20.0
    """late, readers: until the results are read; cancel, dying: until it happens, at random within it."""
    least_s: float = 0.0
    """readers: not earlier than that."""


class Scene:
    """What a workload may use: the world, the nodes that take jobs, and chance."""

    def __init__(self, world: World, owners: list[Node], rng: random.Random, scale: float = 1.0) -> None:
        self.world = world
        self.owners = owners
        self.rng = rng
        self.scale = scale
        """Of the number of tasks; a failing run is tried with fewer."""
        self._clients: dict[str, Client] = {}

    def client(self, *, fresh: bool = False) -> Client:
        """Return a program at one of the owners."""
        owner = self.rng.choice(self.owners)
        if fresh or owner.name not in self._clients:
            client = self.world.client(owner)
            if fresh:
                return client
            self._clients[owner.name] = client
        return self._clients[owner.name]

    def tasks(self, work: Work) -> int:
        """Return how many tasks a job gets."""
        return max(1, round(work.tasks * self.scale))

    def plans(self, work: Work, count: int, bad: str = t.OK, share: float = 0.0) -> Callable[[int], Plan]:
        """Return what each task does; a `share` of them is `bad`."""
        rng = random.Random(self.rng.random())
        if work.spread == "uneven":
            drawn = [rng.paretovariate(PARETO) for _ in range(count)]
            most = max(LONGEST * sum(drawn), sum(drawn) / count)
            drawn = [min(one, most) for one in drawn]
            scale = work.seconds * count / sum(drawn)
        elif work.spread == "random":
            drawn, scale = [rng.uniform(0.2, 1.8) for _ in range(count)], work.seconds
        else:
            drawn, scale = [1.0] * count, work.seconds
        fickle = rng.random() < work.fickle
        ill = set(rng.sample(range(count), min(count, math.ceil(share * count)))) if share else set()
        made = [
            Plan(one * scale, bad if index in ill else t.OK, work.times, work.size, fickle)
            for index, one in enumerate(drawn)
        ]
        return made.__getitem__


Kind = Callable[[Work, Scene], None]


def _each(work: Work, scene: Scene, begin: Callable[[], None]) -> None:
    for number in range(work.jobs):
        scene.world.at(work.at_s + number * work.every_s, begin)


def _submit(work: Work, scene: Scene, client: Client, bad: str = t.OK, share: float = 0.0, **how: Any) -> Job:
    count = scene.tasks(work)
    packed = scene.rng.random() < work.packed
    return client.submit(count, scene.plans(work, count, bad, share), packed=packed, **how)


def map_(work: Work, scene: Scene) -> None:
    """Submit jobs whose tasks all come at once."""
    _each(work, scene, lambda: void(_submit(work, scene, scene.client())))


def submits(work: Work, scene: Scene) -> None:
    """Submit tasks one by one into one open job, as a program does in a loop."""

    def begin() -> None:
        job = _submit(work, scene, scene.client(), at_once=False, batch=1)
        step_s = 1 / work.rate

        def one() -> None:
            job.more(job.sent + 1)
            if job.sent < job.count:
                scene.world.at(step_s, one)

        one()

    _each(work, scene, begin)


def poison(work: Work, scene: Scene) -> None:
    """Submit jobs some of whose tasks raise, crash their worker, take too long or too much memory."""

    def begin() -> None:
        bad = scene.rng.choice([t.RAISE, t.CRASH, t.TIMEOUT, t.MEMORY])
        _submit(work, scene, scene.client(), bad, work.share)

    _each(work, scene, begin)


def killer(work: Work, scene: Scene) -> None:
    """Submit jobs with one task that brings down the node it runs on."""

    def begin() -> None:
        _submit(work, scene, scene.client(), t.NODE, 1e-9)

    _each(work, scene, begin)


def late(work: Work, scene: Scene) -> None:
    """Submit jobs whose results are read long after."""

    def begin() -> None:
        job = _submit(work, scene, scene.client(), watch=False)
        scene.world.at(scene.rng.uniform(0, work.wait_s), job.read)

    _each(work, scene, begin)


def readers(work: Work, scene: Scene) -> None:
    """Submit jobs that a second program reads as well, at any other node, later: it has to get the same."""

    def begin() -> None:
        job = _submit(work, scene, scene.client())
        others = [node for node in scene.world.nodes.values() if node is not job.client.node]
        reader = scene.world.client(scene.rng.choice(others or [job.client.node]))
        scene.world.at(work.least_s + scene.rng.uniform(0, work.wait_s), reader.reads(job).read)

    _each(work, scene, begin)


def forget(work: Work, scene: Scene) -> None:
    """Submit jobs and have them forgotten once they have ended."""

    def begin() -> None:
        job = _submit(work, scene, scene.client())

        def look(asked: int = 0) -> None:
            client = job.client
            job.forgotten = asked in client.answers
            if job.forgotten or asked in client.errors or not client.alive:
                return
            if job.ended and client.connected:
                scene.world.forgotten[job.job] = None
                asked = client.ask("forget", target=job.job.hex())
            scene.world.at(AGAIN_S, look, asked)

        look()

    _each(work, scene, begin)


def cancel(work: Work, scene: Scene) -> None:
    """Submit jobs and cancel them, or some of their tasks, while they run."""

    def begin() -> None:
        job = _submit(work, scene, scene.client())
        lo, hi = sorted(scene.rng.sample(range(job.count + 1), 2))
        spans = None if scene.rng.random() < 0.5 else [(lo, hi)]  # noqa: PLR2004 - as often all as some
        scene.world.at(scene.rng.uniform(0, work.wait_s), lambda: _cancel(job, spans))

    _each(work, scene, begin)


def _cancel(job: Job, spans: list[tuple[int, int]] | None) -> None:
    """Cancel as a program does: again, over the next connection, until it is acknowledged."""
    if job.ended or (spans is not None and job.cancelled):
        return
    job.cancel(spans)
    if ("cancel", 0) not in job.acks:
        job.client.world.at(5.0, lambda: _cancel(job, spans))


def dying(work: Work, scene: Scene) -> None:
    """Submit jobs from programs that are killed meanwhile; every other job is detached and goes on."""

    def begin() -> None:
        client = scene.client(fresh=True)
        job = _submit(work, scene, client, detach=scene.rng.random() < 0.5)  # noqa: PLR2004
        job.shall_end = False

        def die() -> None:
            client.leave(goodbye=False)

        scene.world.at(scene.rng.uniform(0, work.wait_s), die)

    _each(work, scene, begin)


def orphan(work: Work, scene: Scene) -> None:
    """Submit jobs whose node dies for ever as soon as it has acknowledged them, and their program; others read them."""

    def begin() -> None:
        job = _submit(work, scene, scene.client(fresh=True), watch=False, detach=True)
        job.shall_end = False
        _leave_alone(job, scene, scene.rng.random() < 0.5)  # noqa: PLR2004 - as often seen as not

    _each(work, scene, begin)


def _leave_alone(job: Job, scene: Scene, reset: bool) -> None:  # noqa: FBT001 - called by the clock
    world, node = scene.world, job.client.node
    if not (job.durable and ("close", 0) in job.acks):
        world.at(ACKNOWLEDGED_S, _leave_alone, job, scene, reset)
        return
    job.client.leave(goodbye=False)
    node.crash(reset=reset)
    node.is_gone = True
    others = [one for one in world.nodes.values() if one not in scene.owners]
    reader = world.client(scene.rng.choice(others)).reads(job)
    world.at(scene.rng.uniform(0, 1.0), reader.read)


def depends(work: Work, scene: Scene) -> None:
    """Submit jobs in layers: a task needs two of the layer before it, some also one of another program's job."""
    before: list[Job] = []

    def begin() -> None:
        count = scene.tasks(work)
        width = max(1, math.isqrt(count))
        others, rng = [job for job in before if job.durable], random.Random(scene.rng.random())
        needs: list[list[TaskId]] = []
        client = scene.client(fresh=True)

        def of(index: int) -> list[TaskId]:
            return needs[index]

        job = client.submit(count, scene.plans(work, count), at_once=False, needs=of, batch=rng.choice([1, 7, 64]))
        for index in range(count):
            layer = index // width
            near = [TaskId(job.job, (layer - 1) * width + rng.randrange(width)) for _ in range(2 if layer else 0)]
            other = rng.choice(others) if others and rng.random() < work.share else None
            far = [] if other is None else [TaskId(other.job, rng.randrange(other.count))]
            needs.append(list(dict.fromkeys(near + far)))
        job.more(count)
        before.append(job)

    _each(work, scene, begin)


def void(_: object) -> None:
    """Forget a value."""


KINDS: dict[str, Kind] = {
    "map": map_,
    "submits": submits,
    "poison": poison,
    "killer": killer,
    "late": late,
    "readers": readers,
    "forget": forget,
    "cancel": cancel,
    "dying": dying,
    "orphan": orphan,
    "depends": depends,
}
