"""Draining: this node stays a member, takes no work, and hands over what it has, so that it can be switched off.

Tasks that run here end here; what has not begun goes back. Its card says that it drains: so it is no keeper any more,
others take over the jobs it serves and the copies it has, and it lets go of each once those that should have it do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pgrid.core.errors import GridError, NotFound
from p2pgrid.node import events as e
from p2pgrid.node.members import Members
from p2pgrid.node.neighbours import Neighbours, meant
from p2pgrid.node.parts import Handler, Parts

TIMER = "drained"
LOOK_S = 0.5
DEADLINE_MAX_S = 365 * 86400.0


class Draining(Handler):
    """Whether this node drains, and how far it is."""

    def __init__(
        self, parts: Parts, members: Members, neighbours: Neighbours, stop: Callable[[e.Stop, float], None]
    ) -> None:
        super().__init__(parts)
        self.members = members
        self.neighbours = neighbours
        self._stop = stop
        self._stops = False
        self._until_s = float("inf")

    def request(self, arguments: dict[str, Any], now: float) -> dict[str, Any]:
        """Begin, end or look: `{"off", "stop", "deadline": seconds, "look"}`. Raises GridError if that is malformed."""
        if not arguments.get("look"):
            if arguments.get("off"):
                self._end(now)
            else:
                deadline = arguments.get("deadline")
                if deadline is not None and not (isinstance(deadline, int | float) and 0 < deadline <= DEADLINE_MAX_S):
                    raise GridError(
                        "a deadline that is no number of seconds", code="usage", next="p2pgrid drain --help"
                    )
                self._stops = arguments.get("stop") is True
                self._until_s = float("inf") if deadline is None else now + deadline
                self._begin(now)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Return how far it is: tasks that run here, results that others have not confirmed, jobs and copies here."""
        jobs = self.keeping.jobs.values()
        others = bool(self.peers)
        running = sum(info.left.size for worker in self.running.workers.values() for info in worker.runs)
        owed = sum(len(debt.batches) for debt in self.holding.debts.values())
        serves = sum(kept.answers for kept in jobs)
        left = running + owed + (len(self.keeping.jobs) if others else 0)
        return {
            "id": self.config.node_id, "name": self.config.name, "draining": self.parts.draining, "running": running,
            "owed": owed, "serves": serves, "copies": len(self.keeping.jobs) - serves, "alone": not others,
            "drained": self.parts.draining and not left,
        }  # fmt: skip

    def _begin(self, now: float) -> None:
        if not self.parts.draining:
            self.parts.draining = True
            self.out += self.running.stop()
            self.neighbours.tell_facts({"draining": True}, now)
            self.out.append(e.Log("info", "draining: no new tasks, jobs and copies go to other nodes"))
        self._give_back()
        self.parts.regrouped = True
        self.parts.timer((TIMER,), now + LOOK_S)

    def _end(self, now: float) -> None:
        if self.parts.draining:
            self.parts.draining = False
            self.running.stopping = self.parts.stopping
            self.neighbours.tell_facts({"draining": False}, now)
            self.parts.regrouped = self.parts.hungry = True
            self.parts.timer((TIMER,), None)
        self._stops = False

    def _give_back(self) -> None:
        """What was granted here and has not begun goes back to its keepers."""
        for job, work in list(self.pool.works.items()):
            if work.keeper is None:
                continue
            unstarted = self.holding.unfinished(work.keeper, job) - self.running.spans(job) - self.victim.taken(job)
            for lo, hi in unstarted:
                self.pool.remove(work, lo, hi)
            if unstarted:
                self.out += self.holding.give_back(work.keeper, job, unstarted, "")
                self.members.tidy(work.keeper, job)

    def look(self, now: float) -> None:
        """See how far it is, and stop if that was asked for and it is over, or the time is."""
        if not self.parts.draining:
            return
        self._give_back()  # what workers gave back meanwhile
        state = self.state()
        if self._stops and (state["drained"] or state["alone"] or now >= self._until_s):
            self._stop(e.Stop(2.0), now)
            return
        self.parts.timer((TIMER,), now + LOOK_S)

    def node(self, text: str) -> str | None:
        """Return the id of another node that is named; None for this one. Raises NotFound."""
        found = [row["id"] for row in meant(text, self.neighbours.rows())]
        if len(found) != 1:
            many = f"{text!r} names {len(found)} nodes: {', '.join(found)}" if found else f"no node {text!r}"
            raise NotFound(many, next="p2pgrid members", code="ambiguous" if found else "not-found")
        return None if found[0] == self.config.node_id else str(found[0])
