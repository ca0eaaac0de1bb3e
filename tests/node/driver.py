"""A heap and a seed: several machines, their disks, workers, clients and a bad network, in virtual time.

The machines are those of the daemon; nothing here tells them anything but events. A disk forgets what was not `Stored`
when its node crashes; the network loses, doubles, delays and reorders. Every random choice comes from one seed. The
simulator grows out of this file.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, ITEMS, content_id, encode_batch, pickled_function
from p2pgrid.core.deps import DEPENDENT, TaskId, table
from p2pgrid.core.errors import ObjectLost
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.machine import Machine, MachineConfig

UNION = pickled_function(11, b"the function")
CODE = content_id(UNION)
UNIX_0 = 1_800_000_000.0


@dataclass
class Faults:
    """What the world does to messages and workers; probabilities."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = (0.0005, 0.002)
    slow: float = 0.0
    slow_s: float = 2.0
    reset_seen: float = 0.5
    """How often a crash is seen as a reset connection; else the node just falls silent."""
    ordered: bool = False
    """Frames arrive in order as on a connection; those above 64 KiB take a stream of their own."""
    rate: float = 0.0
    """Bytes per second of such a stream between two nodes; 0: no limit."""


@dataclass
class Task:
    """What one task does when it runs."""

    seconds: float
    outcome: str = "ok"  # ok | raise | crash | timeout | memory | kill: its node dies
    times: int = 1 << 30
    """How many executions end so; the ones after them are well."""


Needs = Callable[[int], Sequence[TaskId]]
"""What a task depends on."""


class World:
    """All nodes and the heap."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.runs: Counter[tuple[bytes, int]] = Counter()
        self.prints = False
        """Whether every task prints a line, that of `line_of`."""
        self.sent: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()
        """Of the frames by kind, without those that a cut connection took in vain."""
        self.cut: set[frozenset[str]] = set()
        """Pairs of nodes that do not reach each other."""
        self.cuts: Counter[frozenset[str]] = Counter()
        self._free_s: dict[tuple[str, str, bool], float] = {}
        self.tasks: dict[bytes, Callable[[int], Task]] = {}
        self.killed: Callable[[Node], None] = lambda node: node.crash()
        """What becomes of a node that is killed by its task."""
        self.needs: dict[bytes, Needs] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, action))

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Let time pass until a condition holds; False if the limit came first."""
        end = self.now + limit_s
        while self._heap and not until():
            if self._heap[0][0] > end:
                self.now = end
                break
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return until()

    def add(self, name: str, **config: Any) -> Node:
        """Add a node and start it."""
        node = self.nodes[name] = Node(self, name, config)
        node.start()
        return node

    def deliver(self, source: Node, effect: e.Send) -> None:
        """Carry a frame, badly."""
        self.sent[effect.kind] += 1
        packed = pack(effect.body)
        body = unpack(packed)
        if frozenset((source.name, effect.peer)) in self.cut:
            return
        self.bytes[effect.kind] += len(packed)
        if self.faults.ordered:
            self._carry(source, effect, body, len(packed))
            return
        copies = 0 if self.rng.random() < self.faults.loss else 1
        copies += self.rng.random() < self.faults.duplicate
        life = source.life
        for _ in range(copies):
            delay = self.rng.uniform(*self.faults.delay_s)
            if self.rng.random() < self.faults.slow:
                delay += self.rng.uniform(0, self.faults.slow_s)
            self.at(delay, lambda: self._arrive(source, life, effect, body))

    def _carry(self, source: Node, effect: e.Send, body: Any, size: int) -> None:
        """Carry a frame as a connection does."""
        bulk = size > 64 << 10
        stream = (source.name, effect.peer, bulk)
        takes = size / self.faults.rate if bulk and self.faults.rate else 0.0
        leaves = max(self.now, self._free_s.get(stream, 0.0)) + takes if bulk else self.now
        arrives = max(leaves + self.rng.uniform(*self.faults.delay_s), self._free_s.get(stream, 0.0))
        self._free_s[stream] = leaves if bulk else arrives
        life, cut = source.life, self.cuts[frozenset(stream[:2])]

        def arrive() -> None:
            if self.cuts[frozenset(stream[:2])] == cut:  # a connection that ends loses what is under way
                self._arrive(source, life, effect, body)

        self.at(arrives - self.now, arrive)

    def sever(self, a: Node, b: Node, *, reset: bool = False) -> None:
        """End the connection of two nodes."""
        self.cuts[frozenset((a.name, b.name))] += 1
        self.cut.add(frozenset((a.name, b.name)))
        a.handle(e.PeerDown(b.name, reset))
        b.handle(e.PeerDown(a.name, reset))

    def reconnect(self, a: Node, b: Node) -> None:
        """Connect two nodes again."""
        self.cut.discard(frozenset((a.name, b.name)))
        a.handle(e.PeerUp(b.name, b.facts))
        b.handle(e.PeerUp(a.name, a.facts))

    def _arrive(self, source: Node, life: int, effect: e.Send, body: Any) -> None:
        target = self.nodes[effect.peer]
        if frozenset((source.name, effect.peer)) in self.cut:
            return
        if target.alive and (source.life == life or not source.alive):
            target.handle(e.PeerSent(source.name, effect.kind, body))


class Node:
    """A machine with its disk, workers and timers."""

    def __init__(self, world: World, name: str, config: dict[str, Any]) -> None:
        self.world = world
        self.name = name
        self.speed = config.pop("speed", 1.0)
        """How fast its workers are."""
        self.config = {"slots": 2, **config}
        self.disk: dict[tuple[bytes, str, bytes], e.Row] = {}
        self.alive = False
        self.life = 0
        self.logs: list[str] = []
        self.stopped: list[str] | None = None
        self.clients: dict[int, Client] = {}
        self.workers: dict[int, Child] = {}
        self._timers: dict[tuple[Any, ...], int] = {}
        self._timer_count = 0
        self._unsynced: dict[int, list[e.Row]] = {}
        self._sync_count = 0
        self._synced_s = 0.0
        self.damaged: set[tuple[bytes, str, bytes]] = set()
        """Rows on disk that fail their checksum."""
        self.lacks = ""
        """Why no function can be loaded here."""
        self.disk_full = False

    @property
    def facts(self) -> dict[str, Any]:
        """What this node says of itself."""
        slots = self.config["slots"]
        resources = {"cpu": slots, "mem": 8 << 30, **self.config.get("resources", {})}
        keeps = self.config.get("keeps", True)
        return {"name": self.name, "slots": slots, "minor": 11, "resources": resources, "keeps": keeps}

    def start(self) -> None:
        """Begin a life: with the rows on disk, and a greeting from every live peer."""
        self.life += 1
        self.alive = True
        self._timers.clear()
        self._unsynced.clear()
        config = MachineConfig(
            self.name, self.name, "test-grid", self.config["slots"], self.facts,
            **{key: value for key, value in self.config.items() if key not in ("slots", "resources", "keeps")},
        )  # fmt: skip
        self.machine = Machine(config, random.Random(self.world.rng.random()))
        self.workers = {i: Child(self, i) for i in range(self.config["slots"])}
        rows = [row._replace(value=b"") if row.kind in e.HEAVY else row for row in self.disk.values()]
        self.handle(e.Loaded(rows, UNIX_0, int(self.world.now * 10)))
        for worker in self.workers:
            self.handle(e.WorkerReady(worker))
        for peer in self.world.nodes.values():
            if peer is not self and peer.alive:
                self._meet(peer)
                peer._meet(self)

    def _meet(self, peer: Node) -> None:
        life, theirs = self.life, peer.life

        def meet() -> None:
            if self.alive and self.life == life and peer.alive and peer.life == theirs:
                self.handle(e.PeerUp(peer.name, peer.facts))

        self.world.at(self.world.rng.uniform(0.001, 0.05), meet)

    def crash(self, *, with_disk: bool = True) -> None:
        """Die at once; what was not synced is gone."""
        self.alive = False
        self.life += 1
        if not with_disk:
            self.disk.clear()
        for client in self.clients.values():
            client.connected = False
        self.clients.clear()
        reset = self.world.rng.random() < self.world.faults.reset_seen
        for peer in self.world.nodes.values():
            if peer is not self and peer.alive:
                delay = self.world.rng.uniform(0.01, 0.1) if reset else self.world.rng.uniform(5, 10)
                self.world.at(delay, partial(self._missed, peer, self.life, reset=reset))

    def _missed(self, peer: Node, life: int, *, reset: bool) -> None:
        if peer.alive and self.life == life:
            peer.handle(e.PeerDown(self.name, reset))

    def handle(self, event: e.Event) -> None:
        """Feed the machine and carry its effects out."""
        for effect in self.machine.handle(event, self.world.now):
            self._perform(effect)

    def _later(self, delay_s: float, event: e.Event) -> None:
        life = self.life
        self.world.at(delay_s, lambda: self.handle(event) if self.alive and self.life == life else None)

    def _perform(self, effect: e.Effect) -> None:
        match effect:
            case e.Reply(client, kind, id_, body):
                if client in self.clients:
                    self.clients[client].receive(kind, id_, unpack(pack(body)))
            case e.Send():
                self.world.deliver(self, effect)
            case e.Store():
                self._store(effect)
            case e.Fetch(token, keys):
                pending = {(r.job, r.kind, r.key): r for rows in self._unsynced.values() for r in rows}
                found = [pending.get(key) or self.disk.get(key) for key in keys if key not in self.damaged]
                rows = [row for row in found if row is not None]
                self._later(self.world.rng.uniform(0.001, 0.01), e.Fetched(token, rows))
            case e.Run():
                self.workers[effect.worker].queue(effect)
            case e.Recall(worker):
                self.workers[worker].recall()
            case e.Kill(worker, run, spans):
                self.workers[worker].kill(run, spans)
            case e.SetTimer(key, at_s):
                self._set_timer(key, at_s)
            case e.Log(_, text):
                self.logs.append(text)
            case e.Stopped(waiting):
                self.stopped = list(waiting)

    def _store(self, effect: e.Store) -> None:
        self._sync_count += 1
        number = self._sync_count
        self._unsynced[number] = list(effect.rows)
        life = self.life

        def sync() -> None:
            if not self.alive or self.life != life:
                return
            rows = self._unsynced.pop(number)
            if self.disk_full:
                self.handle(e.StoreFailed(effect.token, "no space left on the disk"))
                return
            for row in rows:
                if row.kind == "*":
                    self.disk = {key: kept for key, kept in self.disk.items() if key[0] != row.job}
                elif row.value is None:
                    self.disk.pop((row.job, row.kind, row.key), None)
                else:
                    self.disk[row.job, row.kind, row.key] = row
                    self.damaged.discard((row.job, row.kind, row.key))
            if effect.token:
                self.handle(e.Stored(effect.token))

        # One commit after the other, as a journal does it.
        self._synced_s = max(self._synced_s, self.world.now + self.world.rng.uniform(0.002, 0.02))
        self.world.at(self._synced_s - self.world.now, sync)

    def _set_timer(self, key: tuple[Any, ...], at_s: float | None) -> None:
        self._timer_count += 1
        if at_s is None:
            self._timers.pop(key, None)
            return
        number = self._timers[key] = self._timer_count
        life = self.life

        def fire() -> None:
            if self.alive and self.life == life and self._timers.get(key) == number:
                del self._timers[key]
                self.handle(e.TimerFired(key))

        self.world.at(max(0.0, at_s - self.world.now), fire)


CAUSES = {"crash": "signal", "timeout": "timeout", "memory": "memory"}


class Child:
    """A worker child that takes its time and may die of a task."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.runs: list[tuple[e.Run, list[tuple[int, e.Segment]]]] = []
        self.current: int | None = None
        self.step = 0
        self.since = 0.0

    def queue(self, run: e.Run) -> None:
        """Take a run."""
        tasks = [(i, segment) for segment in run.segments for i in range(segment.lo, segment.hi)]
        if self.node.lacks:
            returned = [(segment.lo, segment.hi) for segment in run.segments]
            done = e.WorkerDone(self.number, run.run, [], True, returned, 0.0, unfit=self.node.lacks)  # noqa: FBT003
            self.node._later(0.001, done)
            return
        self.runs.append((run, tasks))
        assert len(self.runs) <= 2, "more than two runs with a worker"
        if self.current is None:
            self._next()

    def _next(self) -> None:
        if not self.runs:
            self.current = None
            return
        run, tasks = self.runs[0]
        index, segment = tasks[0]
        self.current = index
        self.since = self.node.world.now
        self.step += 1
        step, life = self.step, self.node.life
        task = self.node.world.tasks[run.job](index)
        self.node.world.runs[run.job, index] += 1

        def done() -> None:
            if self.node.alive and self.node.life == life and self.step == step:
                self._done(task, run, index, segment)

        self.node.world.at(task.seconds / self.node.speed, done)

    def _done(self, task: Task, run: e.Run, index: int, segment: e.Segment) -> None:
        ill = task.outcome if self.node.world.runs[run.job, index] <= task.times else "ok"
        if ill == "kill":
            self.node.world.killed(self.node)
            return
        if ill in CAUSES:
            self.die(index, CAUSES[ill], "killed by signal SIGSEGV" if ill == "crash" else f"{ill} after 1 s")
            return
        _, tasks = self.runs[0]
        tasks.pop(0)
        if ill == "raise":
            outcome = e.Outcome(index, index + 1, 2, pack(encode_exception(ObjectLost(f"task {index}"))))
        elif segment.shape == DEPENDENT:
            call, places = segment.data[0][index - segment.lo]
            given = [unpack(data)[at] if shape else data for shape, data, at in values_in(segment)]
            assert call == b"%d" % index, "another task's arguments"
            wanted = [value_of(*task) for task in self.node.world.needs[run.job](index)]
            assert [given[place] for place in places] == wanted, "other values than it depends on"
            outcome = e.Outcome(index, index + 1, 0, [value_of(run.job, index)])
        elif segment.shape == CALLS:
            given = segment.data[index - segment.lo].rstrip(b"\0")  # some are made large
            assert given == b"%d" % index, "another task's arguments"
            outcome = e.Outcome(index, index + 1, 0, [value_of(run.job, index)])
        else:
            assert unpack(segment.data)[segment.offset + index - segment.lo] == index, "another task's item"
            outcome = e.Outcome(index, index + 1, 1, pack([value_of(run.job, index)]))
        final = not tasks
        if final:
            self.runs.pop(0)
        busy = self.node.world.now - self.since
        self.current = None
        logs = [(index, line_of(index))] if self.node.world.prints else []
        self.node.handle(e.WorkerDone(self.number, run.run, [outcome], final, [], busy, logs=logs))
        if self.current is None:
            self._next()

    def die(self, index: int | None, cause: str, detail: str = "") -> None:
        """The process ends; a new one follows."""
        run = self.runs[0][0].run if self.runs else None
        self.runs.clear()
        self.current = None
        self.step += 1
        self.node._later(0.05, e.WorkerReady(self.number))
        self.node.handle(e.WorkerDied(self.number, run, index, cause, detail, "Segmentation fault\n"))

    def kill(self, run: int, spans: Any) -> None:
        """Kill what runs, if it is meant; else give back what has not started."""
        current = self.runs[0][0].run if self.runs else None
        if self.current is not None and (
            spans is None or (current == run and any(lo <= self.current < hi for lo, hi in spans))
        ):
            self.die(self.current, "killed")
        else:
            self.recall()

    def recall(self) -> None:
        """Give back what has not started."""
        for position, (run, tasks) in list(enumerate(self.runs)):
            keep = 1 if position == 0 else 0
            back = RangeSet((i, i + 1) for i, _ in tasks[keep:])
            if back:
                del tasks[keep:]
                final = not tasks
                self.node._later(0.0, e.WorkerDone(self.number, run.run, [], final, list(back), 0.0))
        self.runs = [(run, tasks) for run, tasks in self.runs if tasks]


def line_of(index: int) -> bytes:
    """Return what a task prints in a world where they do."""
    return b"task %d is done\n" % index


def values_in(segment: e.Segment) -> list[Any]:
    """Return the values that came with a run of dependent tasks, each with its data."""
    said = segment.data[1]
    return [[shape, said[data][1] if type(data) is int else data, at] for shape, data, at in said]


def size_of(data: Any) -> int:
    """Return how many bytes of result these are, as a client counts them."""
    return len(data) if isinstance(data, bytes) else sum(map(len, data))


def value_of(job: bytes, index: int) -> bytes:
    """Return what task `index` returns."""
    return job[:4] + b"%d" % index


@dataclass
class Client:
    """A client that submits jobs to one node, reads them, and comes back after the node's crash."""

    node: Node
    number: int
    session: bytes
    jobs: dict[bytes, Submitted] = field(default_factory=dict)
    connected: bool = False
    answers: dict[int, Any] = field(default_factory=dict)
    errors: list[Any] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    welcome: Any = None
    slow: bool = False
    """Takes nothing in by itself."""
    unread: Counter[bytes] = field(default_factory=Counter)

    def take_in(self, job: bytes) -> None:
        """Give the node credit for what was received."""
        self.say(m.GOT, [job, self.unread.pop(job, 0)])

    def connect(self) -> None:
        """Say hello, and again all that was not acknowledged."""
        self.connected = True
        self.node.clients[self.number] = self
        self.node.handle(e.ClientJoined(self.number, self.session, "test", 1))
        for job in self.jobs.values():
            job.send(self)

    def leave(self, *, goodbye: bool) -> None:
        """End the connection."""
        self.connected = False
        self.node.clients.pop(self.number, None)
        self.node.handle(e.ClientGone(self.number, goodbye))

    def say(self, kind: int, body: Any, id_: int = 0) -> None:
        """Send a frame."""
        if self.connected:
            self.node.handle(e.ClientSent(self.number, kind, id_, unpack(pack(body))))

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask for something the machine answers at once."""
        id_ = len(self.answers) + len(self.errors) + 1
        self.say(m.REQUEST, [verb, arguments], id_)
        return self.answers.get(id_)

    def receive(self, kind: int, id_: int, body: Any) -> None:
        """Take in a frame."""
        match kind:
            case m.WELCOME:
                self.welcome = body
            case m.ACK if body[0] in self.jobs:
                self.jobs[body[0]].acks.append((body[1], body[2]))
            case m.RESULT:
                self.jobs[body[0]].results(body[1])
                self.unread[body[0]] += sum(size_of(data) for _, _, _, data, _, _ in body[1])
                if not self.slow:
                    self.take_in(body[0])
            case m.STATE:
                self.jobs[body[0]].state, self.jobs[body[0]].reason = body[1:]
            case m.ANSWER:
                self.answers[id_] = body
            case m.ERROR | m.REFUSED:
                self.errors.append(body)
            case m.NOTICE:
                self.notices.append(body[1])

    def submit(self, job: bytes, count: int, task: Callable[[int], Task], **how: Any) -> Submitted:
        """Submit a job of `count` tasks."""
        self.node.world.tasks[job] = task
        submitted = self.jobs[job] = Submitted(job, count, **how)
        if submitted.needs is not None:
            self.node.world.needs[job] = submitted.needs
        submitted.send(self)
        return submitted

    def read(self, job: bytes, patience_s: float = 10.0, *, stable: bool = False) -> Submitted:
        """Read a job that somebody else submitted."""
        read = self.jobs[job] = Submitted(job, 0, patience_s=patience_s, stable=stable)
        read.send(self)
        return read


@dataclass
class Submitted:
    """One job as its client sees it."""

    job: bytes
    count: int
    packed: bool = False
    batch: int = 50
    options: dict[str, Any] = field(default_factory=dict)
    detach: bool = False
    close: bool = True
    needs: Needs | None = None
    ttl_s: float = 7 * 86400.0
    patience_s: float | None = None
    """Set: it is only read."""
    stable: bool = False
    state: str = ""
    reason: str = ""
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    got: dict[int, tuple[int, Any]] = field(default_factory=dict)
    acks: list[tuple[str, Any]] = field(default_factory=list)
    delivered: Counter[int] = field(default_factory=Counter)

    def send(self, client: Client) -> None:
        """Open, append, close, watch: all again, byte for byte, after a reconnect."""
        had = RangeSet((i, i + 1) for i in self.got).flat()
        if self.patience_s is not None:
            client.say(m.WATCH, [self.job, had, self.patience_s, *([0, True] if self.stable else [])])
            return
        spec = Spec("map", "", client.session, UNIX_0 + 1000.0, self.ttl_s, detach=self.detach).packed()
        client.say(m.OPEN, [self.job, spec])
        client.say(m.CODE, [self.job, CODE, UNION])
        for lo in range(0, self.count, self.batch):
            hi = min(self.count, lo + self.batch)
            data: Any = [b"%d" % i for i in range(lo, hi)]
            run = (hi - lo, 0, 0, CALLS, data)
            if self.needs is not None:
                said = [(call, self.needs(i)) for i, call in enumerate(data, lo)]
                run = (hi - lo, 0, 0, DEPENDENT, table(said, self.job))
            if self.packed:
                run = (hi - lo, 0, 0, ITEMS, pack(list(range(lo, hi))))
            client.say(m.INPUT, [self.job, lo, hi, encode_batch([CODE], [self.options], [run])])
        if self.close:
            client.say(m.CLOSE, [self.job, self.count])
        client.say(m.WATCH, [self.job, had])

    def results(self, entries: list[Any]) -> None:
        """Count every index once, and check its value."""
        for lo, hi, shape, data, node, attempt in entries:
            for i in range(lo, hi):
                self.places[i] = node, attempt
                if shape == 0:
                    assert data[i - lo] == value_of(self.job, i)
                elif shape == 1:
                    assert unpack(data)[i - lo] == value_of(self.job, i)
                self.delivered[i] += 1
                self.got.setdefault(i, (shape, data))

    @property
    def ended(self) -> bool:
        """Whether its client was told the end."""
        return self.state not in ("", "unknown")
