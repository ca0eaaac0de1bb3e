"""Liveness: who is alive? Fixed observers on hash rings, with Lifeguard's humility (ALGORITHMS §2.3, DESIGN §6).

Every member is observed by the ones before it on eight rings. An observer asks one subject per slot: a ping, then three
others are asked to ping for it. Three slots in vain make a suspicion; it becomes a death if the suspect does not refute
it in a time that shrinks as other observers confirm. A node whose own probes go wrong slows down before it blames
others. Leaves (`edge`) observe nobody and are not asked: they send heartbeats, and only a silent one is probed.

SUSPECT means "send no new work"; it never means "run it again". News travel elsewhere (`node.view`): verdicts of this
file go out as `Verdict`, those of others come in through `judged`.

Rule: this file knows ids and incarnations, neither addresses nor how news spread.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.member import ALIVE, DEAD, INCARNATION_MAX, LEFT, RINGS, SUSPECT, Verdict
from p2pgrid.node.events import NodeId, Send
from p2pgrid.node.patience import LivenessOptions
from p2pgrid.node.probes import Peer, Probe, Relay
from p2pgrid.node.rings import Rings

Effect = Send | Verdict


class Liveness:
    """What this node believes of the lives of others, and of its own."""

    def __init__(self, me: NodeId, options: LivenessOptions, rng: random.Random) -> None:
        self.me = me
        self.options = options
        self.rng = rng
        self.incarnation = 0
        self.health = 0
        """Lifeguard's multiplier less one: how much this node mistrusts itself, 0..8."""
        self.peers: dict[NodeId, Peer] = {}
        self.gone: OrderedDict[NodeId, Verdict] = OrderedDict()
        """Who died or left, so that one that comes back is told and can refute."""
        self._rings = Rings()
        if not options.leaf:
            self._rings.add(me)
        self._leaves: dict[NodeId, None] = {}
        self._suspects: dict[NodeId, None] = {}
        self._probes: dict[int, Probe] = {}
        self._late: OrderedDict[int, Probe] = OrderedDict()
        self._relays: dict[int, Relay] = {}
        self._order: list[NodeId] = []
        self._again: OrderedDict[NodeId, None] = OrderedDict()
        self._seq = 0
        self._slot_s: float | None = None
        self._subjects: list[NodeId] | None = None
        self.moved = True
        """Whether what was taken in since it was set to False may have changed a verdict, or when `tick` is due."""
        self._frames: dict[int, Callable[[NodeId, Any, float], list[Effect]]] = {
            m.P_PING: self._ping,
            m.P_ACK: self._ack,
            m.P_PING_REQ: self._ping_req,
            m.P_NACK: self._nack,
        }

    # ---- this node --------------------------------------------------------------------------------------------------

    def begin(self, persisted: int, unix_s: float, now: float) -> Verdict:
        """Start a life. The shell persists `incarnation` whenever a Verdict of ALIVE about this node comes out."""
        # Nobody lives that often: others have lied it up there, and beyond the end of the numbers nobody would hear us.
        former = persisted if persisted < INCARNATION_MAX // 2 else 0
        self.incarnation = max(former + 1, int(unix_s), 1)
        every = self.options.heartbeat_s / 10 if self.options.leaf else self.options.slot_s
        self._slot_s = now + self.rng.random() * every  # nodes started together shall not ask together
        return self._alive()

    def leave(self) -> Verdict:
        """Go on purpose: nobody is asked any more."""
        self._slot_s = None
        self._probes.clear()
        return Verdict(self.me, self.incarnation, LEFT, self.me, self.options.leaf)

    def _alive(self) -> Verdict:
        return Verdict(self.me, self.incarnation, ALIVE, self.me, self.options.leaf)

    def _accused(self, incarnation: int) -> list[Effect]:
        """Somebody holds this node, in that incarnation, for less than alive, or knows a later one than this."""
        if incarnation < self.incarnation or incarnation + 1 >= INCARNATION_MAX or self._slot_s is None:
            return []
        self.incarnation = incarnation + 1
        self.moved = True
        self._worse(1)
        return [self._alive()]

    def _worse(self, by: int) -> None:
        self.health = min(max(self.health + by, 0), self.options.health_max)

    # ---- verdicts ---------------------------------------------------------------------------------------------------

    def judged(self, verdict: Verdict, now: float) -> list[Effect]:
        """Take in what others say of a member, or of this node. Returns only what this node says to it."""
        if verdict.id == self.me:
            blamed = verdict.status != ALIVE or verdict.incarnation > self.incarnation
            return self._accused(verdict.incarnation) if blamed else []
        peer = self.peers.get(verdict.id)
        if verdict.gone:
            self._bury(verdict)
        elif peer is None:
            before = self.gone.get(verdict.id)
            if before is None or verdict.incarnation > before.incarnation:
                self._welcome(verdict, now)
        elif verdict.incarnation > peer.incarnation:
            self._acquit(verdict.id, peer, verdict.incarnation)
        if verdict.status == SUSPECT:
            self._suspect(verdict, now)
        return []

    def _welcome(self, verdict: Verdict, now: float) -> None:
        self.moved = True
        self.gone.pop(verdict.id, None)
        self.peers[verdict.id] = Peer(verdict.incarnation, verdict.leaf, now)
        if verdict.leaf:
            self._leaves[verdict.id] = None
        else:
            self._rings.add(verdict.id)
            self._subjects = None

    def _acquit(self, subject: NodeId, peer: Peer, incarnation: int) -> None:
        self.moved = True
        peer.incarnation = incarnation
        peer.suspected_s = None
        peer.misses = 0
        peer.accusers.clear()
        self._suspects.pop(subject, None)

    def _suspect(self, verdict: Verdict, now: float) -> bool:
        """Take in a suspicion; return whether it was news."""
        peer = self.peers.get(verdict.id)
        if peer is None or verdict.incarnation < peer.incarnation or verdict.by in peer.accusers:
            return False
        if peer.suspected_s is None:
            peer.suspected_s = now
            self._suspects[verdict.id] = None
            if verdict.id in self.subjects():
                self._again[verdict.id] = None  # it shall hear of it soon, from everyone that observes it
        if len(peer.accusers) > self.options.confirmations:
            return False
        peer.accusers[verdict.by] = None
        return True

    def _bury(self, verdict: Verdict) -> None:
        peer = self.peers.get(verdict.id)
        before = self.gone.get(verdict.id)
        if peer is not None and verdict.incarnation < peer.incarnation:
            return
        if before is not None and before[1:3] >= verdict[1:3]:
            return
        self.gone[verdict.id] = verdict
        self.gone.move_to_end(verdict.id)
        if len(self.gone) > self.options.gone_kept:
            self.gone.popitem(last=False)
        self._drop(verdict.id)

    def forget(self, node: NodeId) -> None:
        """The member view has no room for this member any more, or remembers it no longer."""
        self.gone.pop(node, None)
        self._drop(node)

    def _drop(self, node: NodeId) -> None:
        if self.peers.pop(node, None) is not None:
            self._rings.remove(node)
            self._leaves.pop(node, None)
            self._suspects.pop(node, None)
            self._again.pop(node, None)
            self._probes = {seq: probe for seq, probe in self._probes.items() if probe.subject != node}
            self._subjects = None

    def _accusation(self, node: NodeId) -> int:
        """Return the incarnation to name to a member that has something to refute, else 0."""
        peer = self.peers.get(node)
        if peer is not None:
            return 0 if peer.suspected_s is None else peer.incarnation
        gone = self.gone.get(node)
        return 0 if gone is None else gone.incarnation

    # ---- who observes whom ------------------------------------------------------------------------------------------

    def subjects(self) -> list[NodeId]:
        """Return whom this node observes; for a leaf, who gets its heartbeats."""
        if self._subjects is None:
            after = self._rings.after(self.me)
            self._subjects = after[: self.options.heartbeat_to] if self.options.leaf else after
        return self._subjects

    def observers(self) -> list[NodeId]:
        """Return who observes this node. With the subjects: its neighbours, worth a lasting connection."""
        return self.subjects() if self.options.leaf else self._rings.before(self.me)

    def status(self, node: NodeId) -> int:
        """Return ALIVE, SUSPECT, DEAD or LEFT; DEAD for one never heard of."""
        if node in self.peers:
            return self.peers[node].status
        return self.gone[node].status if node in self.gone else DEAD

    def _silent_leaves(self, now: float) -> list[NodeId]:
        silent = [n for n in self._leaves if self.peers[n].heard_s + self.options.leaf_silence_s <= now]
        for leaf in silent:
            if self.me not in self._watchers(leaf):
                self.peers[leaf].heard_s = now  # others look after it; should that change, it gets its time again
        return [leaf for leaf in silent if self.peers[leaf].heard_s < now and self.peers[leaf].suspected_s is None]

    def _watchers(self, node: NodeId) -> list[NodeId]:
        """Return who would notice that a member died."""
        if node in self._leaves:
            return self._rings.after(node)[: self.options.heartbeat_to]
        return self._rings.before(node)

    # ---- frames -----------------------------------------------------------------------------------------------------

    def received(self, peer: NodeId, kind: int, body: Any, now: float) -> list[Effect]:
        """Take in a frame of 110 to 113, as read by `core.member_shapes.from_neighbour`."""
        self.heard(peer, now)
        return self._frames[kind](peer, body, now)

    def heard(self, node: NodeId, now: float) -> None:
        """Any frame of a member is an answer."""
        peer = self.peers.get(node)
        if peer is None:
            return
        peer.heard_s = now
        peer.misses = 0
        if peer.suspected_s is None:
            self._again.pop(node, None)
        else:  # only itself can end that; but who has just heard from it declares no death, and tells it soon
            peer.suspected_s = now
            self.moved = True
        if self._probes:  # one or two
            answered = [seq for seq, probe in self._probes.items() if probe.subject == node]
            for seq in answered:
                self._answered(seq)

    def _answered(self, seq: int) -> None:
        self.moved = True
        self._late[seq] = self._probes.pop(seq)
        if len(self._late) > self.options.late_kept:
            self._late.popitem(last=False)
        self._worse(-1)

    def refused(self, node: NodeId, now: float) -> list[Effect]:
        """Its connection was reset and a new one refused: that is worth all the misses at once."""
        peer = self.peers.get(node)
        if peer is None or self.options.leaf:
            return []
        return self._accuse(node, peer, now)

    def _ping(self, sender: NodeId, body: Any, now: float) -> list[Effect]:
        seq, incarnation, accused = body
        effects = self._accused(accused) if accused == self.incarnation else []
        peer = self.peers.get(sender)
        if peer is None or incarnation > peer.incarnation or sender in self.gone:
            effects += self._newer(sender, incarnation) or self._returned(sender, incarnation, now)
        effects.append(Send(sender, m.P_ACK, [seq, self.incarnation, self._accusation(sender)]))
        return effects

    def _ack(self, sender: NodeId, body: Any, now: float) -> list[Effect]:
        seq, incarnation, accused = body
        effects = self._accused(accused) if accused == self.incarnation else []
        relay = self._relays.get(seq)
        if relay is not None and relay.subject == sender:
            del self._relays[seq]
            self.moved = True
            effects += self._newer(sender, incarnation)
            return [*effects, Send(relay.asker, m.P_ACK, [relay.seq, incarnation, 0])]
        probe = self._probes.get(seq) or self._late.get(seq)
        if probe is None:
            return effects  # nobody knows any more whose incarnation that is: a helper's answer looks the same
        if sender == probe.subject:
            if sender in self.peers:
                self.peers[sender].answered_in(now - probe.sent_s)
        elif probe.subject in self.peers:
            self.heard(probe.subject, now)  # through a helper
        if seq in self._probes:
            self._answered(seq)
        self._late.pop(seq, None)
        # What a helper says of another's incarnation is hearsay.
        return effects + (self._newer(sender, incarnation) if sender == probe.subject else [])

    def _newer(self, node: NodeId, incarnation: int) -> list[Effect]:
        """Act on the incarnation that a member names itself: it is the fastest way for a refutation."""
        peer = self.peers.get(node)
        if peer is None or incarnation <= peer.incarnation:
            return []
        self._acquit(node, peer, incarnation)
        return [Verdict(node, incarnation, ALIVE, node, peer.leaf)]

    def _returned(self, node: NodeId, incarnation: int, now: float) -> list[Effect]:
        """One that was taken for dead asks in a later incarnation: it has refuted that, whoever heard the news."""
        gone = self.gone.get(node)
        if gone is None or incarnation <= gone.incarnation:
            return []
        verdict = Verdict(node, incarnation, ALIVE, node, gone.leaf)
        self._welcome(verdict, now)
        return [verdict]

    def _ping_req(self, asker: NodeId, body: Any, now: float) -> list[Effect]:
        seq, subject, accused = body
        if subject == self.me or len(self._relays) >= self.options.relays_max:
            return []
        self._seq += 1
        self.moved = True
        wait_s = self.options.timeout_max_s
        self._relays[self._seq] = Relay(asker, seq, subject, now + 0.8 * wait_s, now + 4 * wait_s)
        return [Send(subject, m.P_PING, [self._seq, self.incarnation, accused])]

    def _nack(self, helper: NodeId, body: Any, now: float) -> list[Effect]:
        probe = self._probes.get(body[0])
        if probe is not None and probe.helpers is not None and helper in probe.helpers:
            probe.helpers[helper] = True
        return []

    # ---- time -------------------------------------------------------------------------------------------------------

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: silence meanwhile was ours, not theirs."""
        for peer in self.peers.values():
            peer.heard_s += seconds
            if peer.suspected_s is not None:
                peer.suspected_s += seconds
        for probe in (*self._probes.values(), *self._late.values()):
            probe.sent_s += seconds
            probe.ask_others_s += seconds
            probe.ends_s += seconds
        for relay in self._relays.values():
            relay.ends_s += seconds
            relay.nack_s = None if relay.nack_s is None else relay.nack_s + seconds
        if self._slot_s is not None:
            self._slot_s += seconds

    def next_s(self) -> float | None:
        """Return when `tick` is due."""
        if self._slot_s is None:
            return None
        due_s = self._slot_s
        for probe in self._probes.values():
            due_s = min(due_s, probe.ask_others_s if probe.helpers is None else probe.ends_s)
        for relay in self._relays.values():
            due_s = min(due_s, relay.ends_s if relay.nack_s is None else relay.nack_s)
        if self._suspects and not self.options.leaf:
            due_s = min(due_s, *(self._dies_s(node) for node in self._suspects))
        return due_s

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        if self._slot_s is None:
            return effects
        for seq, probe in list(self._probes.items()):
            if probe.helpers is None and probe.ask_others_s <= now:
                effects += self._ask_others(seq, probe)
            if probe.ends_s <= now and seq in self._probes:
                effects += self._missed(seq, probe, now)
        if self._relays:
            effects += self._tick_relays(now)
        if not self.options.leaf:
            for node in [node for node in self._suspects if self._dies_s(node) <= now]:
                peer = self.peers[node]
                verdict = Verdict(node, peer.incarnation, DEAD, self.me, peer.leaf)
                self._bury(verdict)
                effects.append(verdict)
        if self._slot_s <= now:
            every = self.options.heartbeat_s if self.options.leaf else self.options.slot_s * (1 + self.health)
            self._slot_s = max(self._slot_s + every, now)  # never two at once, however late this tick is
            effects += self._heartbeats() if self.options.leaf else self._probe(self._slot_s, now)
        return effects

    def _tick_relays(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for seq, relay in list(self._relays.items()):
            if relay.nack_s is not None and relay.nack_s <= now:
                relay.nack_s = None
                effects.append(Send(relay.asker, m.P_NACK, [relay.seq]))
            if relay.ends_s <= now:
                del self._relays[seq]
        return effects

    def _heartbeats(self) -> list[Effect]:
        self._seq += 1
        return [Send(node, m.P_PING, [self._seq, self.incarnation, 0]) for node in self.subjects()]

    # ---- probing ----------------------------------------------------------------------------------------------------

    def _probe(self, next_slot_s: float, now: float) -> list[Effect]:
        for leaf in self._silent_leaves(now) if self._leaves else ():
            self._again[leaf] = None
        subject = self._next_subject()
        if subject is None or self._has_just_spoken(subject, now):
            return []
        self._seq += 1
        scale = 1 + self.health
        timeout_s = self._timeout_s(self.peers[subject])
        ends_s = max(next_slot_s, now + 2 * timeout_s * scale)  # at the slot itself, for that is where it is repeated
        self._probes[self._seq] = Probe(subject, now, now + timeout_s * scale, ends_s)
        return [Send(subject, m.P_PING, [self._seq, self.incarnation, self._accusation(subject)])]

    def _has_just_spoken(self, subject: NodeId, now: float) -> bool:
        """Whether its turn can pass: it was heard within half a round of eight, as two that probe each other are.

        It saves a third of the messages of an idle grid. With fewer subjects than rings a turn comes more often than
        every four seconds; what is saved then is what would be more than in a large grid.
        """
        peer = self.peers[subject]
        if self.health or peer.misses or peer.suspected_s is not None or peer.rtt_s is None:
            return False  # when in doubt, ask
        return peer.heard_s > now - RINGS * self.options.slot_s / 2

    def _next_subject(self) -> NodeId | None:
        """Return whom to ask: one that missed before all others, else the next of a shuffled round."""
        asked = [probe.subject for probe in self._probes.values()]
        for node in self._again:
            if node not in asked:
                del self._again[node]
                return node
        subjects = self.subjects()
        for _ in range(2):
            while self._order:
                node = self._order.pop()
                if node in subjects and node not in asked:
                    return node
            self._order = subjects.copy()
            self.rng.shuffle(self._order)
        return None

    def _timeout_s(self, peer: Peer) -> float:
        options = self.options
        expected = options.timeout_max_s if peer.rtt_s is None else peer.rtt_s + 4 * peer.deviation_s
        return min(max(expected, options.timeout_min_s), options.timeout_max_s)

    def _ask_others(self, seq: int, probe: Probe) -> list[Effect]:
        well = [n for n, p in self.peers.items() if not p.leaf and p.suspected_s is None and p.misses == 0]
        others = [node for node in well if node != probe.subject]
        helpers = self.rng.sample(others, min(self.options.helpers, len(others)))
        probe.helpers = dict.fromkeys(helpers, False)
        accused = self._accusation(probe.subject)
        return [Send(helper, m.P_PING_REQ, [seq, probe.subject, accused]) for helper in helpers]

    def _missed(self, seq: int, probe: Probe, now: float) -> list[Effect]:
        self._late[seq] = self._probes.pop(seq)
        if len(self._late) > self.options.late_kept:
            self._late.popitem(last=False)
        nacked = list((probe.helpers or {}).values())
        # Helpers that do not even say no: the fault is likely ours. One of them may have been unlucky: were it counted,
        # a grid that loses a fifth of its frames would take 1.2 s longer to notice a death.
        if nacked:
            self._worse(max(nacked.count(False) - 1, 0))
        elif self.health < self.options.health_well:  # nobody else is there: no reason to think ill of oneself for long
            self._worse(1)
        peer = self.peers.get(probe.subject)
        if peer is None:
            return []
        peer.misses += 1
        if peer.misses < self.options.misses:
            self._again[probe.subject] = None
            return []
        peer.misses = 0
        return self._accuse(probe.subject, peer, now)

    def _accuse(self, subject: NodeId, peer: Peer, now: float) -> list[Effect]:
        verdict = Verdict(subject, peer.incarnation, SUSPECT, self.me, peer.leaf)
        return [verdict] if self._suspect(verdict, now) else []

    # ---- suspicion --------------------------------------------------------------------------------------------------

    def _dies_s(self, node: NodeId) -> float:
        peer = self.peers[node]
        assert peer.suspected_s is not None, "no suspicion, no end of it"
        lasts_s = self.suspicion_s(len(peer.accusers) - 1, len(self._watchers(node)), leaf=peer.leaf)
        return peer.suspected_s + lasts_s * (1 + max(self.health - self.options.health_well, 0) / 2)

    def suspicion_s(self, confirmed: int, observers: int, *, leaf: bool = False) -> float:
        """Return how long a suspicion lasts that so many others confirmed (Lifeguard's logarithm)."""
        options = self.options
        least = max(options.suspicion_min_s, options.leaf_suspicion_s if leaf else 0.0)
        if options.suspicion_grows:
            least *= max(1.0, math.log10(len(self.peers) + 1) / 2)
        possible = min(options.confirmations, observers - 1)
        if confirmed >= possible:
            return least  # nobody is left that could confirm
        most = least * options.suspicion_factor
        return most - (most - least) * math.log(confirmed + 1) / math.log(possible + 1)
