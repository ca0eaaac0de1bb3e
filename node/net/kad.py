"""The DHT's shell: a `dht.machine` on our host. It opens streams, reads clocks, keeps the timer, and decides nothing.

    kad = Kad(host, namespaces, rng)                # before the host runs: it sets the stream handler
    async with running(host, addresses), trio.open_nursery() as nursery:
        await nursery.start(kad.serve)
        kad.member_up(peer, addresses)
        result = await kad.do(Get, b"/p2pgrid/…")

Rule: the machine is called from `serve` alone, so that an assertion in it ends the node and not a stream. What a peer
or the library does wrong ends one question, or one stream.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from p2pgrid.core.errors import PeerError
from p2pgrid.dht import events as e
from p2pgrid.dht.machine import Machine, Options
from p2pgrid.dht.records import Namespace, Reason
from p2pgrid.dht.wire import PROTOCOL, Contact, Kind, Message, Splitter, decode, framed
from p2pgrid.node.net.control import NEGOTIATION_S, Cut, through
from p2pgrid.node.net.dial import ADDRESSES_MAX, dial_any
from p2pgrid.node.net.dialling import multiaddrs

ANSWER_S = 10.0
"""For dialling, asking and reading the answer; the machine gives up earlier and still welcomes it until then."""
IDLE_S = 30.0
"""A stream on which a peer asks nothing for so long is closed."""
GONE_S = 0.1
"""A stream is cut a moment before its connection is known to be closed."""
LINGER_S = 20.0
"""A connection that was made for a question is of use for so long, for walks ask the same peers again."""
QUEUE_MAX = 1024
READ_BYTES = 16 << 10
STRANGERS_AT_ONCE = 4
"""Questions of strangers under way; more wait, and members do not wait for them."""


class _Box:
    """What somebody waits for."""

    def __init__(self) -> None:
        self.full = trio.Event()
        self.content: Any = None

    def fill(self, content: Any) -> None:
        self.content = content
        self.full.set()


@dataclass(frozen=True, slots=True)
class _Anew:
    """Another grid, of which nothing is known."""

    namespaces: Mapping[str, Namespace]


class Kad:
    """One node's part of the DHT, on its host."""

    def __init__(
        self,
        host: IHost,
        namespaces: Mapping[str, Namespace],
        rng: random.Random,
        options: Options | None = None,
        protocol: str = PROTOCOL,
        wall: Callable[[], float] = time.time,
        release: Callable[[str], None] = lambda _peer: None,
    ) -> None:
        """Serve the protocol on a host that does not run yet.

        Args:
            host: the node's.
            namespaces: who judges values, by the first part of their keys.
            rng: its dice.
            options: of the machine.
            protocol: another name for it, for conformance tests.
            wall: gives grid time in unix seconds.
            release: told of every peer that was connected for a question alone, when that has been a while.
        """
        self._make: Callable[[Mapping[str, Namespace]], Machine] = lambda judges: Machine(
            host.get_id().to_bytes(), judges, rng, options
        )
        self.machine = self._make(namespaces)
        self.counts: Counter[str] = Counter()
        """Streams that peers cut or spoilt."""
        self._host = host
        self._protocol = TProtocol(protocol)
        self._wall = wall
        self._send, self._receive = trio.open_memory_channel[e.Event](QUEUE_MAX)
        self._told: list[e.Event | _Anew] = []
        self._life = 0
        self._addresses: tuple[bytes, ...] | None = None
        self._release = release
        self._poke = trio.Event()
        self._requests: dict[int, _Box] = {}
        self._commands: dict[int, _Box] = {}
        self._count = 0
        self._timer_s = float("inf")
        self._nursery: trio.Nursery | None = None
        self._strangers = trio.CapacityLimiter(STRANGERS_AT_ONCE)
        host.set_stream_handler(self._protocol, self._serve_stream)

    # ---- what the node asks of it ------------------------------------------------------------------------------------

    def tell(self, event: e.Event) -> None:
        """Hand over what the node knows: members, addresses, the clock. Never waits."""
        self._told.append(event)
        self._poke.set()

    def member_up(self, peer: str, addresses: Iterable[str], *, serves: bool = True) -> None:
        """The member view has this peer; `serves`: it may be asked."""
        known = tuple(each.to_bytes() for each in multiaddrs(list(addresses)[:ADDRESSES_MAX]))
        self.tell(e.MemberUp(Contact(ID.from_base58(peer).to_bytes(), known), serves))

    def member_down(self, peer: str) -> None:
        self.tell(e.MemberDown(ID.from_base58(peer).to_bytes()))

    def listens(self, addresses: Iterable[str]) -> None:
        """Others reach this node there."""
        self._addresses = tuple(each.to_bytes() for each in multiaddrs(list(addresses)))
        self.tell(e.Listens(self._addresses))

    def look_at_clock(self) -> None:
        """Grid time may be another than was thought."""
        self.tell(e.Clock(self._wall() - trio.current_time()))

    def begin_anew(self, namespaces: Mapping[str, Namespace]) -> None:
        """Forget everything, for this is another grid; what is under way ends with nothing."""
        self._life += 1
        self._told = [_Anew(namespaces)]
        for box in self._commands.values():
            box.fill(e.Refused(Reason.EXPIRED))
        for box in self._requests.values():
            box.fill(None)
        self._poke.set()

    def stats(self) -> dict[str, int]:
        """Return how many peers are in the table, what is kept for others, and counts since the grid was entered."""
        machine = self.machine
        return {
            "table": len(machine.table),
            "values": len(machine.values),
            "providers": len(machine.providers),
            "asked": machine.counts["asked"],
            "requests": machine.counts["requests"],
            "refused": machine.refused.total(),
        }

    async def do(self, command: Callable[..., e.Command], *words: Any, **more: Any) -> Any:
        """Carry out one of Find, Put, Get, Provide, FindProviders; return its result."""
        box, ticket = _Box(), self._next()
        self._commands[ticket] = box
        try:
            self.tell(command(ticket, *words, **more))
            await box.full.wait()
        finally:
            del self._commands[ticket]
        return box.content

    def publish(self, key: bytes, payload: bytes) -> None:
        """Keep this payload under that key, and go on doing so."""
        self.tell(e.Put(self._next(), key, payload))

    async def value(self, key: bytes) -> bytes | None:
        """Return what is kept under a key, if anything is."""
        found = await self.do(e.Get, key)
        return found.payload if isinstance(found, e.Value) else None

    async def providers(self, name: bytes, count: int) -> dict[str, list[str]]:
        """Return who says that it has what this names, at most so many, and at which multiaddrs each is."""
        found = await self.do(e.FindProviders, name, count=count)
        if not isinstance(found, e.ProvidersFound):
            return {}
        return {str(ID(each.id)): _readable(each.addresses) for each in found.providers}

    async def find(self, peer: str) -> None:
        """Look for a peer; whoever is found has been asked, and is connected for a while."""
        with contextlib.suppress(ValueError):  # members are told of by members: it may be no PeerId
            await self.do(e.Find, ID.from_base58(peer).to_bytes())

    def provide(self, name: bytes) -> None:
        """Say that this node has what this names, and go on saying so."""
        self.tell(e.Provide(self._next(), name))

    def withdraw(self, name: bytes) -> None:
        """Say it no longer."""
        self.tell(e.Withdraw(name))

    @property
    def life(self) -> int:
        """Another one with each grid; what was said in a former one is forgotten."""
        return self._life

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; the host must be running."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._forward)
            self._begin()
            task_status.started()
            while True:
                with trio.move_on_at(self._timer_s):
                    await self._poke.wait()
                self._poke = trio.Event()
                if self._timer_s <= trio.current_time():
                    self._timer_s = float("inf")
                    self._handle(e.Tick())
                told, self._told = self._told, []
                for event in told:
                    if isinstance(event, _Anew):
                        self.machine = self._make(event.namespaces)
                        self._begin()
                    else:
                        self._handle(event)

    def _begin(self) -> None:
        self._timer_s = float("inf")
        if self._addresses is None:
            here = map(str, self._host.get_transport_addrs())
            self._addresses = tuple(Multiaddr(each).to_bytes() for each in here)
        self._handle(e.Clock(self._wall() - trio.current_time()))
        self._handle(e.Listens(self._addresses))
        self._handle(e.Started())

    async def _forward(self) -> None:
        """Requests come through a channel of limited length, so that who asks too fast waits."""
        async for event in self._receive:
            self.tell(event)
            await trio.lowlevel.checkpoint()

    def _next(self) -> int:
        self._count += 1
        return self._count

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _handle(self, event: e.Event) -> None:
        assert self._nursery is not None, "it serves"
        for effect in self.machine.handle(event, trio.current_time()):
            match effect:
                case e.Ask(token, peer, message):
                    self._nursery.start_soon(self._ask, token, peer, message)
                case e.Answer(token, answer):
                    if token in self._requests:
                        self._requests[token].fill(answer)
                case e.SetTimer(at_s):
                    self._timer_s = at_s
                case e.Done(ticket, result):
                    if ticket in self._commands:
                        self._commands[ticket].fill(result)

    # ---- questions ---------------------------------------------------------------------------------------------------

    async def _ask(self, token: int, peer: Contact, message: Message) -> None:
        answer, life = None, self._life
        with trio.move_on_after(ANSWER_S):
            try:
                answer = await self._exchange(peer, message)
            except (Cut, PeerError):
                self.counts["questions failed"] += 1
        if life == self._life:
            self.tell(e.Failed(token) if answer is None else e.Answered(token, answer))

    async def _exchange(self, peer: Contact, message: Message) -> Message:
        """Ask; once more if the connection went meanwhile, for of two with one peer the links keep one."""
        connection = await through(self._connect(peer))
        try:
            return await self._exchange_on(connection, message)
        except Cut:
            with trio.move_on_after(GONE_S):
                await connection.event_closed.wait()
            if not connection.is_closed:
                raise
        return await self._exchange_on(await through(self._connect(peer)), message)

    async def _exchange_on(self, connection: INetConn, message: Message) -> Message:
        """Ask. Not every libp2p says anything to a provider record that it takes.

        So a PING follows it on the same stream, where things are answered in order: whoever answers that, or hangs up,
        has taken the record; whoever refused it has reset the stream before.
        """
        providing = message.kind is Kind.ADD_PROVIDER
        stream = await through(self._open(connection))
        try:
            await through(stream.write(framed(message) + framed(Message(Kind.PING)) * providing))
            splitter = Splitter()
            while True:
                try:
                    data = await through(stream.read(READ_BYTES))
                except Cut as cut:
                    if providing and isinstance(cut.__cause__, StreamEOF) and splitter.empty:
                        return Message(Kind.ADD_PROVIDER, message.key)
                    raise
                for data_of_one in splitter.feed(data):
                    answer = decode(data_of_one)
                    return Message(Kind.ADD_PROVIDER, message.key) if providing and answer.kind is Kind.PING else answer
        finally:
            await self._leave(stream)

    async def _connect(self, peer: Contact) -> INetConn:
        id_ = ID(peer.id)
        is_new = all(each.is_closed for each in self._host.get_network().get_connections(id_))
        if is_new and self._nursery is not None:
            self._nursery.start_soon(self._release_later, str(id_))
        return await dial_any(self._host, id_, [Multiaddr(each) for each in peer.addresses[:ADDRESSES_MAX]])

    async def _open(self, connection: INetConn) -> INetStream:
        """Open a stream on this connection; the host's own way takes whichever there is."""
        stream = await connection.new_stream()
        try:
            await self._host.multiselect_client.select_one_of(
                [self._protocol], MultiselectCommunicator(stream), NEGOTIATION_S
            )
        except BaseException:  # it does not speak it, or takes too long
            await self._leave(stream)
            raise
        stream.set_protocol(self._protocol)
        return stream

    async def _release_later(self, peer: str) -> None:
        await trio.sleep(LINGER_S)
        self._release(peer)

    async def _leave(self, stream: INetStream) -> None:
        with trio.move_on_after(1, shield=True):
            try:
                await through(stream.close())
            except Cut:
                self.counts["streams cut"] += 1

    # ---- requests ----------------------------------------------------------------------------------------------------

    def answer_strangers(self, host: IHost) -> None:
        """Serve the protocol on a host that strangers come to; it does not run yet."""
        host.set_stream_handler(self._protocol, partial(self._serve_stream, is_member=False))
        # It listens nowhere; without an address many libp2ps take a peer for nobody.
        host._addrs_factory = lambda _candidates: [Multiaddr(each) for each in self._addresses or ()]

    async def _serve_stream(self, stream: INetStream, *, is_member: bool = True) -> None:
        """Answer what a peer asks on one stream, in order. To return is to close it."""
        splitter = Splitter()
        while True:
            data = None
            with trio.move_on_after(IDLE_S):
                data = await stream.read(READ_BYTES)
            if not data:
                return
            try:
                requests = splitter.feed(data)
            except PeerError:
                await self._answer(stream, None, is_member)
                return
            for request in requests:
                try:
                    message = decode(request)
                except PeerError:
                    message = None
                if not await self._answer(stream, message, is_member):
                    return

    async def _answer(self, stream: INetStream, message: Message | None, is_member: bool) -> bool:  # noqa: FBT001
        """Return whether the stream goes on: the specification resets it for whatever is refused."""
        box, token = _Box(), self._next()
        peer = stream.muxed_conn.peer_id
        contact = self._contact(peer) if is_member else Contact(peer.to_bytes())
        self._requests[token] = box
        try:
            async with contextlib.nullcontext() if is_member else self._strangers:
                await self._send.send(e.Requested(token, contact, message, is_member))
                await box.full.wait()
        finally:
            del self._requests[token]
        if box.content is None:
            self.counts["requests refused"] += 1
            await stream.reset()
            return False
        await stream.write(framed(box.content))
        return True

    def _contact(self, peer: ID) -> Contact:
        """Return a peer with the addresses that it named when it connected (libp2p's identify)."""
        store = self._host.get_peerstore()
        known = store.addrs(peer) if peer in store.peer_ids() else []
        plain = dict.fromkeys(str(each).split("/p2p/")[0] for each in known[:ADDRESSES_MAX])  # the id stands beside it
        return Contact(peer.to_bytes(), tuple(Multiaddr(each).to_bytes() for each in plain))


def _readable(addresses: Iterable[bytes]) -> list[str]:
    """Return the multiaddrs among these bytes, which a stranger may have written."""
    found: list[str] = []
    for each in addresses:
        with contextlib.suppress(Exception):  # whatever the library raises
            found.append(str(Multiaddr(each)))
    return found
