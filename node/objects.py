"""Objects between nodes: who has what, what is fetched from whom, what is served, and how many copies there are.

A node that wants an object asks those who are said to have it (all its neighbours, if nobody is), takes the manifest
from one of them, makes room, and fetches pieces from all at once (`fetching.py`). While it fetches it serves what it
has already (`serving.py`). The bytes never come here: the shell verifies and writes what arrives, reads and sends what
is asked for (`object_events.py`).

If none of them has it, members that are not connected may: the shell is told to look in the DHT (`Seek`), dials whom
that names, and they are asked like any other. An object is lost when for `lost_s` nobody was found who has it.

Rule: no bytes of objects, no clock; room and lifetimes are the shelf's business.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.pieces import Manifest, ObjectId
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.copies import Copies, CopiesOptions
from p2pgrid.node.events import Send
from p2pgrid.node.fetching import Fetch, FetchOptions
from p2pgrid.node.object_events import (
    Allocated,
    Damaged,
    Describe,
    Described,
    Expect,
    Forget,
    Gone,
    Key,
    NoRoom,
    Owner,
    PieceCame,
    Placed,
    Restored,
    Seek,
    SendPieces,
    Served,
    ShelfEffect,
    Sighted,
    Spilled,
    Suspect,
)
from p2pgrid.node.serving import OURSELVES, Partial, Serving, ServingOptions
from p2pgrid.node.shelf import Doing, Shelf
from p2pgrid.node.sought import SeekOptions, Seeks, Sought

COPY: Owner = ("copy", b"")

ObjectEvent = Allocated | Damaged | Described | NoRoom | PieceCame | Restored | Served | Sighted | Spilled
Effect = ShelfEffect | Send | Describe | Expect | Forget | Gone | Seek | SendPieces | Suspect


@dataclass(frozen=True, slots=True)
class ObjectsOptions:
    """Times in seconds."""

    fetch: FetchOptions = field(default_factory=FetchOptions)
    copies: CopiesOptions = field(default_factory=CopiesOptions)
    serving: ServingOptions = field(default_factory=ServingOptions)
    seek: SeekOptions = field(default_factory=SeekOptions)
    beat_s: float = 0.5
    ask_again_s: float = 2.0
    """Who has not answered is asked again; a manifest that has not come is asked of another."""
    lost_s: float = 10.0
    """So long nobody within reach was known who has a piece that is missing."""
    stuck_s: float = 120.0
    """So long nothing came, whatever they say."""
    news_pieces: int = 16
    """So many pieces after the last time, those who follow hear which are here."""
    ids_per_frame: int = 256
    tidy_beats: int = 20
    sought_max: int = 10_000


class Objects:
    """What one node knows and does about objects."""

    def __init__(self, me: str, shelf: Shelf, rng: random.Random, options: ObjectsOptions | None = None) -> None:
        self.options = options or ObjectsOptions()
        self.shelf = shelf
        self.copies = Copies(me, self.options.copies)
        self.sought: dict[ObjectId, Sought] = {}
        self.serving = Serving(shelf, self.options.serving, self._partial)
        self.wrong_pieces: dict[str, int] = {}
        self._rng = rng
        self._up: dict[str, None] = {}
        self._keepers: dict[str, None] = {}
        self._beats = 0
        self.seeks = Seeks(self.options.seek)
        self._readers: dict[int, Callable[..., list[Effect]]] = {
            m.O_FIND: self._find_all,
            m.O_HAVE: self._has,
            m.O_LACK: self._lacks,
            m.O_LIST: lambda peer, _, id_: list(self.serving.listed(peer, id_)),
            m.O_LISTED: self._listed,
            m.O_WANT: lambda peer, now, id_, pieces: list(self.serving.wanted(peer, id_, pieces, now)),
            m.O_BUSY: self._busy,
            m.O_COPY: self._copy,
            m.O_FREE: self._freed,
        }

    # ---- what is wanted here -----------------------------------------------------------------------------------------

    def want(self, id_: ObjectId, owner: Owner, holders: Sequence[str], now: float) -> list[Effect]:
        """Have an object in memory: Ready follows, or Gone, or NoRoom. `holders`: who is said to have it."""
        key = self.shelf.find(id_)
        if key is not None:
            if owner not in self.shelf.items[key].pins:
                self.shelf.pin(key, owner)
            return list(self.shelf.want(key, now))
        sought = self.sought.get(id_)
        if sought is None:
            if len(self.sought) >= self.options.sought_max:
                return [NoRoom(id_, f"{len(self.sought)} objects are being fetched already")]
            sought = self.sought[id_] = Sought({}, now)
        if owner not in sought.owners:
            sought.owners[owner] = None
            if id_ in self.shelf.items:  # its place is there; owners that came before hold it already
                self.shelf.pin(id_, owner)
        named = [peer for peer in holders if peer in self._up]
        sought.last_holders |= dict.fromkeys(holders)
        if not named:
            return self._ask_everybody(id_, sought, now)
        return list(self._find({id_: named}, now))

    def unwant(self, id_: ObjectId, owner: Owner) -> list[Effect]:
        """Somebody needs it no longer; what nobody waits for is not fetched on."""
        if (key := self.shelf.find(id_)) is not None:
            self.shelf.unpin(key, owner)
        sought = self.sought.get(id_)
        if sought is None or owner not in sought.owners:
            return []
        del sought.owners[owner]
        if id_ in self.shelf.items:
            self.shelf.unpin(id_, owner)
        return [] if sought.owners else self._give_up(id_)

    def _give_up(self, id_: ObjectId) -> list[Effect]:
        sought = self.sought.pop(id_)
        out: list[Effect] = []
        if sought.fetch is not None:
            out += [Send(p, m.O_SKIP, [id_, _flat(h.asked)]) for p, h in sought.fetch.holders.items() if h.asked]
        if sought.placed:
            out.append(Forget(id_))
        item = self.shelf.items.get(id_)
        if item is not None and item.doing in (Doing.QUEUED, Doing.PLACING, Doing.WRITING):
            out += self.shelf.abandon(id_)
        return [*out, *self.serving.lost(id_)]

    def _partial(self, id_: ObjectId) -> Partial | None:
        """Return what is here of an object that is being fetched, or will be."""
        sought = self.sought.get(id_)
        if sought is None:
            return None
        return Partial(sought.manifest, sought.fetch.verified if sought.fetch is not None else RangeSet())

    # ---- finding -----------------------------------------------------------------------------------------------------

    def _find(self, wanted: dict[ObjectId, list[str]], now: float) -> Iterator[Send]:
        """Ask for several objects, in few frames."""
        per_peer: dict[str, list[ObjectId]] = {}
        for id_, peers in wanted.items():
            for peer in peers:
                self.sought[id_].asked[peer] = now
                per_peer.setdefault(peer, []).append(id_)
        step = self.options.ids_per_frame
        for peer, ids in per_peer.items():
            for at in range(0, len(ids), step):
                yield Send(peer, m.O_FIND, [ids[at : at + step]])

    def _ask_everybody(self, id_: ObjectId, sought: Sought, now: float) -> list[Effect]:
        sought.everybody = True
        peers = [peer for peer in self._up if peer not in sought.holders]
        return list(self._find({id_: peers}, now))

    def peer_up(self, peer: str, now: float, *, keeps: bool = True) -> list[Effect]:
        """A member is reachable; `keeps`: it may be asked to keep copies."""
        self._up[peer] = None
        if keeps:
            self._keepers[peer] = None
        ids = [id_ for id_, s in self.sought.items() if s.everybody or peer in s.last_holders]
        return [*self.copies.up(peer), *self._find({id_: [peer] for id_ in ids}, now)]

    def peer_down(self, peer: str, now: float) -> list[Effect]:
        """A member is not reachable any more; what came from it stays, the rest is asked of others."""
        self._up.pop(peer, None)
        self._keepers.pop(peer, None)
        self.serving.gone(peer)
        self.copies.down(peer, now)
        out: list[Effect] = []
        for id_, sought in list(self.sought.items()):
            if peer in sought.asked or peer in sought.holders:
                out += self._without(id_, sought, peer, None, now)
        return out

    def _without(self, id_: ObjectId, sought: Sought, peer: str, pieces: RangeSet | None, now: float) -> list[Effect]:
        """A member lacks these pieces (None: the object)."""
        sought.asked.pop(peer, None)
        if sought.listing is not None and sought.listing[0] == peer:
            sought.listing = None
        if pieces is None and peer in sought.holders:
            del sought.holders[peer]
            sought.since_s = max(sought.since_s, now if not sought.holders else 0.0)  # it had one until now
        if sought.fetch is not None:
            sought.fetch.lacks(peer, pieces)
        if not sought.holders and not sought.everybody:
            return self._ask_everybody(id_, sought, now)
        return self._go_on(id_, sought, now)

    def _sighted(self, id_: ObjectId, peers: Sequence[str], now: float) -> list[Effect]:
        """The DHT has answered; whom it names is being dialled, and asked as soon as he is connected."""
        new = self.seeks.ended(id_, self.sought.get(id_), [peer for peer in peers if peer != self.copies.me], now)
        return list(self._find({id_: [peer for peer in new if peer in self._up]}, now))

    def is_used(self, peer: str) -> bool:
        """Whether something comes from a member, or is asked of it."""
        return any(peer in sought.asked or peer in sought.holders for sought in self.sought.values())

    # ---- fetching ----------------------------------------------------------------------------------------------------

    def _go_on(self, id_: ObjectId, sought: Sought, now: float) -> list[Effect]:
        """Take the next step towards having an object."""
        if sought.manifest is None:
            if sought.listing is None and sought.holders:
                peer = self._rng.choice(list(sought.holders))
                sought.listing = (peer, now)
                return [Send(peer, m.O_LIST, [id_])]
            return []
        if not sought.placed or sought.fetch is None:
            return []
        return [Send(peer, m.O_WANT, [id_, pieces.flat()]) for peer, pieces in sought.fetch.ask(now).items()]

    def _listed(self, peer: str, now: float, id_: ObjectId, manifest: Manifest) -> list[Effect]:
        sought = self.sought.get(id_)
        if sought is None or sought.manifest is not None:
            return []
        owner = next(iter(sought.owners))
        try:
            out = list(self.shelf.admit(id_, manifest.size, owner, now))
        except QuotaExceeded as error:
            return [*self._give_up(id_), NoRoom(id_, error.message)]
        for other in list(sought.owners)[1:]:
            self.shelf.pin(id_, other)
        sought.manifest = manifest
        sought.fetch = Fetch(manifest.count, self.options.fetch, self._rng)
        for holder, pieces in sought.holders.items():
            sought.fetch.has(holder, pieces)
        return self._of_shelf(out, now)

    def _of_shelf(self, effects: Sequence[ShelfEffect], now: float) -> list[Effect]:
        """Pass on what the shelf says; what concerns a fetch is ours."""
        out: list[Effect] = []
        for effect in effects:
            match effect:
                case Placed(key) if key in self.sought:
                    sought = self.sought[ObjectId(key)]
                    assert sought.manifest is not None
                    sought.placed = True
                    out.append(Expect(ObjectId(key), sought.manifest))
                    out += self._go_on(ObjectId(key), sought, now)
                case NoRoom(key) if key in self.sought:
                    if COPY in self.sought.pop(ObjectId(key)).owners:
                        self.copies.free(ObjectId(key))  # whoever asked for it asks another
                    out += [effect, *self.serving.lost(ObjectId(key))]
                case _:
                    out.append(effect)
        return out

    def piece_came(self, event: PieceCame, now: float) -> list[Effect]:
        """The shell has verified a piece, and written it if it was right."""
        id_, peer, piece = event.id, event.peer, event.piece
        sought = self.sought.get(id_)
        if sought is None or sought.fetch is None or sought.manifest is None:
            return []
        others = sought.fetch.came(peer, piece, good=event.good, now=now)
        if not event.good:
            self.wrong_pieces[peer] = self.wrong_pieces.get(peer, 0) + 1
            return [Suspect(peer, id_, piece), *self._without(id_, sought, peer, None, now)]
        out: list[Effect] = [Send(other, m.O_SKIP, [id_, [piece, piece + 1]]) for other in others if other in self._up]
        if sought.fetch.done:
            return out + self._complete(id_, sought, now)
        sought.since_s = now
        here = sought.fetch.verified.size
        if here - sought.told >= min(self.options.news_pieces, max(1, sought.told)):  # the first few at once
            sought.told = here
            out += self.serving.progress(id_, sought.manifest.size, sought.fetch.verified)
        return out + self._go_on(id_, sought, now)

    def _complete(self, id_: ObjectId, sought: Sought, now: float) -> list[Effect]:
        del self.sought[id_]
        assert sought.manifest is not None
        self.shelf.items[id_].wanted = True
        out: list[Effect] = [Forget(id_), *self._of_shelf(self.shelf.written(id_, id_), now)]
        self.copies.has(id_, self.copies.me)
        return [*out, *self.serving.complete(sought.manifest, [p for p in self.copies.concerned(id_) if p in self._up])]

    # ---- what members say --------------------------------------------------------------------------------------------

    def received(self, peer: str, kind: int, body: Any, now: float) -> list[Effect]:
        """Take in a frame of a connected member, read by `core.shapes.of_objects`.

        The shell keeps two kinds for itself: O_PIECE, and O_SKIP, which takes back what it has not sent yet.
        """
        read = self._readers.get(kind)
        return [] if read is None else read(peer, now, *body)

    def _find_all(self, peer: str, now: float, ids: list[ObjectId]) -> list[Effect]:
        return [self.serving.found(peer, id_) for id_ in ids]

    def _has(self, peer: str, now: float, id_: ObjectId, size: int, pieces: RangeSet | None) -> list[Effect]:
        if pieces is None:
            self.copies.has(id_, peer)
        sought = self.sought.get(id_)
        if sought is None:
            return []
        sought.asked.pop(peer, None)
        sought.last_holders[peer] = None
        if sought.fetch is not None and peer in sought.fetch.liars:
            return []
        sought.holders[peer] = pieces
        if sought.fetch is not None:
            sought.fetch.has(peer, pieces)
        return self._go_on(id_, sought, now)

    def _lacks(self, peer: str, now: float, id_: ObjectId, pieces: RangeSet | None) -> list[Effect]:
        if pieces is None:
            self.copies.lacks(id_, peer)
        sought = self.sought.get(id_)
        return [] if sought is None else self._without(id_, sought, peer, pieces, now)

    def _busy(self, peer: str, now: float, id_: ObjectId, pieces: RangeSet, seconds: float) -> list[Effect]:
        sought = self.sought.get(id_)
        if sought is None or sought.fetch is None:
            return []
        sought.fetch.busy(peer, pieces, now + min(seconds, self.options.lost_s))
        return self._go_on(id_, sought, now)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def keep(self, id_: ObjectId, copies: int, now: float) -> list[Effect]:
        """So many members shall have an object that this node has."""
        key = self.shelf.find(id_)
        assert key is not None
        if self.copies.wish(id_, copies, (), now):
            self.shelf.pin(key, COPY)
            self.copies.has(id_, self.copies.me)
        return list(self.copies.repairs(list(self._keepers), now))

    def have_kept(self, id_: ObjectId, copies: int, holders: Sequence[str], now: float) -> list[Effect]:
        """So many members shall have an object that these others have; this node needs it."""
        return list(self.copies.entrust(id_, copies, holders, now))

    def free(self, id_: ObjectId) -> list[Effect]:
        """Nobody needs the copies any more: every holder may drop his."""
        others = self.copies.free(id_)
        self._unpin_copy(id_)
        return [Send(peer, m.O_FREE, [id_]) for peer in others if peer in self._up]

    def _copy(self, peer: str, now: float, id_: ObjectId, copies: int, holders: list[str]) -> list[Effect]:
        known = id_ in self.copies.wishes
        if not self.copies.wish(id_, copies, (node for node in holders if node != self.copies.me), now):
            return [Send(peer, m.O_LACK, [id_, None])]
        self.copies.has(id_, peer)
        key = self.shelf.find(id_)
        if key is None:
            return self.want(id_, COPY, holders, now)
        if not known:
            self.shelf.pin(key, COPY)
        self.copies.has(id_, self.copies.me)
        return [Send(peer, m.O_HAVE, [id_, self.shelf.items[key].size, None])]

    def _freed(self, peer: str, now: float, id_: ObjectId) -> list[Effect]:
        self.copies.free(id_)
        self._unpin_copy(id_)
        return self.unwant(id_, COPY)

    def _unpin_copy(self, id_: ObjectId) -> None:
        if (key := self.shelf.find(id_)) is not None:
            self.shelf.unpin(key, COPY)

    # ---- time, and what the shell says -------------------------------------------------------------------------------

    def handle(self, event: ObjectEvent, now: float) -> list[Effect]:
        """Take in an event of the shell."""
        match event:
            case Described(key, manifest):
                answers = self.serving.described(key, manifest)
                return [*answers, *self._of_shelf(self.shelf.unmap(key, OURSELVES), now)]
            case PieceCame():
                return self.piece_came(event, now)
            case Served(peer, pieces):
                self.serving.served(peer, pieces)
                return []
            case Sighted(id_, peers):
                return self._sighted(id_, peers, now)
            case Damaged(id_):
                damaged = self.shelf.find(id_)
                return [] if damaged is None else self._damaged(damaged, self.shelf.damaged, now)
            case Allocated(key):
                return self._of_shelf(self.shelf.allocated(key), now)
            case NoRoom(key, reason):
                return self._of_shelf(self.shelf.no_memory(key, reason), now)
            case Spilled(key, id_):
                return self._of_shelf(self.shelf.spilled(key, id_), now)
            case Restored(key, True):
                return self._of_shelf(self.shelf.restored(key, good=True), now)
            case Restored(key):
                return self._damaged(key, partial(self.shelf.restored, good=False), now)

    def _damaged(self, key: Key, say: Callable[[Key], list[ShelfEffect]], now: float) -> list[Effect]:
        """The file of an object is gone: who needs it gets it from elsewhere, if anybody has it."""
        item = self.shelf.items[key]
        id_, owners = item.id, list(item.pins)
        out = [
            effect for effect in self._of_shelf(say(key), now) if not isinstance(effect, NoRoom) or effect.key != key
        ]
        if id_ is None or self.shelf.find(id_) is not None:
            return out
        self.copies.lacks(id_, self.copies.me)
        out += self.serving.lost(id_)
        return out + [effect for owner in owners for effect in self.want(id_, owner, self.copies.concerned(id_), now)]

    def tick(self, now: float) -> list[Effect]:
        """To be called every `beat_s` while `busy`."""
        out = self._of_shelf(self.shelf.tick(now), now)
        for id_, sought in list(self.sought.items()):
            out += self._beat(id_, sought, now)
        out += self._find({id_: self._silent(sought, now) for id_, sought in self.sought.items()}, now)
        out += self.copies.repairs(list(self._keepers), now)
        self._beats += 1
        if self._beats % self.options.tidy_beats == 0:
            out += self.serving.tidy()
        return out

    def _silent(self, sought: Sought, now: float) -> list[str]:
        """Return who is to be asked (again) whether he has it."""
        late = [p for p, since_s in sought.asked.items() if now - since_s >= self.options.ask_again_s]
        if sought.hopeful or now - sought.asked_s < self.options.ask_again_s:
            return late
        # Whom we know does not have what is missing: everybody, also those who said what they have a while ago.
        sought.everybody, sought.asked_s = True, now
        return [peer for peer in self._up if sought.fetch is None or peer not in sought.fetch.liars]

    def _beat(self, id_: ObjectId, sought: Sought, now: float) -> list[Effect]:
        """Look after an object that is being fetched."""
        patience_s = self.options.stuck_s if sought.hopeful else self.options.lost_s
        if now - sought.since_s >= patience_s and id_ not in self.seeks.running:
            return [*self._give_up(id_), Gone(id_, list(sought.last_holders))]
        if sought.listing is not None and now - sought.listing[1] >= self.options.ask_again_s:
            sought.listing = None
        out: list[Effect] = []
        if self.seeks.is_due(id_, sought, now):
            out.append(self.seeks.begin(id_, sought, self._up, now))
        if sought.fetch is not None and sought.manifest is not None:
            sought.fetch.tick(now)
            if sought.fetch.verified.size > sought.told:
                sought.told = sought.fetch.verified.size
                out += self.serving.progress(id_, sought.manifest.size, sought.fetch.verified)
        return out + self._go_on(id_, sought, now)

    @property
    def busy(self) -> bool:
        """Whether time matters."""
        return bool(self.sought or self.copies.wishes)

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: nobody let us wait meanwhile."""
        for sought in self.sought.values():
            sought.since_s += seconds
            if sought.fetch is not None:
                sought.fetch.stalled(seconds)


def _flat(pieces: dict[int, float]) -> list[int]:
    return RangeSet((piece, piece + 1) for piece in sorted(pieces)).flat()
