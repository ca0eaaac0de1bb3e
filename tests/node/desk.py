"""One machine on a desk: events are handed to it one by one, and what it wants done is looked at, not done."""

from __future__ import annotations

import random
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, ITEMS, content_id, encode_batch, pickled_function
from p2pgrid.core.record import Spec
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.machine import Machine, MachineConfig

UNION = pickled_function(11, b"the function")
CODE = content_id(UNION)
JOB = b"j" * 16
UNIX_0 = 1_800_000_000.0


class Desk:
    """A machine, the time, and all effects so far."""

    def __init__(self, slots: int = 1, rows: list[e.Row] | None = None, **config: Any) -> None:
        resources = {"cpu": slots, "mem": 8 << 30, **config.pop("resources", {})}
        facts = {"name": "n", "slots": slots, "minor": 11, "resources": resources}
        self.machine = Machine(MachineConfig("n", "n", "g", slots, facts, **config), random.Random(1))
        self.now = 1000.0
        self.all: list[e.Effect] = []
        self.do(e.Loaded(rows or [], UNIX_0, 7))

    def do(self, *events: e.Event) -> list[e.Effect]:
        """Hand over events; return what they made the machine want."""
        out: list[e.Effect] = []
        for event in events:
            out += self.machine.handle(event, self.now)
        self.all += out
        return out

    def ready(self) -> list[e.Effect]:
        """Let all workers be ready."""
        return self.do(*(e.WorkerReady(worker) for worker in self.machine.running.workers))

    def join(self, client: int = 1, session: bytes = b"s" * 16) -> list[e.Effect]:
        """Let a client connect."""
        return self.do(e.ClientJoined(client, session, "test", 1))

    def say(self, kind: int, body: Any, client: int = 1, id_: int = 0) -> list[e.Effect]:
        """Let a client send a frame."""
        return self.do(e.ClientSent(client, kind, id_, unpack(pack(body))))

    def submit(
        self, count: int, job: bytes = JOB, client: int = 1, session: bytes = b"s" * 16, close: bool = True,  # noqa: FBT001, FBT002
        options: dict[str, Any] | None = None, packed: bool = False, detach: bool = False,  # noqa: FBT001, FBT002
    ) -> list[e.Effect]:  # fmt: skip
        """Let a client open a job, append one batch, close and watch it."""
        out = self.say(m.OPEN, [job, spec(session, detach=detach)], client)
        out += self.say(m.CODE, [job, CODE, UNION], client)
        out += self.say(m.INPUT, [job, 0, count, batch(0, count, options, packed=packed)], client)
        if close:
            out += self.say(m.CLOSE, [job, count], client)
        return out + self.say(m.WATCH, [job, []], client)

    def sync(self, *, fail: bool = False) -> list[e.Effect]:
        """Let every store so far reach the disk (or none); return what follows."""
        stores = [one for one in self.all if isinstance(one, e.Store) and one.token]
        self.all = [one for one in self.all if not isinstance(one, e.Store)]
        return self.do(*(e.StoreFailed(s.token, "no space left") if fail else e.Stored(s.token) for s in stores))

    def wait(self, seconds: float) -> list[e.Effect]:
        """Let time pass and the timers fire that were set."""
        out: list[e.Effect] = []
        end = self.now + seconds
        while True:
            due = [(at, number, key) for number, (key, at) in enumerate(self.machine.parts.timers.items()) if at <= end]
            recall = self.timer(("recall",))
            if recall is not None and recall <= end:
                due.append((recall, -1, ("recall",)))
            if not due:
                break
            at, _, key = min(due)
            self.now = max(self.now, at)
            self.all = [one for one in self.all if not (isinstance(one, e.SetTimer) and one.key == key)]
            out += self.do(e.TimerFired(key))
        self.now = end
        return out

    def timer(self, key: tuple[Any, ...]) -> float | None:
        """Return for when a timer was set last."""
        return next((one.at_s for one in reversed(self.all) if isinstance(one, e.SetTimer) and one.key == key), None)

    def finish(self, run: e.Run, value: bytes = b"v", busy_s: float = 0.01) -> list[e.Effect]:
        """Let a worker end all tasks of a run well."""
        outcomes = [e.Outcome(s.lo, s.hi, 0, [value] * (s.hi - s.lo)) for s in run.segments]
        return self.do(e.WorkerDone(run.worker, run.run, outcomes, True, [], busy_s))  # noqa: FBT003

    def fail(self, run: e.Run, index: int, error: dict[str, Any]) -> list[e.Effect]:
        """Let a task of a run raise; it is the only one."""
        return self.do(e.WorkerDone(run.worker, run.run, [e.Outcome(index, index + 1, 2, pack(error))], True, [], 0.01))  # noqa: FBT003

    def answer(self, verb: str, **arguments: Any) -> Any:
        """Ask something that is answered at once."""
        (reply,) = [r for r in self.say(m.REQUEST, [verb, arguments], id_=9) if isinstance(r, e.Reply)]
        return reply.body


def spec(session: bytes = b"s" * 16, *, detach: bool = False, ttl_s: float = 7 * 86400.0) -> bytes:
    """Return the spec of a job that was submitted now."""
    return Spec("map", "", session, UNIX_0 + 1000.0, ttl_s, detach=detach).packed()


def batch(lo: int, hi: int, options: dict[str, Any] | None = None, *, packed: bool = False) -> bytes:
    """Return a batch of the tasks [lo, hi)."""
    shape, data = (ITEMS, pack(list(range(lo, hi)))) if packed else (CALLS, [b"%d" % i for i in range(lo, hi)])
    return encode_batch([CODE], [options or {}], [(hi - lo, 0, 0, shape, data)])


def replies(effects: list[e.Effect], kind: int) -> list[Any]:
    """Return the bodies of the replies of one kind."""
    return [one.body for one in effects if isinstance(one, e.Reply) and one.kind == kind]


def runs(effects: list[e.Effect]) -> list[e.Run]:
    """Return what was given to workers."""
    return [one for one in effects if isinstance(one, e.Run)]


def tasks(run: e.Run) -> list[int]:
    """Return the tasks of a run."""
    return [i for segment in run.segments for i in range(segment.lo, segment.hi)]


def sends(effects: list[e.Effect], kind: int) -> list[Any]:
    """Return the bodies of the frames of one kind to members."""
    return [one.body for one in effects if isinstance(one, e.Send) and one.kind == kind]
