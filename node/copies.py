"""Copies: how many members shall have an object, and who asks another to keep one when some are gone.

All holders of an object know the wish and each other. The first of them that is there, in an order that follows from
the hashes of object and member, asks the next members of that order: everybody computes the same, so nobody has to
agree. A holder that went away is waited for a while, since most come back; what is kept too often is nobody's loss.

Rule: this file knows names, neither bytes nor pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import blake3

from p2pgrid.core import messages as m
from p2pgrid.core.pieces import ObjectId
from p2pgrid.node.events import Send


@dataclass(frozen=True, slots=True)
class CopiesOptions:
    """Times in seconds."""

    away_s: float = 30.0
    """A holder that left may be back by then."""
    ask_again_s: float = 60.0
    """A member that was asked and did not say that it has it: another is asked."""
    wishes_max: int = 100_000


@dataclass(slots=True)
class Wish:
    """What is known of the copies of one object."""

    copies: int
    holders: dict[str, None] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)


class Copies:
    """All objects that shall have several copies, as far as this node keeps one."""

    def __init__(self, me: str, options: CopiesOptions) -> None:
        self.me = me
        self.options = options
        self.wishes: dict[ObjectId, Wish] = {}
        self._up: dict[str, None] = {me: None}
        self._left_s: dict[str, float] = {}

    def wish(self, id_: ObjectId, copies: int, holders: Iterable[str], now: float) -> bool:
        """Take over a wish: we have the object, or are getting it. Return whether the wish could be taken."""
        if id_ not in self.wishes and len(self.wishes) >= self.options.wishes_max:
            return False
        wish = self.wishes.setdefault(id_, Wish(copies))
        wish.copies = max(wish.copies, copies)
        for holder in holders:
            if holder not in wish.holders:
                wish.asked.setdefault(holder, now)
        return True

    def has(self, id_: ObjectId, node: str) -> None:
        """A member has the whole object."""
        wish = self.wishes.get(id_)
        if wish is not None:
            wish.holders[node] = None
            wish.asked.pop(node, None)

    def lacks(self, id_: ObjectId, node: str) -> None:
        """A member does not have it, or not any more."""
        wish = self.wishes.get(id_)
        if wish is not None:
            wish.holders.pop(node, None)

    def free(self, id_: ObjectId) -> list[str]:
        """The copies are not needed any more; return the other holders."""
        others = self.concerned(id_)
        self.wishes.pop(id_, None)
        return others

    def concerned(self, id_: ObjectId) -> list[str]:
        """Return the other members that have it or were asked to."""
        wish = self.wishes.get(id_)
        return [] if wish is None else [node for node in (wish.holders | wish.asked) if node != self.me]

    def entrust(self, id_: ObjectId, copies: int, holders: Sequence[str], now: float) -> list[Send]:
        """Have an object kept by those who have it, for this node needs it and does not have it (yet)."""
        self.wish(id_, copies, holders, now)
        return [send for node in holders if node in self._up for send in self._asking(id_, node)]

    def _asking(self, id_: ObjectId, node: str) -> list[Send]:
        wish = self.wishes.get(id_)
        return [] if wish is None else [Send(node, m.O_COPY, [id_, wish.copies, [*wish.holders, *wish.asked]])]

    def up(self, node: str) -> list[Send]:
        """A member is there (again); whoever is entrusted with something hears it once more."""
        self._up[node] = None
        self._left_s.pop(node, None)
        entrusted = [id_ for id_, one in self.wishes.items() if node in one.asked and self.me not in one.holders]
        return [send for id_ in entrusted for send in self._asking(id_, node)]

    def down(self, node: str, now: float) -> None:
        self._up.pop(node, None)
        self._left_s[node] = now

    def repairs(self, able: Sequence[str], now: float) -> Iterator[Send]:
        """Yield what to ask of whom now; `able` are the members that may keep objects."""
        for id_, wish in self.wishes.items():
            if self.me not in wish.holders:
                continue
            order = sorted(wish.holders, key=lambda node: _place(id_, node))
            if next((node for node in order if node in self._up), None) != self.me:
                continue  # another's turn
            there = [node for node in order if self._counts(node, now)]
            coming = [n for n, since in wish.asked.items() if n in self._up and now - since < self.options.ask_again_s]
            missing = wish.copies - len(there) - len(coming)
            if missing <= 0:
                continue
            others = [node for node in able if node not in wish.holders and node not in wish.asked and node in self._up]
            chosen = sorted(others, key=lambda node: _place(id_, node))[:missing]
            if not chosen:  # nobody new: those that did not answer, once more
                for node in [n for n in wish.asked if n not in coming]:
                    del wish.asked[node]
                continue
            for node in chosen:
                wish.asked[node] = now
            everybody = [*there, *wish.asked]
            for node in [*chosen, *(n for n in there if n != self.me and n in self._up)]:
                yield Send(node, m.O_COPY, [id_, wish.copies, everybody])

    def _counts(self, node: str, now: float) -> bool:
        return node in self._up or now - self._left_s.get(node, -self.options.away_s) < self.options.away_s


def _place(id_: ObjectId, node: str) -> bytes:
    return blake3.blake3(id_ + node.encode()).digest()
