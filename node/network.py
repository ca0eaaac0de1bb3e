"""The network of a node, inside its daemon: libp2p's host, the links to members, and who belongs.

    machine  --Send, Connect, …-->  Network  -->  Links (node.net)          frames of kinds P_*
    machine  <--PeerUp, PeerSent--  Network  <--  Links
                                    Trustees <->  Charter                   frames of kinds L_*: who belongs
                                    Seeker   -->  Links.dial                whoever can be found when nobody is there

libp2p is imported here and only when there is need of it, in a thread: it takes longer than all else a node does to
start, and the local socket answers meanwhile.

Whatever comes from links is gathered for the rest of the loop's turn and handed over in one piece, so that answers to
many frames leave together. Bad members cost themselves the connection; if our own host ends, the node does.
"""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio

from p2pgrid import __version__
from p2pgrid.core import messages as m
from p2pgrid.core.chains import Refused
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.member import Card, shown
from p2pgrid.core.object_shapes import of_objects
from p2pgrid.core.wire import frame
from p2pgrid.dht.records import GRID_NAMESPACE, Namespace, Signed
from p2pgrid.node import events as e
from p2pgrid.node import routes
from p2pgrid.node.addresses import ADDRESSES_MAX, Listening, advertised, interfaces, is_local, listen, place
from p2pgrid.node.banner import Talk
from p2pgrid.node.charter import Admitted, Charter
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.identity import Identity, read_way
from p2pgrid.node.migration import Migration
from p2pgrid.node.reachability import Reachability
from p2pgrid.node.seeking import Seeker, reach
from p2pgrid.node.trustees import Trustees

if TYPE_CHECKING:
    from p2pgrid.node.net.door import Door
    from p2pgrid.node.net.kad import Kad
    from p2pgrid.node.net.links import Links
    from p2pgrid.node.net.membership import Membership
    from p2pgrid.node.net.station import Station

_OF_THE_MACHINE = (
    (m.P_WANT, m.P_CLOCK_IS), (m.P_STEAL, m.P_LIFELINE), (m.P_READ, m.P_JOBS_RECORDS), (m.P_ROWS, m.P_RUNS),
    (m.P_SHOW, m.P_PRINTED),
)  # fmt: skip
"""Kinds of frames that go to it, from and to."""
TOLD_AGAIN_S = 60.0
LAST_WORDS_S = 0.3
"""For the revocation to reach the one it is about; nothing of what it sends is listened to any more."""

Deliver = Callable[[Sequence[e.Event]], None]


class Keeper(Protocol):
    """Whoever keeps objects at this node."""

    def peer_up(self, peer: str) -> None: ...
    def peer_down(self, peer: str) -> None: ...
    def received(self, peer: str, kind: int, body: Any) -> None:
        """Take a frame about objects, read. Raises PeerError."""

    def lingers(self, peer: str) -> bool:
        """Whether a connection that the machine does not want is of use; it is released again when it is not."""


class Network:
    """The links of a node, what it tells of itself, and the grid it is in.

    Attributes:
        addresses: multiaddrs at which others can dial us; empty while nothing listens.
        members: what is known of those who are connected, by PeerId.
        listening: the open sockets.
    """

    def __init__(self, config: NodeConfig, identity: Identity, charter: Charter, talk: Talk, deliver: Deliver) -> None:
        self.config = config
        self.identity = identity
        self.charter = charter
        self.talk = talk
        self.listening = Listening()
        self.addresses: tuple[str, ...] = ()
        self.members: dict[str, Admitted] = {}
        self.links: Links | None = None
        self.kad: Kad | None = None
        self.keeper: Keeper | None = None
        """None as long as nobody here shares anything."""
        self.make_keeper: Callable[[], Keeper | None] = lambda: None
        self.has_tasks_of_ours: Callable[[str], bool] = lambda _peer: False
        """Whether a member was given tasks of jobs kept here."""
        self.membership: Membership | None = None
        self.rng = random.Random()
        self.trustees = Trustees(self)
        self.seeker = Seeker(self, read_way(config.dir, charter.grid))
        self.reachability = Reachability(self)
        self.migration = Migration(self)
        self.changed = trio.Event()
        self._deliver = deliver
        self._card: Card | None = None
        self.kept: dict[str, tuple[str, ...]] = {}
        """With whom the machine wants a connection."""
        self._events: list[e.Event] = []
        self._came = trio.Event()
        self._wanted = trio.Event()
        self._ready = trio.Event()
        self._unkept = ""
        self._told_away_until = 0.0
        self._door: Door | None = None
        self._nursery: trio.Nursery | None = None

    # ---- a life -----------------------------------------------------------------------------------------------------

    def open(self, *, loopback: bool = False) -> None:
        """Listen, if that is not done. `loopback`: unless told where, for this machine only.

        Raises:
            GridError: a port that was asked for is taken.
        """
        if not self.listening.sockets:
            self.listening = listen(self.config.listen, self.config.dir, loopback=loopback)
            self.addresses = self._reachable_at()

    def start(self) -> None:
        """Have `serve` begin; an embedded node that nobody joins needs no network."""
        self._wanted.set()

    async def ready(self) -> None:
        """Begin, and wait until the network listens."""
        self.start()
        await self._ready.wait()

    async def serve(self) -> None:
        """Be the network until cancelled, from the moment it is wanted."""
        await self._wanted.wait()
        self.open(loopback=self.config.embedded)
        self.later(e.Listens(self.addresses))
        build = await trio.to_thread.run_sync(_load)
        me = self.identity
        net = build(
            me.id, me.key, self.charter.certificate, self, self.listening.sockets, open_dht=self.config.open_dht
        )
        self.membership, self._door, self.kad = net.membership, net.door, net.kad
        net.kad.listens(self.addresses)
        async with net.running, trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(net.links.serve)
            self.links = net.links
            await nursery.start(net.kad.serve)
            for peer, addresses in self.kept.items():
                net.links.connect(peer, addresses)
            nursery.start_soon(self._hand_over)
            nursery.start_soon(self.seeker.run)
            nursery.start_soon(self.seeker.look_for_missed)
            nursery.start_soon(self.seeker.on_lan)
            nursery.start_soon(self.reachability.run)
            if not is_local(self.listening.addresses):
                nursery.start_soon(routes.watch, self._rerouted, routes.opened())
            gc.freeze()  # all of libp2p: or the collector would look at it again and again
            self._ready.set()

    def hello(self) -> list[bytes]:
        """Return the frames that a control stream begins with."""
        assert self._card is not None, "the machine says what we are before there is a network"
        said = {"v": 1, "version": __version__, "card": shown(self._card)}
        return [frame(m.L_HELLO, said), *([] if self.is_moving else self.trustees.hello())]

    def admit(self, certificate: bytes, public: bytes, *, dialler: bool) -> Admitted:
        """Judge whoever connects; whom we dial on the way into another grid, by that grid."""
        joining = self.migration.joining
        if joining is not None and dialler:
            return self.migration.admit(joining, certificate, public)
        return self.charter.admit(certificate, public, dialler=dialler)

    def log(self, text: str) -> None:
        self.talk.log(e.Log("info", text))

    def turned_away(self, address: str) -> None:
        """Somebody came and was not let in: told once a minute at most, or a stranger could fill the log."""
        now = time.monotonic()
        if now < self._told_away_until or self.membership is None:
            return
        if self.migration.is_fresh:
            return
        self._told_away_until = now + TOLD_AGAIN_S
        why, self.membership.last_refusal = self.membership.last_refusal, ""
        self.log(f"refused a connection from {address}: {why or 'it is no member of this grid'}")

    def warn(self, text: str) -> None:
        self.talk.log(e.Log("warning", text))

    async def close(self) -> None:
        """Say good-bye to all."""
        self._events.clear()
        if self.links is not None:
            await self.links.close("stopping")

    async def keep(self) -> None:
        """Write what was learned of members, while the loop goes on; called every few seconds."""
        if (write := self.charter.unwritten()) is not None:
            with self._told_if_not_kept():
                await trio.to_thread.run_sync(write)

    def keep_now(self) -> None:
        """The same, at the end of the loop."""
        with self._told_if_not_kept():
            self.charter.flush_if_dirty()

    @contextlib.contextmanager
    def _told_if_not_kept(self) -> Iterator[None]:
        try:
            yield
        except GridError as error:  # it is tried again; until then a restart would cost what was learned
            if str(error) != self._unkept:
                self._unkept = str(error)
                self.warn(self._unkept)

    def minute(self) -> None:
        """Do what is due once a minute."""
        if self.links is None:
            return
        self._look_around()
        if self.kad is not None:
            self.kad.look_at_clock()
        self.reachability.minute()
        self.trustees.minute()

    def _look_around(self) -> None:
        before = self.addresses
        self.relocate()
        if self.addresses != before:
            self.reachability.moved()
            self.wake()
        self.seeker.announce()

    def _rerouted(self) -> None:
        """The network of this machine has changed: who did not answer may do so now."""
        self._look_around()
        self.seeker.begin_anew()
        if self.links is not None:
            self.links.begin_anew()

    def relocate(self) -> None:
        """Look at which addresses others can dial us, and tell if that has changed."""
        addresses = self._reachable_at()
        if addresses != self.addresses:
            self.addresses = addresses
            self.later(e.Listens(addresses))
            if self.kad is not None:
                self.kad.listens(addresses)

    def _reachable_at(self) -> tuple[str, ...]:
        ours = advertised(self.listening.addresses, interfaces(), self.config.advertise)
        return tuple(dict.fromkeys([*ours[: ADDRESSES_MAX - 1], *self.reachability.seen_as[:1]]))

    def host_of(self, peer: str) -> str:
        """Return the IP address that a connected member is seen at; empty if there is none."""
        address = "" if self.links is None else self.links.address_of(peer)
        return place(address)[0] if address else ""

    def known_at(self, peer: str) -> set[str]:
        """Return the addresses that a member says it has."""
        return {*self.kept.get(peer, ()), *dict(self.charter.saved_peers()).get(peer, ())}

    # ---- the DHT ----------------------------------------------------------------------------------------------------

    def grid_time_s(self) -> float:
        return self.charter.now_s(lenient=True)

    def namespaces(self) -> Mapping[str, Namespace]:
        """Return who judges the values of our grid's DHT."""
        charter, public = self.charter, self.identity.public
        belongs = lambda other: other == public or charter.holds(other)  # noqa: E731 - of this grid only
        return {GRID_NAMESPACE: Signed(charter.grid, belongs, self.identity.key)}

    def release(self, peer: str) -> None:
        """A question of the DHT's has connected us with that peer: the machine may not want that."""
        if peer in self.members and peer not in self.kept and (self.keeper is None or not self.keeper.lingers(peer)):
            self.drop(peer, "not wanted any more")

    async def answers_at(self, peer: str, address: str, within_s: float) -> bool:
        """Return whether a member answers there; no connection comes of it."""
        return self.links is not None and await self.links.answers_at(peer, address, within_s)

    @property
    def dialled(self) -> list[str]:
        """Our addresses as others dial them."""
        return [f"{address}/p2p/{self.identity.id}" for address in self.addresses]

    @property
    def is_moving(self) -> bool:
        """Whether it is on its way into another grid."""
        return self.migration.joining is not None

    async def reach(self, addresses: Sequence[str]) -> tuple[bool, Refused | None]:
        """As `seeking.reach`."""
        assert self.links is not None, "there is no network"
        return await reach(self.links, addresses)

    def is_known(self, peer: str) -> bool:
        """Whether it is connected, or the machine knows of it and has it dialled."""
        return peer in self.members or peer in self.kept

    def wake(self) -> None:
        """Have whoever waits for a change look again."""
        self.changed.set()
        self.changed = trio.Event()

    # ---- what links tell --------------------------------------------------------------------------------------------

    def up(self, peer: str, hello: dict[str, Any], member: Admitted) -> None:
        try:
            self.migration.met(member.public)
            member = self.charter.shown(member.public, member.chain)  # the handshake may have been in another grid
        except GridError as error:
            self.drop(peer, error.message)
            return
        except Refused as refused:
            self.drop(peer, str(refused))
            return
        card: Card = hello["card"]
        self.members[peer] = member
        self.charter.saw(peer, card.addresses)
        self.seeker.refusal = ""
        self.later(e.PeerUp(peer, card.facts, card, member.roles))
        self.trustees.up(peer, member)
        self.reachability.up()
        if self.keeper is not None:
            self.keeper.peer_up(peer)
        if self.kad is not None:
            self.kad.member_up(peer, card.addresses, serves=not card.leaf)
        self.wake()
        self.migration.greeted()

    def down(self, peer: str, *, reset: bool, why: str) -> None:
        if self.members.pop(peer, None) is not None:
            self.later(e.PeerDown(peer, reset))
            if self.kad is not None:
                self.kad.member_down(peer)
            if self.keeper is not None:
                self.keeper.peer_down(peer)
            self.wake()

    def frame(self, peer: str, kind: int, body: Any) -> None:
        if peer not in self.members:
            return
        if any(first <= kind <= last for first, last in _OF_THE_MACHINE):
            self.later(e.PeerSent(peer, kind, body))
        elif m.L_REVOCATIONS <= kind <= m.L_SHOW:
            self.trustees.frame(peer, kind, body)
        elif m.L_DIAL_ME <= kind <= m.L_DIALLED:
            self.reachability.frame(peer, kind, body)
        elif m.O_FIND <= kind <= m.O_FREE:
            self._of_objects(peer, kind, of_objects(kind, body))
        elif m.L_HELLO <= kind <= m.L_UNKNOWN or self.links is None:
            raise PeerError(f"a frame of type {kind}")
        else:
            self.links.unknown(peer, kind)

    def _of_objects(self, peer: str, kind: int, body: Any) -> None:
        """Hand on a frame about objects; whoever asks a node that keeps none hears so."""
        if kind == m.O_COPY and self.keeper is None:
            self.make_keeper()
        if kind in (m.O_COPY, m.O_LIST, m.O_WANT) and self.keeper is None:
            self.send(peer, m.O_LACK, [body[0], None])
        elif kind == m.O_FIND and self.keeper is None:
            for id_ in body[0]:
                self.send(peer, m.O_LACK, [id_, None])
        elif self.keeper is not None:
            self.keeper.received(peer, kind, body)

    def later(self, event: e.Event) -> None:
        """Tell the machine, with whatever else this turn of the loop brings."""
        if self._nursery is None:  # nothing else can come
            self._deliver([event])
            return
        self._events.append(event)
        self._came.set()

    def at_once(self, event: e.Event) -> None:
        """Tell the machine now, and all that waits before it."""
        events, self._events = self._events, []
        self._deliver([*events, event])

    async def _hand_over(self) -> None:
        while True:
            await self._came.wait()
            self._came = trio.Event()
            events, self._events = self._events, []
            self._deliver(events)

    # ---- what the machine wants -------------------------------------------------------------------------------------

    def perform(self, effect: e.Send | e.Connect | e.Disconnect | e.Drop | e.Introduce | e.GridClock) -> None:
        """Carry out what the machine wants of the network."""
        match effect:
            case e.Send():
                if self.links is not None:
                    self.links.send(effect.peer, effect.kind, effect.body)
            case e.Connect():
                addresses = tuple(effect.addresses)
                self.kept[effect.peer] = addresses
                with contextlib.suppress(ValueError):  # members are told of by members: it may be no PeerId
                    self.charter.saw(effect.peer, addresses)
                if self.links is not None:
                    self.links.connect(effect.peer, addresses)
            case e.Disconnect():
                self.kept.pop(effect.peer, None)
                if self.links is not None:
                    self.links.disconnect(effect.peer)
            case e.Drop():
                self.drop(effect.peer, effect.why, broke=True)
            case e.Introduce():
                self._card = effect.card
            case e.GridClock():
                first = self.charter.offset_s is None
                self.charter.offset_s = effect.offset_s
                if first and effect.offset_s is not None:
                    self.trustees.judge_again()

    def flush(self) -> None:
        if self.links is not None:
            self.links.flush()

    def send(self, peer: str, kind: int, body: Any) -> None:
        """Send a frame of the shell's own; it leaves at once."""
        if self.links is not None:
            self.links.send(peer, kind, body)
            self.links.flush()

    def drop(self, peer: str, why: str, *, broke: bool = False) -> None:
        """End a connection, `broke`: for what came by it; the member may try again."""
        self.down(peer, reset=False, why=why)
        if self.links is not None:
            self.links.drop(peer, why, broke=broke)

    def expel(self, public: bytes) -> None:
        """End every connection with somebody who does not belong any more."""
        for peer, member in list(self.members.items()):
            if member.public == public:
                self.drop(peer, "it does not belong to the grid any more")
        if self._nursery is not None:
            self._nursery.start_soon(self._expel, public)

    async def _expel(self, public: bytes) -> None:
        """End what is no link yet, too; a little later, so that the peer still hears why."""
        assert self.membership is not None, "a network without membership"
        await trio.sleep(LAST_WORDS_S)
        await self.membership.expel(public)

    def let_go(self) -> None:
        """Keep no connection any more, whatever the machine wanted so far."""
        for peer in list(self.members):
            self.drop(peer, "not wanted any more")
        for peer in self.kept:
            if self.links is not None:
                self.links.disconnect(peer)

    def soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Run a task as long as the network lives."""
        assert self._nursery is not None, "there is no network"
        self._nursery.start_soon(work, *arguments)

    # ---- which grid -------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """What we are has changed: new connections are shown it, and the machine hears of it."""
        if self.membership is not None:
            self.membership.certificate = self.charter.certificate
        self.seeker.announce()
        self.later(e.Belongs(self.charter.grid, self.charter.grid_name, self.charter.roles, self.charter.certificate))

    # ---- answers ----------------------------------------------------------------------------------------------------

    def warnings(self, members: Sequence[dict[str, Any]]) -> list[str]:
        """Return what `status` warns of."""
        return [*self.charter.warnings(members), *([self.seeker.refusal] if self.seeker.refusal else [])]

    def stats(self) -> dict[str, Any]:
        """Return the figures of `status`."""
        told, door = {} if self.links is None else self.links.stats(), self._door
        dht = {} if self.kad is None else self.kad.stats()
        return {
            "addresses": self.dialled,
            "connected": len(self.members),
            "reachable": self.reachability.text,
            "dht": dht,
            "other_grids": self.seeker.lan.others(self.charter.grid),
            "messages_sent": told.get("sent", 0),
            "messages_received": told.get("received", 0),
            "refused": told.get("refused", 0) + (door.failed_count + door.turned_away_count if door else 0),
            "dropped": told.get("dropped", 0),
            "round_trips": {peer: link["rtt_s"] for peer, link in sorted(told.get("peers", {}).items())},
        }


def _load() -> Callable[..., Station]:
    """Import libp2p and all that stands on it; takes a second, in a thread. Returns what builds a host."""
    from p2pgrid.node.net.station import build  # noqa: PLC0415 - only when there is need of it, see the top

    return build
