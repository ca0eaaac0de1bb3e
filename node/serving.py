"""Serving: what other nodes ask about objects that this one has, whole or in part, and what it tells them by itself.

Who asked for an object that is here, or on its way here, follows it: he hears which pieces have come, and that it is
gone. A node answers for what it has verified only. So much is under way to one member at a time; then he is told to
come back, or to ask elsewhere. And while several fetch, a piece that one of them has just got is not sent again as long
as others were never sent: they have it from each other.

Rule: as `objects.py`, of which this is the answering half; it does not know what is wanted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.pieces import Manifest, ObjectId
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.events import Send
from p2pgrid.node.object_events import Describe, Key, SendPieces
from p2pgrid.node.shelf import Shelf

OURSELVES = -1
"""The node itself, where a process that has an object mapped is named."""

Answer = Send | SendPieces | Describe


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """Pieces, seconds, objects."""

    pieces_max: int = 128
    """On their way to one member; beyond it, it is told to ask elsewhere."""
    busy_s: float = 0.5
    spread_s: float = 2.0
    """So long a piece that one member got is not given to another while there are pieces that nobody got: they have it
    from each other, and the source of a swarm sends little more than each piece once."""
    spread_min: int = 3
    """Of so many members or more that are getting the object here."""
    followed_max: int = 10_000
    described_max: int = 1024


class Partial(NamedTuple):
    """An object that is being fetched."""

    manifest: Manifest | None
    verified: RangeSet


@dataclass(slots=True)
class Described:
    """An object whose manifest the shell is finding out, and who asked for it."""

    id: ObjectId | None
    waiting: dict[str, None] = field(default_factory=dict)


class Serving:
    """The answering half of one node."""

    def __init__(self, shelf: Shelf, options: ServingOptions, partial: Callable[[ObjectId], Partial | None]) -> None:
        self.options = options
        self.shelf = shelf
        self.manifests: dict[ObjectId, Manifest] = {}
        """Of what is here, as far as they were ever needed."""
        self._partial = partial
        self._followers: dict[ObjectId, dict[str, None]] = {}
        self._under_way: dict[str, int] = {}
        self._describing: dict[Key, Described] = {}
        self._given: dict[ObjectId, dict[int, float]] = {}  # when each piece was last sent, while several fetch
        self._takers: dict[ObjectId, dict[str, float]] = {}

    # ---- asked -------------------------------------------------------------------------------------------------------

    def found(self, peer: str, id_: ObjectId) -> Send:
        """A member asks whether this object is here; he follows it from now on."""
        key, partial = self.shelf.find(id_), self._partial(id_)
        if key is None and partial is None:
            return Send(peer, m.O_LACK, [id_, None])
        if id_ in self._followers or len(self._followers) < self.options.followed_max:
            self._followers.setdefault(id_, {})[peer] = None
        if key is not None:
            return Send(peer, m.O_HAVE, [id_, self.shelf.items[key].size, None])
        assert partial is not None
        if partial.manifest is None:
            return Send(peer, m.O_LACK, [id_, None])  # not yet: he hears when there is something
        return Send(peer, m.O_HAVE, [id_, partial.manifest.size, partial.verified.flat()])

    def listed(self, peer: str, id_: ObjectId) -> list[Answer]:
        """A member asks for a manifest. The shell knows those that nobody asked for so far."""
        key, partial = self.shelf.find(id_), self._partial(id_)
        manifest = self.manifests.get(id_) if key is not None else partial.manifest if partial is not None else None
        if manifest is not None:
            return [Send(peer, m.O_LISTED, [id_, manifest.packed()])]
        if key is None or len(self._describing) >= self.options.described_max:
            return [Send(peer, m.O_LACK, [id_, None])]
        if key in self._describing:
            self._describing[key].waiting[peer] = None
            return []
        return [self._describe(key, Described(id_, {peer: None}))]

    def _describe(self, key: Key, asked: Described) -> Describe:
        self._describing[key] = asked
        if self.shelf.items[key].memory:
            self.shelf.map(key, OURSELVES)  # it stays where it is until the shell has read all of it
        return Describe(key, asked.id)

    def name(self, key: Key) -> list[Answer]:
        """Find out the id of an object that a worker wrote: it is to leave this node."""
        item = self.shelf.items[key]
        if key in self._describing or (item.id is not None and item.id in self.manifests):
            return []
        return [self._describe(key, Described(item.id))]

    def described(self, key: Key, manifest: Manifest | None) -> list[Answer]:
        """The shell has found out; None: the object is damaged or gone."""
        asked = self._describing.pop(key, Described(None))
        if manifest is not None and key in self.shelf.items:
            self.manifests[manifest.id] = manifest
            self.shelf.named(key, manifest.id)
            return [Send(peer, m.O_LISTED, [manifest.id, manifest.packed()]) for peer in asked.waiting]
        return [Send(peer, m.O_LACK, [asked.id, None]) for peer in asked.waiting]

    def wanted(self, peer: str, id_: ObjectId, pieces: RangeSet, now: float) -> list[Answer]:
        """A member asks for pieces."""
        key, partial = self.shelf.find(id_), self._partial(id_)
        if key is not None:
            self.shelf.touch(key)
            have = pieces
        elif partial is not None:
            have = pieces & partial.verified
        else:
            return [Send(peer, m.O_LACK, [id_, None])]
        out: list[Answer] = []
        if lacking := pieces - have:
            out.append(Send(peer, m.O_LACK, [id_, lacking.flat()]))
        if key is not None and (later := self._spread(peer, id_, have, now)):
            out.append(Send(peer, m.O_BUSY, [id_, later.flat(), self.options.busy_s]))
            have -= later
        under_way = self._under_way.get(peer, 0)
        if under_way + have.size > self.options.pieces_max:
            out.append(Send(peer, m.O_BUSY, [id_, have.flat(), self.options.busy_s]))
        elif have:
            self._under_way[peer] = under_way + have.size
            out.append(SendPieces(peer, id_, list(have)))
        return out

    def _spread(self, peer: str, id_: ObjectId, pieces: RangeSet, now: float) -> RangeSet:
        """Return which of these others have just got, and can pass on; note the rest as given."""
        since_s = now - self.options.spread_s
        takers = self._takers[id_] = {n: at for n, at in self._takers.get(id_, {}).items() if at > since_s}
        takers[peer] = now
        manifest = self.manifests.get(id_)
        if manifest is None or len(takers) < self.options.spread_min:
            self._given.pop(id_, None)
            return RangeSet()
        given = self._given.setdefault(id_, {})
        everything = len(given) == manifest.count
        later = RangeSet()
        for lo, hi in pieces:
            for piece in range(lo, hi):
                if not everything and given.get(piece, since_s) > since_s:
                    later.add(piece, piece + 1)
                else:
                    given[piece] = now
        return later

    def served(self, peer: str, pieces: int) -> None:
        """So many pieces have left for a member."""
        if peer in self._under_way:
            self._under_way[peer] = max(0, self._under_way[peer] - pieces)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def complete(self, manifest: Manifest, further: list[str]) -> list[Answer]:
        """An object is whole here: those who follow it hear it, and further members."""
        self.manifests[manifest.id] = manifest
        told = self._followers.get(manifest.id, {}) | dict.fromkeys(further)
        return [Send(peer, m.O_HAVE, [manifest.id, manifest.size, None]) for peer in told]

    def progress(self, id_: ObjectId, size: int, verified: RangeSet) -> list[Answer]:
        """More pieces of an object are here."""
        flat = verified.flat()
        return [Send(peer, m.O_HAVE, [id_, size, flat]) for peer in self._followers.get(id_, {})]

    def lost(self, id_: ObjectId) -> list[Answer]:
        """An object is not here and will not be."""
        return [Send(peer, m.O_LACK, [id_, None]) for peer in self._followers.pop(id_, {})]

    def gone(self, peer: str) -> None:
        """A member is not reachable any more."""
        self._under_way.pop(peer, None)
        for followers in self._followers.values():
            followers.pop(peer, None)
        for asked in self._describing.values():
            asked.waiting.pop(peer, None)

    def tidy(self) -> list[Answer]:
        """Forget about objects that were dropped, and say so to those who were told that they are here."""
        self.manifests = {id_: one for id_, one in self.manifests.items() if self.shelf.find(id_) is not None}
        self._given = {id_: given for id_, given in self._given.items() if id_ in self.manifests}
        self._takers = {id_: takers for id_, takers in self._takers.items() if id_ in self.manifests}
        gone = [id_ for id_ in self._followers if self.shelf.find(id_) is None and self._partial(id_) is None]
        return [answer for id_ in gone for answer in self.lost(id_)]
