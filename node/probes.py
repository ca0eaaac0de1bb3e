"""What an observer keeps: of each member whether it answers, of each question who was asked and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.core.member import ALIVE, SUSPECT
from p2pgrid.node.events import NodeId


@dataclass(slots=True)
class Peer:
    """A member that is alive or suspect."""

    incarnation: int
    leaf: bool
    heard_s: float
    rtt_s: float | None = None
    deviation_s: float = 0.0
    misses: int = 0
    """Consecutive."""
    suspected_s: float | None = None
    """Since when; None: alive."""
    accusers: dict[NodeId, None] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return ALIVE if self.suspected_s is None else SUSPECT

    def answered_in(self, seconds: float) -> None:
        """Learn a round trip (Jacobson)."""
        if self.rtt_s is None:
            self.rtt_s, self.deviation_s = seconds, seconds / 2
            return
        self.deviation_s += (abs(seconds - self.rtt_s) - self.deviation_s) / 4
        self.rtt_s += (seconds - self.rtt_s) / 8


@dataclass(slots=True)
class Probe:
    """A question that runs."""

    subject: NodeId
    sent_s: float
    ask_others_s: float
    ends_s: float
    helpers: dict[NodeId, bool] | None = None
    """Others that were asked, and whether they said NACK; None: not yet."""


@dataclass(slots=True)
class Relay:
    """A question that runs for another."""

    asker: NodeId
    seq: int
    subject: NodeId
    nack_s: float | None
    ends_s: float
