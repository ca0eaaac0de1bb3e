"""Neighbours: who is in the grid with this node, who of them lives, and what time it is among them (DESIGN §6).

It wires `liveness` (who answers), `view` (what is told of whom) and `gridtime` to the machine: a verdict of the one
goes to the other, a member that becomes known is connected to, one that was reset is suspected at once. Everything else
a node does with members looks at `parts`: `peers` (connected, with facts), `roles`, `suspects`, `refusing`.

Rule: before `Belongs` there is no grid, and nothing here does anything; so it is in tests of the machine alone.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import ALL_ROLES, SUBMIT, role_names
from p2pgrid.core.member import ALIVE, DEAD, LEFT, STATUS_NAMES, SUSPECT, Card, Known, Update, Verdict
from p2pgrid.core.member_shapes import from_neighbour
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node import pace, patience
from p2pgrid.node.gridtime import GridTime, GridTimeOptions
from p2pgrid.node.keepers import Candidate, keeps
from p2pgrid.node.liveness import Liveness
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.view import Cloned, Forgotten, View

TIMER = "neighbours"
CLONED = "cloned"
LOST_S = 8.0
"""A keeper that takes over hears the others for three seconds; on a machine with much else to do it takes longer."""
GUESTS_MAX = 64
GUEST_S = 120.0
"""For so long a connection is kept that was made to ask somebody something; longer while it is of use."""
GUESTS = "guests"
OFFSET_STEP_S = 1.0
"""A change of grid time by less is not worth telling the shell."""
SETTLE_S = 3.0
LATER_S = 0.05
"""A timer is moved if it is due so much later: every other answer would else be followed by a waking for nothing."""
CLONED_FOR_S = 150.0
"""A clone that is still there shows itself again within `ViewOptions.clone_again_s` and a round of anti-entropy."""
STOP_ONE = "stop one, remove its node.key and grid.json, and join it again; the other works again within three minutes"
"""Said of a clone; the time is CLONED_FOR_S."""
LIFE_ROW = (bytes(16), "life", b"incarnation")
"""Where the journal keeps the incarnation; no job has that id."""


class Neighbours(Handler):
    """The other members, as this node sees them."""

    def __init__(self, parts: Parts, rng: random.Random) -> None:
        super().__init__(parts)
        self.rng = rng
        self.grid = b""
        self.view: View | None = None
        self._liveness: Liveness
        self._time: GridTime
        self._wall_offset_s = 0.0
        self._persisted = 0
        self._life = b""
        self._addresses: tuple[str, ...] = ()
        self._introduced: Card | None = None
        self._wanted: dict[str, tuple[str, ...]] = {}
        """Whom the shell keeps a connection with, and by which addresses."""
        self._guests: OrderedDict[str, float] = OrderedDict()
        """With whom this node is connected for a while though it knows enough others, and until when."""
        self.is_used: Callable[[str], bool] = lambda _: False
        """Whether a connection with a guest is of use."""
        self._offset_s: float | None = None
        self._settled_s = 0.0
        """When a node that met nobody counts as alone."""
        self._candidates: dict[str, tuple[Known, int, Candidate]] = {}
        """What `candidates` made of a member last, and of what: it is asked whenever one of hundreds has changed."""

    # ---- this node --------------------------------------------------------------------------------------------------

    def loaded(self, event: e.Loaded) -> None:
        """Take in what a former life left."""
        self._wall_offset_s = event.wall_offset_s
        rows = [unpack(row.meta) for row in event.rows if (row.job, row.kind, row.key) == LIFE_ROW]
        self._persisted = max([event.incarnation - 1, *(number for number in rows if type(number) is int)])

    def belongs(self, event: e.Belongs, now: float) -> None:
        self.parts.grid_name = event.name
        self.parts.regrouped |= self.parts.own_roles != event.roles  # it may be a keeper no more, or from now on
        self.parts.own_roles = event.roles
        if event.grid == self.grid:
            if self.view is not None:
                self.view.show(now, chain=event.chain)
                self._settle(now)
            return
        for peer in list(self._guests):
            self._dismiss(peer)
        for peer in list(self._wanted):
            self._leave_alone(peer)
        self.grid = event.grid
        self._settled_s = now + SETTLE_S
        self._introduced = None
        preset = self.config.preset
        self._liveness = Liveness(self.config.node_id, patience.PRESETS[preset], self.rng)
        self._time = GridTime(GridTimeOptions(), self.rng)
        self._time.wall_offset(self._wall_offset_s)
        born = self._liveness.begin(self._persisted, now + self._wall_offset_s, now)
        # In another grid the same life goes on, newer: it is not to be taken for a clone of itself.
        self._persisted = max(self._persisted, born.incarnation)
        self._life = self._life or self.rng.randbytes(8)
        facts = dict(self.config.facts)
        card = Card(born.incarnation, 0, self._life, born.leaf, self._addresses, facts, (), event.chain)
        self.view = View(self.config.node_id, pace.PRESETS[preset], self.rng)
        self.view.seal = self.config.seal
        self.view.reaches = lambda node: node in self.peers
        self.view.begin(card, now)
        self._settle(now)

    def listens(self, event: e.Listens, now: float) -> None:
        self._addresses = event.addresses
        if self.view is not None:
            self.view.show(now, addresses=event.addresses)
            self._settle(now)

    def reachable(self, event: e.Reachable, now: float) -> None:
        """Say it in the card, so that `members` shows it everywhere."""
        self.tell_facts({"reachable": event.yes}, now)

    def tell_facts(self, facts: dict[str, Any], now: float) -> None:
        """Say something of this node in its card."""
        if self.view is not None:
            self.view.show(now, facts={**self.view.card.facts, **facts})
            self.parts.regrouped = True  # by these, too, a node is a keeper or is not
            self._settle(now)

    def wall_clock(self, event: e.WallClock, now: float) -> None:
        self._wall_offset_s = event.offset_s
        if self.view is not None:
            self._time.wall_offset(event.offset_s)
            self._settle(now)

    def stalled(self, seconds: float, now: float) -> None:
        if self.view is not None:
            self._liveness.stalled(seconds)
            self.view.stalled(seconds)
            self._time.stalled(seconds)
            self._settle(now)

    def leave(self, now: float) -> None:
        """Say good-bye: this node ends."""
        if self.view is not None and self.peers:
            self._perform(self.view.judged(self._liveness.leave(), now), now, of_view=True)

    @property
    def offset_s(self) -> float | None:
        """Grid time minus own clock; None while no other clock is known."""
        return None if self.view is None else self._time.offset_s()

    # ---- members ----------------------------------------------------------------------------------------------------

    def up(self, event: e.PeerUp, now: float) -> None:
        if self.view is None:
            return
        if event.card is not None:
            said = Update(event.peer, event.card.incarnation, ALIVE, event.peer, event.card)
            self._perform(self.view.received(event.peer, m.P_GOSSIP, ([said],), now), now, of_view=True)
        self._perform(self.view.met(event.peer, now), now, of_view=True)
        self._perform(self._time.met(event.peer, now), now, of_view=True)
        self._liveness.heard(event.peer, now)
        self._settle(now)

    def down(self, event: e.PeerDown, now: float) -> None:
        if self.view is not None and event.reset:
            self._perform(self._liveness.refused(event.peer, now), now, of_view=False)
            self._settle(now)

    def round_trip_s(self, peer: str) -> float | None:
        """Return how long a probe of a member takes, if it is one that this node observes."""
        known = None if self.view is None else self._liveness.peers.get(peer)
        return None if known is None else known.rtt_s

    def heard(self, peer: str, now: float) -> None:
        """Any frame of a member shows that it lives."""
        if self.view is not None:
            self._liveness.heard(peer, now)

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame about membership. Raises PeerError if it is malformed, before anything has changed."""
        body = from_neighbour(event.kind, event.body)
        if body is None or self.view is None:
            return
        if event.kind <= m.P_NACK:
            self._liveness.moved = False
            effects = self._liveness.received(event.peer, event.kind, body, now)
            if effects:
                self._perform(effects, now, of_view=False)
            if not self._liveness.moved:
                return  # most frames of an idle grid: nothing is due at another time than before
        else:
            self._liveness.heard(event.peer, now)
            if event.kind <= m.P_RECORDS:
                self._perform(self.view.received(event.peer, event.kind, body, now), now, of_view=True)
            else:
                self._perform(self._time.received(event.peer, event.kind, body, now), now, of_view=True)
        self._settle(now)

    def is_leaf(self, peer: str) -> bool:
        """Whether a member wants to be left alone."""
        entry = None if self.view is None else self.view.members.get(peer)
        return entry is not None and entry.known.card.leaf

    def patience_s(self, within_s: float, now: float) -> float:
        """Return how long it makes sense to wait for members that are not connected yet, at most `within_s`.

        0 if there are none, or none that this node would connect with. One that has just begun meets the others soon.
        """
        if self.view is None or len(self._wanted) >= self.config.connected_max:
            return 0.0
        live = [node for node, _ in self.view.live() if node != self.config.node_id]
        if not live and not self.config.embedded:
            return max(0.0, min(within_s, self._settled_s - now))
        return 0.0 if all(node in self.peers for node in live) else within_s

    def is_somebody_away(self) -> bool:
        """Whether a member that has not left, and should be connected, is not: it may have what nobody else has."""
        if self.view is None or len(self._wanted) >= self.config.connected_max:
            return False
        me, peers = self.config.node_id, self.peers
        return any(e.known.status != LEFT and node not in peers and node != me for node, e in self.view.members.items())

    def is_gone(self, node: str) -> bool:
        """Whether a member is known to be dead, or to have left."""
        entry = None if self.view is None else self.view.members.get(node)
        return entry is not None and entry.known.status in (DEAD, LEFT)

    def is_lost(self, node: str, now: float) -> bool:
        """Whether a member has been gone for so long that whoever goes on with its jobs would have done so."""
        if self.view is None or now < self._settled_s + LOST_S or node == self.config.node_id:
            return False
        entry = self.view.members.get(node)
        return entry is None or (entry.gone_s is not None and now >= entry.gone_s + LOST_S)

    def is_apart(self) -> bool:
        """Whether a live member is not connected: one too many for that, or one that cannot be reached from here."""
        if self.view is None:
            return False
        others = (known for known in self.view.live() if known[0] != self.config.node_id)
        return any(known.status == ALIVE and node not in self.peers for node, known in others)

    # ---- effects of the policies ------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Any], now: float, *, of_view: bool) -> None:
        for effect in effects:
            if type(effect) is e.Send:  # nearly all
                if effect.peer in self.peers:
                    self.out.append(effect)
                continue
            match effect:
                case Verdict() if of_view:
                    self._learned(effect, now)
                    self._perform(self._liveness.judged(effect, now), now, of_view=False)
                case Verdict():
                    assert self.view is not None, "a verdict without a grid"
                    self._perform(self.view.judged(effect, now), now, of_view=True)
                    self._learned(effect, now)
                case Forgotten():
                    self._liveness.forget(effect.id)
                    self._forgotten(effect.id)
                case Cloned():
                    self._cloned(effect, now)
                case _:
                    self.out.append(effect)

    def _learned(self, verdict: Verdict, now: float) -> None:
        """Somebody's state has changed: this node's own, if it had to refute, or a member's."""
        if verdict.id == self.config.node_id:
            if verdict.status == ALIVE and verdict.incarnation > self._persisted:
                self._persisted = verdict.incarnation
                self.out.append(e.Store(0, [e.Row(*LIFE_ROW, pack(verdict.incarnation), b"")]))
            return
        self.parts.regrouped = True
        suspects = self.parts.suspects
        if verdict.status == SUSPECT:
            suspects.add(verdict.id)
        elif verdict.id in suspects:
            suspects.discard(verdict.id)
            if verdict.status == ALIVE:
                self.parts.hungry = True
        if verdict.status in (LEFT, DEAD) and verdict.id in self._guests:
            self._dismiss(verdict.id)
        if verdict.status == LEFT:
            self._leave_alone(verdict.id)
        elif verdict.status != DEAD:
            self._want(verdict.id)
            if verdict.id in self.peers and self.view is not None and verdict.id in self.view.members:
                self.peers[verdict.id] = self.view.members[verdict.id].known.card.facts
                self.parts.slots_of_grid = None

    def _want(self, peer: str) -> None:
        assert self.view is not None, "a member without a grid"
        entry = self.view.members.get(peer)
        if entry is None:
            return
        addresses = entry.known.card.addresses
        if self._wanted.get(peer) == addresses:
            return
        if (
            peer not in self._wanted
            and len(self._wanted) >= self.config.connected_max
            and peer not in self._liveness.subjects()
        ):
            return
        self._wanted[peer] = addresses
        self.out.append(e.Connect(peer, addresses))

    def is_large(self) -> bool:
        """Whether a live member is one of those that this node is not connected with, for there are too many."""
        if self.view is None or len(self._wanted) < self.config.connected_max:
            return False
        return any(node not in self._wanted and node != self.config.node_id for node, _ in self.view.live())

    def meet(self, peer: str, now: float) -> bool:
        """Be connected with a member for a while, however many others there are; False: it is not known to live."""
        entry = None if self.view is None else self.view.members.get(peer)
        if entry is None or entry.known.status in (DEAD, LEFT):
            return False
        if peer in self._wanted:
            return True
        if peer not in self._guests:
            if len(self._guests) >= GUESTS_MAX and not self._make_room():
                return False
            self.out.append(e.Connect(peer, entry.known.card.addresses))
        self._guests[peer] = now + GUEST_S
        self.parts.timer_unless_set((GUESTS,), now + GUEST_S)
        return True

    def _make_room(self) -> bool:
        idle = next((one for one in self._guests if not self.is_used(one)), None)
        if idle is not None:
            self._dismiss(idle)
        return idle is not None

    def _dismiss(self, peer: str) -> None:
        del self._guests[peer]
        if peer not in self._wanted:
            self.out.append(e.Disconnect(peer))

    def guests_due(self, now: float) -> None:
        """Let go of guests that are of no use any more."""
        for peer, until_s in list(self._guests.items()):
            if until_s > now:
                continue
            if peer in self._wanted or not self.is_used(peer):
                self._dismiss(peer)
            else:
                self._guests[peer] = now + GUEST_S
        if self._guests:
            self.parts.timer((GUESTS,), max(now + 1.0, min(self._guests.values())))

    def _leave_alone(self, peer: str) -> None:
        if self._wanted.pop(peer, None) is not None:
            self.out.append(e.Disconnect(peer))

    def _forgotten(self, peer: str) -> None:
        """Out of the view. One that seemed dead is still looked for: a cut may outlast the memory of the dead."""
        self.parts.regrouped = True
        self.parts.suspects.discard(peer)
        assert self.view is not None, "forgotten without a grid"
        lost = self.view.lost
        for other in [one for one in self._wanted if one not in self.view.members and one not in lost]:
            self._leave_alone(other)

    def _cloned(self, effect: Cloned, now: float) -> None:
        """Two nodes live with one identity: neither can be told from the other, so both refuse work."""
        theirs = ", ".join(effect.theirs) or "an unknown address"
        text = f"another node runs with this node's identity, at {theirs}: both refuse work"
        if not self.parts.refusing:
            self.out.append(e.Log("warning", f"{text}; {STOP_ONE}"))
        self.parts.refusing = text
        self.parts.timer((CLONED,), now + CLONED_FOR_S)

    def alone_again(self) -> None:
        """The clone has not been seen for long."""
        self.parts.refusing = ""
        self.parts.hungry = True
        self.out.append(e.Log("info", "no other node runs with this node's identity any more: it works again"))

    # ---- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        assert self.view is not None, "a timer without a grid"
        effects = self._liveness.tick(now)
        if effects:
            self._perform(effects, now, of_view=False)
        due_s = self.view.next_s()
        if due_s is not None and due_s <= now:
            self._perform(self.view.tick(now), now, of_view=True)
        clocks_s = self._time.next_s()
        if clocks_s is not None and clocks_s <= now:
            self._perform(self._time.tick(sorted(self.peers), now), now, of_view=True)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Tell the shell what has changed, and be woken in time. A node that is alone needs no waking."""
        assert self.view is not None, "nothing to settle without a grid"
        if self.view.card is not self._introduced:
            self._introduced = self.view.card
            self.out.append(e.Introduce(self._introduced))
        offset_s = self._time.offset_s()
        if (offset_s is None) != (self._offset_s is None) or (
            offset_s is not None and self._offset_s is not None and abs(offset_s - self._offset_s) > OFFSET_STEP_S
        ):
            self._offset_s = offset_s
            self.out.append(e.GridClock(offset_s))
        if not self.peers and len(self.view.members) == 1:
            self.parts.timer((TIMER,), None)
            return
        due = self._liveness.next_s()
        for at in (self.view.next_s(), self._time.next_s()):
            if at is not None and (due is None or at < due):
                due = at
        before = self.parts.timers.get((TIMER,))
        if due is not None and (before is None or due < before or due > before + LATER_S):
            self.parts.timer((TIMER,), max(due, now))

    def candidates(self) -> list[Candidate]:
        """Return the members that are not dead, and this node, as candidates for keeping records."""
        if self.view is None:
            return []
        me, own = self.config.node_id, self.parts.own_roles
        card = self.view.card
        mine = keeps(card.facts, leaf=card.leaf, roles=own)
        found = [Candidate(me, True, mine, self.parts.draining, bool(own & SUBMIT))]  # noqa: FBT003
        before, self._candidates = self._candidates, {}
        for node, known in self.view.live():
            if node == me:
                continue
            roles = self.parts.roles.get(node, ALL_ROLES)
            lives = known.status == ALIVE and node not in self.parts.suspects
            made = before.get(node)
            if made is None or made[0] is not known or made[1] != roles or made[2].lives != lives:
                facts = known.card.facts
                eligible = keeps(facts, leaf=known.card.leaf, roles=roles)
                one = Candidate(node, lives, eligible, facts.get("draining") is True, bool(roles & SUBMIT))
                made = known, roles, one
            self._candidates[node] = made
            found.append(made[2])
        return found

    # ---- answers ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return every member that is known, this node first, as the request `members` shows it."""
        own = Card(0, 0, bytes(8), leaf=False, addresses=self._addresses, facts=dict(self.config.facts), load=())
        me = Known(0, ALIVE, own if self.view is None else self.view.card)
        rows = [self._row(self.config.node_id, me)]
        if self.view is not None:
            others = sorted(
                self.view.members.items(), key=lambda item: (str(item[1].known.card.facts.get("name")), item[0])
            )
            rows += [self._row(node, entry.known) for node, entry in others if node != self.config.node_id]
        return rows

    def _row(self, node: str, known: Known) -> dict[str, Any]:
        facts = known.card.facts
        mine = node == self.config.node_id
        roles = self.parts.own_roles if mine else self.parts.roles.get(node, 0)
        pythons = facts.get("pythons")
        slots = facts.get("slots")
        return {
            "id": node,
            "name": str(facts.get("name") or node[-8:]),
            "status": STATUS_NAMES[known.status],
            "addresses": list(known.card.addresses),
            "slots": slots if isinstance(slots, int) else 0,
            "roles": role_names(roles),
            "pythons": pythons if isinstance(pythons, list) else [],
            "version": str(facts.get("version", "")),
            "facts": dict(facts),
            "connected": mine or node in self.peers,
        }


def meant(text: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the members that a text may name: by its id, else its name, else the beginning of its id."""
    exact = [row for row in rows if text == row["id"]] or [row for row in rows if text == row["name"]]
    return exact or [row for row in rows if text and row["id"].startswith(text)]
