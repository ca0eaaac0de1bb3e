"""Fetching one object: which pieces are asked of whom, until all have come.

Several holders at once, each with a few pieces under way (a window that grows while pieces come quickly); of the pieces
that a holder has, the one that fewest others have; whoever is quickest is asked first. A piece that does not come is
asked of another, one with a wrong hash excludes its sender for good. The last few pieces are asked of two. What came
stays, whoever goes: a fetch without holders waits for the next one and goes on.

After ALGORITHMS §5.3: up to 8 holders, about 1 MB under way with each, random beginning, then rarest first.

Rule: this file knows numbers of pieces and names of holders, neither bytes nor frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from p2pgrid.core.ranges import RangeSet


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Pieces and seconds."""

    holders_max: int = 8
    window_min: int = 2
    window_first: int = 2
    """Few: what all ask of the source at first, before they hear of each other, it sends several times."""
    window_max: int = 32
    patience_s: float = 10.0
    """A piece that has not come by then is asked of another."""
    quick_s: float = 0.5
    """A holder whose pieces come in half of this gets more at a time."""
    end_share: float = 0.02
    """Of the last pieces, those under way are asked of a second holder as well."""
    look: int = 16
    """So many candidates are compared for rarity."""
    rtt_weight: float = 0.2


@dataclass(slots=True)
class Holder:
    """One member that has pieces of the object."""

    have: RangeSet
    window: int
    asked: dict[int, float] = field(default_factory=dict)
    """Pieces under way, and since when."""
    took_s: float = 0.1
    """How long a piece takes from here, with those before it."""
    not_before_s: float = 0.0
    """It said that it is busy until then."""
    later: dict[int, float] = field(default_factory=dict)
    """Pieces that it has and will not send before."""
    useless: bool = False
    """It had nothing that is open when we looked last; nothing has changed since."""
    rank: float = 0.0
    """By lot: else all that fetch would ask the same ones."""


class Fetch:
    """The plan for one object of `count` pieces."""

    def __init__(self, count: int, options: FetchOptions, rng: random.Random) -> None:
        self.options = options
        self.count = count
        self.verified = RangeSet()
        self.holders: dict[str, Holder] = {}
        self.liars: dict[str, None] = {}
        """Sent a wrong piece: not asked again."""
        self.duplicates = 0
        self._open = RangeSet([(0, count)])  # neither verified nor under way
        self._times: dict[int, int] = {}  # under way from so many
        self._rng = rng
        self._cursor = rng.randrange(count)
        self._whole = 0  # holders that have everything

    @property
    def done(self) -> bool:
        return self.verified.size == self.count

    @property
    def missing(self) -> int:
        return self.count - self.verified.size

    @property
    def hopeful(self) -> bool:
        """Whether some holder says that he has a piece that is missing."""
        return any(h.asked or h.later for h in self.holders.values()) or any(
            self._open.within(lo, hi) for h in self.holders.values() for lo, hi in h.have
        )

    # ---- who has what ------------------------------------------------------------------------------------------------

    def has(self, peer: str, pieces: RangeSet | None) -> None:
        """A member has these pieces (None: all), whatever it said before."""
        if peer in self.liars:
            return
        have = RangeSet([(0, self.count)]) if pieces is None else pieces
        if (last := have.last()) is not None and last[1] > self.count:
            have.discard(self.count, last[1])
        if peer in self.holders:
            self.holders[peer].have = have
            self.holders[peer].later.clear()
            self.holders[peer].useless = False
        else:
            self.holders[peer] = Holder(have, self.options.window_first, rank=self._rng.random())
        self._count_whole()

    def lacks(self, peer: str, pieces: RangeSet | None) -> None:
        """A member has these no more (None: nothing at all)."""
        holder = self.holders.get(peer)
        if holder is None:
            return
        self._take_back(holder, pieces)
        if pieces is None:
            del self.holders[peer]
        else:
            holder.have = holder.have - pieces
        self._count_whole()

    def gone(self, peer: str) -> None:
        """A member's connection ended: what was under way from it is asked of others."""
        self.lacks(peer, None)

    def busy(self, peer: str, pieces: RangeSet, until_s: float) -> None:
        """A member will not send these now; if it sends nothing else either, it is busy."""
        holder = self.holders.get(peer)
        if holder is None:
            return
        self._take_back(holder, pieces)
        for lo, hi in pieces:
            for piece in range(lo, min(hi, self.count)):
                if holder.have.discard(piece, piece + 1):
                    holder.later[piece] = until_s
        if not holder.asked:
            self._slow_down(holder, until_s)

    def came(self, peer: str, piece: int, *, good: bool, now: float) -> list[str]:
        """A piece has come and was verified or was wrong. Returns who else was asked for it."""
        holder = self.holders.get(peer)
        if not good:
            self.liars[peer] = None
            self.lacks(peer, None)
            return []
        if not 0 <= piece < self.count:
            return []
        self.duplicates += not self.verified.add(piece, piece + 1)
        self._open.discard(piece, piece + 1)
        if holder is not None and (since_s := holder.asked.pop(piece, None)) is not None:
            took_s = now - since_s
            holder.took_s += self.options.rtt_weight * (took_s - holder.took_s)
            if took_s < self.options.quick_s / 2:
                holder.window = min(self.options.window_max, holder.window + 1)
            self._times[piece] -= 1
        if not self._times.pop(piece, 0):
            return []
        return [name for name, other in self.holders.items() if other.asked.pop(piece, None) is not None]

    # ---- what to ask -------------------------------------------------------------------------------------------------

    def ask(self, now: float) -> dict[str, RangeSet]:
        """Return what to ask of whom now; it counts as asked."""
        out: dict[str, RangeSet] = {}
        if self.done:
            return out
        line = self._line(now)
        while line:
            # The one that would deliver the next piece soonest.
            peer = min(line, key=lambda name: line[name].took_s * (len(line[name].asked) + 1) / line[name].window)
            holder = line[peer]
            piece = self._choose(holder) if self._open else self._again(holder)
            if piece is None:
                holder.useless = bool(self._open)
                del line[peer]
                continue
            self._open.discard(piece, piece + 1)
            self._times[piece] = self._times.get(piece, 0) + 1
            holder.asked[piece] = now
            out.setdefault(peer, RangeSet()).add(piece, piece + 1)
            if len(holder.asked) >= holder.window:
                del line[peer]
        return out

    def _line(self, now: float) -> dict[str, Holder]:
        """Return the holders that may be asked: those that are at it, and others up to the limit.

        A holder is asked again when half of its window is free: fewer frames, and fewer turns of this.
        """
        able = {name: h for name, h in self.holders.items() if h.not_before_s <= now and not h.useless}
        most = self.options.holders_max
        if len(able) > most:
            chosen = sorted(able, key=lambda name: (not able[name].asked, able[name].rank))[:most]
            able = {name: able[name] for name in chosen}
        return {name: h for name, h in able.items() if len(h.asked) <= h.window // 2}

    def _choose(self, holder: Holder) -> int | None:
        """Return the rarest of the next few pieces that are open and that this holder has, from a random beginning.

        Where everybody has everything it is the next one: in order, which disks like.
        """
        look = 1 if self._whole == len(self.holders) else self.options.look
        candidates: list[int] = []
        for lo, hi in ((self._cursor, self.count), (0, self._cursor)):
            for start, end in self._open.within(lo, hi):
                for first, last in holder.have.within(start, end):
                    candidates += range(first, min(last, first + look - len(candidates)))
                    if len(candidates) >= look:
                        return self._rarest(candidates)
        return self._rarest(candidates)

    def _rarest(self, candidates: list[int]) -> int | None:
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        counts = [sum(piece in one.have for one in self.holders.values()) for piece in candidates]
        fewest = min(counts)
        return self._rng.choice([piece for piece, count in zip(candidates, counts, strict=True) if count == fewest])

    def _again(self, holder: Holder) -> int | None:
        """Near the end: return a piece that another holder has not delivered yet."""
        if self.missing > max(1, int(self.count * self.options.end_share)):
            return None
        pieces = [p for p, times in self._times.items() if times == 1 and p in holder.have and p not in holder.asked]
        return min(pieces, default=None)

    def tick(self, now: float) -> None:
        """Take back what has been under way for too long; `ask` afterwards. To be called now and then."""
        for holder in self.holders.values():
            for piece in [piece for piece, until_s in holder.later.items() if until_s <= now]:
                del holder.later[piece]
                holder.have.add(piece, piece + 1)
                holder.useless = False
            late = [piece for piece, since_s in holder.asked.items() if now - since_s >= self.options.patience_s]
            if late:
                self._take_back(holder, RangeSet((piece, piece + 1) for piece in sorted(late)))
                self._slow_down(holder, now + self.options.patience_s / 4)
                holder.took_s = max(holder.took_s, self.options.patience_s)

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: nobody let us wait meanwhile."""
        for holder in self.holders.values():
            holder.asked = {piece: since_s + seconds for piece, since_s in holder.asked.items()}

    def _take_back(self, holder: Holder, pieces: RangeSet | None) -> None:
        """These are not under way from this holder any more (None: none is)."""
        for piece in [piece for piece in holder.asked if pieces is None or piece in pieces]:
            del holder.asked[piece]
            self._times[piece] -= 1
            if not self._times[piece]:
                del self._times[piece]
                self._open.add(piece, piece + 1)
                for other in self.holders.values():
                    other.useless = False

    def _slow_down(self, holder: Holder, until_s: float) -> None:
        holder.not_before_s = until_s
        holder.window = max(self.options.window_min, holder.window // 2)

    def _count_whole(self) -> None:
        self._whole = sum(holder.have.size == self.count for holder in self.holders.values())
