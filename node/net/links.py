"""Who is connected: one link with each peer, kept, found again, replaced, and the listener told.

    links = Links(me, host, membership, listener, hello, log, rng)         # before the host runs
    async with running(host, addresses), trio.open_nursery() as nursery:
        await nursery.start(links.serve)
        links.connect(peer, addresses)
        links.send(peer, kind, body); links.flush()

When a link breaks, its peer is dialled at once, to find out what that means (`dialling`).

Two nodes that dial each other have two connections; the one that the smaller PeerId dialled stays. Only the smaller
PeerId chooses: if both chose, each might give up the one that the other keeps. The connection that is given up ends
when both sides have said so on it (GOODBYE "replaced") and all that was sent on it has arrived: nothing is lost, and
the listener sees nothing. It sees a peer go and come that has restarted (another *life*), or whose old connection
answers nothing while the new one does: there, frames may have been lost.

Rule: decisions are synchronous (`ready`, `over`), tasks only wait. The listener is called from tasks of `serve`, never
from within `send`, `connect`, `drop` or `disconnect`; what it raises, other than PeerError, ends `serve`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio
from libp2p.abc import IHost, INetConn, INetStream, INetwork, INotifee
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.core.chains import Refused
from p2pgrid.core.messages import P_PRINTED
from p2pgrid.core.wire import VERSION, frame_pieces
from p2pgrid.node.net.control import BULK, CONTROL, PARTING_S, Ending, Link, LinkOptions
from p2pgrid.node.net.dial import NoConnection, answers_at, dial_any
from p2pgrid.node.net.dialling import Dialling, Peer, multiaddrs
from p2pgrid.node.net.membership import Membership, close_quietly
from p2pgrid.node.net.unknown import Unknown

__all__ = ["LinkOptions", "Links", "Listener", "NoConnection"]

STABLE_S = 5.0
"""A link that lived so long was a good one: its loss is no failure of the peer's address."""
ANSWER_S = 2.0
"""An old connection that is silent for so long after a new one has answered is dead. Where all is slow, both are."""
LOG_INTERVAL_S = 60.0
PRINTS_BYTES_MAX = 64 * 1024
"""What waits for a peer, from which on lines of tasks are thrown away."""
LOGGED_MAX = 1024


class Listener(Protocol):
    """Who is told; called synchronously, never blocks."""

    def up(self, peer: str, hello: dict[str, Any], member: Any) -> None: ...
    def down(self, peer: str, *, reset: bool, why: str) -> None: ...
    def frame(self, peer: str, kind: int, body: Any) -> None: ...


class _Notice(INotifee):
    """Hears of every connection, whoever dialled it."""

    def __init__(self, take: Callable[[INetConn], object]) -> None:
        self._take = take

    async def connected(self, _network: INetwork, conn: INetConn) -> None:
        self._take(conn)

    async def disconnected(self, _network: INetwork, _conn: INetConn) -> None: ...
    async def opened_stream(self, _network: INetwork, _stream: INetStream) -> None: ...
    async def closed_stream(self, _network: INetwork, _stream: INetStream) -> None: ...
    async def listen(self, _network: INetwork, _address: Multiaddr) -> None: ...
    async def listen_close(self, _network: INetwork, _address: Multiaddr) -> None: ...


class Links:
    """All links of a node; see the top.

    `hello` returns the encoded frames that every control stream begins with.
    """

    def __init__(
        self,
        me: str,
        host: IHost,
        membership: Membership,
        listener: Listener,
        hello: Callable[[], list[bytes]],
        log: Callable[[str], None],
        rng: random.Random,
        options: LinkOptions | None = None,
    ) -> None:
        self._me = me
        self._host = host
        self._membership = membership
        self._listener = listener
        self.hello = hello
        self._log = log
        self._dialling = Dialling(host, self, log, rng)
        self._options = options or LinkOptions()
        self._peers: dict[str, Peer] = {}
        self._links: dict[Any, Link] = {}  # by multiplexed connection, until it is closed
        self._unflushed: dict[str, None] = {}
        self._nursery: trio.Nursery | None = None
        self._serving = trio.Event()
        self._closing = False
        self._logged: dict[str, float] = {}
        self._sent = self._received = self._dropped = self._refused = 0
        self._unknown: dict[str, Unknown] = {}
        self._unknown_here = self._unknown_there = 0
        host.set_stream_handler(CONTROL, self._on_stream)
        host.set_stream_handler(BULK, self._on_stream)
        network = host.get_network()
        network.register_notifee(_Notice(self.link_of))
        # The library closes the older of two connections by its own rules; which one stays is decided here.
        network._trim_connections = lambda _peer_id: None

    # ---- what the node asks for --------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._dialling.start(nursery)
            try:
                for connection in self._host.get_network().get_connections():
                    self.link_of(connection)
                for peer in self._peers.values():
                    self._dialling.chase(peer)
                self._serving.set()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._dialling.stop()

    def connect(self, peer: str, addresses: Sequence[str]) -> None:
        """Keep a connection with this peer until `disconnect`; new addresses are tried at once."""
        if peer == self._me:
            return
        known = self._peer(peer)
        read = tuple(multiaddrs(addresses))
        known.wanted = True
        if read != known.addresses:
            known.addresses, known.failures, known.slow = read, 0, False
            known.dialling.cancel()
            known.prompt.set()
        self._dialling.chase(known)

    def disconnect(self, peer: str) -> None:
        """End the connection with this peer, and do not dial it any more."""
        if (known := self._peers.get(peer)) is None:
            return
        known.wanted, known.addresses = False, ()
        known.dialling.cancel()
        known.prompt.set()
        self.drop(peer, "not wanted any more")
        self.forget(known)

    def begin_anew(self) -> None:
        """The network may have healed: dial those who did not answer soon, whatever pause they have come to."""
        self._dialling.begin_anew(self._peers.values())

    async def dial(self, address: str, timeout_s: float) -> str:
        """Connect with somebody of whom only a multiaddr with /p2p/ID is known; return the PeerId once it is up.

        Raises:
            NoConnection: also for an address that is none, or our own.
        """
        try:
            where = Multiaddr(address)
            peer_id = ID.from_base58(where.value_for_protocol("p2p"))
        except Exception as error:
            raise NoConnection(ID(b""), [ValueError(f"{address!r} is no address with a peer id")]) from error
        peer = str(peer_id)
        if peer == self._me:
            raise NoConnection(peer_id, [ValueError("that is this node itself")])
        with trio.move_on_after(timeout_s):
            if not self.is_up(peer):
                await self._dialling.introduced(await dial_any(self._host, peer_id, [where], timeout_s))
            if self.is_up(peer):
                return peer
        raise NoConnection(peer_id, [TimeoutError(f"no introduction from {address}")])

    def send(self, peer: str, kind: int, body: Any) -> None:
        """Queue a frame until `flush`; for somebody who is not connected it is dropped."""
        if (link := self._used(peer)) is None:
            self._dropped += 1
            return
        if kind == P_PRINTED and link.queued_bytes > PRINTS_BYTES_MAX:  # nothing of it is owed, and results go first
            self._dropped += 1
            return
        link.send(*frame_pieces(kind, body))
        self._sent += 1
        self._unflushed[peer] = None

    def flush(self) -> None:
        """Let everything that is queued leave, in one write per peer."""
        for peer in self._unflushed:
            if (link := self._used(peer)) is not None:
                link.flush()
        self._unflushed.clear()

    def unknown(self, peer: str, kind: int) -> None:
        """Tell a peer that its last frame is of a kind we do not know; for the listener, while it is told of a frame.

        Raises:
            PeerError: it is a flood; let it pass.
        """
        if (link := self._used(peer)) is not None:
            self.not_known(link, VERSION, kind)

    def drop(self, peer: str, why: str, *, broke: bool = False) -> None:
        """End every connection with this peer; `broke`: for what it said, which is logged and counted as refused."""
        for link in self._links_with(peer):
            link.end(Ending.BROKE if broke else Ending.DROPPED, why, goodbye="dropped")

    async def close(self, why: str) -> None:
        """Say goodbye to all; what is queued still leaves, within half a second."""
        self._closing = True
        self._dialling.stop()
        links = list(self._links.values())
        for link in links:
            link.end(Ending.DROPPED, why, goodbye=why)
        with trio.move_on_after(2 * PARTING_S):
            for link in links:
                await link.connection.event_closed.wait()

    def is_up(self, peer: str) -> bool:
        return self._used(peer) is not None

    def peers(self) -> list[str]:
        """Return who is up."""
        return [peer for peer in self._peers if self.is_up(peer)]

    async def room(self, peer: str, most: int) -> bool:
        """Wait until at most so many bytes of bulk have not left for a peer; False if it is not up."""
        while (link := self._used(peer)) is not None and link.bulk.queued_bytes > most:
            await link.bulk.left()
        return link is not None

    def address_of(self, peer: str) -> str:
        """Return where a peer's connection comes from or leads to, as a multiaddr; empty if it is not up."""
        link = self._used(peer)
        return "" if link is None else link.address

    async def answers_at(self, peer: str, address: str, timeout_s: float) -> bool:
        """Say whether this peer answers at an address; no connection comes of it."""
        try:
            id_, where = ID.from_base58(peer), Multiaddr(address)
        except Exception:  # noqa: BLE001 - whatever the library raises: nobody is there
            return False
        return await answers_at(self._host, id_, where, timeout_s)

    def stats(self) -> dict[str, Any]:
        """Return counts since the start, and what is known of each link."""
        up = {peer: link for peer in self._peers if (link := self._used(peer))}
        return {
            "sent": self._sent,
            "received": self._received,
            "dropped": self._dropped,
            "refused": self._refused,
            "unknown": self._unknown_here,
            "unknown_to_peers": self._unknown_there,
            "queued_bytes": sum(link.queued_bytes for link in self._links.values()),
            "peers": {
                peer: {
                    "rtt_s": link.rtt_s,
                    "address": link.address,
                    "since_s": trio.current_time() - link.since,
                    "queued_bytes": link.queued_bytes,
                    "writes": link.writes,
                }
                for peer, link in up.items()
            },
        }

    # ---- what links tell ---------------------------------------------------------------------------------------------

    def ready(self, link: Link) -> None:
        """Both have introduced themselves: choose between this link and the one there is, if any."""
        try:
            member = self._membership.member_of(link.connection)
        except Refused:
            link.end(Ending.LOST, "no longer a member")
            return
        peer = self._peer(link.peer)
        link.member = member
        old = peer.links[0] if peer.links else None
        if old is None:
            peer.links.append(link)
            self._tell_up(peer)
        elif old.life == link.life and old.parted.is_set():
            self._prefer(peer, link)
        else:
            peer.links.append(link)
            if link.parted.is_set():
                self._leave(peer, link)
            elif self._nursery is not None:
                self._nursery.start_soon(self._contest, peer, old, link)
        link.ping()

    def parting(self, link: Link) -> None:
        """The peer uses another connection from now on; so do we, once we have it."""
        peer = self._peers.get(link.peer)
        if peer is None or not link.is_ready:
            return
        others = [each for each in peer.links if each is not link and not each.parted.is_set()]
        if others:
            self._prefer(peer, others[0])
        elif link not in peer.links:
            link.retire()

    def over(self, link: Link) -> None:
        """A link has ended. Called more than once for some."""
        if link.is_closed:
            self._links.pop(link.connection.muxed_conn, None)
        if link.ending is Ending.BROKE and not link.is_accounted:
            self._refused += 1
            self._log_once(link.peer, f"peer {link.peer} is dropped: {link.why}")
        link.is_accounted = True
        peer = self._peers.get(link.peer)
        if peer is None or link not in peer.links:
            return
        was_used = peer.links[0] is link
        peer.links.remove(link)
        if was_used and not self._closing:
            self._lost(peer, link)
        self.forget(peer)

    def deliver(self, link: Link, kind: int, body: Any) -> None:
        self._received += 1
        self._listener.frame(link.peer, kind, body)

    def not_known(self, link: Link, version: int, kind: int) -> None:
        """The peer has sent what we do not know: say so once, and go on."""
        self._unknown_here += 1
        with_it = self._unknown_with(link)
        if not with_it.is_logged:
            with_it.is_logged = True
            self._log(f"peer {link.peer} sends frames of version {version}, type {kind}: unknown here, ignored")
        if with_it.heard(version, kind, trio.current_time()):
            link.refuse(version, kind)

    def not_known_there(self, link: Link, version: int, kind: int) -> None:
        """The peer does not know what we have sent; it is an older version, and goes without."""
        self._unknown_there += 1
        with_it = self._unknown_with(link)
        if not with_it.is_refusal_logged:
            with_it.is_refusal_logged = True
            self._log(f"peer {link.peer} does not know frames of version {version}, type {kind}")

    def _unknown_with(self, link: Link) -> Unknown:
        known = self._unknown.pop(link.peer, None) or Unknown(link.life)
        known.born(link.life)
        self._unknown[link.peer] = known
        if len(self._unknown) > LOGGED_MAX:
            del self._unknown[next(iter(self._unknown))]
        return known

    # ---- two links with one peer -------------------------------------------------------------------------------------

    async def _contest(self, peer: Peer, old: Link, new: Link) -> None:
        """Choose between the link that is used and another one, unless something else decides it meanwhile."""
        answered = old.ping()
        await new.answers()  # else what a process has left behind could replace its successor
        if old.life == new.life:
            with trio.move_on_after(ANSWER_S):
                await answered.wait()
        if old not in peer.links or new not in peer.links or new.ending is not None:
            return
        if old.life != new.life:
            self._succeed(peer, new, "it has restarted")
        elif not answered.is_set():
            self._succeed(peer, new, "it did not answer")
        elif self._me < peer.id:
            if new.dialler < old.dialler:
                self._prefer(peer, new)
            else:
                self._leave(peer, new)

    def _prefer(self, peer: Peer, link: Link) -> None:
        """Use this link from now on; the listener need not know."""
        if link.ending is not None:
            return
        others = [each for each in peer.links if each is not link]
        peer.links = [link]
        for each in others:
            each.flush()
            each.retire()

    def _leave(self, peer: Peer, link: Link) -> None:
        """Do not use this link; the one that is used stays."""
        if link in peer.links and len(peer.links) > 1 and peer.links[0] is not link:
            peer.links.remove(link)
            link.retire()

    def _succeed(self, peer: Peer, link: Link, why: str) -> None:
        """Let this link take the place of all others, and tell the listener: what was on its way may be lost."""
        others = [each for each in peer.links if each is not link]
        peer.links = [link]
        peer.why = why
        for each in others:
            each.end(Ending.REPLACED, why, goodbye="replaced")
        self._tell_up(peer)

    # ---- up and down -------------------------------------------------------------------------------------------------

    def _tell_up(self, peer: Peer) -> None:
        self.report_down(peer, reset=False)
        link = peer.links[0]
        peer.told = True
        was_away = peer.failures > 1
        peer.slow, peer.failures, peer.refusal = False, 0, None
        peer.shown = tuple(multiaddrs(link.hello["card"].addresses))
        peer.prompt.set()
        if was_away:
            self.begin_anew()
        self._listener.up(peer.id, link.hello, link.member)

    def report_down(self, peer: Peer, *, reset: bool) -> None:
        if peer.told:
            peer.told = False
            self._listener.down(peer.id, reset=reset, why=peer.why)

    def _lost(self, peer: Peer, link: Link) -> None:
        """The link that was used is gone: report it, or first find out what that means."""
        peer.why = link.why
        peer.flaps = 0 if trio.current_time() - link.since >= STABLE_S else peer.flaps + 1
        if peer.links:
            self._tell_up(peer)
            return
        for other in self._links_with(peer.id):  # one that was given up for the one that is lost now
            if other.is_retiring:
                other.end(Ending.REPLACED, "replaced", goodbye="replaced")
        if link.ending is not Ending.LOST:
            peer.slow = True
            self.report_down(peer, reset=False)
        elif self._is_expelled(link):
            peer.why, peer.slow = "no longer a member", True
            self.report_down(peer, reset=False)
        self._dialling.chase(peer)

    def _is_expelled(self, link: Link) -> bool:
        try:
            self._membership.member_of(link.connection)
        except Refused:
            return True
        return False

    # ---- connections -------------------------------------------------------------------------------------------------

    def link_of(self, connection: INetConn) -> Link | None:
        """Return the link on a connection; a new one starts."""
        key = connection.muxed_conn
        if (link := self._links.get(key)) is None and self._nursery is not None:
            if connection.is_closed:
                return None
            link = self._links[key] = Link(self._host, connection, self, self._options)
            if self._closing:
                link.end(Ending.DROPPED, "stopping", goodbye="stopping")
            self._nursery.start_soon(link.converse)
        return link

    async def _on_stream(self, stream: INetStream) -> None:
        """Take a peer's stream in; it is read by a task of ours, so that our own bugs are not taken for the peer's."""
        with trio.move_on_after(self._options.introduction_s):
            await self._serving.wait()
        if (link := self.link_of(stream.swarm_conn)) is None:
            await close_quietly(stream.muxed_conn.secured_conn)
            return
        link.accept(stream.get_protocol(), stream)
        await link.ended.wait()

    # ---- small things ------------------------------------------------------------------------------------------------

    def _peer(self, peer: str) -> Peer:
        return self._peers.setdefault(peer, Peer(peer))

    def _used(self, peer: str) -> Link | None:
        known = self._peers.get(peer)
        return known.links[0] if known is not None and known.links and known.links[0].ending is None else None

    def forget(self, peer: Peer) -> None:
        if not (peer.wanted or peer.links or peer.told or peer.chased):
            self._peers.pop(peer.id, None)

    def _links_with(self, peer: str) -> list[Link]:
        return [link for link in self._links.values() if link.peer == peer]

    def _log_once(self, peer: str, text: str) -> None:
        now = trio.current_time()
        if now - self._logged.get(peer, float("-inf")) < LOG_INTERVAL_S:
            return
        self._logged.pop(peer, None)
        self._logged[peer] = now
        if len(self._logged) > LOGGED_MAX:
            del self._logged[next(iter(self._logged))]
        self._log(text)
