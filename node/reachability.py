"""Whether other machines reach this node: a peer is asked to dial back (DESIGN §5).

    L_DIAL_ME [nonce, [address, …]]              here I listen: try, and say which of them lead to me
    L_DIALLED [nonce, [address, …] or None, host]     these do; None: I did not try. From here you are `host`

The peer tries what the asker's card says, and the port at the address that it sees the asker come from: nobody can make
it dial a third party that it would not dial anyhow. It makes a connection of its own for each, as far as the handshake
proves who answers, and closes it. An address that others see and we did not know of (a router's, whose port is
forwarded) is advertised from then on, but only if it was shown to lead here.

Peers on the same machine cannot tell: they are behind the same firewall. A node that cannot be reached works all the
same; it keeps its own connections, and says so, since two such nodes cannot meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.node import events as e
from p2pgrid.node.addresses import interfaces, is_address, is_local, multiaddr, place

if TYPE_CHECKING:
    from p2pgrid.node.network import Network

TRIED_MAX = 8
"""Addresses in a question, and dialled for it."""
PEERS_MAX = 3
"""So many have to fail before this node thinks that nobody reaches it, if there are as many."""
SETTLE_S = 0.5
"""After somebody has come, before he is asked: others come with him."""
ANSWER_S = 15.0
TRY_S = 5.0
"""One address: TCP and handshake."""
AGAIN_S = 60.0
"""Between two rounds of asking, whatever happens."""
RENEW_S = 1800.0
"""A router or a firewall is changed without a word."""
AT_ONCE_MAX = 4
"""Peers for whom this node dials at the same time."""
PATIENCE_S = 5.0
"""The same peer is not served again before that."""
SERVED_MAX = 256
NONCE_BYTES = 8


class Reachability:
    """What is known of it, and what is done for others.

    Attributes:
        yes: whether other machines reach this node; None while nobody could tell.
        seen_as: addresses at which others see this node and which lead here.
    """

    def __init__(self, network: Network) -> None:
        self._net = network
        self.yes: bool | None = None
        self.seen_as: tuple[str, ...] = ()
        self._due = trio.Event()
        self._asked_s = float("-inf")
        self._nonce = b""
        self._answer: tuple[list[str] | None, str] | None = None
        self._answered = trio.Event()
        self._serving: set[str] = set()
        self._served: dict[str, float] = {}

    @property
    def text(self) -> str:
        """What a person is told."""
        if self._net.addresses and is_local(self._net.addresses):
            return "this machine only"
        if self.yes is None:
            return "not yet known"
        return "yes" if self.yes else f"outbound only (firewall? open tcp {self._port()})"

    def _port(self) -> int:
        return place(self._net.listening.addresses[0])[1]

    # ---- for this node ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask when there is a reason to, until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            await trio.sleep(max(SETTLE_S, self._asked_s + AGAIN_S - trio.current_time()))
            if self._net.addresses and not is_local(self._net.addresses):
                await self._ask_around()

    def up(self) -> None:
        """Somebody has come, who may know better."""
        if not self.yes:
            self._due.set()

    def moved(self) -> None:
        """There are other addresses now."""
        self.seen_as = ()
        self._due.set()

    def arrived(self) -> None:
        """It is in another grid."""
        self.yes, self.seen_as, self._asked_s = None, (), float("-inf")

    def minute(self) -> None:
        if trio.current_time() >= self._asked_s + RENEW_S:
            self._due.set()

    async def _ask_around(self) -> None:
        net = self._net
        here = {host for _, host in interfaces()}
        peers = [peer for peer in net.members if (seen := net.host_of(peer)) and seen not in here and not _local(seen)]
        net.rng.shuffle(peers)
        failed = 0
        for peer in peers[:PEERS_MAX]:
            self._asked_s = trio.current_time()
            answer = await self._ask(peer)
            if answer is None:
                continue
            reached, host = answer
            if reached:
                self._found(yes=True)
                self._seen(reached, host, here)
                return
            failed += reached is not None
        if failed:
            self._found(yes=False)
            self._seen_only(())
        elif peers:
            self._due.set()

    async def _ask(self, peer: str) -> tuple[list[str] | None, str] | None:
        self._nonce, self._answer, self._answered = self._net.rng.randbytes(NONCE_BYTES), None, trio.Event()
        self._net.send(peer, m.L_DIAL_ME, [self._nonce, list(self._net.addresses[:TRIED_MAX])])
        with trio.move_on_after(ANSWER_S):
            await self._answered.wait()
        return self._answer

    def _found(self, *, yes: bool) -> None:
        if yes != self.yes:
            self.yes = yes
            self._net.log(f"reachable: {self.text}")
            self._net.later(e.Reachable(yes))

    def _seen(self, reached: list[str], host: str, here: set[str]) -> None:
        """Advertise what others see, if it leads here and was not known; not where `--advertise` says what to say."""
        if self._net.config.advertise or host in here:
            return
        possible = {multiaddr(host, place(address)[1]) for address in self._net.addresses}
        self._seen_only(tuple(address for address in reached if address in possible))

    def _seen_only(self, addresses: tuple[str, ...]) -> None:
        if addresses != self.seen_as:
            self.seen_as = addresses
            self._net.relocate()

    # ---- for others -------------------------------------------------------------------------------------------------

    def frame(self, peer: str, kind: int, body: Any) -> None:
        """Take in a frame. Raises PeerError if it is malformed."""
        match kind, body:
            case m.L_DIAL_ME, [bytes(nonce), list(said), *_] if len(nonce) == NONCE_BYTES and _are_addresses(said):
                self._serve(peer, nonce, said)
            case m.L_DIALLED, [bytes(nonce), None | list() as reached, str(host), *_] if _is_ip(host):
                if reached is not None and not _are_addresses(reached):
                    raise PeerError("malformed addresses")
                if nonce == self._nonce and self._answer is None:
                    self._answer = reached, host
                    self._answered.set()
            case _:
                raise PeerError(f"a malformed frame of type {kind}")

    def _serve(self, peer: str, nonce: bytes, said: Sequence[str]) -> None:
        now, host = trio.current_time(), self._net.host_of(peer)
        if not host:
            return
        busy = peer in self._serving or len(self._serving) >= AT_ONCE_MAX
        if busy or now < self._served.get(peer, float("-inf")) + PATIENCE_S:
            self._net.send(peer, m.L_DIALLED, [nonce, None, host])
            return
        self._serving.add(peer)
        self._served.pop(peer, None)
        self._served[peer] = now
        if len(self._served) > SERVED_MAX:
            del self._served[next(iter(self._served))]
        self._net.soon(self._dial_back, peer, nonce, allowed(said, host, self._net.known_at(peer)), host)

    async def _dial_back(self, peer: str, nonce: bytes, addresses: Sequence[str], host: str) -> None:
        reached: list[str] = []

        async def attempt(address: str) -> None:
            if await self._net.answers_at(peer, address, TRY_S):
                reached.append(address)

        try:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(attempt, address)
        finally:
            self._serving.discard(peer)
        self._net.send(peer, m.L_DIALLED, [nonce, reached, host])


def allowed(said: Iterable[str], host: str, known: Iterable[str]) -> list[str]:
    """Return which addresses are dialled for a peer: those that it comes from, or that its card says.

    Args:
        said: where it says that it listens.
        host: the IP address that it is seen to come from.
        known: addresses on its card.
    """
    said, known = [address for address in said if is_address(address)], set(known)
    seen = [multiaddr(host, port) for port in dict.fromkeys(place(address)[1] for address in said)]
    there = [address for address in said if address in known and (_local(host) or not _local(place(address)[0]))]
    return list(dict.fromkeys([*seen, *there]))[:TRIED_MAX]


def _are_addresses(found: list[Any]) -> bool:
    return len(found) <= TRIED_MAX and all(isinstance(text, str) and is_address(text) for text in found)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _local(host: str) -> bool:
    return is_local([multiaddr(host, 1)])
