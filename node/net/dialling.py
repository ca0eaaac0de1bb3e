"""Dialling the peers that are wanted, and those that were lost, until they are connected or not wanted any more.

A lost peer is dialled at once: if every address refuses, its process is gone (`reset`); if one lets us in, it was the
connection; if nobody says anything within a second, it is down for now, and the dialling goes on with pauses.

The pauses grow, up to half a minute. What ends a cut for one peer ends it for others as a rule: when somebody answers
who did not, or this machine's own network has changed, the pauses of all begin anew (`Dialling.begin_anew`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio
from libp2p.abc import IHost, INetConn
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.node.net.control import Link
from p2pgrid.node.net.dial import NoConnection, dial_any
from p2pgrid.node.net.pacing import BACKOFF_MAX_S, backoff_s

REPORT_S = 1.0
"""A lost peer is reported down after that, whatever the dialling comes to."""
RETRY_S = 0.05
"""A process that is being killed closes its connections before its port: the first redial may still be let in."""
ANEW_PAUSE_S = 10.0
"""So often at most do pauses begin anew: within that time a new one has not grown beyond a few seconds."""
CAUSES_MAX = 8


@dataclass
class Peer:
    """What we know of one peer, from when it is wanted or connected until it is neither."""

    id: str
    wanted: bool = False
    addresses: tuple[Multiaddr, ...] = ()
    """By `connect`."""
    shown: tuple[Multiaddr, ...] = ()
    """By its card: asked once whether it is gone, when nobody gave us an address."""
    links: list[Link] = field(default_factory=list)
    """Those that are ready and stay or wait to be chosen; the first is the one that is used."""
    told: bool = False
    """The listener has it for up."""
    why: str = ""
    failures: int = 0
    """Dials in a row that came to nothing."""
    flaps: int = 0
    """Links in a row that did not last."""
    slow: bool = False
    refusal: object = None
    chased: bool = False
    dialling: trio.CancelScope = field(default_factory=trio.CancelScope)
    prompt: trio.Event = field(default_factory=trio.Event)
    """Set: its pause is over, or to be looked at again."""
    anew: bool = False
    """Its pause begins anew."""


class Owner(Protocol):
    """What dialling needs from `Links`."""

    def link_of(self, connection: INetConn) -> Link | None: ...
    def report_down(self, peer: Peer, *, reset: bool) -> None: ...
    def forget(self, peer: Peer) -> None: ...


class Dialling:
    """Dials as long as it runs; see the top."""

    def __init__(self, host: IHost, owner: Owner, log: Callable[[str], None], rng: random.Random) -> None:
        self._host = host
        self._owner = owner
        self._log = log
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._anew_s = float("-inf")

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def stop(self) -> None:
        """Begin nothing more."""
        self._nursery = None

    def chase(self, peer: Peer) -> None:
        """Have it dialled, unless that is going on."""
        if not peer.chased and not peer.links and self._nursery is not None and _is_peer_id(peer.id):
            peer.chased = True
            self._nursery.start_soon(self._chase_on, peer)

    def begin_anew(self, peers: Iterable[Peer]) -> None:
        """Let the pauses of those who do not answer be short again; not of those who refuse us or took their leave."""
        now = trio.current_time()
        if now - self._anew_s < ANEW_PAUSE_S:
            return
        self._anew_s = now
        for peer in peers:
            if peer.chased and peer.refusal is None and not peer.slow and peer.failures > 1:
                peer.failures = 1
                peer.anew = True
                peer.prompt.set()

    async def _chase_on(self, peer: Peer) -> None:
        """Dial until it is up or not wanted."""
        while not peer.links and self._nursery is not None:
            if peer.told:
                reset = await self._find_out(peer)
                if not peer.links:
                    self._owner.report_down(peer, reset=reset)
            elif peer.wanted:
                await self._pause(peer)
                if not peer.links:
                    await self._attempt(peer, peer.addresses)
            else:
                break
        peer.chased = False
        self._owner.forget(peer)

    async def _find_out(self, peer: Peer) -> bool:
        """Dial a peer that was lost, for a moment; say whether its process is gone: every address refuses."""
        addresses = peer.addresses or peer.shown
        with trio.move_on_after(REPORT_S):
            if peer.flaps > 1:  # it lets us in and goes again: no reason to hurry
                await trio.sleep(backoff_s(peer.flaps, self._rng))
            while addresses and not peer.links:
                error = await self._attempt(peer, addresses)
                if error is None or error.refused is not None:
                    return False
                if _all_refused(error):
                    return True
                await trio.sleep(RETRY_S)
        return False

    async def _pause(self, peer: Peer) -> None:
        peer.anew = True
        while peer.anew:
            peer.anew, peer.prompt = False, trio.Event()
            with trio.move_on_after(self._pause_s(peer)):
                await peer.prompt.wait()

    def _pause_s(self, peer: Peer) -> float:
        if peer.refusal is not None:
            return BACKOFF_MAX_S
        if peer.failures or peer.slow or peer.flaps > 1:
            return backoff_s(max(peer.failures, peer.flaps) - 1, self._rng, slow=peer.slow)
        return 0.0

    async def _attempt(self, peer: Peer, addresses: Sequence[Multiaddr]) -> NoConnection | None:
        """Dial once; return why it came to nothing."""
        error: NoConnection | None = None
        peer_id = ID.from_base58(peer.id)
        with trio.CancelScope() as peer.dialling:
            try:
                await self.introduced(await dial_any(self._host, peer_id, addresses))
            except NoConnection as failed:
                error = failed
        if peer.links:
            return None
        peer.failures += 1
        # The first time it may only not have heard of us yet.
        if error is not None and error.refused is not None and error.refused != peer.refusal and peer.failures > 1:
            peer.refusal = error.refused
            self._log(f"peer {peer.id} does not let us in: {error}")
        return error or NoConnection(peer_id, [TimeoutError("it did not introduce itself")])

    async def introduced(self, connection: INetConn) -> None:
        """Wait until the link on this connection is ready or has ended."""
        if (link := self._owner.link_of(connection)) is not None:
            await link.settled.wait()


def multiaddrs(addresses: Sequence[str]) -> Iterator[Multiaddr]:
    """Return those that are addresses; they come from other members."""
    for address in addresses:
        try:
            yield Multiaddr(address)
        except Exception:  # noqa: BLE001, S112 - whatever the library raises: it is no address
            continue


def _is_peer_id(text: str) -> bool:
    """Say whether anybody can have that id; members are told of by other members, who may say anything."""
    try:
        return str(ID.from_base58(text)) == text
    except ValueError:
        return False


def _all_refused(error: NoConnection) -> bool:
    """Say whether every address answered that nobody listens there."""
    return bool(error.errors) and all(map(_is_refused, error.errors))


def _is_refused(error: BaseException | None) -> bool:
    for _ in range(CAUSES_MAX):
        if error is None or isinstance(error, ConnectionRefusedError):
            return error is not None
        if isinstance(error, BaseExceptionGroup):
            return all(map(_is_refused, error.exceptions))
        error = error.__cause__ or error.__context__
    return False
