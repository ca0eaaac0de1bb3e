r"""Who belongs no more (DESIGN §3): revocations, signed by admins, gossiped and persisted.

    revocation = msgpack [body, signature]        fits a control frame
    body = msgpack [target, listed, signed at, the signer's chain]
    signature = Ed25519 of "p2pgrid revoke 1\0" + grid's public key + body, by the last key of that chain

No date is believed. Of what a revoked key signed or let in, only what its revocations list still counts: ids of links
and of revocations, 16 bytes each, sorted. Lists unite. A revocation counts while its signer is an admin by what the
*others* leave of it; so of two admins who revoke each other the first heard wins, and one said before the signer was
revoked counts on if it is listed.

Rule: keys are matched by their ids (first 16 bytes), as node links remember inviter and voucher; so a voucher of which
only the id is left is revoked as `named_by_id`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import (
    ADMIN,
    CHAIN_BYTES_MAX,
    KEY_ID_LENGTH,
    KEY_LENGTH,
    SIGNATURE_LENGTH,
    STATEMENT_ID_LENGTH,
    TIME_MAX_S,
    Link,
    Reason,
    Refused,
    is_whole,
    key_id,
    public_of,
    read_chain,
    read_exactly,
    refuse,
    statement_id,
)
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import pack

REVOKE_WORD = b"p2pgrid revoke 1\0"
LISTED_MAX = 3900
REVOCATION_BYTES_MAX = LISTED_MAX * STATEMENT_ID_LENGTH + CHAIN_BYTES_MAX + 192
"""64,640: with its envelope it fits a control frame of 64 KiB."""
RECORDS_MAX = 1024
RECORDS_BYTES_MAX = 4 * 1024 * 1024
RETURNS_MAX = 8
"""How often a revocation that was dropped may count again: three keys of one thief that revoke each other in a circle
would otherwise drop each other for ever."""
_DROPPED_MAX = 4 * RECORDS_MAX


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation as it was read; nothing about it is verified yet.

    Attributes:
        target: the revoked key, of a node or a voucher.
        listed: ids of what still counts.
        at: when it was said, unix seconds; shown, never believed.
        chain: why its signer may.
        touches: ids of the keys on which it depends.
    """

    target: bytes
    listed: frozenset[bytes]
    at: int
    chain: bytes
    signer: bytes
    body: bytes
    signature: bytes
    id: bytes
    touches: frozenset[bytes]

    @property
    def packed(self) -> bytes:
        """The bytes that travel and are stored."""
        return pack([self.body, self.signature])


def read_revocation(data: bytes) -> Revocation:
    """Return the revocation in `data`: its length and shape are right, nothing else is known (DESIGN §3).

    Raises:
        Refused: SIZE, MALFORMED, or what is wrong with the shape of the signer's chain.
    """
    match read_exactly(data, REVOCATION_BYTES_MAX):
        case [bytes(body), bytes(signature)] if len(signature) == SIGNATURE_LENGTH:
            pass
        case _:
            refuse(Reason.MALFORMED)
    match read_exactly(body, REVOCATION_BYTES_MAX):
        case [bytes(target), bytes(listed), at, bytes(chain)] if len(target) == KEY_LENGTH:
            pass
        case _:
            refuse(Reason.MALFORMED)
    ids = [listed[i : i + STATEMENT_ID_LENGTH] for i in range(0, len(listed), STATEMENT_ID_LENGTH)]
    ordered = all(a < b for a, b in itertools.pairwise(ids))
    if len(listed) % STATEMENT_ID_LENGTH or len(ids) > LISTED_MAX or not ordered or not is_whole(at, TIME_MAX_S + 1):
        refuse(Reason.MALFORMED)
    links = read_chain(chain)
    if links[-1].kind != "n":
        refuse(Reason.KINDS)
    touches = {part for link in links for part in (key_id(link.subject), link.inviter, link.voucher) if part}
    return Revocation(
        target, frozenset(ids), at, chain, links[-1].subject, body, signature, statement_id(body), frozenset(touches)
    )


def named_by_id(name: bytes) -> bytes:
    """Return the target that revokes the key with this id, of which nothing else is known (DESIGN §3).

    Raises:
        ValueError: it is not 16 bytes.
    """
    if len(name) != KEY_ID_LENGTH:
        msg = f"a key id has {KEY_ID_LENGTH} bytes, not {len(name)}"
        raise ValueError(msg)
    return name + bytes(KEY_LENGTH - KEY_ID_LENGTH)


def vouchers_of(chains: Iterable[bytes], node: bytes) -> list[bytes]:
    """Return the targets that close the invites by which `node` came: its machine still has the string (DESIGN §3).

    Chains that are malformed or of other nodes are passed over. Raises nothing.
    """
    found: dict[bytes, None] = {}
    for chain in chains:
        try:
            links = read_chain(chain)
        except Refused:
            continue
        if links[-1].subject == node:
            found |= {named_by_id(link.voucher): None for link in links[-1:] if link.voucher}
            found |= {named_by_id(key_id(link.subject)): None for link in links if link.kind == "v"}
    return list(found)


class Revocations:
    """The revocations that one node has heard and that count (DESIGN §3); the judge asks it.

    Grow-only but for one rule: what a revoked key said is dropped unless it is listed. Bounded: RECORDS_MAX and
    RECORDS_BYTES_MAX; when it is full, only a revocation that drops others is taken, which is how a flood by a stolen
    admin's key ends. Copies on several nodes agree on whom they refuse once all have heard all, apart from admins who
    revoke each other; offer what was not taken again, it may count later.
    """

    __slots__ = ("_by_target", "_bytes", "_dropped", "_held", "judge")

    def __init__(self, judge: Judge, records: Iterable[Revocation] = ()) -> None:
        """Begin with what was kept, in the order in which it was heard; what does not count is left out.

        Twice over: one may count because a later one lists it.
        """
        self.judge = judge
        self._held: dict[bytes, Revocation] = {}
        self._by_target: dict[bytes, list[Revocation]] = {}
        self._dropped: dict[bytes, int] = {}
        self._bytes = 0
        kept = tuple(records)
        for record in (*kept, *kept):
            self.add(record)

    def records(self) -> tuple[Revocation, ...]:
        """Return those that count, in the order in which they were heard: to be stored and offered. Raises nothing."""
        return tuple(self._held.values())

    def names(self, key: bytes) -> bool:
        """Return whether this key is revoked (DESIGN §3). Raises nothing."""
        return key_id(key) in self._by_target

    def allows(self, key: bytes, statement: bytes | None) -> bool:
        """Return whether the key with this id is not revoked, or one of its revocations lists the statement (§3).

        Raises nothing.
        """
        against = self._by_target.get(key)
        return not against or any(statement in record.listed for record in against)

    def copy(self) -> Revocations:
        """Return an independent copy with the same judge. Raises nothing."""
        other = Revocations(self.judge)
        other._restore(self._held)
        other._dropped = dict(self._dropped)
        return other

    # -- hearing

    def add(self, record: Revocation) -> bool:
        """Take a revocation if it counts, and drop what counts no more; return whether it was taken (DESIGN §3).

        Raises nothing: one that does not count now may do so later.
        """
        if record.id in self._held or self._dropped.get(record.id, 0) > RETURNS_MAX or not self._counts(record):
            return False
        try:
            self.judge.verify(record.signer, record.signature, REVOKE_WORD, record.body, Reason.SIGNATURE)
        except Refused:
            return False
        before, dropped = dict(self._held), dict(self._dropped)
        self._insert(record)
        self._drop_what_counts_no_more(record)
        full = len(self._held) > RECORDS_MAX or self._bytes > RECORDS_BYTES_MAX
        # One that drops the very list by which its signer still counts would drop itself next, and so on in a circle.
        if full or not self._counts(record):
            self._restore(before)
            self._dropped = dropped
            return False
        return True

    def _insert(self, record: Revocation) -> None:
        self._held[record.id] = record
        self._by_target.setdefault(key_id(record.target), []).append(record)
        self._bytes += len(record.body)

    def _remove(self, record: Revocation) -> None:
        del self._held[record.id]
        against = self._by_target[key_id(record.target)]
        against.remove(record)
        if not against:
            del self._by_target[key_id(record.target)]
        self._bytes -= len(record.body)

    def _restore(self, held: dict[bytes, Revocation]) -> None:
        self._held, self._by_target, self._bytes = {}, {}, 0
        for record in held.values():
            self._insert(record)

    def _drop_what_counts_no_more(self, newest: Revocation) -> None:
        """Look again at what depends on a key whose standing changed, until nothing changes; each pass drops some."""
        changed = {key_id(newest.target)}
        while changed:
            everything = key_id(self.judge.grid) in changed
            gone: set[bytes] = set()
            for record in list(self._held.values()):
                depends = everything or not changed.isdisjoint(record.touches)
                if record is not newest and depends and not self._counts(record):
                    self._remove(record)
                    self._dropped[record.id] = self._dropped.pop(record.id, 0) + 1
                    if len(self._dropped) > _DROPPED_MAX:
                        del self._dropped[next(iter(self._dropped))]
                    gone.add(key_id(record.target))
            changed = gone

    def _counts(self, record: Revocation) -> bool:
        """Return whether it counts by what all others say; its own signature apart."""
        others = _Others(self, record)
        signer = key_id(record.signer)
        if others.names(signer):
            return others.allows(signer, record.id)
        try:
            return bool(self.judge.check(record.chain, record.signer, 0, others, provisional=False) & ADMIN)
        except Refused:
            return False

    # -- saying

    def revoke(
        self,
        key: Ed25519PrivateKey,
        chains: Sequence[bytes],
        target: bytes,
        now: float,
        known: Iterable[bytes],
        *,
        with_admitted: bool = False,
    ) -> Revocation:
        """Return a revocation of `target`; it is not added: store it first, then `add` and send it (DESIGN §3).

        It lists what still counts: the target's own revocations heard here, and the node links that it signed or let
        in. What was already refused here is not listed, or it would come back.

        Args:
            key: the admin's.
            chains: the admin's; the shortest that holds afterwards goes with it.
            target: public key of a node or a voucher, or `named_by_id`.
            now: grid time.
            known: every chain this node knows, of all members.
            with_admitted: list no links.

        Raises:
            Refused: no chain is an admin's (NOT_ADMIN or why not), CUTS_SENDER, TOO_MANY to list.
        """
        me = public_of(key)
        own = sorted((read_chain(chain)[-1].kind != "n", len(chain), chain) for chain in chains)
        reason = Reason.NO_CHAIN
        listed = {record.id for record in self._held.values() if key_id(record.signer) == key_id(target)}
        if not with_admitted:
            listed |= self._let_in(key_id(target), known)
        if len(listed) > LISTED_MAX:
            refuse(Reason.TOO_MANY)
        for _, _, chain in own:
            try:
                if not self.judge.check(chain, me, now, self, provisional=False) & ADMIN:
                    refuse(Reason.NOT_ADMIN)
                return self._said(key, chain, target, now, listed)
            except Refused as refused:
                # That it would cut itself off says more than that another chain does not hold anyway.
                reason = reason if reason is Reason.CUTS_SENDER else refused.reason
        raise Refused(reason)

    def _said(
        self, key: Ed25519PrivateKey, chain: bytes, target: bytes, now: float, listed: Iterable[bytes]
    ) -> Revocation:
        body = pack([target, b"".join(sorted(listed)), int(now), chain])
        record = read_revocation(pack([body, key.sign(REVOKE_WORD + self.judge.grid + body)]))
        if key_id(target) != key_id(record.signer):
            after = Revocations(self.judge)
            after._restore({**self._held, record.id: record})
            try:
                self.judge.check(chain, record.signer, 0, after, provisional=False)
            except Refused:
                refuse(Reason.CUTS_SENDER)
        return record

    def _let_in(self, target: bytes, known: Iterable[bytes]) -> set[bytes]:
        """Return the ids of node links that the key signed or let in, in chains that hold here whatever the date."""
        listed = set()
        for chain in known:
            try:
                links = read_chain(chain)
                peer = links[-1].subject
                if links[-1].kind == "v":
                    self.judge.check_voucher(chain, peer, 0, self)
                else:
                    self.judge.check(chain, peer, 0, self)
            except Refused:
                continue
            listed |= _admitted_by(links, self.judge.grid, target)
        return listed


class _Others:
    """All revocations but one."""

    __slots__ = ("all", "one")

    def __init__(self, all_: Revocations, one: Revocation) -> None:
        self.all = all_
        self.one = one

    def _against(self, key: bytes) -> list[Revocation]:
        against = self.all._by_target.get(key, [])  # noqa: SLF001 - a view of it
        return [record for record in against if record is not self.one]

    def names(self, key: bytes) -> bool:
        return bool(self._against(key))

    def allows(self, key: bytes, statement: bytes | None) -> bool:
        against = self._against(key)
        return not against or any(statement in record.listed for record in against)


def _admitted_by(links: Iterable[Link], grid: bytes, target: bytes) -> set[bytes]:
    listed, signer = set(), key_id(grid)
    for link in links:
        if link.kind == "n" and target in {signer, link.inviter, link.voucher}:
            listed.add(statement_id(link.body))
        signer = key_id(link.subject)
    return listed
