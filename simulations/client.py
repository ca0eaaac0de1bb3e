"""A simulated client: a program at one node that submits jobs, reads them, and comes back after the node's crash.

It knows what its node has told it and nothing else. What it has not seen acknowledged it sends again, byte for byte,
over the next connection. It counts every result it is given, so that a checker can look for doubles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, ITEMS, content_id, encode_batch, pickled_function
from p2pgrid.core.deps import DEPENDENT, table
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.simulations.clock import UNIX_0
from p2pgrid.simulations.truth import Needs, Plan, Planner, Truth

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node

UNION = pickled_function(11, b"the function")
CODE = content_id(UNION)
SOCKET_S = 0.0001
READ_AGAIN_S = 5.0
AGAIN_S = 0.5
"""A client whose node is gone looks for it again after that."""
DAY_S = 86400.0
FAILED = 2
"""The shape of a result that is an exception."""


@dataclass
class Job:
    """One job as its client sees it."""

    client: Client
    job: bytes
    count: int
    packed: bool = False
    batch: int = 64
    needs: Needs | None = None
    options: dict[str, Any] = field(default_factory=dict)
    detach: bool = False
    close: bool = True
    watch: bool = True
    """Whether it reads its results, now."""
    sent: int = 0
    """Tasks that were appended so far."""
    state: str = ""
    reason: str = ""
    began_s: float = 0.0
    ended_s: float | None = None
    got: dict[int, bytes | None] = field(default_factory=dict)
    """Values by task; None: it failed."""
    delivered: Counter[int] = field(default_factory=Counter)
    acks: dict[tuple[str, Any], float] = field(default_factory=dict)
    cancelled: RangeSet = field(default_factory=RangeSet)
    refused: list[Any] = field(default_factory=list)
    of: Job | None = None
    """As the program sees it that submitted it; None: it is this one."""
    forgotten: bool = False
    """Whether its client asked for it to be forgotten, and was told that it is."""
    shall_end: bool = True
    """Whether its client is there to hear the end."""
    wrong: list[str] = field(default_factory=list)
    """What it was told that cannot be, for the checkers."""

    def __repr__(self) -> str:
        return f"<job {self.job.hex()[:6]} {len(self.got)}/{self.count} {self.state or 'open'}>"

    @property
    def ended(self) -> bool:
        """Whether its client was told the end."""
        return self.state not in ("", "unknown")

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be waited for: the end was heard, or nobody is there to hear it."""
        given_up = self.of is not None and bool(self.of.refused)
        return self.ended or not self.shall_end or bool(self.refused) or given_up

    @property
    def cancelled_tasks(self) -> list[int]:
        """Tasks that were cancelled one by one."""
        return [index for lo, hi in self.cancelled for index in range(lo, hi)]

    @property
    def failed(self) -> list[int]:
        """Tasks whose result is an error."""
        return [index for index, value in self.got.items() if value is None]

    @property
    def durable(self) -> bool:
        """Whether everything was acknowledged."""
        marks = [("spec", 0), ("code", CODE), *(("input", lo) for lo in range(0, self.count, self.batch))]
        return all(mark in self.acks for mark in marks)

    def send(self) -> None:
        """Open, append, close, watch: what is not acknowledged, byte for byte."""
        if self.of is not None:
            if self.watch:
                self.read()
            return
        client = self.client
        spec = Spec("map", "", client.session, UNIX_0 + self.began_s, 7 * DAY_S, detach=self.detach).packed()
        client.say(m.OPEN, [self.job, spec])
        if ("code", CODE) not in self.acks:
            client.say(m.CODE, [self.job, CODE, UNION])
        for lo in range(0, self.sent, self.batch):
            if ("input", lo) not in self.acks:
                self._append(lo, min(self.sent, lo + self.batch))
        if self.close and self.sent == self.count:
            client.say(m.CLOSE, [self.job, self.count])
        if self.watch:
            self.read()

    def more(self, hi: int) -> None:
        """Append the tasks up to that one."""
        while self.sent < hi:
            lo, self.sent = self.sent, min(hi, self.sent + self.batch)
            self._append(lo, self.sent)
        if self.sent == self.count and self.close:
            self.client.say(m.CLOSE, [self.job, self.count])

    def _append(self, lo: int, hi: int) -> None:
        data: Any = [b"%d" % i for i in range(lo, hi)]
        run = (hi - lo, 0, 0, CALLS, data)
        if self.needs is not None:
            said = [(call, self.needs(i)) for i, call in enumerate(data, lo)]
            run = (hi - lo, 0, 0, DEPENDENT, table(said, self.job))
        elif self.packed:
            run = (hi - lo, 0, 0, ITEMS, pack(list(range(lo, hi))))
        self.client.say(m.INPUT, [self.job, lo, hi, encode_batch([CODE], [self.options], [run])])

    def read(self) -> None:
        """Have results sent from now on."""
        self.watch = True
        self.client.say(m.WATCH, [self.job, RangeSet((i, i + 1) for i in self.got).flat()])

    def cancel(self, spans: Iterable[tuple[int, int]] | None = None) -> None:
        """Cancel these tasks, or all."""
        self.client.say(m.CANCEL, [self.job, None if spans is None else RangeSet(spans).flat()])

    def results(self, entries: list[Any], truth: Truth) -> int:
        """Take in results; return how many bytes that were."""
        size = 0
        for lo, hi, shape, data, _, _ in entries:
            size += len(data) if isinstance(data, bytes) else sum(map(len, data))
            values: list[bytes | None] = [None] * (hi - lo)
            if shape != FAILED:
                values = list(data) if shape == 0 else list(unpack(data))
            for index, value in zip(range(lo, hi), values, strict=True):
                self._result(index, value, truth)
        return size

    def _result(self, index: int, value: bytes | None, truth: Truth) -> None:
        theirs = None if self.of is None else self.of.got.get(index)
        if theirs is not None and value is not None and theirs != value:
            self.wrong.append(f"task {index} is {value[:40]!r} here, and {theirs[:40]!r} for who submitted it")
        self.delivered[index] += 1
        if self.delivered[index] > 1:
            self.wrong.append(f"task {index} was delivered {self.delivered[index]} times")
        elif not 0 <= index < self.count:
            self.wrong.append(f"there is no task {index}")
        elif value is not None and not truth.may_be(index, value):
            self.wrong.append(f"task {index} never returned {value[:40]!r}")
        elif value is None and truth.plan(index).outcome == "ok" and not self._needs_what_failed(truth, index):
            self.wrong.append(f"task {index} failed, and it cannot")
        self.got.setdefault(index, value)

    def _needs_what_failed(self, truth: Truth, index: int) -> bool:
        """Whether a task needs one that failed for a reason, or that its client cancelled when it was refused."""
        todo = list(truth.needs(index)) if truth.needs is not None else []
        seen = set(todo)
        while todo:
            task = todo.pop()
            if next(job.refused or job.cancelled for job in self.client.world.jobs if job.job == task.job):
                return True
            other = self.client.world.truths[task.job]
            if other.plan(task.index).outcome != "ok":
                return True
            more = [one for one in other.needs(task.index) if one not in seen] if other.needs is not None else []
            seen.update(more)
            todo += more
        return False


class Client:
    """A program that uses one node."""

    def __init__(self, node: Node, number: int, session: bytes) -> None:
        self.node = node
        self.world = node.world
        self.number = number
        self.session = session
        self.jobs: dict[bytes, Job] = {}
        self.alive = True
        self.connected = False
        self.slow = False
        """Takes nothing in by itself."""
        self.answers: dict[int, Any] = {}
        self.errors: dict[int, Any] = {}
        self.notices: list[str] = []
        self.welcome: Any = None
        self._asked = 0
        self._unread: Counter[bytes] = Counter()
        self._life = 0

    # ---- the connection ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Say hello, and again all that was not acknowledged; later, if the node is not there."""
        if not self.alive or self.connected:
            return
        if not self.node.alive or self.node.frozen is not None:
            self.world.at(AGAIN_S, self.connect)
            return
        self.connected = True
        self._life = self.node.life
        self.node.clients[self.number] = self
        self.world.at(0.0, self.node.handle, e.ClientJoined(self.number, self.session, "sim", 1))
        for job in self.jobs.values():
            job.send()

    def cut_off(self) -> None:
        """The node is gone."""
        self.connected = False
        self._unread.clear()
        self.world.at(AGAIN_S, self.connect)

    def leave(self, *, goodbye: bool = True) -> None:
        """End: with a word, or as a program that is killed."""
        self.alive = False
        if self.connected:
            self.connected = False
            self.node.clients.pop(self.number, None)
            self.world.at(SOCKET_S, self.node.later, 0.0, e.ClientGone(self.number, goodbye))

    def say(self, kind: int, body: Any, id_: int = 0) -> None:
        """Send a frame."""
        if self.connected:
            self.world.at(SOCKET_S, self._arrive, kind, unpack(pack(body)), id_, self._life)

    def _arrive(self, kind: int, body: Any, id_: int, life: int) -> None:
        if self.connected and self.node.alive and self.node.life == life:
            self.node.handle(e.ClientSent(self.number, kind, id_, body))

    def hear(self, kind: int, id_: int, body: Any) -> None:
        """Be sent a frame."""
        self.world.at(SOCKET_S, self._hear, kind, id_, unpack(pack(body)), self._life)

    def _hear(self, kind: int, id_: int, body: Any, life: int) -> None:
        if not self.connected or self._life != life:
            return
        job = self.jobs.get(body[0]) if kind in _ABOUT_A_JOB else None
        match kind:
            case m.WELCOME:
                self.welcome = body
            case m.ACK if job is not None:
                job.acks.setdefault((body[1], body[2]), self.world.now)
            case m.RESULT if job is not None:
                self._unread[job.job] += job.results(body[1], self.world.truths[job.job])
                if not self.slow:
                    self.take_in(job.job)
            case m.STATE if job is not None:
                job.state, job.reason = body[1], body[2]
                if job.state == "unknown" and job.of is not None:  # nobody was there who knows it
                    self.world.at(READ_AGAIN_S, job.read)
                if job.ended and job.ended_s is None:
                    job.ended_s = self.world.now
            case m.CANCELLED if job is not None:
                job.cancelled.update(RangeSet.from_flat(body[1]))
            case m.REFUSED if job is not None:
                job.refused.append(body)
                job.cancel()  # a program whose submit has failed
            case m.ANSWER:
                self.answers[id_] = body
            case m.ERROR:
                self.errors[id_] = body
            case m.NOTICE:
                self.notices.append(body[1])

    def take_in(self, job: bytes) -> None:
        """Give the node credit for what was received."""
        self.say(m.GOT, [job, self._unread.pop(job, 0)])

    # ---- work -------------------------------------------------------------------------------------------------------

    def ask(self, verb: str, **arguments: Any) -> int:
        """Send a request; its answer will be in `answers` or `errors` under the number returned."""
        self._asked += 1
        self.say(m.REQUEST, [verb, arguments], self._asked)
        return self._asked

    def submit(self, count: int, plan: Planner | Plan | float = 0.1, *, at_once: bool = True, **how: Any) -> Job:
        """Submit a job of `count` tasks; `plan` says what each does, or how many seconds it takes."""
        name = self.world.job_name()
        planner = plan if callable(plan) else _always(plan if isinstance(plan, Plan) else Plan(plan))
        self.world.truths[name] = Truth(name, planner, how.get("needs"))
        job = self.jobs[name] = Job(self, name, count, **how)
        job.began_s = self.world.now
        job.sent = count if at_once else 0
        self.world.jobs.append(job)
        job.send()
        return job

    def reads(self, other: Job) -> Job:
        """Return a job that another program submitted, to be read here."""
        job = self.jobs[other.job] = Job(self, other.job, other.count, of=other, watch=False)
        job.began_s = self.world.now
        self.world.jobs.append(job)
        return job


_ABOUT_A_JOB = frozenset({m.ACK, m.RESULT, m.STATE, m.CANCELLED, m.REFUSED})


def _always(plan: Plan) -> Planner:
    return lambda _: plan
