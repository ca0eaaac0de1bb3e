"""Who belongs, among neighbours: revocations, chains and promotions as they travel on the control streams (DESIGN §3).

    L_REVOCATIONS  after the hello, and as news       everybody who was missing one passes it on
    L_REVOKED      a digest, once a minute, to one    answered with all revocations if it differs
    L_CHAIN        one more chain for you             an admin's word for a joiner, or a promotion
    L_SHOW         what I show from now on            a connection need not end for it

The shallowest admin that meets a joiner replaces its voucher: every admin waits the longer the longer its own chain is,
and whoever finds the joiner still provisional then signs. If two do, two good chains are kept and one is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.chains import CHAIN_BYTES_MAX, LINKS_MAX
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.wire import frame
from p2pgrid.node import events as e
from p2pgrid.node.charter_revocations import lots
from p2pgrid.node.charter_shown import NEW_KEY

if TYPE_CHECKING:
    from p2pgrid.node.charter import Admitted
    from p2pgrid.node.network import Network

RANK_S = 0.2
"""How much longer an admin waits for each link that its chain has more than the founder's."""
DIGEST_LENGTH = 32


class Trustees:
    """The trust frames of one node.

    Attributes:
        lost: this node was revoked: it looks for nobody and lets nobody in.
    """

    def __init__(self, network: Network) -> None:
        self._net = network
        self._charter = network.charter
        self._shown = self._charter.certificate
        self.lost = self._charter.lost

    def hello(self) -> list[bytes]:
        """Return the frames that tell a new neighbour of all revocations."""
        return [frame(m.L_REVOCATIONS, [lot]) for lot in self._charter.revocations() if lot]

    def arrived(self) -> None:
        """Begin anew in another grid."""
        self._shown = self._charter.certificate
        self.lost = False

    # ---- neighbours -------------------------------------------------------------------------------------------------

    def up(self, peer: str, member: Admitted) -> None:
        """Give a new neighbour what lies here for it."""
        for chain in self._charter.pending_for(member.public):
            self._net.send(peer, m.L_CHAIN, [chain])
        if self._charter.certificate != self._shown:  # a link may have come while the handshake was under way
            self.refresh()
        # The handshake of this very connection may have shown an older one, and what was told since it missed.
        self._net.send(peer, m.L_SHOW, [self._charter.certificate])
        self._consider(peer, member)

    def frame(self, peer: str, kind: int, body: Any) -> None:
        """Take in a frame. Raises PeerError if it is malformed or nonsense."""
        match kind, body:
            case m.L_REVOCATIONS, [list(packed)] if all(type(one) is bytes for one in packed):
                self._heard(peer, packed)
            case m.L_REVOKED, [bytes(digest)] if len(digest) == DIGEST_LENGTH:
                if digest != self._charter.digest():
                    self._tell_all(peer)
            case m.L_CHAIN, [bytes(chain)] if 0 < len(chain) <= CHAIN_BYTES_MAX:
                self._offered(chain)
            case m.L_SHOW, [bytes(chain)] if 0 < len(chain) <= CHAIN_BYTES_MAX:
                before = self._net.members[peer]
                self._net.members[peer] = member = self._charter.shown(before.public, chain)
                if chain != before.chain:
                    self._net.later(e.PeerRoles(peer, member.roles))
            case _:
                raise PeerError(f"a malformed frame of type {kind}")

    def _offered(self, chain: bytes) -> None:
        try:
            self._charter.offered(chain)
        except GridError as error:  # a full disk; it is offered again when that neighbour comes back
            self._net.warn(str(error))
            return
        self.refresh()

    def refresh(self) -> None:
        """Show the best chain we have now, if it is another one than before."""
        chain = self._charter.certificate
        if chain == self._shown:
            return
        self._shown = chain
        self._net.show()
        for peer, member in list(self._net.members.items()):
            self._net.send(peer, m.L_SHOW, [chain])
            self._consider(peer, member)

    # ---- joiners ----------------------------------------------------------------------------------------------------

    def _consider(self, peer: str, member: Admitted) -> None:
        if member.provisional and self._charter.rank() <= LINKS_MAX:
            self._net.soon(self._sign_later, peer)

    async def _sign_later(self, peer: str) -> None:
        await trio.sleep(RANK_S * (self._charter.rank() - 1 + self._net.rng.random() / 4))
        self._sign(peer)

    def sign_all(self) -> None:
        """Sign at once for every joiner that is here: what is said next may undo that by which it came."""
        for peer in list(self._net.members):
            self._sign(peer)

    def _sign(self, peer: str) -> None:
        member = self._net.members.get(peer)
        chain = None if member is None else self._charter.replacement(member)
        if chain is not None:
            self._net.send(peer, m.L_CHAIN, [chain])

    # ---- revocations ------------------------------------------------------------------------------------------------

    def _heard(self, peer: str, packed: list[bytes]) -> None:
        heard = self._charter.heard(packed)
        if heard.fresh:
            self.spread(heard.fresh, heard.expelled, but=peer)
            self.refresh()
            if self._charter.rank() <= LINKS_MAX:
                self._net.soon(self._close_invites)
        if heard.lost and not self.lost:
            self._be_lost()

    async def _close_invites(self) -> None:
        """Close the invites that revoked machines may still have: who revoked one may not know by which it came."""
        await trio.sleep(RANK_S * (self._charter.rank() - 1 + self._net.rng.random()))
        try:
            closing = self._charter.close_invites()
        except GridError as error:
            self._net.warn(f"an invite stays open: {error}")
            return
        if closing:
            self.spread(closing, ())
            self.judge_again()

    def spread(self, fresh: Iterable[bytes], expelled: Iterable[bytes], but: str = "") -> None:
        """Pass revocations on, then end the connections of those who are out: they hear it as well."""
        for lot in lots(fresh):
            for peer in list(self._net.members):
                if peer != but:
                    self._net.send(peer, m.L_REVOCATIONS, [lot])
        for public in expelled:
            self._net.expel(public)

    def _be_lost(self) -> None:
        self.lost = True
        self._net.warn(f"this node was revoked in grid {self._charter.grid_name}; next: p2pgrid leave; {NEW_KEY}")
        self._net.let_go()

    def _tell_all(self, peer: str) -> None:
        for lot in self._charter.revocations():
            self._net.send(peer, m.L_REVOCATIONS, [lot])

    # ---- time -------------------------------------------------------------------------------------------------------

    def minute(self) -> None:
        """Compare revocations with one neighbour, and look whether dates have passed."""
        self.judge_again()
        if self._net.members:
            peer = self._net.rng.choice(list(self._net.members))
            self._net.send(peer, m.L_REVOKED, [self._charter.digest()])

    def judge_again(self) -> None:
        """End the connections of those whose chains do not hold any more; show what holds of ours."""
        for member in list(self._net.members.values()):
            if not self._charter.holds(member.public):
                self._net.expel(member.public)
        self.refresh()
        for peer, member in list(self._net.members.items()):
            self._consider(peer, member)
