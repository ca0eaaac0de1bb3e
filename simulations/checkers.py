"""What must hold: at every step (or sampled), after the faults have ended, and as figures.

A safety checker is a class with some of these methods, each of which raises by `Safety.fail`:

    replied(node, effect)   a node tells a client something
    said(node, effect)      a node sends a frame of a kind that `Safety` watches
    handled(node, peer, …)  a node has taken in a frame of a member that may neither submit nor work
    storing(node, effect)   a node asks for a commit that deletes a job
    looked(node)            a sample: one live node every `check_every` steps
    lived(node)             a life begins

The names in front are those of ALGORITHMS §7.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId, Record, State, merge
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.simulations.checking import Checker
from p2pgrid.simulations.checks_of_copies import Last
from p2pgrid.simulations.checks_of_rights import Lookers, OneOwner, Taken
from p2pgrid.simulations.checks_of_room import Room
from p2pgrid.simulations.world import Violation

if TYPE_CHECKING:
    from p2pgrid.node.kept import Kept
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World

TIMERS_MAX = 256
NEWS_MAX = 4096
LOOK_S = 0.05
"""Conditions that walk over all nodes are looked at so often."""
LAWS_EVERY, LAWS_SELDOM = 4, 64
"""Laws of merging are tried on every so many samples of a record, on those with many batches less often."""
MANY = 500


class Safety:
    """All safety checkers of a world."""

    def __init__(self, world: World, checkers: tuple[type[Checker], ...] | None = None) -> None:
        self.world = world
        self.looks = 0
        chosen = CHECKERS if checkers is None else checkers
        self._all = [checker(world) for checker in chosen]
        self._turn = 0
        world.observers.append(self)
        world.check = self.look
        for kind in (m.P_RESULTS_ACK, m.P_WANT, m.P_GRANT, m.P_HANDOVER):
            world.network.watch.setdefault(kind, []).append(self.said)

    def look(self) -> None:
        """Sample one live node, each in its turn, and what clients were told."""
        nodes = list(self.world.nodes.values())
        for _ in range(len(nodes)):
            self._turn += 1
            node = nodes[self._turn % len(nodes)]
            if node.alive:
                self.looks += 1
                for checker in self._all:
                    checker.looked(node)
                return

    def replied(self, node: Node, effect: e.Reply) -> None:
        """A node tells a client something."""
        for checker in self._all:
            checker.replied(node, effect)

    def said(self, node: Node, effect: Any) -> None:
        """A node sends a frame that somebody wants to look at."""
        for checker in self._all:
            checker.said(node, effect)

    def handled(self, node: Node, peer: Node, kind: int, effects: list[Any]) -> None:
        """A node has taken in a frame of a member that may neither submit nor work."""
        for checker in self._all:
            checker.handled(node, peer, kind, effects)

    def storing(self, node: Node, effect: e.Store) -> None:
        """A node deletes a job."""
        for checker in self._all:
            checker.storing(node, effect)

    def lived(self, node: Node) -> None:
        """A life begins."""
        for checker in self._all:
            checker.lived(node)

    def died(self, node: Node) -> None:
        """Nothing is checked of a node that ends."""


class Promises(Checker):
    """What was acknowledged is on disk."""

    name = "a promise after Stored"
    _ROWS: ClassVar = {
        "spec": ("spec", False),
        "code": ("code", True),
        "input": ("input", True),
        "close": ("close", False),
    }

    def replied(self, node: Node, effect: e.Reply) -> None:
        """An ACK to a client names a row."""
        if effect.kind != m.ACK or effect.body[1] not in self._ROWS:
            return
        job, what, lo = effect.body
        kept = node.machine.keeping.jobs.get(job)
        if kept is not None and kept.ended and any(key[:2] == (job, "state") for key in node.disk.rows):
            return  # that it has ended is on disk: nothing else of it is needed any more
        kind, keyed = self._ROWS[what]
        key = (lo if isinstance(lo, bytes) else lo.to_bytes(8, "big")) if keyed else b""
        if what == "close":
            key = b"" if kept is None else pack(kept.total)
        if (job, kind, key) not in node.disk.rows:
            self.fail(f"{node.name} acknowledged the {what} of {job.hex()[:6]}, which is not on its disk", node)

    def said(self, node: Node, effect: e.Send) -> None:
        """An acknowledgement of results names batches."""
        if effect.kind != m.P_RESULTS_ACK:
            return
        for job, incarnation, number in effect.body:
            kept = node.machine.keeping.jobs.get(job)
            if kept is None or kept.ended:
                continue  # nothing of it is needed any more
            batch = BatchId(effect.peer, incarnation, number)
            if batch not in kept.record.results or (job, "result", pack(batch)) in node.disk.rows:
                continue
            # A batch that came too late, and comes once more as another keeper's: others of the same tasks will do.
            known = [unpack(row.meta) for row in node.disk.rows.values() if row.job == job and row.kind == "result"]
            there = RangeSet((lo, hi) for _, _, _, lo, hi, *_ in known)
            if there.missing(kept.record.results[batch].lo, kept.record.results[batch].hi):
                self.fail(f"{node.name} acknowledged batch {number} of {effect.peer}, which is not on its disk", node)


class Delivered(Checker):
    """I4: a task is delivered once, with a value that some execution of it returned."""

    name = "I4 each result once, and right"

    def looked(self, node: Node) -> None:
        """Look at all that clients of this node were told."""
        for client in node.clients.values():
            for job in client.jobs.values():
                if job.wrong:
                    self.fail(f"job {job.job.hex()[:6]}: {job.wrong[0]}", node)


class Grows(Checker):
    """I1, I2, I3: a record only grows, and joining copies of it obeys the laws of a lattice."""

    name = "I2 a record only grows"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._before: dict[tuple[str, int, bytes], tuple[int, int, int, State, float, Any]] = {}
        self._copies: dict[tuple[str, int, bytes], Record] = {}
        self._kept: dict[tuple[str, int, bytes], Kept] = {}
        self._looks: dict[tuple[str, int, bytes], int] = {}
        self._turn = 0

    def lived(self, node: Node) -> None:
        """A former life may have known more than was on disk."""
        for store in (self._before, self._copies, self._kept, self._looks):
            for key in [key for key in store if key[0] == node.name]:
                del store[key]

    def looked(self, node: Node) -> None:
        """Compare one job of a node with what it was before."""
        jobs = node.machine.keeping.jobs
        if not jobs:
            return
        self._turn += 1
        names = list(jobs)
        job = names[self._turn % len(names)]
        kept = jobs[job]
        key = (node.name, node.life, job)
        self._compare(node, key, kept)
        looks = self._looks[key] = self._looks.get(key, 0) + 1
        if looks % (LAWS_EVERY if len(kept.record.results) < MANY else LAWS_SELDOM) == 0:
            self._laws(node, key, kept.record)

    def _compare(self, node: Node, key: tuple[str, int, bytes], kept: Kept) -> None:
        record = kept.record
        now = (
            len(record.results),
            record.closed or 0,
            len(record.lost),
            record.state,
            record.expires,
            kept.done.copy(),
        )
        before = self._before.get(key)
        self._before[key] = now
        if self._kept.get(key) is not kept:  # a copy that was dropped, and is had again
            self._kept[key] = kept
            self._copies.pop(key, None)
            return
        if before is None or record.state is State.FORGOTTEN:
            return
        names = ("result batches", "the number of tasks", "lost batches", "the state", "the expiry")
        for name, old, new in zip(names, before, now[:5], strict=False):
            if new < old and not (name == "the number of tasks" and node.disk.full):
                self.fail(f"{name} of {key[2].hex()[:6]} at {node.name} went from {old} to {new}", node)
        gone = before[5] - now[5]
        if gone and before[2] == now[2]:
            self.fail(f"tasks {gone} of {key[2].hex()[:6]} at {node.name} are not done any more", node)

    def _laws(self, node: Node, key: tuple[str, int, bytes], record: Record) -> None:
        old = self._copies.get(key)
        self._copies[key] = copy = record.copy()
        if copy != record:
            self.fail(f"a copy of {key[2].hex()[:6]} at {node.name} is not equal to it", node)
        if old is None:
            return
        there, back = merge(old, copy), merge(copy, old)
        if there != back:
            self.fail(f"merging two copies of {key[2].hex()[:6]} depends on their order", node)
        if any(batch not in there.results for one in (old, copy) for batch in one.results) and (
            there.state is not State.FORGOTTEN
        ):
            self.fail(f"merging two copies of {key[2].hex()[:6]} dropped batches", node)
        if merge(copy, copy) != copy:
            self.fail(f"merging {key[2].hex()[:6]} with itself changes it", node)


class Apart(Checker):
    """I5: no task is at once ready and running, or with two workers of one node."""

    name = "I5 a task is in one place of a node"

    def looked(self, node: Node) -> None:
        """Look through workers and pool."""
        seen: dict[bytes, Any] = {}
        for worker in node.machine.running.workers.values():
            for info in worker.runs:
                there = seen.get(info.job)
                if there is None:
                    seen[info.job] = info.left.copy()
                    continue
                both = there & info.left
                if both:
                    self.fail(f"tasks {both} of {info.job.hex()[:6]} are with two workers of {node.name}", node)
                there.update(info.left)
        for job, running in seen.items():
            work = node.machine.pool.works.get(job)
            for lane in work.lanes.values() if work is not None else ():
                both = lane.ready & running
                if both:
                    self.fail(f"tasks {both} of {job.hex()[:6]} run at {node.name} and are ready there", node)


class Bounded(Checker):
    """I7: timers and queues have bounds."""

    name = "I7 queues and timers are bounded"

    def looked(self, node: Node) -> None:
        """Count."""
        machine = node.machine
        timers = len(machine.parts.timers)
        open_jobs = len(machine.keeping.jobs)
        if timers > TIMERS_MAX + 4 * open_jobs:
            self.fail(f"{node.name} has {timers} timers with {open_jobs} jobs", node)


CHECKERS: tuple[type[Checker], ...] = (
    Promises,
    Delivered,
    Grows,
    Apart,
    Bounded,
    OneOwner,
    Taken,
    Last,
    Lookers,
    Room,
)


# ---- liveness, once the faults have ended ---------------------------------------------------------------------------


def must_end(world: World, limit_s: float) -> None:
    """L1: every job that shall end does. Raises Violation with who waits for whom."""
    if world.run(lambda: all(job.settled for job in world.jobs), limit_s, look_s=LOOK_S):
        return
    waiting = [job for job in world.jobs if not job.settled]
    nodes = list(dict.fromkeys(job.client.node for job in waiting))
    raise Violation("L1 every job ends", "; ".join(who_waits(world, job) for job in waiting[:3]), nodes[:3])


def who_waits(world: World, job: Any) -> str:
    """Say where the open tasks of a job are, as far as anybody can see."""
    missing = [i for i in range(job.count) if i not in job.got]
    first = missing[0] if missing else None
    where = []
    for node in world.nodes.values():
        if not node.alive:
            continue
        machine = node.machine
        work = machine.pool.works.get(job.job)
        if work is not None and any(first in lane.ready for lane in work.lanes.values() if first is not None):
            where.append(f"ready at {node.name}")
        if first is not None and first in machine.running.spans(job.job):
            where.append(f"with a worker of {node.name}")
        for holder, held in machine.leases.holders.items():
            if first is not None and first in held.covered.get(job.job, ()):
                where.append(f"covered at {node.name} by {holder}")
        if job.job in machine.keeping.jobs and first is not None and first in machine.keeping.jobs[job.job].done:
            where.append(f"done at {node.name}, which has not told the client")
    what = f"{len(missing)} of {job.count} results missing" if missing else "all results are there, and no end"
    return f"job {job.job.hex()[:6]} at {job.client.node.name} ({what}, waited {world.now - job.began_s:.0f} s): " + (
        f"task {first} is {', '.join(where) or 'nowhere'}" if missing else ""
    )


def must_be_right(world: World) -> None:
    """I4 at the end: every task of a job that was done has been delivered exactly once."""
    for job in world.jobs:
        wrong = list(job.wrong)
        if not wrong and job.state == "done" and job.watch and len(job.got) + len(job.cancelled_tasks) < job.count:
            wrong = [f"it is done, and {job.count - len(job.got)} results never came"]
        if wrong:
            raise Violation(Delivered.name, f"job {job.job.hex()[:6]}: {wrong[0]}", [job.client.node])


def must_agree(world: World, limit_s: float) -> None:
    """L3: every live node sees the live ones, and nobody else, as alive."""
    if world.run(world.agreed, limit_s, look_s=LOOK_S):
        return
    alive = {name for name, node in world.nodes.items() if node.alive}
    for node in world.nodes.values():
        if node.alive:
            seen = {name for name, status in node.sees().items() if status == "alive"}
            if seen != alive:
                lacks, more = sorted(alive - seen), sorted(seen - alive)
                what = f"{node.name} sees {len(seen)} alive; lacks {lacks[:5]}, has {more[:5]} too many"
                raise Violation("L3 membership agrees", what, [node])


def must_be_idle(world: World, limit_s: float) -> None:
    """L6: nothing runs, waits or is kept for others when all work is over."""
    if world.run(lambda: not _left(world), limit_s, look_s=LOOK_S):
        return
    node, what = _left(world)[0]
    raise Violation("L6 nothing is left over", f"{node.name} {what}", [node])


def _left(world: World) -> list[tuple[Node, str]]:
    found: list[tuple[Node, str]] = []
    for node in world.nodes.values():
        if not node.alive:
            continue
        machine = node.machine
        if machine.running.busy():
            found.append((node, "still runs something"))
        elif machine.pool.ready():
            found.append((node, "still has something ready"))
        elif any(child.runs for child in node.workers.values()):
            found.append((node, "has a worker that its machine forgot"))
        elif node.name in world.revoked:
            continue  # what it held before it lost its role it keeps as long as it is connected
        elif any(work.keeper is not None for work in machine.pool.works.values()):
            found.append((node, "still keeps inputs of others"))
    return found
