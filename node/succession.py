"""Succession: what it takes to serve a job from now on, and to leave that to another keeper.

Whoever takes over owns what its own workers did for the former keeper, charges the tasks with which that one vanished,
and goes on with the rest (`restoring`). Whoever gives way goes on running what runs, for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.kept import RUNNING, Kept, Source
from p2pgrid.node.members import Members
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.restoring import Restoring


class Succession(Handler):
    """Taking over and giving way. `living`: which keepers of a job live."""

    def __init__(
        self, parts: Parts, outcomes: Outcomes, members: Members, restoring: Restoring,
        living: Callable[[Kept], set[str]],
    ) -> None:  # fmt: skip
        super().__init__(parts)
        self.outcomes = outcomes
        self.members = members
        self.restoring = restoring
        self.living = living

    def serve(self, kept: Kept, now: float) -> None:
        """Go on with a job: own the results of its tasks that ran here, and make ready what nobody claims."""
        kept.listening = None
        kept.serving = True
        if kept.objects:
            self.outcomes.needs(kept, kept.objects)
        if kept.ended and not kept.is_whole:
            kept.state = RUNNING  # nobody has the rest: it runs again
        if kept.ended:
            self.restoring.release(kept.id, now)
            return
        if kept.refs:
            self.outcomes.needs(kept, kept.refs.values(), inputs=True)
        self.parts.reading.add(kept.id)
        work = self.pool.works.get(kept.id)
        if work is not None and work.keeper is not None:
            before = work.keeper
            self.pool.convert(work, (kept.spec.owner, kept.spec.session), None)
            for entry in self.holding.settle(before, kept.id):
                self._own(kept, entry)
        if kept.accepted != self.config.node_id:
            self.out.append(e.Log("info", f"{kept.name}: its keeper is gone, this node goes on with it"))
        if not kept.taken_over:
            self.out.append(self.keeping.note(kept, "taken"))
        self._charge(kept)
        if kept.ended:
            self.restoring.release(kept.id, now)
            return
        if kept.accepted != self.config.node_id and not kept.spec.detach:
            self.parts.timer(("orphan", kept.spec.session), now + self.config.orphan_after_s)
        self.restoring.begin(kept)
        self.parts.hungry = True

    def _charge(self, kept: Kept) -> None:
        """Whoever served a job is gone: what it ran itself is charged, and runs alone from now on."""
        living = self.living(kept)
        for node, spans in kept.named.items():
            if node in living or node == self.config.node_id:
                continue
            for lo, hi in (spans & kept.open_tasks) - self.leases.covered(kept.id):
                for task in range(lo, hi):
                    self.members.granting.charge(kept, task, node)
        kept.named.clear()

    def _own(self, kept: Kept, entry: list[Any]) -> None:
        """Results of this node that were on their way to the former keeper."""
        _, (incarnation, number), attempt, outcomes, logs, _ = entry
        parsed = [e.Outcome(*one) for one in outcomes]
        source = Source(self.config.node_id, self.config.name, incarnation, number)
        effect = self.keeping.log(kept, [(index, text) for index, text in logs])
        if effect is not None:
            self.out.append(effect)
        self.outcomes.accept(kept, parsed, attempt, source)

    def give_way(self, kept: Kept, peer: str, now: float) -> None:
        """Another node serves a job that stands before this one in rank."""
        kept.serving = False
        kept.listening = None
        kept.server = peer
        work = self.pool.works.get(kept.id)
        for holder in self.leases.forget(kept.id):
            self.out.append(e.Send(holder, m.P_KEEPER, [[kept.id, peer]]))
        self.outcomes.on_out(kept.id, kept.open_tasks)
        if work is not None:
            running = self.running.spans(kept.id)
            for lane in list(work.lanes.values()):
                for lo, hi in list(lane.ready):
                    self.pool.remove(work, lo, hi)
            if running and not kept.ended:
                self.pool.convert(work, (peer.encode(), kept.id), peer)
                self.holding.take(peer, kept.id, list(running))
                self.out += self.members.claim(peer)
                self.parts.timer_unless_set(("beat",), now + self.config.holding.beat_s)
            else:
                self.pool.close(kept.id)
        self.restoring.release(kept.id, now)
