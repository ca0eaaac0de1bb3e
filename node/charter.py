"""Who belongs to this node's grid, and what this node signs as an admin of it (DESIGN §3).

    grid.json             our grid and our chains          `node.identity`
    members.msgpack       others' chains, what was signed here, addresses      `node.charter_members`
    revocations.msgpack   every revocation heard           `node.charter_revocations`

The rules are those of `core.trust` and `core.revocation`; here they meet files, our own key and our clock. Plain
synchronous code: whoever is expelled by a call is refused by the next one.

Rule 1: what was said is on the disk before anybody hears it.
Rule 2: no private key but the node's own outlives the call that needed it, and none gets into a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    KEY_ID_LENGTH,
    LINKS_MAX,
    TIME_MAX_S,
    Reason,
    Refused,
    is_provisional,
    key_id,
    newest_signed_at,
    public_of,
    read_chain,
    refuse,
    role_names,
)
from p2pgrid.core.errors import GridError, NotAuthorized, QuotaExceeded
from p2pgrid.core.ids import grid_name
from p2pgrid.core.invite import (
    ADDRESS_LENGTH_MAX,
    ADDRESSES_MAX,
    INVITE_WORD,
    SALT_LENGTH,
    Membership,
    bad_invite,
    export_admin,
    read_invite,
    recover_admin,
    write_invite,
)
from p2pgrid.core.revocation import Revocation, Revocations, named_by_id, vouchers_of
from p2pgrid.core.trust import Judge
from p2pgrid.node.charter_shown import bad_recovery, described, refused_to_sign, touched, warned
from p2pgrid.node.charter_standing import Admitted, Heard, Standing
from p2pgrid.node.identity import found_grid

__all__ = ["Admitted", "Charter", "Heard", "Joining", "Revoking"]

HEX_PREFIX_MIN = 4
BEFORE_US_S = 1_767_225_600
"""The year in which p2pgrid was written began then: a clock that says less is wrong."""


@dataclass(frozen=True, slots=True)
class Joining:
    """A membership that this node could take up; nothing is changed yet. No private key is in it.

    Attributes:
        chain: ours in that grid.
        already: this node is in that grid, and nothing needs to be done.
    """

    grid: bytes
    grid_name: str
    addresses: tuple[str, ...]
    chain: bytes
    roles: int
    already: bool


@dataclass(frozen=True, slots=True)
class Revoking:
    """What a revocation did.

    Attributes:
        records: packed, to be passed on: of the key, then of the invites by which it came.
        revoked: the key; of an invite perhaps only what names it.
        kept: members that the key let in and that stay.
        cut: members that are out, the key itself apart.
        expelled: whose connections must end.
        notes: what a person should know, one line each.
    """

    records: tuple[bytes, ...]
    revoked: bytes
    kept: tuple[bytes, ...]
    cut: tuple[bytes, ...]
    expelled: tuple[bytes, ...]
    notes: tuple[str, ...]


class Charter(Standing):
    """The membership of one node, and what may be done with it."""

    # -- coming and going

    def join(self, text: str) -> Joining:
        """Return the membership that an invite gives; `adopt` takes it up. No date is looked at: members know better.

        Raises:
            GridError: it is no good (bad-invite), and why.
        """
        try:
            invite = read_invite(text)
            revoked = self._known_of(invite.grid)
            invite.check_invite(0, revoked)
            return self._joining(invite, invite.join(self.public))
        except Refused as refused:
            raise bad_invite(refused.reason) from None

    def _known_of(self, grid: bytes) -> Revocations:
        return self._ledger.counting if grid == self.grid else Revocations(Judge(grid))

    def _joining(self, held: Membership, chain: bytes) -> Joining:
        revoked = self._known_of(held.grid)
        if revoked.names(self.public):
            raise GridError(
                f"this node was revoked in grid {grid_name(held.grid)}",
                next="stop it, move node.key and grid.json away, and join with the new key that it gets",
                code="bad-invite",
            )
        roles = revoked.judge.check(chain, self.public, 0, revoked)
        # Whoever holds on to what it has does not need an invite; a recovery file gives more.
        already = held.grid == self.grid and bool(self.roles) and is_provisional(read_chain(chain))
        return Joining(held.grid, grid_name(held.grid), held.addresses, chain, roles, already)

    def adopt(self, joining: Joining) -> None:
        """Take up a membership: in another grid everything of the old one is forgotten, in ours it is one chain more.

        Raises:
            GridError: the directory cannot be used, or an invite to our own grid has expired; nothing is changed.
        """
        if joining.grid == self.grid:
            try:
                self._keep(joining.chain)
            except Refused as refused:
                raise bad_invite(refused.reason) from None
            return
        self._switch(joining.grid, joining.chain)

    def found_anew(self) -> None:
        """Leave: found a fresh grid of one. Raises GridError: the directory cannot be used; nothing is changed."""
        self._switch(*found_grid(self.public, self._wall()))

    # -- what an admin signs

    def _admin_chain(self) -> bytes:
        """Return the chain by which we sign.

        Raises:
            NotAuthorized: we are no admin, or nobody has signed us yet.
        """
        chain = self.certificate
        try:
            roles = self._judge.check(chain, self.public, self.now_s(), self._ledger.counting, provisional=False)
        except Refused as refused:
            if refused.reason is Reason.PROVISIONAL:
                raise NotAuthorized(
                    "no admin has signed this node yet",
                    next="wait until an admin of the grid is connected: p2pgrid members",
                ) from None
            raise NotAuthorized(
                f"this node is out of the grid: {refused.reason.sentence}",
                next="ask an admin of the grid for an invite: p2pgrid invite",
            ) from None
        if not roles & ADMIN:
            raise NotAuthorized(
                "this node is no admin of the grid", next="ask an admin; this lists them: p2pgrid grid show"
            )
        return chain

    @contextmanager
    def _signing(self) -> Iterator[bytes]:
        """Give the chain by which we sign; what the judge then refuses becomes the caller's error."""
        chain = self._admin_chain()
        try:
            yield chain
        except Refused as refused:
            raise refused_to_sign(refused.reason) from None

    def rank(self) -> int:
        """Return how far from the grid's key we sign: the lowest acts first; LINKS_MAX or more: we cannot."""
        try:
            return len(read_chain(self._admin_chain()))
        except NotAuthorized:
            return LINKS_MAX + 1

    def invite(
        self, roles: int, expires_s: float, member_until: int, addresses: Sequence[str]
    ) -> tuple[str, dict[str, Any]]:
        """Return the text of a fresh invite, and what is to be said about it.

        Args:
            roles: of whoever joins by it.
            expires_s: how long it may be used.
            member_until: unix seconds; when the memberships end, 0 is never.
            addresses: multiaddrs of members; the first ADDRESSES_MAX are taken.

        Raises:
            GridError: not-authorized, usage, or the directory cannot be used.
        """
        now = self.now_s()
        if now < BEFORE_US_S:
            today = datetime.fromtimestamp(now, UTC).date()
            raise GridError(
                f"this machine's clock says {today}: by all other clocks an invite made now would have expired",
                next="set the clock (timedatectl set-ntp true), then p2pgrid invite",
                code="usage",
            )
        with self._signing() as chain:
            if not 0 < roles <= ALL_ROLES or not 0 < expires_s < TIME_MAX_S - now:
                raise GridError(
                    "an invite needs a role and some time",
                    next="p2pgrid invite --roles work --expires 7d",
                    code="usage",
                )
            if member_until and not now < member_until <= TIME_MAX_S:
                raise GridError("that membership would have ended already", next="give a later time", code="usage")
            voucher = Ed25519PrivateKey.generate()
            public, join_until = public_of(voucher), int(now + expires_s)
            signed = self._judge.invite(
                self._key, chain, public, roles, now, self._ledger.counting, join_until=join_until, until=member_until
            )  # fmt: skip
        text = write_invite(Membership(self.grid, _fit(addresses), voucher, signed))
        self._roster.made(self._roster.invites, public, signed)
        self._roster.write(self.grid)
        facts = {
            "key": key_id(public).hex(), "roles": role_names(roles), "join_until": join_until,
            "member_until": member_until, "grid": self.grid_name,
        }  # fmt: skip
        return text, facts

    def replacement(self, admitted: Admitted) -> bytes | None:
        """Return the node link for a joiner, in place of its voucher; None if we cannot, or it needs none.

        One that is known already is offered again, whoever signed it. Whether it is our turn is for the caller to say
        (`rank`).
        """
        if not admitted.provisional:
            return None
        now = self.now_s(lenient=True)
        for chain in self._roster.chains_of(admitted.public):
            good = self._holds(chain, admitted.public, now) and not is_provisional(read_chain(chain))
            if good and self._judge.check(chain, admitted.public, 0) == admitted.roles:
                return chain
        try:
            chain = self._admin_chain()
            signed = self._judge.replace(self._key, chain, admitted.chain, self.now_s(), self._ledger.counting)
        except (NotAuthorized, Refused):
            return None
        self._roster.gave(admitted.public, signed, self._wall())
        return signed

    def promote(self, public: bytes, roles: int) -> bytes:
        """Return one more chain for a node, with these roles and those that it has; it is offered until it is shown.

        It gives no time: a membership that ends, ends when it did before.

        Raises:
            GridError: not-authorized, or the node was revoked.
        """
        with self._signing() as chain:
            if self._ledger.counting.names(public):
                raise NotAuthorized(
                    "that node was revoked", next="its machine may join again with a new key: p2pgrid invite"
                )
            if not 0 < roles <= ALL_ROLES:
                raise GridError("these are no roles", next="p2pgrid promote NODE --roles admin", code="usage")
            had, until = self._membership_of(public)
            signed = self._judge.promote(
                self._key, chain, public, roles | had, self.now_s(), self._ledger.counting, until=until
            )  # fmt: skip
        if public == self.public:
            self.offered(signed)
            return signed
        self._roster.gave(public, signed, self._wall())
        self._roster.write(self.grid)
        return signed

    # -- revoking

    def resolve(self, text: str) -> list[bytes]:
        """Return the keys that a text means: an invite, or the first hex digits (at least 4) of a key or its id.

        Raises:
            GridError: an invite that is damaged or of another grid (bad-invite).
        """
        if "".join(text.split()).startswith(INVITE_WORD):
            try:
                invite = read_invite(text)
                if invite.grid != self.grid:
                    refuse(Reason.FOREIGN)
            except Refused as refused:
                raise bad_invite(refused.reason) from None
            return [public_of(invite.key)]
        digits = text.strip().lower()
        if len(digits) < HEX_PREFIX_MIN:
            return []
        found = {key_id(key): key for key in reversed([*self._roster.revocable()]) if key.hex().startswith(digits)}
        return list(found.values())

    def revoke(self, target: bytes, *, with_admitted: bool = False) -> Revoking:
        """Revoke a key, and close the invites by which it came; on the disk when this returns.

        Args:
            target: a public key, or the id of one.
            with_admitted: what it let in is out, too.

        Raises:
            GridError: not-authorized (also: it would cut ourselves off), or too much to list.
        """
        if len(target) == KEY_ID_LENGTH:
            target = next((key for key in self._roster.revocable() if key_id(key) == target), named_by_id(target))
        if key_id(target) == key_id(self.public):
            raise GridError(
                "this is the node you speak to",
                next="p2pgrid leave, or revoke it at another admin's node",
                code="usage",
            )
        if key_id(target) == key_id(self.grid):
            raise GridError("that is the grid itself", next="p2pgrid grid show lists what is in it", code="usage")
        with self._signing():
            said, notes = self._said(target, with_admitted=with_admitted)
        concerned = self._touching({key_id(target), *(key_id(record.target) for record in said)})
        before = [public for public in concerned if self.holds(public)]
        self._say(said)
        stay = {public for public in before if self.holds(public)} | {self.public}
        let_in = {public for public in (*before, self.public) if self._depends(public, target)}
        others = [public for public in (*before, self.public) if key_id(public) != key_id(target)]
        return Revoking(
            tuple(record.packed for record in said),
            target,
            tuple(public for public in others if public in stay & let_in),
            tuple(public for public in others if public not in stay),
            tuple(public for public in concerned if public not in stay),
            tuple(notes),
        )

    def close_invites(self) -> list[bytes]:
        """Return revocations that close the invites by which revoked members came, as far as they are still open.

        Whoever revoked a member may not have known by which invite it came, and its machine may still have the text.
        To be asked after `heard`, the admin of the lowest `rank` first. On the disk when this returns; [] if we are no
        admin, or nothing is open.

        Raises:
            GridError: the directory cannot be used.
        """
        counting = self._ledger.counting
        packed: list[bytes] = []
        for public, known in self._roster.members.items():
            if counting.names(public) and not all(counting.names(one) for one in known.vouchers):
                try:
                    with self._signing():
                        said, _ = self._said(public, with_admitted=False)
                except (NotAuthorized, QuotaExceeded):
                    return packed
                self._say(said)
                packed += [record.packed for record in said]
        return packed

    def _say(self, said: list[Revocation]) -> None:
        if said:
            self._ledger.write(said)
            self._ledger.hear(said)

    def _depends(self, public: bytes, key: bytes) -> bool:
        chains = self._chains if public == self.public else self._roster.chains_of(public)
        return any(key_id(key) in touched(chain) for chain in chains)

    def _said(self, target: bytes, *, with_admitted: bool) -> tuple[list[Revocation], list[str]]:
        """Return what is to be said, and notes. Nothing is heard yet: all of it is tried on a copy."""
        trial = self._ledger.counting.copy()
        said: list[Revocation] = []
        notes: list[str] = []
        member = self._roster.members.get(target)
        vouchers = [*(member.vouchers if member else ()), *vouchers_of(self._roster.chains_of(target), target)]
        if trial.names(target) and with_admitted:
            notes.append("it was revoked before; what was kept then stays, unless it is revoked itself")
        for key in dict.fromkeys((target, *vouchers)):
            if trial.names(key):
                continue
            known = [one for one in (*self._chains, *self._roster.all_chains()) if key_id(key) in touched(one)]
            undo = with_admitted and key is target
            try:
                record = trial.revoke(self._key, self._chains, key, self.now_s(), known, with_admitted=undo)
            except Refused as refused:
                if key is target:
                    raise
                notes.append(f"the invite by which it came is still open: {refused.reason.sentence}")
                continue
            if not trial.add(record):
                raise QuotaExceeded("no more revocations can be kept", next="found a new grid: p2pgrid leave")
            said.append(record)
        return said, notes

    # -- the recovery file

    def export(self, passphrase: str, addresses: Sequence[str] = ()) -> tuple[str, str]:
        """Return the text of a recovery file, and the id of the admin key in it in hex. Takes 70 ms.

        Raises:
            GridError: not-authorized, or the passphrase is empty or too long.
        """
        with self._signing() as chain:
            if len(read_chain(chain)) > LINKS_MAX - 2:
                refuse(Reason.LINKS)  # or it could sign nobody
            key = Ed25519PrivateKey.generate()
            public = public_of(key)
            signed = self._judge.promote(self._key, chain, public, ADMIN, self.now_s(), self._ledger.counting)
        held = Membership(self.grid, _fit(addresses), key, signed)
        text = export_admin(held, passphrase, os.urandom(SALT_LENGTH))
        self._roster.made(self._roster.exported, public, signed)
        self._roster.write(self.grid)
        return text, key_id(public).hex()

    def recovering(self, text: str, passphrase: str) -> Joining:
        """Return the membership that a recovery file gives this node: all roles; `adopt` takes it up. Takes 70 ms.

        Raises:
            GridError: it is no recovery file, damaged, or its key was revoked; the passphrase is wrong.
        """
        try:
            held = recover_admin(text, passphrase)
            revoked = self._known_of(held.grid)
            now = max(self.now_s(), newest_signed_at(held.chain))
            chain = revoked.judge.promote(held.key, held.chain, self.public, ALL_ROLES, now, revoked)
            return self._joining(held, chain)
        except Refused as refused:
            raise bad_recovery(refused.reason) from None

    def recover(self, text: str, passphrase: str) -> bytes:
        """Make this node an admin by a recovery file, in the grid of the file; return its chain, which is kept.

        Raises:
            GridError: as `recovering` and `adopt`.
        """
        joining = self.recovering(text, passphrase)
        self.adopt(joining)
        return joining.chain

    # -- for people

    def warnings(self, members: Iterable[dict[str, Any]] = ()) -> list[str]:
        """Return what a person should know, one line each; `members` as in the request of that name."""
        try:
            self._judge.check(self.certificate, self.public, self.now_s(lenient=True), self._ledger.counting)
            reason = None
        except Refused as refused:
            reason = refused.reason
        return warned(reason, self.offset_s, members, alone=self.alone)

    def describe(self, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer to the request `grid`; `members` are rows as in the request `members`."""
        return {
            "id": self.grid.hex(),
            "name": self.grid_name,
            "roles": role_names(self.roles),
            "provisional": self.provisional,
            **described(
                members,
                self._roster.invites.values(),
                self._roster.exported.values(),
                self._ledger.counting,
                self.now_s(),
            ),
            "warnings": self.warnings(members),
        }


def _fit(addresses: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in addresses if 0 < len(one) <= ADDRESS_LENGTH_MAX and one.isprintable())[:ADDRESSES_MAX]
