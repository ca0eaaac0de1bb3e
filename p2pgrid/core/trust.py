"""Who belongs to a grid (DESIGN §3): the judge who reads a chain, and signs for an admin.

Rule 1: no clock and no dice: `now` is grid time in unix seconds, keys come in as objects.
Rule 2: whatever a stranger sends ends in `Refused` and in no other exception.
Rule 3: private keys are used to sign and never kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    KEY_LENGTH,
    LINK_WORD,
    LINKS_MAX,
    Link,
    Reason,
    Refused,
    below,
    is_provisional,
    key_id,
    public_of,
    read_chain,
    refuse,
    sign_link,
    statement_id,
)

CHAINS_KEPT_MAX = 32
CACHE_LINKS_MAX = 4096
JOIN_FOR_S = 7 * 86_400


class Revoked(Protocol):
    """What the judge asks of revocations; `core.revocation.Revocations` answers."""

    def allows(self, key: bytes, statement: bytes | None) -> bool:
        """Whether the key with this id is not revoked, or the statement is listed by a revocation of it."""


class _NobodyRevoked:
    def allows(self, key: bytes, statement: bytes | None) -> bool:
        return True


NOBODY_REVOKED: Revoked = _NobodyRevoked()


def judging_time(own_clock_s: float, offsets_s: Sequence[float], newest_at: int, *, dialler: bool) -> float:
    """Return the time by which dates in chains are judged (DESIGN §6). Raises nothing.

    Args:
        own_clock_s: unix seconds by this machine.
        offsets_s: clocks of the peers there are, minus ours.
        newest_at: `newest_signed_at` of our own chain.
        dialler: whether we called: a dialler without peers does not believe its clock, or a machine that woke up in
            2040 would refuse everybody; a listener believes it if it is later, or an expired invite would open one
            that woke up in 1970.
    """
    if offsets_s:
        return own_clock_s + statistics.median(offsets_s)
    return float(newest_at) if dialler else max(own_clock_s, float(newest_at))


class Judge:
    """Decides who belongs to one grid, and signs for those who may (DESIGN §3).

    Good signatures are remembered (at most CACHE_LINKS_MAX); dates and revocations are looked at each time. Only what
    hangs from the grid's key gets into the cache, so no stranger can fill it.
    """

    __slots__ = ("_good", "grid", "verified")

    def __init__(self, grid: bytes) -> None:
        """Judge by the grid's public key. Raises ValueError if it is not 32 bytes."""
        if len(grid) != KEY_LENGTH:
            msg = f"a grid's key has {KEY_LENGTH} bytes, not {len(grid)}"
            raise ValueError(msg)
        self.grid = grid
        self.verified = 0
        self._good: dict[bytes, None] = {}

    def check(
        self, chain: bytes, peer: bytes, now: float, revoked: Revoked = NOBODY_REVOKED, *, provisional: bool = True
    ) -> int:
        """Return the roles that `chain` gives to `peer` now (DESIGN §3).

        Cheap checks come first, then signatures from the root: a stranger costs one verification.

        Args:
            chain: what the peer showed.
            peer: the public key behind the PeerId that the connection has proved.
            now: grid time; 0 asks whether it would hold if no date counted.
            revoked: the revocations known here.
            provisional: whether a joiner that no admin has signed yet will do; not for signing and revoking.

        Raises:
            Refused: with the reason; no other exception whatever the bytes are.
        """
        links = read_chain(chain)
        if links[-1].kind == "v":
            refuse(Reason.KINDS)
        if is_provisional(links) and not provisional:
            refuse(Reason.PROVISIONAL)
        return self._judge(links, peer, now, revoked)

    def check_voucher(self, chain: bytes, voucher: bytes, now: float, revoked: Revoked = NOBODY_REVOKED) -> int:
        """Return the roles that a voucher may still give: the chain inside an invite (DESIGN §3).

        Raises:
            Refused: EXPIRED, ENDED, REVOKED, FROM_REVOKED, FOREIGN, ANOTHERS (not its key), or as `check`.
        """
        links = read_chain(chain)
        if links[-1].kind != "v":
            refuse(Reason.KINDS)
        return self._judge(links, voucher, now, revoked)

    def _judge(self, links: tuple[Link, ...], peer: bytes, now: float, revoked: Revoked) -> int:
        if links[-1].subject != peer:
            refuse(Reason.ANOTHERS)
        roles = _hold(links, self.grid, peer, now, revoked)
        self.verify_chain(links)
        return roles & ALL_ROLES

    def verify_chain(self, links: Iterable[Link]) -> None:
        """Verify signatures from the root, and nothing else (DESIGN §3).

        Raises:
            Refused: FOREIGN at the first link, SIGNATURE at a later one.
        """
        signer, reason = self.grid, Reason.FOREIGN
        for link in links:
            self.verify(signer, link.signature, LINK_WORD, link.body, reason)
            signer, reason = link.subject, Reason.SIGNATURE

    def verify(self, signer: bytes, signature: bytes, word: bytes, body: bytes, reason: Reason) -> None:
        """Verify one statement of this grid, or find that it was good before (DESIGN §3).

        Raises:
            Refused: the given reason.
        """
        name = sha256(signer + signature + word + body).digest()
        if name in self._good:
            del self._good[name]  # and in again at the end: the least recently seen goes first
        else:
            self.verified += 1
            try:
                Ed25519PublicKey.from_public_bytes(signer).verify(signature, word + self.grid + body)
            except (InvalidSignature, ValueError):
                refuse(reason)
            if len(self._good) >= CACHE_LINKS_MAX:
                del self._good[next(iter(self._good))]
        self._good[name] = None

    # -- what an admin signs

    def _need_admin(self, key: Ed25519PrivateKey, chain: bytes, now: float, revoked: Revoked) -> None:
        if not self.check(chain, public_of(key), now, revoked, provisional=False) & ADMIN:
            refuse(Reason.NOT_ADMIN)

    def promote(
        self,
        key: Ed25519PrivateKey,
        chain: bytes,
        node: bytes,
        roles: int,
        now: float,
        revoked: Revoked = NOBODY_REVOKED,
        *,
        until: int = 0,
    ) -> bytes:
        """Return one more chain for `node`: an admin's own word, whoever let it in before (DESIGN §3).

        Raises:
            Refused: the signer's chain does not hold, is no admin's, or is 8 links long (LINKS).
        """
        self._need_admin(key, chain, now, revoked)
        return below(chain, sign_link(key, self.grid, "n", node, roles, int(now), until, b""))

    def invite(
        self,
        key: Ed25519PrivateKey,
        chain: bytes,
        voucher: bytes,
        roles: int,
        now: float,
        revoked: Revoked = NOBODY_REVOKED,
        *,
        join_until: int = 0,
        until: int = 0,
    ) -> bytes:
        """Return the chain of a fresh voucher key (DESIGN §3).

        Args:
            key: the admin's.
            chain: the admin's; it must not be provisional.
            voucher: public half of the fresh key.
            roles: of whoever joins by it.
            now: grid time.
            revoked: the revocations known here.
            join_until: in 7 days unless given.
            until: when the memberships end; 0 is never.

        Raises:
            Refused: the signer's chain does not hold, is no admin's, or is too long to hang a joiner below (LINKS).
        """
        self._need_admin(key, chain, now, revoked)
        if len(read_chain(chain)) > LINKS_MAX - 2:
            refuse(Reason.LINKS)
        join_until = join_until or int(now) + JOIN_FOR_S
        return below(chain, sign_link(key, self.grid, "v", voucher, roles, int(now), until, join_until))

    def replace(
        self, key: Ed25519PrivateKey, chain: bytes, joiner_chain: bytes, now: float, revoked: Revoked = NOBODY_REVOKED
    ) -> bytes:
        """Return the node link of an admin for a joiner, in place of its voucher; it remembers who invited it.

        The shallowest admin alive does this as soon as it meets the joiner (DESIGN §3).

        Raises:
            Refused: either chain does not hold now, the signer's is no admin's, or the other is no joiner's (KINDS).
        """
        self._need_admin(key, chain, now, revoked)
        links = read_chain(joiner_chain)
        if not is_provisional(links):
            refuse(Reason.KINDS)
        *_, inviter, voucher, joiner = links
        self._judge(links, joiner.subject, now, revoked)
        via = key_id(inviter.subject) + key_id(voucher.subject)
        fields = ("n", joiner.subject, voucher.roles, int(now), voucher.until, via)
        return below(chain, sign_link(key, self.grid, *fields))

    # -- a node's own chains

    def best(self, chains: Iterable[bytes], peer: bytes, now: float, revoked: Revoked = NOBODY_REVOKED) -> bytes:
        """Return the chain to show: of those that hold and give most, the shortest (DESIGN §3).

        Roles come before length, or a promotion by an admin further down would change nothing; signed by an admin
        comes before provisional.

        Raises:
            Refused: none holds; the reason of the first, or NO_CHAIN.
        """
        held: list[tuple[tuple[object, ...], bytes]] = []
        reasons: list[Reason] = []
        for chain in chains:
            try:
                roles = self.check(chain, peer, now, revoked)
            except Refused as refused:
                reasons.append(refused.reason)
                continue
            links = read_chain(chain)
            rank = (not roles & ADMIN, -roles.bit_count(), is_provisional(links), len(links), len(chain))
            held.append((rank, chain))
        if not held:
            refuse(reasons[0] if reasons else Reason.NO_CHAIN)
        return min(held)[1]

    def keep(
        self, chains: Sequence[bytes], chain: bytes, peer: bytes, now: float, revoked: Revoked = NOBODY_REVOKED
    ) -> tuple[bytes, ...]:
        """Return a node's chains after it was given one more; all are kept, for each may be the one that survives.

        At most CHAINS_KEPT_MAX (DESIGN §3): the newer of two by one signer with the same roles stays; when there are
        too many, those that do not hold go, then the new one is not taken, so that a thief cannot push out the rest.

        Raises:
            Refused: the new chain does not hold.
        """
        self.check(chain, peer, now, revoked)
        mark = _mark(chain)
        kept = [old for old in chains if old != chain and _mark(old) != mark]
        if len(kept) >= CHAINS_KEPT_MAX:
            kept = [old for old in kept if self._holds(old, peer, now, revoked)]
        return (*kept, chain)[:CHAINS_KEPT_MAX]

    def _holds(self, chain: bytes, peer: bytes, now: float, revoked: Revoked) -> bool:
        try:
            self.check(chain, peer, now, revoked)
        except Refused:
            return False
        return True


def _hold(links: tuple[Link, ...], grid: bytes, peer: bytes, now: float, revoked: Revoked) -> int:
    """Return the roles at the end of the chain, whose signatures are still to be verified."""
    signer, roles = grid, ALL_ROLES
    for link in links:
        if link.kind != "j":
            if not roles & ADMIN:
                refuse(Reason.NOT_ADMIN)
            roles = link.roles  # an admin grants any role, also one it does not hold itself
            if link.until and now > link.until:
                refuse(Reason.ENDED)
        if link.kind == "v" and now > link.join_until:
            refuse(Reason.EXPIRED)
        statement = statement_id(link.body)
        authorities = (key_id(signer), link.inviter, link.voucher) if link.inviter else (key_id(signer),)
        if not all(revoked.allows(authority, statement) for authority in authorities):
            refuse(Reason.FROM_REVOKED)
        # Above the peer a revoked admin may stand, if its revocation lists the link below it; a voucher may not.
        if (link.kind != "n" or link.subject == peer) and not revoked.allows(key_id(link.subject), None):
            refuse(Reason.REVOKED)
        signer = link.subject
    return roles


def _mark(chain: bytes) -> tuple[bytes, int, str]:
    """Return by whom the last link was signed, and what it gives."""
    links = read_chain(chain)
    signer = links[-2].subject if len(links) > 1 else b""
    return signer, links[-1].roles, links[-1].kind
