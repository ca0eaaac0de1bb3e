"""A simulated node: the daemon's machine, and around it what its shell does, in virtual time.

Nothing here tells the machine anything but events. The node has a clock of its own: monotonic time begins anywhere at
each boot of its machine, and the wall clock is as wrong as `skew_s` says.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from p2pgrid.core.chains import ALL_ROLES, SUBMIT, WORK
from p2pgrid.core.member import ALIVE, STATUS_NAMES, Card, said
from p2pgrid.node import events as e
from p2pgrid.node.machine import Machine, MachineConfig
from p2pgrid.simulations.clock import UNIX_0
from p2pgrid.simulations.disk import READ_S, Disk
from p2pgrid.simulations.workers import Child

if TYPE_CHECKING:
    from p2pgrid.simulations.client import Client
    from p2pgrid.simulations.network import Link
    from p2pgrid.simulations.world import World

GRID = b"g" * 32
CHAIN = b"the grid vouches for this member"
MINUTE_S = 60.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 30.0
SEEK_S = 2.0
"""A node with no connection dials again those it was told of and those it once knew."""
SEEK_AT_ONCE = 3
SAVED_MAX = 200
MISSED_MIN_S, MISSED_MAX_S = 15.0, 300.0
"""Between attempts to find one whom nobody has spoken of (`node/seeking.py`)."""
WORKERS_S = (0.05, 0.2)
"""Until a worker child has started."""
CHANGERS = SUBMIT | WORK
"""Who has neither of these roles may only look."""
RECENT = 48
"""Events kept of each node, for whoever reads a failure."""


class NameSeal:
    """Stands for signatures: it knows everybody's secret, and a node's own is its name."""

    def __init__(self, me: str) -> None:
        self._me = me

    def sign(self, card: Card) -> bytes:
        """Return the proof of a card of this node."""
        return blake3(b"secret of " + said(self._me, GRID, card)).digest()

    def holds(self, node: str, card: Card) -> bool:
        """Whether that member has said so."""
        return card.chain == CHAIN and card.proof == NameSeal(node).sign(card)


class Node:
    """One machine, and what runs on it."""

    def __init__(self, world: World, number: int, name: str, config: Mapping[str, Any]) -> None:
        told = dict(config)
        self.world = world
        self.number = number
        self.name = name
        self.rng = world.rng("node", name)
        self.site: int = told.pop("site", 0)
        self.nat: bool = told.pop("nat", False)
        """Can dial, cannot be dialled."""
        self.speed: float = told.pop("speed", 1.0)
        self.skew_s: float = told.pop("skew_s", 0.0)
        """How wrong its wall clock is."""
        self.roles: int = told.pop("roles", ALL_ROLES)
        self.known: tuple[str, ...] = tuple(told.pop("known", ()))
        """Addresses it was told."""
        self.slots: int = told.pop("slots", 2)
        self.resources: dict[str, Any] = told.pop("resources", {})
        self.facts: dict[str, Any] = told.pop("facts", {})
        self.more = told
        """Further fields of `MachineConfig`."""
        self.address = f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/9471"
        self.disk = Disk(world.rng("disk", name))
        self.lag_s = 0.0
        """Up to so much later it takes in what arrives: its loop is busy."""
        self.lies = 0.0
        """How often its workers return something wrong."""
        self.lacks = ""
        """Why no function can be loaded here."""
        self.alive = False
        """Whether its process runs."""
        self.present = True
        """Whether its machine is on the network."""
        self.is_gone = False
        """Whether it never comes back."""
        self.life = 0
        self.began_s = 0.0
        """When this life began."""
        self.card: Card | None = None
        self.links: dict[str, Link] = {}
        self.wanted: dict[str, tuple[str, ...]] = {}
        self.saved: dict[str, tuple[str, ...]] = {}
        self.workers: dict[int, Child] = {}
        self.clients: dict[int, Client] = {}
        self.frozen: deque[e.Event] | None = None
        self.logs: deque[str] = deque(maxlen=RECENT)
        self.recent: deque[tuple[float, e.Event, list[e.Effect]]] = deque(maxlen=RECENT)
        self.dropped: list[tuple[str, str]] = []
        self.grid_offset_s: float | None = None
        self.stopped: list[str] | None = None
        self.said = 0
        """Frames sent."""
        self.uplink_s = 0.0
        self._boot_s = 0.0
        self._frozen_s = 0.0
        self._timers: dict[tuple[Any, ...], tuple[float, int]] = {}
        self._timer_count = 0
        self._failures: dict[str, int] = {}
        self._dialling: dict[str, None] = {}
        self._perform: dict[type, Callable[[Any], None]] = {
            e.Reply: self._reply,
            e.Send: self._send,
            e.Connect: self._connect,
            e.Disconnect: self._disconnect,
            e.Publish: lambda _: None,  # there is no DHT here: what the members know has to do
            e.Locate: lambda effect: self.later(0.1, e.Located(effect.job, ())),
            e.Drop: self._drop,
            e.Introduce: self._introduce,
            e.GridClock: self._grid_clock,
            e.Store: self._store,
            e.Fetch: self._fetch,
            e.Run: lambda effect: self.workers[effect.worker].queue(effect),
            e.Recall: lambda effect: self.workers[effect.worker].recall(),
            e.Kill: lambda effect: self.workers[effect.worker].kill(effect.run, effect.spans),
            e.SetTimer: self._set_timer,
            e.Log: lambda effect: self.logs.append(f"{self.world.now:.3f} {effect.level}: {effect.text}"),
            e.Stopped: self._on_stopped,
        }

    def __repr__(self) -> str:
        return f"<{self.name} {'alive' if self.alive else 'down'}>"

    # ---- lives ------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Monotonic time of this machine."""
        return self.world.now + self._boot_s

    @property
    def wall_s(self) -> float:
        """Unix time as this machine believes it is."""
        return UNIX_0 + self.world.now + self.skew_s

    def start(self) -> None:
        """Begin a life."""
        if self.alive or self.is_gone:
            return
        self.life += 1
        self.alive = self.present = True
        self.began_s = self.world.now
        self.frozen = None
        self.stopped = None
        rng = self.world.rng("machine", self.name, self.life)
        self._boot_s = rng.uniform(0, 1e6) - self.world.now
        for store in (self._timers, self._failures, self._dialling, self.links):
            store.clear()
        resources = {"cpu": self.slots, "mem": 8 << 30, **self.resources}
        facts = {"name": self.name, "slots": self.slots, "minor": 11, "resources": resources, **self.facts}
        config = {"seal": NameSeal(self.name), "preset": self.world.preset, **self.more}
        self.machine = Machine(MachineConfig(self.name, self.name, "sim", self.slots, facts, **config), rng)
        self.workers = {number: Child(self, number) for number in range(self.slots)}
        self.wanted = {}
        wall_offset_s = self.wall_s - self.now
        self.world.lived(self)
        self.handle(e.Loaded(self.disk.loaded(), wall_offset_s, self.disk.begin(self.wall_s)))
        self.handle(e.Belongs(GRID, "sim", self.roles, CHAIN))
        self.handle(e.Listens((self.address,)))
        for worker in self.workers:
            self.later(rng.uniform(*WORKERS_S), e.WorkerReady(worker))
        self.world.at(MINUTE_S * rng.uniform(0.5, 1.5), self._minute, self.life)
        self._seek(self.life)
        missed = self.world.rng("missed", self.name, self.life)
        self.world.at(MISSED_MIN_S * missed.uniform(0.5, 1.0), self._miss, self.life, missed, MISSED_MIN_S)

    def crash(self, *, reset: bool = True, torn: bool = False) -> None:
        """End at once: `reset` as a killed process, else as a machine that vanishes. Its disk stays."""
        if not self.alive:
            return
        self.alive = False
        self.present = reset
        self.life += 1
        self.disk.crash(torn=torn)
        self._leave(reset=reset)

    def _leave(self, *, reset: bool) -> None:
        for number in list(self.clients):
            self.clients.pop(number).cut_off()
        for child in self.workers.values():
            self.world.finished(self, child.number)
        for link in list(self.links.values()):
            if reset:
                self.world.network.end(link, refused=self)
            else:
                link.cut["*"] = True
                for one in link.ends:
                    link.cut[one.name] = True
                noticed_s = self.rng.uniform(9.0, 15.0)
                self.world.at(noticed_s, self.world.network.end_silent, link, self)
        self.links.clear()
        self.world.died(self)

    def stop(self, grace_s: float = 5.0) -> None:
        """End on purpose, as by SIGTERM."""
        self.handle(e.Stop(grace_s))

    def _on_stopped(self, effect: e.Stopped) -> None:
        self.stopped = list(effect.waiting)
        self.world.at(0.0, self._end, self.life)

    def _end(self, life: int) -> None:
        if self.alive and self.life == life:
            self.crash()

    def freeze(self, *, workers: bool = False) -> None:
        """SIGSTOP of the daemon; with `workers` the whole machine sleeps."""
        if self.alive and self.frozen is None:
            self.frozen = deque()
            self._frozen_s = self.world.now
            if workers:
                for child in self.workers.values():
                    child.suspend()

    def thaw(self, *, workers: bool = False) -> None:
        """SIGCONT: the shell sees the stall first, then what has queued."""
        if not self.alive or self.frozen is None:
            return
        queued, self.frozen = self.frozen, None
        if workers:
            for child in self.workers.values():
                child.resume()
        self.handle(e.Stalled(self.world.now - self._frozen_s))
        life = self.life
        for event in queued:
            if self.life == life:  # it may end by what it hears
                self.handle(event)

    # ---- events -----------------------------------------------------------------------------------------------------

    def handle(self, event: e.Event, mark: int = 0) -> None:
        """Feed the machine and carry its effects out."""
        if self.frozen is not None:
            self.frozen.append(event)
            return
        world = self.world
        try:
            effects = self.machine.handle(event, world.now + self._boot_s)
        except Exception as error:
            raise world.broken("the machine raised", f"{type(error).__name__}: {error}", self, event) from error
        self.recent.append((world.now, event, effects))
        world.note(self.number, world.kinds[type(event)] << 16 | len(effects), mark)
        perform = self._perform
        for effect in effects:
            perform[type(effect)](effect)

    def expect(self, holds: object, what: str) -> None:
        """Fail the run unless that holds."""
        if not holds:
            raise self.world.broken("the shell was told nonsense", what, self)

    def later(self, delay_s: float, event: e.Event) -> None:
        """Feed an event to this life."""
        self.world.at(delay_s, self._later, self.life, event)

    def _later(self, life: int, event: e.Event) -> None:
        if self.alive and self.life == life:
            self.handle(event)

    def _minute(self, life: int) -> None:
        if self.alive and self.life == life:
            self.handle(e.WallClock(self.wall_s - self.now))
            self.world.at(MINUTE_S, self._minute, life)

    # ---- the network ------------------------------------------------------------------------------------------------

    def _send(self, effect: e.Send) -> None:
        network = self.world.network
        if effect.kind in network.watch:
            for watcher in network.watch[effect.kind]:
                watcher(self, effect)
        network.send(self, effect.peer, effect.kind, effect.body)

    def receive(self, link: Link, source: str, kind: int, body: Any, mark: int) -> None:
        """Take in a frame."""
        if self.links.get(source) is link and (not link.cut or source not in link.cut):
            self.handle(e.PeerSent(source, kind, body), mark)
            if not self.world.nodes[source].roles & CHANGERS and self.frozen is None and self.recent:
                self.world.handled(self, self.world.nodes[source], kind)

    def met(self, peer: Node, link: Link, card: Card | None, roles: int) -> None:
        """A connection was made and introductions were exchanged."""
        if self.alive and self.links.get(peer.name) is link and card is not None:
            self._failures.pop(peer.name, None)
            self.handle(e.PeerUp(peer.name, card.facts, card, roles))

    def lost(self, peer: Node, reset: bool) -> None:  # noqa: FBT001 - called by the clock
        """A connection ended, and what a dial said then."""
        if self.alive and peer.name not in self.links:
            self.handle(e.PeerDown(peer.name, reset))
            self._redial(peer.name)

    def gone(self, peer: Node) -> None:
        """Its former life is: it has just dialled again."""
        if self.alive:
            self.handle(e.PeerDown(peer.name, reset=False))

    def _connect(self, effect: e.Connect) -> None:
        self.wanted[effect.peer] = tuple(effect.addresses)
        if len(self.saved) < SAVED_MAX or effect.peer in self.saved:
            self.saved[effect.peer] = tuple(effect.addresses)
        self._redial(effect.peer)

    def _disconnect(self, effect: e.Disconnect) -> None:
        self.wanted.pop(effect.peer, None)
        link = self.links.get(effect.peer)
        if link is not None and effect.peer not in link.other(self).wanted:
            self.world.network.end(link)

    def _drop(self, effect: e.Drop) -> None:
        self.dropped.append((effect.peer, effect.why))
        link = self.links.get(effect.peer)
        if link is not None:
            self._failures[effect.peer] = 6
            self.world.network.end(link)

    def _redial(self, peer: str) -> None:
        """Dial a wanted member, with pauses that grow."""
        if peer in self.links or peer in self._dialling or peer not in self.wanted:
            return
        failures = self._failures.get(peer, 0)
        pause_s = self.rng.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (failures - 1))) if failures else 0.001
        self._dialling[peer] = None
        self.world.at(pause_s, self._dial, peer, self.life)

    def _dial(self, peer: str, life: int) -> None:
        if not self.alive or self.life != life:
            return
        addresses = self.wanted.get(peer, ())
        if peer in self.links or not addresses or self.frozen is not None:
            self._dialling.pop(peer, None)
            if self.frozen is not None:
                self.world.at(1.0, self._redial, peer)
            return
        takes_s, found, _ = self.world.network.dial(self, addresses[0], peer)
        self.world.at(takes_s, self._dialled, peer, found, life)

    def _dialled(self, peer: str, found: Node | None, life: int) -> None:
        if not self.alive or self.life != life:
            return
        self._dialling.pop(peer, None)
        able = found is not None and found.alive and found.frozen is None and self.frozen is None
        if able and found is not None and self.world.network.whole(self, found):
            self.world.network.connect(self, found)
        else:
            self._failures[peer] = self._failures.get(peer, 0) + 1
            self._redial(peer)

    def _seek(self, life: int) -> None:
        """Dial those this node was told of, while it is alone."""
        if not self.alive or self.life != life:
            return
        if not self.links and self.frozen is None:
            known = dict.fromkeys((*self.known, *(at for addresses in self.saved.values() for at in addresses)))
            known.pop(self.address, None)
            for address in self.rng.sample(list(known), min(SEEK_AT_ONCE, len(known))):
                takes_s, found, _ = self.world.network.dial(self, address, None)
                if found is not None:
                    self.world.at(takes_s, self._dialled, found.name, found, life)
        self.world.at(SEEK_S * self.rng.uniform(0.5, 1.5), self._seek, life)

    def _miss(self, life: int, rng: random.Random, pause_s: float) -> None:
        """Dial one met in a former life and not heard of in this one, now and then, although others are here."""
        if not self.alive or self.life != life:
            return
        missed = [one for one in self.saved if one not in self.wanted] if self.links and self.frozen is None else []
        if missed:
            peer = rng.choice(missed)
            takes_s, found, _ = self.world.network.dial(self, self.saved[peer][0], peer)
            if found is not None:
                self.world.at(takes_s, self._dialled, peer, found, life)
        pause_s = min(2 * pause_s, MISSED_MAX_S) if missed else MISSED_MIN_S
        self.world.at(pause_s * rng.uniform(0.5, 1.0), self._miss, life, rng, pause_s)

    def _introduce(self, effect: e.Introduce) -> None:
        self.card = effect.card

    def _grid_clock(self, effect: e.GridClock) -> None:
        self.grid_offset_s = effect.offset_s

    # ---- timers -----------------------------------------------------------------------------------------------------

    def _set_timer(self, effect: e.SetTimer) -> None:
        key, at_s = effect.key, effect.at_s
        if at_s is None:
            self._timers.pop(key, None)
            return
        self._timer_count += 1
        self._timers[key] = (at_s, self._timer_count)
        world = self.world
        world.at(max(0.0, at_s - self._boot_s - world.now), self._fire, key, self._timer_count, self.life)

    def _fire(self, key: tuple[Any, ...], count: int, life: int) -> None:
        timer = self._timers.get(key)
        if timer is not None and timer[1] == count and self.alive and self.life == life:
            del self._timers[key]
            self.handle(e.TimerFired(key))

    # ---- disk -------------------------------------------------------------------------------------------------------

    def _store(self, effect: e.Store) -> None:
        if any(row.kind == "*" for row in effect.rows):
            self.world.storing(self, effect)
        self.world.at(self.disk.store(effect, self.world.now) - self.world.now, self._stored, self.life)

    def _stored(self, life: int) -> None:
        if not self.alive or self.life != life:
            return
        effect, written = self.disk.commit()
        if not written:
            self.handle(e.StoreFailed(effect.token, "no space left on the disk"))
        elif effect.token:
            self.handle(e.Stored(effect.token))

    def _fetch(self, effect: e.Fetch) -> None:
        self.later(self.rng.uniform(*READ_S), e.Fetched(effect.token, self.disk.fetch(effect.keys)))

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _reply(self, effect: e.Reply) -> None:
        client = self.clients.get(effect.client)
        if client is not None:
            self.world.replied(self, effect)
            client.hear(effect.kind, effect.id, effect.body)

    # ---- what it believes -------------------------------------------------------------------------------------------

    def sees(self) -> dict[str, str]:
        """Return the status of every member as this node knows it, by id."""
        view = self.machine.neighbours.view
        others = {} if view is None else view.members
        return {self.name: "alive"} | {
            name: STATUS_NAMES[entry.known.status] for name, entry in others.items() if name != self.name
        }

    def sees_alive(self) -> int:
        """Return how many members this node takes for alive, itself included."""
        view = self.machine.neighbours.view
        others = {} if view is None else view.members
        return 1 + sum(entry.known.status == ALIVE for name, entry in others.items() if name != self.name)
