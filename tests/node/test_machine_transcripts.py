"""Golden transcripts: whole conversations, line by line, as two machines and a client lead them.

`P2PGRID_UPDATE_TRANSCRIPTS=1 pytest tests/node/test_machine_transcripts.py` writes them anew; commit the changes only
if you understand what caused them.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, UNION, Desk, batch, spec, tasks

FOLDER = Path(__file__).parent / "transcripts"
NAMES = {value: name for name, value in vars(m).items() if isinstance(value, int) and not name.startswith("W_")}
FACTS = {"name": "x", "slots": 1, "minor": 11, "resources": {"cpu": 1}}


def told(value: Any) -> str:
    """Return a value short enough to be read: known byte strings by name, others by their length."""
    match value:
        case bytes():
            known = {JOB: "JOB", CODE: "CODE", UNION: "UNION", b"": "b''"}
            return known.get(value) or (repr(value) if len(value) < 8 else f"<{len(value)} bytes>")
        case list() | tuple():
            return "[" + ", ".join(map(told, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{key}: {told(one)}" for key, one in value.items()) + "}"
        case _:
            return repr(value)


class Conversation:
    """A keeper `a` without workers, a holder `b` with one, a client of `a`; every frame arrives, in order."""

    def __init__(self, **config: Any) -> None:
        self.lines: list[str] = []
        self.queue: deque[tuple[str, e.Event]] = deque()
        self.desks = {"a": Desk(slots=0, **config), "b": Desk(slots=1, **config)}
        self.happens("b", e.WorkerReady(0))
        self.happens("a", e.ClientJoined(1, b"s" * 16, "test", 1))
        self.happens("a", e.PeerUp("b", FACTS))
        self.happens("b", e.PeerUp("a", {**FACTS, "slots": 0, "resources": {}}))

    def joins(self, name: str) -> None:
        """Add an idle holder that knows the other two."""
        self.desks[name] = Desk(slots=1)
        self.happens(name, e.WorkerReady(0))
        for other in ("b", "a"):
            self.happens(name, e.PeerUp(other, {**FACTS, "slots": int(other == "b")}))
            self.happens(other, e.PeerUp(name, FACTS))

    def say(self, text: str) -> None:
        """Write a heading."""
        self.lines += ["", f"# {text}"]

    def client(self, kind: int, body: Any) -> None:
        """Let the client send a frame."""
        self.lines.append(f"client -> a  {NAMES[kind]} {told(body)}")
        self.happens("a", e.ClientSent(1, kind, 0, unpack(pack(body))))

    def happens(self, name: str, event: e.Event) -> None:
        """Let something happen to a node, and then all that follows at once."""
        self.queue.append((name, event))
        while self.queue:
            where, what = self.queue.popleft()
            for effect in self.desks[where].do(what):
                self.perform(where, effect)

    def perform(self, where: str, effect: e.Effect) -> None:
        """Write down an effect, and let it have its consequence."""
        match effect:
            case e.Reply(_, kind, _, body):
                self.lines.append(f"{where} -> client  {NAMES[kind]} {told(body) if kind != m.WELCOME else '...'}")
            case e.Send(peer, kind, body):
                self.lines.append(f"{where} -> {peer}  {NAMES[kind]} {told(body)}")
                self.queue.append((peer, e.PeerSent(where, kind, unpack(pack(body)))))
            case e.Store(token, rows):
                kinds = " ".join(row.kind if row.value is not None else f"-{row.kind}" for row in rows)
                self.lines.append(f"{where} disk  {kinds or 'nothing, in its turn'}")
                if token:
                    self.queue.append((where, e.Stored(token)))
            case e.Run():
                self.lines.append(
                    f"{where} worker {effect.worker}  runs {tasks(effect)}, attempt {effect.context['attempt']}"
                )
            case e.Kill(worker, _, spans):
                self.lines.append(f"{where} worker {worker}  killed if it runs {told(spans)}")
            case e.Log(_, text):
                self.lines.append(f"{where} log  {text}")

    def works(self, value: bytes, name: str = "b") -> None:
        """Let the worker of a holder end its run."""
        (info, *_) = self.desks[name].machine.running.workers[0].runs
        lo, hi = info.left.first() or (0, 0)
        self.lines.append(f"{name} worker 0  returns {told(value)} for task {lo}")
        outcome = e.Outcome(lo, hi, 0, [value])
        self.happens(name, e.WorkerDone(0, info.run, [outcome], True, [], 1.0))  # noqa: FBT003

    def time(self, seconds: float) -> None:
        """Let time pass at both nodes, in steps of a tenth."""
        self.lines.append(f"... {seconds:g} s")
        for _ in range(round(seconds * 10)):
            for name, desk in self.desks.items():
                desk.now += 0.1
                due = [key for key, at in desk.machine.parts.timers.items() if at <= desk.now]
                for key in due:
                    self.happens(name, e.TimerFired(key))


def one_job() -> Conversation:
    """Submit, grant, results, acknowledgements, the end."""
    talk = Conversation()
    talk.say("a client submits two tasks to a, which has no workers")
    talk.client(m.OPEN, [JOB, spec()])
    talk.client(m.CODE, [JOB, CODE, UNION])
    talk.client(m.WATCH, [JOB, []])
    talk.client(m.INPUT, [JOB, 0, 2, batch(0, 2)])
    talk.client(m.CLOSE, [JOB, 2])
    talk.say("b runs them")
    talk.time(1.5)
    talk.works(b"zero")
    talk.works(b"one")
    talk.say("all is over: one farewell, then silence")
    talk.time(5)
    return talk


def a_cancelled_job() -> Conversation:
    """Submit, grant, cancel."""
    talk = Conversation()
    talk.say("a client submits a task to a, and cancels it while b runs it")
    talk.client(m.OPEN, [JOB, spec()])
    talk.client(m.CODE, [JOB, CODE, UNION])
    talk.client(m.WATCH, [JOB, []])
    talk.client(m.INPUT, [JOB, 0, 1, batch(0, 1)])
    talk.client(m.CANCEL, [JOB, None])
    talk.say("the worker of b is killed")
    talk.happens("b", e.WorkerDied(0, talk.desks["b"].machine.running.workers[0].runs[0].run, 0, "killed", "killed"))
    talk.happens("b", e.WorkerReady(0))
    talk.time(5)
    return talk


def a_stolen_range() -> Conversation:
    """Submit, grant, steal, results, the end."""
    talk = Conversation(guided=0.1, queue_s=100.0)
    talk.say("a client submits six tasks to a; once the speed of b is known, it is granted all that is left")
    talk.client(m.OPEN, [JOB, spec()])
    talk.client(m.CODE, [JOB, CODE, UNION])
    talk.client(m.INPUT, [JOB, 0, 6, batch(0, 6)])
    talk.client(m.CLOSE, [JOB, 6])
    talk.works(b"zero")
    talk.works(b"one")
    talk.say("c comes: a has nothing left, and says who has")
    talk.joins("c")
    talk.say("c has claimed it before b names it no more")
    talk.time(3)
    talk.works(b"four", "c")
    talk.works(b"five", "c")
    talk.say("c looks for more: b gives its last one that has not begun")
    talk.time(1)
    talk.works(b"three", "c")
    talk.time(3)
    talk.say("the client cancels what is left")
    talk.client(m.CANCEL, [JOB, None])
    talk.happens("b", e.WorkerDied(0, talk.desks["b"].machine.running.workers[0].runs[0].run, 0, "killed", "killed"))
    talk.happens("b", e.WorkerReady(0))
    talk.time(70)
    return talk


@pytest.mark.parametrize("conversation", [one_job, a_cancelled_job, a_stolen_range])
def test_the_conversation_is_the_one_written_down(conversation: Any) -> None:
    """Any change of what is said, to whom, in which order, shows as a diff."""
    path = FOLDER / f"{conversation.__name__}.txt"
    text = "\n".join(conversation().lines) + "\n"
    if os.environ.get("P2PGRID_UPDATE_TRANSCRIPTS"):
        path.write_text(text)

    assert text == path.read_text()
