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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio

from p2pgrid import __version__
from p2pgrid.core import messages as m
from p2pgrid.core.chains import Reason, Refused, is_provisional, newest_signed_at, read_chain
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.invite import bad_invite
from p2pgrid.core.member import Card, shown
from p2pgrid.core.shapes import of_objects
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import frame
from p2pgrid.dht.records import GRID_NAMESPACE, Namespace, Signed
from p2pgrid.node import events as e
from p2pgrid.node import routes
from p2pgrid.node.addresses import ADDRESSES_MAX, Listening, advertised, interfaces, is_local, listen, place
from p2pgrid.node.banner import Talk
from p2pgrid.node.charter import Admitted, Charter, Joining
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.identity import Identity, peer_id, read_way, write_way
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
PATIENCE_S = 3.0
"""How long a start waits for the grid that it was told to join."""

MOVED_S = 10.0
"""So long after a move, who is turned away is not worth a line."""

Deliver = Callable[[Sequence[e.Event]], None]


class Keeper(Protocol):
    """Whoever keeps objects at this node."""

    def peer_up(self, peer: str) -> None: ...
    def peer_down(self, peer: str) -> None: ...
    def received(self, peer: str, kind: int, body: Any) -> None:
        """Take a frame about objects, read. Raises PeerError."""


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
        self.membership: Membership | None = None
        self.rng = random.Random()
        self.trustees = Trustees(self)
        self.seeker = Seeker(self, read_way(config.dir, charter.grid))
        self.reachability = Reachability(self)
        self.changed = trio.Event()
        self._deliver = deliver
        self._card: Card | None = None
        self._kept: dict[str, tuple[str, ...]] = {}  # with whom the machine wants a connection
        self._events: list[e.Event] = []
        self._came = trio.Event()
        self._wanted = trio.Event()
        self._ready = trio.Event()
        self._changing = trio.Lock()  # one change of grid at a time
        self._joining: Joining | None = None
        self._arrived_s = float("-inf")
        self._let_in: set[bytes] = set()  # by the grid that is being joined
        self._unarrived: GridError | None = None
        self._met_any = False
        self._announced = False
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
            for peer, addresses in self._kept.items():
                net.links.connect(peer, addresses)
            nursery.start_soon(self._hand_over)
            nursery.start_soon(self.seeker.run)
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
        return [frame(m.L_HELLO, said), *([] if self._joining else self.trustees.hello())]

    def admit(self, certificate: bytes, public: bytes, *, dialler: bool) -> Admitted:
        """Judge whoever connects; whom we dial on the way into another grid, by that grid."""
        joining = self._joining
        if joining is not None and dialler:
            roles = Judge(joining.grid).check(certificate, public, newest_signed_at(joining.chain))
            self._let_in.add(public)
            return Admitted(public, peer_id(public), roles, certificate, is_provisional(read_chain(certificate)))
        return self.charter.admit(certificate, public, dialler=dialler)

    def log(self, text: str) -> None:
        self.talk.log(e.Log("info", text))

    def turned_away(self, address: str) -> None:
        """Somebody came and was not let in: told once a minute at most, or a stranger could fill the log."""
        now = time.monotonic()
        if now < self._told_away_until or self.membership is None:
            return
        if self.is_moving or now < self._arrived_s + MOVED_S:
            return  # members of the one grid or the other that have not heard of the move: they will have in a moment
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

    def keep(self) -> None:
        """Write what was learned of members; called every few seconds."""
        try:
            self.charter.flush_if_dirty()
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
        return {*self._kept.get(peer, ()), *dict(self.charter.saved_peers()).get(peer, ())}

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
        if peer in self.members and peer not in self._kept:
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
        return self._joining is not None

    async def reach(self, addresses: Sequence[str]) -> tuple[bool, Refused | None]:
        """As `seeking.reach`."""
        assert self.links is not None, "there is no network"
        return await reach(self.links, addresses)

    def is_known(self, peer: str) -> bool:
        """Whether it is connected, or the machine knows of it and has it dialled."""
        return peer in self.members or peer in self._kept

    def wake(self) -> None:
        """Have whoever waits for a change look again."""
        self.changed.set()
        self.changed = trio.Event()

    # ---- what links tell --------------------------------------------------------------------------------------------

    def up(self, peer: str, hello: dict[str, Any], member: Admitted) -> None:
        try:
            if self._joining is not None and member.public in self._let_in:
                self._adopt(self._joining)
            member = self.charter.shown(member.public, member.chain)  # the handshake may have been in another grid
        except GridError as error:
            self._unarrived = error  # for whoever wants to join
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
        if not self._met_any:
            self._met_any = True
            self.log(f"in grid {self.charter.grid_name}: its members can run tasks here, as this user")
            self._say_joined()

    def announce(self) -> None:
        """The node has said `ready`, which comes first: now what has happened before may be said."""
        self._announced = True
        self._say_joined()

    def _say_joined(self) -> None:
        if self._announced and self._met_any:
            self.talk.event(None, "joined", id=self.identity.id, grid=self.charter.grid_name)

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
                self._kept[effect.peer] = addresses
                with contextlib.suppress(ValueError):  # members are told of by members: it may be no PeerId
                    self.charter.saw(effect.peer, addresses)
                if self.links is not None:
                    self.links.connect(effect.peer, addresses)
            case e.Disconnect():
                self._kept.pop(effect.peer, None)
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
        for peer in self._kept:
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

    async def follow(self, text: str) -> None:
        """Join at the start. Who is refused ends; who meets nobody soon is ready all the same, and goes on trying.

        Raises:
            GridError: as `join`, within that time.
        """
        done = trio.Event()

        async def go() -> None:
            try:
                await self.join(text, leave=False)
            except GridError as error:
                if not patience.cancelled_caught:
                    raise
                self.warn(f"{error.message}; {error.next}")  # it is ready, somebody may use it by now
            done.set()

        self.soon(go)
        with trio.move_on_after(PATIENCE_S) as patience:
            await done.wait()

    async def join(self, text: str, *, leave: bool) -> dict[str, Any]:
        """Go to the grid of an invite. What this node runs and keeps stays with it.

        Raises:
            GridError: the invite is no good, or this node is in a grid with others and may not leave it.
        """
        joining = self.charter.join(text)
        async with self._changing:
            if joining.already:
                return {**self._place(), "joined": False}
            self.may_leave(joining, leave=leave)
            self.open()  # who joins wants to be reached, also where a program started the node for itself
            await self.ready()
            if joining.grid == self.charter.grid:
                self._adopt(joining)
                return {**self._place(), "joined": True}
            assert self.membership is not None, "a network without membership"
            self._joining, self.membership.certificate = joining, joining.chain
            try:
                self._unarrived = None
                reached, refused = await self.reach([*joining.addresses, *self.seeker.lan.members(joining.grid)])
                if self._unarrived is not None:
                    raise self._unarrived
                if self.charter.grid != joining.grid:
                    self._adopt_unseen(joining, refused)
            finally:
                self._joining, self.membership.certificate = None, self.charter.certificate
                self._let_in.clear()
            if not reached:
                self.warn(f"no member of grid {self.charter.grid_name} answers yet; this node keeps trying")
            return {**self._place(), "joined": True}

    def may_leave(self, joining: Joining, *, leave: bool) -> None:
        """Raise GridError if going there means to leave a grid that has other members."""
        if joining.grid != self.charter.grid and not self.charter.alone and not leave:
            raise GridError(
                f"this node is in grid {self.charter.grid_name}, which has other members",
                next="leave that one for it: p2pgrid join --leave INVITE",
                code="in-a-grid",
            )

    async def take_up(self, joining: Joining, *, leave: bool) -> None:
        """Be a member by what nobody has to be asked for.

        Raises:
            GridError: the directory cannot be used, or this node is in a grid with others and may not leave it.
        """
        async with self._changing:
            self.may_leave(joining, leave=leave)
            self._adopt(joining)

    def _adopt_unseen(self, joining: Joining, refused: Refused | None) -> None:
        """Nobody there let us in. Raises GridError if somebody refused, or the invite is over by our own clock."""
        try:
            if refused is not None:
                raise refused
            Judge(joining.grid).check(joining.chain, self.identity.public, time.time())
        except Refused as error:
            if error.reason is Reason.REVOKED:  # a member says this of an invite and of a node's key alike
                raise GridError(
                    f"the invite was revoked, or this node was, in grid {joining.grid_name}",
                    next="ask an admin of the grid for a new invite; a node that was revoked needs a new key as well: "
                    "stop it, move node.key and grid.json away, and join",
                    code="bad-invite",
                ) from None
            raise bad_invite(error.reason) from None
        self._adopt(joining)

    async def leave(self) -> dict[str, Any]:
        """Leave the grid for one of this node's own."""
        async with self._changing:
            left = self.charter.grid_name
            self.charter.need_disk()
            self._part()
            self.charter.found_anew()
            self._arrive(())
            self.talk.event(None, "left", id=self.identity.id, left=left, grid=self.charter.grid_name)
            self.log(f"left grid {left}; now alone in grid {self.charter.grid_name}")
            return {"left": left, "grid": self.charter.grid_name}

    def _place(self) -> dict[str, Any]:
        me = self.identity
        return {"grid": self.charter.grid_name, "id": me.id, "name": me.name, "reached": len(self.members)}

    def _adopt(self, joining: Joining) -> None:
        if joining.grid == self.charter.grid:
            self.charter.adopt(joining)
            self.trustees.refresh()
            self._come_back(joining)
            return
        self.charter.need_disk()
        self._part()
        self._note_way(joining.grid, joining.addresses)  # first: in the new grid without it a restart would know nobody
        self.charter.adopt(joining)
        self._joining = None
        self._arrive(joining.addresses)

    def _come_back(self, joining: Joining) -> None:
        """Be in the grid again, if we were out of it: members that let us go are looked for."""
        if not self.trustees.lost or self.charter.lost:
            return
        self.trustees.lost = False
        self._seek(joining.addresses)
        for peer, addresses in self._kept.items():
            if self.links is not None:
                self.links.connect(peer, addresses)
        self.wake()

    def _part(self) -> None:
        """Take leave of the members of the grid we are in."""
        events, self._events = self._events, []
        self._deliver([*events, e.Leaving()])
        for peer in list(self.members):
            self.send(peer, m.L_GOODBYE, ["leaving"])
            self.drop(peer, "leaving")
        self.let_go()

    def _arrive(self, addresses: Iterable[str]) -> None:
        self._arrived_s = time.monotonic()
        self._met_any = False
        self.trustees.arrived()
        self.reachability.arrived()
        if self.kad is not None:
            self.kad.begin_anew(self.namespaces())
        self._seek(addresses)
        self.show()
        self.wake()

    def _seek(self, addresses: Iterable[str]) -> None:
        """Remember where members are said to be."""
        self.seeker.said, self.seeker.refusal = tuple(addresses), ""
        self._note_way(self.charter.grid, self.seeker.said)

    def _note_way(self, grid: bytes, addresses: Sequence[str]) -> None:
        if addresses and read_way(self.config.dir, grid) != tuple(addresses):  # nobody may be met before the next start
            with contextlib.suppress(GridError):  # a full disk: the membership is written all the same
                write_way(self.config.dir, grid, addresses)

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
