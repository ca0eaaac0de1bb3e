"""Listing: what this node tells of its jobs to the others, and what it has heard of theirs (`joblist`).

A job of this node goes into the list when it is accepted, when it has ended and when it is kept for longer. One that
was forgotten stays there as a *tombstone* until it would have expired: whoever still has something of it, on a disk
that was off meanwhile, deletes it when it hears of that. Tombstones are in the journal of the nodes that had the job,
and of the one that was told to forget it.

Rule: only who may read hears of jobs, and only from who may submit is it believed that one was forgotten.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import may
from p2pgrid.core.ids import job_name
from p2pgrid.core.listed import NAME_MAX, PROGRAM_MAX, Listed, Standing, forgotten
from p2pgrid.core.record import State
from p2pgrid.core.shapes import from_peer
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.joblist import PRESETS, JobList
from p2pgrid.node.kept import Kept
from p2pgrid.node.moves import KINDS
from p2pgrid.node.parts import Handler, Parts

TIMER = "listing"
TOMB = "tomb"
"""The kind of journal row that holds a tombstone; its meta: when the job was submitted and would have expired."""
TOMBS_MAX = 100_000


class Listing(Handler):
    """The list of jobs, as this node sees it."""

    def __init__(self, parts: Parts, rng: random.Random, names: Callable[[str], str]) -> None:
        super().__init__(parts)
        self.names = names
        self.forget: Callable[[bytes], None] = lambda _: None
        """Deletes a job of this node."""
        self.has: Callable[[bytes, str], None] = lambda *_: None
        """Hears who accepted a job."""
        self.is_leaf: Callable[[str], bool] = lambda _: False
        """Whether a member wants to be left alone and asks when it wants to know."""
        self.wall_s: Callable[[float], float] = lambda _: 0.0
        """Unix time by which jobs expire; 0 where no clock is to be believed."""
        self.list = JobList(PRESETS[self.config.preset], rng)
        self.rng = rng
        self.tombs: dict[bytes, tuple[float, float]] = {}
        """Jobs that were forgotten: when they were submitted and would have expired."""
        self.changed = False
        self._grid = b""
        self._fresh: list[Kept] = []
        self._buried: list[Listed] = []
        parts.keeping.changed = self._touch

    # ---- this node's own --------------------------------------------------------------------------------------------

    def load(self, rows: Sequence[e.Row]) -> None:
        """Take in the tombstones of the journal; the jobs come by themselves."""
        for row in rows:
            if row.kind == TOMB:
                submitted_s, expires_s = unpack(row.meta)
                self.tombs[row.job] = submitted_s, expires_s
        self.changed = True

    def belongs(self, event: e.Belongs, now: float) -> None:
        """In another grid there is another list; the jobs of this node go along."""
        if event.grid != self._grid:
            if self._grid:
                self.list = JobList(self.list.options, self.rng)
            self._grid = event.grid
            self._fresh = [kept for kept in self.keeping.jobs.values() if kept.spec.parent is None]
            self._buried = [forgotten(job, *times) for job, times in self.tombs.items()]
            self.settle(now)

    def _touch(self, kept: Kept) -> None:
        if kept.spec.parent is not None:
            return  # nobody but the task that has started it asks for it
        self._fresh.append(kept)
        self.changed = True

    def settle(self, now: float) -> None:
        """Take in what has changed here, and be woken in time. A node that is alone needs no waking."""
        self.changed = False
        fresh, self._fresh = self._fresh, []
        buried, self._buried = self._buried, []
        if not self._grid:
            return
        for entry in buried:
            self.list.learn(entry, now)
        for kept in fresh:
            if kept.id in self.keeping.jobs:
                self.list.learn(self._entry(kept), now)
        due = self.list.next_s(now) if self.peers else None
        before = self.parts.timers.get((TIMER,))
        if due != before:
            self.parts.timer((TIMER,), None if due is None else max(due, now))

    def _entry(self, kept: Kept) -> Listed:
        spec, known = kept.spec, self.list.jobs.get(kept.id)
        owner = known.owner if known is not None and known.owner else kept.accepted or self.config.node_id
        standing = Standing()
        if kept.ended:
            total = kept.known.size if kept.total is None else kept.total
            rank, failed = int(kept.record.state), kept.failed.size
            standing = Standing(rank, kept.state, kept.done.size - failed, failed, total)
        name, program = spec.name[:NAME_MAX], spec.program[:PROGRAM_MAX]
        return Listed(kept.id, spec.submitted_s, name, owner, program, kept.expires_s, standing)

    def bury(self, job: bytes, submitted_s: float, expires_s: float) -> None:
        """A job is forgotten: remember that, and tell it, until it would have expired."""
        if len(self.tombs) < TOMBS_MAX:
            self.tombs[job] = submitted_s, expires_s
            row = e.Row(job, TOMB, b"", pack([submitted_s, expires_s]), b"")
            self.out.append(self.keeping.store([row])[1])
        self._buried.append(forgotten(job, submitted_s, expires_s))
        self.changed = True

    def expire(self, wall_s: float) -> None:
        """Drop what has expired."""
        self.list.expire(wall_s)
        for job in [job for job, (_, expires_s) in self.tombs.items() if expires_s <= wall_s]:
            del self.tombs[job]
            self.out.append(e.Store(0, [e.Row(job, TOMB, b"", b"", None)]))

    # ---- the others -------------------------------------------------------------------------------------------------

    def _partners(self) -> list[str]:
        return [peer for peer in sorted(self.peers) if self._may_read(peer) and not self.is_leaf(peer)]

    def _may_read(self, peer: str) -> bool:
        return may(self.parts.roles.get(peer, 0), "read")

    def up(self, peer: str, now: float) -> None:
        if self._grid and self._may_read(peer):
            self.out += self.list.met(peer)
            self.changed = True

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame of a member. Raises PeerError if it is malformed."""
        body = from_peer(event.kind, event.body)
        if not self._grid:
            return
        for entry in () if event.kind == m.P_JOBS_DIGEST else body[-1]:
            self._heard(event.peer, entry, now)
        if self._may_read(event.peer):
            self.out += self.list.received(event.peer, event.kind, body)

    def _heard(self, peer: str, entry: Listed, now: float) -> None:
        if entry.expires_s <= self.wall_s(now):
            return
        if entry.forgotten and not may(self.parts.roles.get(peer, 0), "submit"):
            return
        if not self.list.learn(entry, now, source=peer):
            return
        self.changed = True
        if entry.forgotten:
            if entry.job in self.keeping.jobs:
                self.forget(entry.job)
        elif entry.owner:
            self.has(entry.job, entry.owner)

    def tick(self, now: float) -> None:
        self.list.expire(self.wall_s(now))
        self.out += self.list.tick(self._partners, now)
        self.changed = True

    # ---- answers ----------------------------------------------------------------------------------------------------

    def forgotten(self, job: bytes) -> bool:
        """Whether a job is known to have been forgotten."""
        entry = self.list.jobs.get(job)
        return job in self.tombs or (entry is not None and entry.forgotten)

    def rows(self, but: set[str], heard: Container[str]) -> list[dict[str, Any]]:
        """Return the jobs that are known only by hearsay, as listings show them.

        Without those in `but` (hex), and those of nodes that were `heard`: they have them no more.
        """
        entries = [one for one in self.list.jobs.values() if not one.forgotten and one.owner not in heard]
        return [self._row(one) for one in entries if one.job.hex() not in but]

    def _row(self, entry: Listed) -> dict[str, Any]:
        standing, owner = entry.standing, self.names(entry.owner)
        away = f"{owner}, which has it, does not answer: this is what was heard of it"
        return {
            "id": job_name(entry.job), "hex": entry.job.hex(), "name": entry.name,
            "state": standing.state or "running", "done": standing.done, "failed": standing.failed,
            "total": None if standing.total < 0 else standing.total, "known": 0, "submitted": entry.submitted_s,
            "expires": entry.expires_s, "program": entry.program, "owner": entry.owner, "owner_name": owner,
            "detached": False, "reason": "", "waiting": "" if standing.rank > State.OPEN else away,
            **dict.fromkeys(KINDS, 0), "failed_tasks": [],
        }  # fmt: skip
