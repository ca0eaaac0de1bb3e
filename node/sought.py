"""Sought: what is known of an object that is wanted here and not whole, and when it is looked for in the DHT.

Members that are connected are asked one by one, without any DHT. Only when none of them can help are others looked for:
those that the Ref names and that are not connected, and whoever has said in the DHT that it has the object. A few
objects at a time; a node that wants thousands that nobody has asks for them a few at a time.

Rule: names and times only; part of `objects.py`, which knows what is wanted and who is connected.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from p2pgrid.core.pieces import Manifest, ObjectId
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.fetching import Fetch
from p2pgrid.node.object_events import Owner, Seek


@dataclass(slots=True)
class Sought:
    """An object that is wanted and not whole here."""

    owners: dict[Owner, None]
    since_s: float
    """When it was wanted, or last came nearer."""
    asked: dict[str, float] = field(default_factory=dict)
    """Members asked and not answered, and when."""
    holders: dict[str, RangeSet | None] = field(default_factory=dict)
    last_holders: dict[str, None] = field(default_factory=dict)
    everybody: bool = False
    """All neighbours are asked, not only those named."""
    listing: tuple[str, float] | None = None
    """Who was asked for the manifest, and when."""
    manifest: Manifest | None = None
    fetch: Fetch | None = None
    placed: bool = False
    told: int = 0
    """Pieces that were here when followers heard last."""
    asked_s: float = -math.inf
    """When everybody was asked because nobody had what is missing."""
    seek_s: float = -math.inf
    """When the DHT was asked last, or answered."""
    sighted: bool = False
    """It has named somebody who was not known."""

    @property
    def hopeful(self) -> bool:
        """Whether somebody is known to have what is missing."""
        return self.fetch.hopeful if self.fetch is not None and self.placed else bool(self.holders)


@dataclass(frozen=True, slots=True)
class SeekOptions:
    """Times in seconds."""

    after_s: float = 1.0
    """Then, or when all who are connected have said no, others are looked for."""
    again_s: float = 5.0
    running_max: int = 8
    """Objects at once; more wait their turn."""


class Seeks:
    """What one node looks for in the DHT."""

    def __init__(self, options: SeekOptions) -> None:
        self.options = options
        self.running: dict[ObjectId, None] = {}

    def is_due(self, id_: ObjectId, sought: Sought, now: float) -> bool:
        """Whether those who are connected cannot help, and there is room for one more search."""
        if sought.hopeful or id_ in self.running or len(self.running) >= self.options.running_max:
            return False
        have_said_no = not sought.asked and not sought.holders
        waited = now - sought.since_s >= self.options.after_s
        return (have_said_no or waited) and now - sought.seek_s >= self.options.again_s

    def begin(self, id_: ObjectId, sought: Sought, connected: Container[str], now: float) -> Seek:
        """Have it looked for; `ended` follows."""
        self.running[id_], sought.seek_s = None, now
        return Seek(id_, [peer for peer in sought.last_holders if peer not in connected])

    def ended(self, id_: ObjectId, sought: Sought | None, peers: Sequence[str], now: float) -> list[str]:
        """Take in what was found; return who is new. The first time there is somebody new, there is time once more."""
        self.running.pop(id_, None)
        if sought is None:
            return []
        sought.seek_s = now
        new = [peer for peer in peers if peer not in sought.last_holders]
        if new and not sought.sighted:  # once: a liar might name another at every turn
            sought.sighted, sought.since_s = True, now
        sought.last_holders |= dict.fromkeys(new)
        return new
