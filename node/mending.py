"""Mending: what a job needs and is damaged on disk here is hoped for from other keepers, who are asked for it anew."""

from __future__ import annotations

from collections.abc import Callable

from p2pgrid.core.record import BatchId
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from p2pgrid.node.kept import Job, Kept
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.restoring import Restoring

MEND_S = 10.0
"""How long what is damaged on disk is hoped for from others; longer (`away_s`) while a member is away."""
ROUND_S = 0.3
"""They are asked as soon as that."""


class Mending(Handler):
    """What is missing here. `wake_at` has the other keepers asked by a time."""

    def __init__(
        self, parts: Parts, outcomes: Outcomes, restoring: Restoring, wake_at: Callable[[float], None]
    ) -> None:
        super().__init__(parts)
        self.outcomes = outcomes
        self.restoring = restoring
        self.wake_at = wake_at
        self.is_somebody_away: Callable[[], bool] = lambda: False
        """Whether a member is away that may have what nobody else has."""
        self.jobs: dict[Job, tuple[float, float]] = {}
        """Jobs of which something is missing here, since when it is hoped for, and until when."""
        self.keeping.readers.mend = self.mend
        restoring.mend = self.may

    def mend(self, kept: Kept, batch: BatchId) -> bool:
        """A result here is damaged: have it from another keeper, if there is one."""
        if not self.may(kept):
            return False
        kept.rows.put(e.Row(kept.id, "result", pack(batch), b"", None))
        return True

    def may(self, kept: Kept) -> bool:
        """Something that should be here is not: ask the other keepers for it, if there are any."""
        if not kept.copied or not (self.peers or self.is_somebody_away()):  # who just came may be a keeper in a moment
            return False
        if kept.id not in self.jobs:
            text = f"{kept.name}: something of it is not on disk here; it is had from another node"
            self.out.append(e.Log("warning", text))
            self.jobs[kept.id] = self.parts.now, self.parts.now + MEND_S
        self.wake_at(self.parts.now + ROUND_S)
        return True

    def look(self, now: float) -> None:
        """See which damages are mended; what nobody else has is lost."""
        for job, (since_s, until_s) in list(self.jobs.items()):
            kept = self.keeping.jobs.get(job)
            if kept is None or not (kept.torn or job in self.restoring.lacking):
                del self.jobs[job]
            elif now < since_s + self.config.away_s and self.is_somebody_away():
                self.jobs[job] = since_s, now + MEND_S  # once everybody is here, they are asked
            elif until_s <= now:
                del self.jobs[job]
                self.outcomes.on_damaged(kept, list(kept.torn))
                self.out += self.keeping.readers.give_up(kept)
                self.restoring.give_up(kept)
