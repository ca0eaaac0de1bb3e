"""The member view: who is in the grid, where, with what and in which state, as far as this node has heard.

News (a member that joined, a verdict, a new card) spread by infection: a few random members per round, the freshest
news first, each told a limited number of times, silence when there is none. What gets lost is mended by anti-entropy:
now and then two members compare hashes of 64 buckets and exchange what differs, also with members taken for dead, which
is how the halves of a broken grid find each other (ALGORITHMS §2.4, 5.4; DESIGN §6).

Above `members_max` the view keeps the members nearest on the hash rings, so that neighbours are always among them.

Rule: this file passes verdicts on and never makes one; it neither pings nor waits for anybody.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.member import (
    ALIVE,
    BUCKETS,
    DEAD,
    LEFT,
    LIFE_BYTES,
    SUSPECT,
    Card,
    Known,
    Seal,
    Update,
    Verdict,
    fingerprint,
    merge,
    positions,
    shown,
)
from p2pgrid.core.wire import pack
from p2pgrid.node.events import NodeId, Send
from p2pgrid.node.pace import ViewOptions

RING_BITS = 64


@dataclass(frozen=True, slots=True)
class Cloned:
    """Another live node has this node's identity: both shall refuse work and say so."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A member is no longer in the view."""

    id: NodeId


@dataclass(slots=True)
class Entry:
    """A member in the view."""

    known: Known
    hash: int
    gone_s: float | None = None
    accusers: dict[NodeId, None] = field(default_factory=dict)


@dataclass(slots=True)
class News:
    """A piece of news that is being told."""

    update: Update
    told: int = 0


Effect = Send | Verdict | Cloned | Forgotten


def wire(update: Update) -> list[Any]:
    """Return an update as it travels (`core.shapes` reads it)."""
    return [*update[:4], None if update.card is None else shown(update.card)]


class View:
    """All members this node knows of, itself included."""

    def __init__(self, me: NodeId, options: ViewOptions, rng: random.Random) -> None:
        self.me = me
        self.reaches: Callable[[NodeId], bool] = lambda _: True
        """Whether a member can be spoken to now; whoever has connections says so."""
        self.options = options
        self.rng = rng
        self.seal: Seal | None = None
        """Without one every card is believed."""
        self.members: dict[NodeId, Entry] = {}
        self._hashes = [0] * BUCKETS
        self._buckets: list[dict[NodeId, None]] = [{} for _ in range(BUCKETS)]
        self._news: dict[NodeId, dict[NodeId, News]] = {}
        """By member and, for a suspicion, accuser."""
        self._gone: OrderedDict[NodeId, None] = OrderedDict()
        """Oldest first."""
        self._lost: OrderedDict[NodeId, None] = OrderedDict()
        self._far: list[tuple[int, NodeId]] = []
        """Members by distance, as soon as there are too many."""
        self._mine = positions(me)
        self._rival: tuple[bytes, int] | None = None
        """Another life under this node's id that was once ahead of it, and its incarnation then."""
        self._cloned_s: float | None = None
        self._gossip_s: float | None = None
        self._sync_s: float | None = None
        self._frames: dict[int, Callable[[NodeId, Any, float], list[Effect]]] = {
            m.P_GOSSIP: self._gossiped,
            m.P_DIGEST: self._digest,
            m.P_RECORDS: self._records,
        }

    # ---- this node --------------------------------------------------------------------------------------------------

    def begin(self, card: Card, now: float) -> None:
        """Start a life: `card` is what this node says of itself."""
        assert len(card.life) == LIFE_BYTES
        self._sync_s = now + self.rng.random() * self.options.sync_s
        card = self._sealed(card)
        self._put(self.me, Known(card.incarnation, ALIVE, card))
        self._tell(Update(self.me, card.incarnation, ALIVE, self.me, card), now)

    def _sealed(self, card: Card) -> Card:
        return card if self.seal is None else card._replace(proof=self.seal.sign(card))

    @property
    def card(self) -> Card:
        """What this node says of itself."""
        return self.members[self.me].known.card

    @property
    def lost(self) -> Mapping[NodeId, None]:
        """Nodes outside the view that are asked now and then, should they be reachable."""
        return self._lost

    def show(
        self, now: float, *, addresses: tuple[str, ...] | None = None, facts: dict[str, Any] | None = None,
        load: tuple[int, ...] | None = None, chain: bytes | None = None,
    ) -> None:  # fmt: skip
        """Say something new of this node. A load alone is not worth gossip: it travels by anti-entropy."""
        new = {"addresses": addresses, "facts": facts, "load": load, "chain": chain}
        changed = {key: value for key, value in new.items() if value is not None and value != getattr(self.card, key)}
        if changed:
            self._write(self.members[self.me].known.incarnation, now, aloud=bool(changed.keys() - {"load"}), **changed)

    def _write(self, incarnation: int, now: float, *, aloud: bool, **changed: Any) -> None:
        card = self._sealed(self.card._replace(incarnation=incarnation, seq=self.card.seq + 1, **changed))
        self._put(self.me, Known(incarnation, ALIVE, card))
        if aloud:
            self._tell(Update(self.me, incarnation, ALIVE, self.me, card), now)

    def live(self) -> Iterator[tuple[NodeId, Known]]:
        """Yield the members that are alive or suspect, this node among them."""
        return ((node, entry.known) for node, entry in self.members.items() if entry.known.status < DEAD)

    # ---- knowledge --------------------------------------------------------------------------------------------------

    def _put(self, node: NodeId, known: Known) -> None:
        """Write down what is known. The dead do not count in the hashes: who forgot them earlier is not behind."""
        entry = self.members.get(node)
        bucket = bucket_of(node)
        if entry is None:
            entry = self.members[node] = Entry(known, 0)
            self._buckets[bucket][node] = None
            insort(self._far, (self._distance(node), node))
        new = 0 if known.status >= DEAD else fingerprint(node, known)
        self._hashes[bucket] ^= entry.hash ^ new
        entry.known, entry.hash = known, new

    def _remove(self, node: NodeId) -> None:
        entry = self.members.pop(node)
        bucket = bucket_of(node)
        self._hashes[bucket] ^= entry.hash
        del self._buckets[bucket][node]
        del self._far[bisect_left(self._far, (self._distance(node), node))]
        self._gone.pop(node, None)

    def _distance(self, node: NodeId) -> int:
        """Return how far a member is on the ring where it is nearest, this way round or that."""
        if node == self.me:
            return -1
        steps = [(theirs - ours) % (1 << RING_BITS) for ours, theirs in zip(self._mine, positions(node), strict=True)]
        return min(min(step, (1 << RING_BITS) - step) for step in steps)

    def _learn(self, update: Update, now: float, *, aloud: bool = True, own: bool = False) -> list[Effect]:
        """Merge a piece of news; return what it changes. `own`: this node found it out itself."""
        if update.id == self.me:
            return self._about_me(update, now)
        entry = self.members.get(update.id)
        update = update if own else self._proven(update, entry)
        if entry is None:
            # Of a stranger nothing but its card helps; and whom one forgot as dead does not come back as a dead one.
            if update.card is None or update.status >= DEAD or not self._room_for(update.id):
                return []
            self._lost.pop(update.id, None)
            known = Known(update.incarnation, update.status, update.card)
            self._put(update.id, known)
            entry = self.members[update.id]
            effects: list[Effect] = self._evict()
        else:
            before = entry.known
            known = merge(before, Known(update.incarnation, update.status, update.card or before.card))
            effects = []
            if known == before:
                return self._confirmed(entry, update, now) if update.status == SUSPECT else []
            self._put(update.id, known)
            if known[:2] == before[:2]:
                if aloud:
                    self._tell(Update(update.id, *known[:2], update.by, known.card), now)
                if known.card.addresses == before.card.addresses and known.card.facts == before.card.facts:
                    return []
                # Nothing new about its life, but whoever looks at the card shall look again.
                return [Verdict(update.id, known.incarnation, known.status, update.by, known.card.leaf)]
        entry.accusers = {update.by: None} if known.status == SUSPECT else {}
        self._count_gone(update.id, entry, now)
        if aloud:
            card = known.card if known.status == ALIVE else None
            self._tell(Update(update.id, known.incarnation, known.status, update.by, card), now)
        return [*effects, Verdict(update.id, known.incarnation, known.status, update.by, known.card.leaf)]

    def _proven(self, update: Update, entry: Entry | None) -> Update:
        """Return the news without what only the member itself can say, unless it did: its card, a later incarnation."""
        if self.seal is None:
            return update
        card = update.card
        before = None if entry is None else entry.known.card
        if card is not None and card != before and (before is None or card[:2] >= before[:2]):
            card = card if self.seal.holds(update.id, card) else None
        cards = [one.incarnation for one in (card, before) if one is not None]
        told = max([0 if entry is None else entry.known.incarnation, *cards])
        if update.incarnation > told:
            return Update(update.id, told, ALIVE, update.by, card)
        return update._replace(card=card)

    def _confirmed(self, entry: Entry, update: Update, now: float) -> list[Effect]:
        """One more accuser of a member that is under suspicion already."""
        same = entry.known[:2] == (update.incarnation, SUSPECT)
        if not same or update.by in entry.accusers or len(entry.accusers) >= self.options.accusers_max:
            return []
        entry.accusers[update.by] = None
        self._tell(update._replace(card=None), now)
        return [Verdict(update.id, update.incarnation, SUSPECT, update.by, entry.known.card.leaf)]

    def _count_gone(self, node: NodeId, entry: Entry, now: float) -> None:
        if entry.known.status < DEAD:
            entry.gone_s = None
            self._gone.pop(node, None)
        elif entry.gone_s is None:
            entry.gone_s = now
            self._gone[node] = None

    def _about_me(self, update: Update, now: float) -> list[Effect]:
        """Somebody speaks of this node: it may have to refute, and may find that it has a clone.

        A former life of this node can be ahead of it once, if clocks went back; it is overtaken then and stays behind.
        Who gets ahead a second time is alive.
        """
        incarnation = self.members[self.me].known.incarnation
        card = update.card
        if self.seal is not None and card != self.card:
            # Only who has this node's key can be ahead of it, or another life of it.
            if card is not None and not self.seal.holds(self.me, card):
                return []
            if card is None and update.incarnation > incarnation:
                return []
        effects: list[Effect] = []
        quiet = self._cloned_s is not None and now - self._cloned_s < self.options.clone_again_s
        if card is not None and card.life != self.card.life and card.incarnation >= incarnation:
            rival, self._rival = self._rival, (card.life, card.incarnation)
            again = rival is not None and rival[0] == card.life and rival[1] < card.incarnation
            if again and not quiet:
                self._cloned_s = now
                effects.append(Cloned(self.card.addresses, card.addresses))
        if quiet and update.status == ALIVE:
            return effects  # both know: no race of incarnations
        # One that is equal but of another life, or that this node never showed, is answered as if it were ahead.
        ahead = update.incarnation > incarnation or (card is not None and not self._is_mine(card))
        if update.incarnation >= incarnation and (ahead or update.status != ALIVE):
            status = update.status if update.incarnation > incarnation else max(update.status, SUSPECT)
            effects.append(Verdict(self.me, update.incarnation, status, update.by, self.card.leaf))
        return effects

    def _is_mine(self, card: Card) -> bool:
        """Whether this node may have shown that card in this life."""
        mine = self.card
        if card.life != mine.life or card[:2] > mine[:2]:
            return False
        return card[:2] < mine[:2] or pack(shown(card)) == pack(shown(mine))

    def judged(self, verdict: Verdict, now: float) -> list[Effect]:
        """Take in a verdict made by this node, and spread it."""
        if verdict.id == self.me:
            if verdict.status == LEFT:
                self._put(self.me, Known(verdict.incarnation, LEFT, self.card))
                self._tell(Update(*verdict[:4], None), now)
                return self._gossip()  # now, for there may be no next round
            if verdict.incarnation > self.members[self.me].known.incarnation:
                self._write(verdict.incarnation, now, aloud=True)
            return []
        self._learn(Update(*verdict[:4], None), now, own=True)
        return []

    # ---- a bounded view ---------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether there are more members than this node keeps."""
        return len(self.members) >= self.options.members_max

    def _room_for(self, node: NodeId) -> bool:
        return not self.full or (self._distance(node), node) < self._far[-1]

    def _evict(self) -> list[Effect]:
        if len(self.members) <= self.options.members_max:
            return []
        node = self._far[-1][1]
        self._remove(node)
        return [Forgotten(node)]

    # ---- news -------------------------------------------------------------------------------------------------------

    def _tell(self, update: Update, now: float) -> None:
        """Spread a piece of news instead of what is older about the same member."""
        old = self._news.get(update.id, {})
        beside = {by: news for by, news in old.items() if stand_beside(news.update, update)}
        self._news[update.id] = {**beside, update.by if update.status == SUSPECT else "": News(update)}
        if self._gossip_s is None:
            self._gossip_s = now + self.rng.random() * self.options.gossip_s

    def told_max(self) -> int:
        """Return how often a piece of news is told."""
        return self.options.told_factor * math.ceil(math.log10(len(self.members) + 1))

    def _partners(self) -> list[NodeId]:
        """Return to whom news go: what is told to members that vanished together would be lost on the living."""
        live = ((node, known) for node, known in self.live() if node != self.me and not known.card.leaf)
        return [node for node, _ in live if self.reaches(node)]

    def _gossip(self) -> list[Effect]:
        partners = self._partners()
        effects: list[Effect] = []
        for partner in self.rng.sample(partners, min(self.options.fanout, len(partners))):
            every = [(news.told, node, by) for node, told in self._news.items() for by, news in told.items()]
            if not every:
                break
            updates = []
            for _, node, by in nsmallest(self.options.updates_max, every):
                news = self._news[node][by]
                updates.append(wire(news.update))
                news.told += 1
                if news.told >= self.told_max():
                    del self._news[node][by]
                    if not self._news[node]:
                        del self._news[node]
            effects.append(Send(partner, m.P_GOSSIP, [updates]))
        return effects

    def _gossiped(self, peer: NodeId, body: Any, now: float) -> list[Effect]:
        return [effect for update in body[0] for effect in self._learn(update, now)]

    # ---- anti-entropy -----------------------------------------------------------------------------------------------

    def met(self, peer: NodeId, now: float) -> list[Effect]:
        """A connection to a member came up: compare views at once, and again until it is known."""
        if peer == self.me:
            return []
        if peer not in self.members:
            self._lose(peer)
        return [self._ask(peer)]

    def _lose(self, node: NodeId) -> None:
        """Ask a node now and then that is not in the view and may be there."""
        self._lost[node] = None
        if len(self._lost) > self.options.lost_max:
            self._lost.popitem(last=False)

    def _ask(self, peer: NodeId) -> Send:
        return Send(peer, m.P_DIGEST, [b"".join(one.to_bytes(8, "big") for one in self._hashes)])

    def _sync(self) -> list[Effect]:
        """Compare views with a random member, and with one that may only seem dead."""
        gone = [node for node in self._gone if self.members[node].known.status == DEAD] + list(self._lost)
        reached = [node for node in gone if self.reaches(node)]
        return [self._ask(self.rng.choice(nodes)) for nodes in (self._partners(), reached) if nodes]

    def _digest(self, peer: NodeId, body: Any, now: float) -> list[Effect]:
        differ = [i for i, (ours, theirs) in enumerate(zip(self._hashes, body[0], strict=True)) if ours != theirs]
        if self.full and len(differ) > self.options.buckets_when_full:
            differ = sorted(self.rng.sample(differ, self.options.buckets_when_full))
        return list(self._chunks(peer, [(bucket, list(self._buckets[bucket])) for bucket in differ], pull=True))

    def _records(self, peer: NodeId, body: Any, now: float) -> list[Effect]:
        """Merge what a member has; answer, if asked, with what we have newer or more."""
        wanted, updates = body
        told = {update.id: update for update in updates}
        strangers = sum(update.id not in self.members for update in updates)
        # Who has just joined learns of everybody and is not the one to tell it to the others.
        aloud = strangers <= len(self.members)
        effects = [
            effect for update in updates for effect in self._learn(update, now, aloud=aloud or update.id == peer)
        ]
        news = [(b, [node for node in self._buckets[b] if self._ahead(node, told.get(node))]) for b in wanted]
        return [*effects, *self._chunks(peer, news, pull=False)]

    def _ahead(self, node: NodeId, theirs: Update | None) -> bool:
        ours = self.members[node].known
        if theirs is None or theirs.card is None:
            return ours.status < DEAD  # they need not hear of a death of somebody they do not know
        return merge(ours, Known(*theirs[1:3], theirs.card)) != Known(*theirs[1:3], theirs.card)

    def _chunks(self, peer: NodeId, buckets: Iterable[tuple[int, list[NodeId]]], *, pull: bool) -> Iterator[Send]:
        """Yield records in frames of limited size; a bucket is asked for in the frame where its own records end."""
        wanted: list[int] = []
        records: list[Any] = []
        size = 0
        for bucket, nodes in buckets:
            for node in nodes:
                entry = self.members[node]
                by = next(iter(entry.accusers), self.me)  # who passes a suspicion on is no accuser
                records.append(wire(Update(node, *entry.known[:2], by, entry.known.card)))
                size += len(pack(records[-1]))
                if size >= self.options.chunk_bytes:
                    yield Send(peer, m.P_RECORDS, [wanted, records])
                    wanted, records, size = [], [], 0
            if pull:
                wanted.append(bucket)
        if wanted or records:
            yield Send(peer, m.P_RECORDS, [wanted, records])

    # ---- frames and time --------------------------------------------------------------------------------------------

    def received(self, peer: NodeId, kind: int, body: Any, now: float) -> list[Effect]:
        """Take in a frame of 114 to 116, as read by `core.member_shapes.from_neighbour`."""
        return self._frames[kind](peer, body, now)

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long."""
        for node in self._gone:
            entry = self.members[node]
            assert entry.gone_s is not None, "among the dead without a time of death"
            entry.gone_s += seconds
        self._gossip_s = None if self._gossip_s is None else self._gossip_s + seconds
        self._sync_s = None if self._sync_s is None else self._sync_s + seconds

    def next_s(self) -> float | None:
        """Return when `tick` is due."""
        due_s = self._gossip_s
        if self._sync_s is not None and (due_s is None or self._sync_s < due_s):
            due_s = self._sync_s
        for node in self._gone:
            gone_s = self.members[node].gone_s
            assert gone_s is not None, "among the dead without a time of death"
            forgets_s = gone_s + self.options.dead_s
            return forgets_s if due_s is None or forgets_s < due_s else due_s  # the oldest
        return due_s

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        if self._gossip_s is not None and self._gossip_s <= now:
            effects += self._gossip()
            self._gossip_s = now + self.options.gossip_s if self._news else None
        if self._sync_s is not None and self._sync_s <= now:
            effects += self._sync()
            self._sync_s = now + self.options.sync_s * self.rng.uniform(0.9, 1.1)
        while self._gone:
            node = next(iter(self._gone))
            entry = self.members[node]
            if entry.gone_s is not None and entry.gone_s + self.options.dead_s > now:
                break
            self._remove(node)
            if entry.known.status == DEAD:
                self._lose(node)
            effects.append(Forgotten(node))
        return effects


def bucket_of(node: NodeId) -> int:
    """Return the bucket of the digest that a member belongs to."""
    return positions(node)[0] % BUCKETS


def stand_beside(old: Update, new: Update) -> bool:
    """Whether both are worth telling: two accusers of one member are."""
    return old.status == new.status == SUSPECT and old.incarnation == new.incarnation
