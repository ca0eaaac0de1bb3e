"""Families of tasks at random: they start others, wait, crash, time out and are cancelled; in the end all has ended."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.record import Spec, TaskOf
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.running import LENT_MAX
from tests.node.desk import CODE, JOB, UNION, UNIX_0, Desk, batch, runs

DEEP = 4


@dataclass
class Frame:
    """A task that has begun."""

    run: e.Run
    index: int
    depth: int
    job: bytes = b""
    left: int = 0
    """How many of the tasks that it has started have no result here."""
    waits: int = 0
    """The number of its wait, if it waits."""


@dataclass
class Process:
    """A worker child: what it runs, the outermost first, and what stands in its pipe."""

    number: int
    client: int = 0
    stack: list[Frame] = field(default_factory=list)
    queue: list[tuple[e.Run, list[int]]] = field(default_factory=list)
    begun: dict[int, list[int]] = field(default_factory=dict)
    """Of runs that have begun: what of them has not."""


class Storm:
    """One node, and all that its tasks do."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.desk = Desk(slots=self.rng.choice([1, 1, 2, 3]))
        self.desk.ready()
        self.desk.join()
        self.processes: dict[int, Process] = {}
        self.depths = {JOB: 0}
        self.left: dict[bytes, tuple[Process, Frame]] = {}
        self.numbers = 100
        self.ended = False
        self.crashes = self.rng.choice([0, 0, 5])
        self.threads = self.rng.choice([0.0, 0.3])
        self.most = 0
        self.inbox: list[e.Event] = []
        self.telling = False

    # ---- what the machine wants --------------------------------------------------------------------------------------

    def happens(self, *events: e.Event) -> None:
        """Tell the machine, and obey; what follows from an effect is told once all effects before it are done."""
        self.inbox += events
        if self.telling:
            return
        self.telling = True
        while self.inbox:
            self.obey(self.desk.do(self.inbox.pop(0)))
        self.telling = False

    def obey(self, effects: list[e.Effect]) -> None:
        """Do what the machine wants."""
        for effect in effects:
            match effect:
                case e.Run():
                    process = self.processes.setdefault(effect.worker, Process(effect.worker))
                    tasks = [i for segment in effect.segments for i in range(segment.lo, segment.hi)]
                    process.queue.append((effect, tasks))
                case e.Recall(worker):
                    self.recall(self.processes[worker])
                case e.Kill(worker, run, spans):
                    process = self.processes[worker]
                    hit = [
                        one for one in process.stack
                        if one.run.run == run and (spans is None or any(lo <= one.index < hi for lo, hi in spans))
                    ]  # fmt: skip
                    if hit:
                        self.die(process, "killed")
                    else:
                        self.recall(process)
                case e.Reply(client, m.RESULT, _, [bytes(job), segments]) if job in self.left:
                    process, frame = self.left[job]
                    assert client == process.client
                    frame.left -= sum(hi - lo for lo, hi, *_ in segments)
                case e.Reply(1, m.STATE, _, [bytes(job), *_]) if job == JOB:
                    self.ended = True
        self.most = max(self.most, sum(bool(one.stack) for one in self.processes.values()))

    def recall(self, process: Process) -> None:
        """Give back what has not begun."""
        queue, process.queue = process.queue, []
        for run, tasks in queue:
            self.give_back(process, run, tasks, final=True)
        for frame in process.stack:
            rest = process.begun[frame.run.run]
            if rest:
                process.begun[frame.run.run] = []
                self.give_back(process, frame.run, rest, final=False)

    def give_back(self, process: Process, run: e.Run, tasks: list[int], *, final: bool) -> None:
        back = [(i, i + 1) for i in tasks]
        self.happens(e.WorkerDone(process.number, run.run, [], final, back, 0.0))

    def die(self, process: Process, cause: str) -> None:
        """The process ends, and another one comes."""
        front = process.stack[-1] if process.stack else None
        self.left = {job: one for job, one in self.left.items() if one[0] is not process}
        client, process.client = process.client, 0
        process.stack, process.queue, process.begun = [], [], {}
        gone: list[e.Event] = [e.ClientGone(client, goodbye=False)] if client else []
        run, index = (front.run.run, front.index) if front else (None, None)
        died: list[e.Event] = [e.WorkerDied(process.number, run, index, cause, cause)]
        self.happens(*(gone + died if self.rng.random() < 0.5 else died + gone), e.WorkerReady(process.number))

    # ---- what tasks do -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let something happen."""
        able = [one for one in self.processes.values() if one.queue or one.stack]
        if not able or self.rng.random() < 0.02:
            self.pass_time(self.rng.choice([0.01, 0.06, 1.1]))
        if not able:
            return
        process = self.rng.choice(able)
        front = process.stack[-1] if process.stack else None
        if self.crashes and front is not None and self.rng.random() < 0.02:
            self.crashes -= 1
            self.die(process, "signal")
        elif front is None or front.waits:
            self.take(process, front)
        else:
            self.go_on(process, front)

    def take(self, process: Process, front: Frame | None) -> None:
        """Take in what stands in the pipe; or wait no longer."""
        if front is not None and front.left <= 0 and (not process.queue or self.rng.random() < 0.5):
            number, front.waits = front.waits, 0
            self.say(process, m.WAITED, [number])
            return
        if not process.queue:
            return
        run, tasks = process.queue.pop(0)
        if run.inside != (None if front is None else (front.run.run, front.index)):
            self.give_back(process, run, tasks, final=True)
            return
        process.begun[run.run] = tasks
        self.begin(process, run)

    def begin(self, process: Process, run: e.Run) -> None:
        index = process.begun[run.run].pop(0)
        process.stack.append(Frame(run, index, self.depths[run.job]))

    def say(self, process: Process, kind: int, body: Any) -> None:
        if not process.client:
            self.numbers += 1
            process.client = self.numbers
            self.happens(e.ClientJoined(process.client, b"t%015d" % process.client, "task", 1, process.number))
        self.happens(e.ClientSent(process.client, kind, 0, unpack(pack(body))))

    def pass_time(self, seconds: float) -> None:
        """Let the timers fire that are due meanwhile."""
        self.obey(self.desk.wait(seconds))
        self.happens()

    def go_on(self, process: Process, frame: Frame) -> None:
        """Start something, wait for it, or end."""
        if not frame.job and frame.depth < DEEP and self.rng.random() < 0.5:
            self.start(process, frame)
        elif frame.left > 0:
            self.numbers += 1
            frame.waits = self.numbers
            alone = self.rng.random() < self.threads
            body = [frame.waits, frame.run.job, frame.index, not alone, [[frame.job, [0, 1 << 40]]]]
            self.say(process, m.WAIT, body)
        else:
            self.end(process, frame)

    def start(self, process: Process, frame: Frame) -> None:
        self.numbers += 1
        job = frame.job = b"%016d" % self.numbers
        frame.left = self.rng.randint(1, 3)
        self.depths[job] = frame.depth + 1
        self.left[job] = process, frame
        parent = TaskOf(frame.run.job, frame.index, frame.run.context["attempt"])
        spec = Spec("calls", "", b"t" * 16, UNIX_0 + 1000.0, 86400.0, parent=parent).packed()
        self.say(process, m.OPEN, [job, spec])
        options: dict[str, Any] = self.rng.choice([{}, {}, {}, {"timeout_s": 9.0}, {"resources": {"cpu": 2}}])
        if options and self.desk.machine.running.slots < 2:
            options = {}
        self.say(process, m.CODE, [job, CODE, UNION])
        self.say(process, m.INPUT, [job, 0, frame.left, batch(0, frame.left, options)])
        self.say(process, m.WATCH, [job, []])

    def end(self, process: Process, frame: Frame) -> None:
        process.stack.pop()
        self.left.pop(frame.job, None)
        final = not process.begun[frame.run.run]
        outcome = e.Outcome(frame.index, frame.index + 1, 0, [b"v"])
        busy_s = self.rng.choice([0.0001, 0.01])
        if final:
            del process.begun[frame.run.run]
        else:
            self.begin(process, frame.run)
        self.happens(e.WorkerDone(process.number, frame.run.run, [outcome], final, [], busy_s))


@pytest.mark.parametrize("seed", range(30))
def test_every_family_ends(seed: int) -> None:
    """Nothing is left of it but the record of what a program has submitted; nobody waits, no slot is lent."""
    storm = Storm(seed)
    storm.obey(storm.desk.submit(storm.rng.randint(1, 8)))
    assert runs(storm.desk.all)
    cancels = storm.rng.random() < 0.2
    for step in range(20_000):
        if storm.ended:
            break
        storm.step()
        if cancels and step == 60:
            storm.happens(e.ClientSent(1, m.CANCEL, 0, [JOB, None]))
    machine = storm.desk.machine

    assert storm.ended
    for _ in range(100):
        for process in list(storm.processes.values()):
            if process.queue and not process.stack:
                storm.take(process, None)
    assert machine.keeping.jobs.keys() == {JOB}
    assert machine.nesting.children == {}
    assert machine.nesting.waits == {}
    assert machine.running._waiting_runs == 0
    assert machine.running.active() == 0
    assert storm.most <= machine.running.slots + LENT_MAX
