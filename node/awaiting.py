"""Awaiting: tasks here that depend on tasks of jobs which are kept at other nodes.

Such a job is read as a client of this machine would read it (`relaying`): under a client number of its own, DEPENDING,
with all tasks as had but those that are waited for. What would be said to that client is taken out of the effects.
So whoever serves the job is found, asked again after a cut, and changed when another one serves it.

A task that nobody knows is waited for `unknown_s`, since it may be on its way to its node. Then the job is asked for
once more: where it is kept says whether it has such a task. A job that is in the list of jobs, or was read before, is
waited for while its node is away; one that nobody has heard of while any node is away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.deps import TaskId
from p2pgrid.core.errors import NotFound, ResultLost, TaskCancelled, error_from_wire
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import outcome_bytes
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.depending import Depending, Ended, encoded, name_of, no_such
from p2pgrid.node.inquiries import Inquiries
from p2pgrid.node.kept import ABANDONED, CANCELLED
from p2pgrid.node.listing import Listing
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.relaying import Relays
from p2pgrid.node.rounds import Round

TIMER = "await"
DEPENDING = (1 << 62) + 1
"""A number that no client gets."""
AGAIN_S, AGAIN_MAX_S = 1.0, 30.0
"""After which a job is looked for again that nobody who is there knows; twice as long each time."""
ENDS_MAX = 3
"""So often a job that is over is read to its end for a task that it has, and that does not come."""
SILENCE_S, SILENCE_MAX_S = 20.0, 320.0
"""After which a job is read anew of which nothing was heard, in case a frame was lost; twice as long each time."""


@dataclass(slots=True)
class Foreign:
    """A job kept elsewhere of which tasks are waited for."""

    since_s: float
    wanted: RangeSet = field(default_factory=RangeSet)
    pause_s: float = AGAIN_S
    ends: int = 0
    """How often it was read to its end."""
    silence_s: float = SILENCE_S
    """When it is asked again if nothing is heard."""
    known: bool = False
    """Whether a node has said that it keeps the job."""


class Awaiting(Handler):
    """What is read of other nodes' jobs because tasks here depend on it."""

    def __init__(
        self, parts: Parts, depending: Depending, relays: Relays, inquiries: Inquiries, listing: Listing
    ) -> None:
        super().__init__(parts)
        self.depending = depending
        self.relays = relays
        self.inquiries = inquiries
        self.listing = listing
        depending.seek = self._seek
        depending.settled = self._settled
        depending.overdue = self._overdue
        self.is_somebody_away: Callable[[], bool] = lambda: False
        """Whether a member is not connected that should be (`Neighbours`)."""
        self.jobs: dict[bytes, Foreign] = {}
        self._to_read: dict[bytes, None] = {}

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _seek(self, task: TaskId) -> None:
        self.jobs.setdefault(task.job, Foreign(self.parts.now)).wanted.add(task.index, task.index + 1)
        self._to_read[task.job] = None

    def _settled(self, task: TaskId) -> None:
        """Nobody here waits for a task any more."""
        foreign = self.jobs.get(task.job)
        if foreign is None:
            return
        foreign.wanted.discard(task.index, task.index + 1)
        if not foreign.wanted:
            del self.jobs[task.job]
            self._to_read.pop(task.job, None)
            self.relays.unwatch(DEPENDING, task.job)
            self.parts.timer((TIMER, task.job), None)

    def attend(self, now: float) -> None:
        """Take in what was said to DEPENDING in this event, and ask for what is sought since."""
        while True:
            heard = [one for one in self.out if isinstance(one, e.Reply) and one.client == DEPENDING]
            if heard:
                self.out[:] = [one for one in self.out if not (isinstance(one, e.Reply) and one.client == DEPENDING)]
                for one in heard:
                    self._hear(one.kind, one.body, now)
            elif self._to_read:
                job = next(iter(self._to_read))
                del self._to_read[job]
                self._read(job, now)
            else:
                break

    def up(self) -> None:
        """A member is there: it may know what nobody knew."""
        for job, foreign in self.jobs.items():
            if (TIMER, job) in self.parts.timers:
                self.parts.timer((TIMER, job), None)
                foreign.pause_s = AGAIN_S
                self._to_read[job] = None

    def again(self, now: float, job: bytes) -> None:
        """On the timer: look for a job once more."""
        if job in self.jobs:
            self._to_read[job] = None

    def _read(self, job: bytes, now: float) -> None:
        if job in self.keeping.jobs:
            self._is_here(job)
            return
        had = RangeSet([(0, TASKS_MAX - 1)]) - self.jobs[job].wanted
        self.relays.watch(DEPENDING, (job, had, self.config.away_s), now)
        self.parts.timer((TIMER, job), now + self.jobs[job].silence_s)
        self.jobs[job].silence_s = min(2 * self.jobs[job].silence_s, SILENCE_MAX_S)

    def _is_here(self, job: bytes) -> None:
        """The job has come to this node meanwhile."""
        foreign = self.jobs.pop(job)
        self.relays.unwatch(DEPENDING, job)
        self.keeping.readers.unwatch(DEPENDING, self.keeping.jobs[job])
        for lo, hi in foreign.wanted:
            for index in range(lo, hi):
                self.depending.look(TaskId(job, index), self.config.unknown_s)

    # ---- hearing ----------------------------------------------------------------------------------------------------

    def _hear(self, kind: int, body: Sequence[Any], now: float) -> None:
        job = body[0]
        foreign = self.jobs.get(job)
        if foreign is None:
            return
        if job in self.keeping.jobs:
            self._is_here(job)
            return
        match kind:
            case m.RESULT:
                foreign.known, foreign.silence_s = True, SILENCE_S
                self.relays.got(DEPENDING, job, sum(outcome_bytes(entry[2], entry[3]) for entry in body[1]))
                for lo, hi, shape, data, *_ in body[1]:
                    self._each(job, foreign.wanted.within(lo, hi), Ended(shape, data, lo, hi))
            case m.CANCELLED:
                foreign.known = True
                self._cancelled(job, foreign.wanted & RangeSet.from_flat(body[1]))
            case m.REFUSED:
                error = error_from_wire(body[3]["code"], body[3]["message"], body[3].get("next", ""))
                if error.code == "not-authorized":
                    self._fail(job, foreign.wanted, lambda _: error)
                else:  # it has as many readers as it can
                    self.parts.timer((TIMER, job), now + self.config.unknown_s)
            case m.STATE if body[1] != "unknown":
                self._ended(job, foreign, str(body[1]), now)
            case m.STATE if foreign.known:
                self._fail(job, foreign.wanted, lambda task: _away(task, str(body[2])))
            case m.STATE:  # it may be on its way to its node: `overdue` decides
                self.parts.timer((TIMER, job), now + foreign.pause_s)
                foreign.pause_s = min(2 * foreign.pause_s, AGAIN_MAX_S)

    def _each(self, job: bytes, spans: Sequence[tuple[int, int]], end: Ended) -> None:
        for lo, hi in spans:
            for index in range(lo, hi):
                self.depending.ended(TaskId(job, index), end)

    def _cancelled(self, job: bytes, spans: RangeSet) -> None:
        self._fail(job, spans, lambda task: TaskCancelled(f"{name_of(task)} was cancelled"))

    def _ended(self, job: bytes, foreign: Foreign, state: str, now: float) -> None:
        """The job is over: what has no result by now gets none, unless a frame was lost."""
        foreign.ends += 1
        if state in (CANCELLED, ABANDONED):
            self._cancelled(job, foreign.wanted)
        elif foreign.ends >= ENDS_MAX:
            self._fail(job, foreign.wanted, lambda task: ResultLost(f"{job_name(job)} ended without {name_of(task)}"))
        else:
            foreign.known = False  # until it says so of these tasks
            for lo, hi in foreign.wanted:
                for index in range(lo, hi):
                    self.depending.doubt(TaskId(job, index), 0.0)
            self.parts.timer((TIMER, job), now + foreign.pause_s)

    def _fail(self, job: bytes, spans: RangeSet, why: Callable[[TaskId], Exception]) -> None:
        for lo, hi in spans.copy():
            for index in range(lo, hi):
                task = TaskId(job, index)
                self.depending.fail(task, encoded(why(task)))

    # ---- what nobody seems to know ----------------------------------------------------------------------------------

    def _overdue(self, job: bytes, indices: Sequence[int], now: float) -> bool:
        """Find out whether there are such tasks; False: there is nobody to be asked."""
        foreign = self.jobs.get(job)
        peer = self.parts.serving(job)
        if foreign is None:
            return False
        if peer is None or peer not in self.peers:
            listed = self.listing.list.jobs.get(job)
            foreign.known = foreign.known or (listed is not None and not listed.forgotten)
            if not foreign.known and self.is_somebody_away() and now < foreign.since_s + self.config.away_s:
                for index in indices:
                    self.depending.doubt(TaskId(job, index), self.config.unknown_s)
                return True
            return foreign.known  # its node is away; `relaying` knows for how long to wait for that

        def then(heard: Round) -> None:
            said = heard.answers.get(peer, {}).get("job")
            count = said.get("known") if isinstance(said, dict) else None
            for index in indices:
                task = TaskId(job, index)
                if task not in self.depending.waits:
                    continue
                if not isinstance(count, int):  # it does not answer, or does not have it
                    self.depending.doubt(task, self.config.unknown_s)
                elif index < count:
                    foreign.known = True
                    self.depending.unknown.pop(task, None)
                else:
                    self.depending.fail(task, encoded(no_such(task)))

        self.inquiries.rounds.question(peer, "show", {"target": job.hex()}, then, now)
        return True


def _away(task: TaskId, why: str) -> NotFound:
    return NotFound(
        f"{name_of(task)} is kept where nobody can be asked now{why and ': ' + why}", next="p2pgrid members"
    )
