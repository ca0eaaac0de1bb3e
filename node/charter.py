"""Who belongs to this node's grid, and what this node signs as an admin of it (DESIGN §3).

    grid.json             our grid and our chains          `node.identity`
    members.msgpack       others' chains, what was signed here, addresses      `node.charter_members`
    revocations.msgpack   every revocation heard           `node.charter_revocations`

The rules are those of `core.trust` and `core.revocation`; here they meet files, our own key and our clock. Plain
synchronous code: whoever is expelled by a call is refused by the next one.

Dates are judged by grid time. Before it is known there are two ways to doubt our own clock (`judging_time`): the
lenient one for what we show and are given, so that a machine that woke up in 2040 does not take its own membership for
ended; the strict one for whom we let in as a listener and for all that we sign, so that one that woke up in 1970 does
not make a member of whoever holds an old invite.

Rule 1: what was said is on the disk before anybody hears it.
Rule 2: no private key but the node's own outlives the call that needed it, and none gets into a message.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
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
from p2pgrid.core.trust import Judge, judging_time
from p2pgrid.node.charter_members import Roster
from p2pgrid.node.charter_revocations import Ledger
from p2pgrid.node.charter_shown import admits, comes_by, described, warned
from p2pgrid.node.identity import Identity, found_grid, peer_id, peer_public, write_membership

SAVED_PEERS_MAX = 200
HEX_PREFIX_MIN = 4
_NO_LONGER = frozenset({Reason.ENDED, Reason.EXPIRED, Reason.REVOKED, Reason.FROM_REVOKED})
"""Reasons for which a statement that was good once does not hold: nobody's fault."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A member that was let in: `id` is its PeerId, `provisional` that no admin has signed it yet."""

    public: bytes
    id: str
    roles: int
    chain: bytes
    provisional: bool


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


@dataclass(frozen=True, slots=True)
class Heard:
    """What followed from revocations: which to pass on, whose connections must end, whether we are out ourselves."""

    fresh: list[bytes]
    expelled: list[bytes]
    lost: bool


class Charter:
    """The membership of one node.

    Attributes:
        offset_s: grid time minus our own clock; None while no other clock is known. Set by whoever knows.
        notes: what was found damaged at the start; to be told once.
    """

    def __init__(self, identity: Identity, folder: Path, wall: Callable[[], float]) -> None:
        """Read what is kept in `folder`, whose lock the caller holds.

        Args:
            identity: our key, and what `grid.json` says.
            folder: the node's directory.
            wall: unix seconds by this machine.
        """
        self.public = identity.public
        self.offset_s: float | None = None
        self.notes: list[str] = []
        self._key = identity.key
        self._folder = folder
        self._wall = wall
        self._enter(identity.grid, identity.chains)
        self.notes += self._ledger.load()
        self.notes += self._roster.load(self.grid)

    def _enter(self, grid: bytes, chains: tuple[bytes, ...]) -> None:
        self.grid = grid
        self.grid_name = grid_name(grid)
        self._chains = chains
        self._shown = chains[-1]
        self._judge = Judge(grid)
        self._ledger = Ledger(self._folder, self._judge)
        self._roster = Roster(self._folder)

    # -- ourselves

    def now_s(self, *, lenient: bool = False) -> float:
        """Return grid time as well as it is known; the module says which doubt is right where."""
        offsets = [] if self.offset_s is None else [self.offset_s]
        now = judging_time(self._wall(), offsets, newest_signed_at(self._shown), dialler=lenient)
        return min(max(now, 0.0), float(TIME_MAX_S))

    @property
    def certificate(self) -> bytes:
        """What we show: the best of our chains; where none holds any more the last one, for others are the judges."""
        now = self.now_s(lenient=True)
        with suppress(Refused):
            self._shown = self._judge.best(self._chains, self.public, now, self._ledger.counting)
        return self._shown

    @property
    def roles(self) -> int:
        """What we may do; 0 if we are out."""
        return self.roles_of(self.public)

    @property
    def provisional(self) -> bool:
        """Whether no admin has signed us yet."""
        return is_provisional(read_chain(self.certificate))

    @property
    def alone(self) -> bool:
        """Whether this is a grid of one: we founded it and never met anybody."""
        return len(read_chain(self.certificate)) == 1 and not self._roster.members

    @property
    def lost(self) -> bool:
        """Whether we were revoked; a membership that has ended is not lost."""
        return not any(self._holds(chain, self.public, 0) for chain in self._chains)

    def rank(self) -> int:
        """Return how far from the grid's key we sign: the lowest acts first; LINKS_MAX or more: we cannot."""
        try:
            return len(read_chain(self._admin_chain()))
        except NotAuthorized:
            return LINKS_MAX + 1

    # -- others

    def admit(self, certificate: bytes, public: bytes, *, dialler: bool) -> Admitted:
        """Return the member with this key, proved by the connection, or refuse it. `dialler`: we called.

        Raises:
            Refused: and why.
        """
        now = self.now_s(lenient=dialler)
        chain = certificate
        try:
            roles = self._judge.check(chain, public, now, self._ledger.counting)
        except Refused as refused:
            # A joiner whose invite ended before it heard of the link signed for it: it is a member all the same.
            others = self._roster.chains_of(public) if refused.reason in _NO_LONGER else []
            chain = next((one for one in others if self._holds(one, public, now)), b"")
            if not chain:
                raise
            roles = self._judge.check(chain, public, now, self._ledger.counting)
        if public != self.public:
            self._roster.shown(public, chain, self._wall())
        return Admitted(public, peer_id(public), roles, chain, is_provisional(read_chain(chain)))

    def shown(self, public: bytes, chain: bytes) -> Admitted:
        """Return what a connected member is by the chain that it shows from now on.

        Raises:
            Refused: it does not hold.
        """
        return self.admit(chain, public, dialler=True)

    def holds(self, public: bytes) -> bool:
        """Return whether a connected member still belongs here: asked after a revocation, and once time is known."""
        now = self.now_s(lenient=True)
        return any(self._holds(chain, public, now) for chain in self._roster.chains_of(public))

    def _holds(self, chain: bytes, public: bytes, now_s: float) -> bool:
        return admits(self._judge, chain, public, now_s, self._ledger.counting)

    def _expelled(self) -> list[bytes]:
        return [public for public in self._roster.members if not self.holds(public)]

    def saw(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a member was reached; written lazily. Raises ValueError if it is no PeerId."""
        self._roster.saw(peer_public(peer), addresses, self._wall())

    def saved_peers(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return members that still belong and where they were last reached, the newest first."""
        found: list[tuple[str, tuple[str, ...]]] = []
        for public, known in reversed(self._roster.members.items()):
            if known.addresses and self.holds(public):
                found.append((peer_id(public), known.addresses))
            if len(found) == SAVED_PEERS_MAX:
                break
        return found

    def flush_if_dirty(self) -> None:
        """Write what was learned of members since; called every few seconds and at the end.

        Raises:
            GridError: the directory cannot be used; it is tried again at the next call.
        """
        if self._roster.dirty:
            self._roster.write(self.grid)

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

    def recovering(self, text: str, passphrase: str) -> Joining:
        """Return the membership that a recovery file gives this node: all roles; `adopt` takes it up. Takes 70 ms.

        Raises:
            GridError: it is no recovery file, damaged, or its key was revoked; the passphrase is wrong.
        """
        try:
            held = recover_admin(text, passphrase)
            revoked = self._known_of(held.grid)
            chain = revoked.judge.promote(held.key, held.chain, self.public, ALL_ROLES, self.now_s(), revoked)
            return self._joining(held, chain)
        except Refused as refused:
            raise _bad_recovery(refused.reason) from None

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

    def _switch(self, grid: bytes, chain: bytes) -> None:
        # grid.json first: the other files name their grid, and are passed over if this is cut off here.
        write_membership(self._folder, grid, (chain,))
        self._roster.forget_all()
        self._ledger.forget_all()
        self._enter(grid, (chain,))

    def offered(self, chain: bytes) -> bool:
        """Keep a chain that was given to us; return whether what we show changed.

        Raises:
            Refused: it is nonsense, which is the peer's fault; one that was good once is just not taken.
            GridError: the directory cannot be used; nothing is changed.
        """
        before = self.certificate
        try:
            self._keep(chain)
        except Refused as refused:
            if refused.reason not in _NO_LONGER:
                raise
        return self.certificate != before

    def _keep(self, chain: bytes) -> None:
        now = self.now_s(lenient=True)
        kept = self._judge.keep(self._chains, chain, self.public, now, self._ledger.counting)
        if chain in kept and chain not in self._chains:
            write_membership(self._folder, self.grid, kept)
            self._chains = kept

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
            raise _refused_to_sign(refused.reason) from None

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
        text = write_invite(Membership(self.grid, tuple(addresses)[:ADDRESSES_MAX], voucher, signed))
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

        Raises:
            GridError: not-authorized, or the node was revoked.
        """
        with self._signing() as chain:
            if self._ledger.counting.names(public):
                raise NotAuthorized(
                    "that node was revoked", next="its machine may join again with a new key: p2pgrid invite"
                )
            now = self.now_s()
            signed = self._judge.promote(
                self._key, chain, public, roles | self.roles_of(public), now, self._ledger.counting
            )  # fmt: skip
        if public == self.public:
            self.offered(signed)
            return signed
        self._roster.gave(public, signed, self._wall())
        self._roster.write(self.grid)
        return signed

    def roles_of(self, public: bytes) -> int:
        """Return what a member may do by the best of its chains known here; 0 if none holds."""
        chains = self._chains if public == self.public else self._roster.chains_of(public)
        now = self.now_s(lenient=True)
        try:
            best = self._judge.best(chains, public, now, self._ledger.counting)
            return self._judge.check(best, public, now, self._ledger.counting)
        except Refused:
            return 0

    def pending_for(self, public: bytes) -> list[bytes]:
        """Return chains signed here for a member that it has not shown yet: to be offered when it connects."""
        known = self._roster.members.get(public)
        now = self.now_s(lenient=True)
        return [chain for chain in known.given if self._holds(chain, public, now)] if known else []

    # -- revocations

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
        before = [public for public in self._roster.members if self.holds(public)]
        let_in = [public for public in (*before, self.public) if self._comes_by(public, target)]
        with self._signing():
            said, notes = self._said(target, with_admitted=with_admitted)
        if said:
            self._ledger.write(said)
            self._ledger.hear(said)
        stay = {public for public in before if self.holds(public)} | {self.public}
        return Revoking(
            tuple(record.packed for record in said),
            target,
            tuple(public for public in let_in if public in stay and key_id(public) != key_id(target)),
            tuple(public for public in before if public not in stay and key_id(public) != key_id(target)),
            tuple(public for public in self._roster.members if public not in stay),
            tuple(notes),
        )

    def _comes_by(self, public: bytes, target: bytes) -> bool:
        chains = self._chains if public == self.public else self._roster.chains_of(public)
        return any(comes_by(chain, self.grid, target) for chain in chains)

    def _said(self, target: bytes, *, with_admitted: bool) -> tuple[list[Revocation], list[str]]:
        """Return what is to be said, and notes. Nothing is heard yet: all of it is tried on a copy."""
        trial = self._ledger.counting.copy()
        known = [*self._chains, *self._roster.all_chains()]
        said: list[Revocation] = []
        notes: list[str] = []
        member = self._roster.members.get(target)
        vouchers = {key_id(one): one for one in (*(member.vouchers if member else ()), *vouchers_of(known, target))}
        if trial.names(target) and with_admitted:
            notes.append("it was revoked before; what was kept then stays, unless it is revoked itself")
        for key in (target, *vouchers.values()):
            if trial.names(key):
                continue
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

    def heard(self, packed: Sequence[bytes]) -> Heard:
        """Take in revocations from a peer; on the disk when this returns.

        Raises:
            Refused: one is nonsense, or no admin of this grid ever signed it; none was taken in.
        """
        fresh = self._ledger.hear([self._ledger.read(one) for one in packed])
        if not fresh:
            return Heard([], [], lost=False)
        try:
            self._ledger.write()
        except GridError as error:
            if str(error) not in self.notes:
                self.notes.append(str(error))  # a full disk is no reason to let a thief in
        return Heard(fresh, self._expelled(), self.lost)

    def revocations(self) -> list[list[bytes]]:
        """Return every revocation heard, packed, in lots of which each fits a control frame."""
        return self._ledger.lots()

    def digest(self) -> bytes:
        """Return 32 bytes over every revocation heard, for comparison with a peer's."""
        return self._ledger.digest()

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
        held = Membership(self.grid, tuple(addresses)[:ADDRESSES_MAX], key, signed)
        text = export_admin(held, passphrase, os.urandom(SALT_LENGTH))
        self._roster.made(self._roster.exported, public, signed)
        self._roster.write(self.grid)
        return text, key_id(public).hex()

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


def _refused_to_sign(reason: Reason) -> GridError:
    if reason is Reason.CUTS_SENDER:
        return NotAuthorized(
            "this would cut this node itself off", next="leave out --with-admitted, or say it at another admin's node"
        )
    if reason is Reason.TOO_MANY:
        return QuotaExceeded(reason.sentence, next="cut off what it let in, too: p2pgrid revoke --with-admitted")
    if reason is Reason.LINKS:
        return NotAuthorized(
            "this node is too far from the grid's first to sign others",
            next="ask an admin nearer to it; this lists them: p2pgrid grid show",
        )
    return NotAuthorized(f"that cannot be signed: {reason.sentence}")


def _bad_recovery(reason: Reason) -> GridError:
    sentence = {
        Reason.NO_INVITE: "this is not a recovery file",
        Reason.TRUNCATED: "the recovery file is cut short",
        Reason.DAMAGED: "the recovery file is damaged: some character is wrong",
        Reason.NEWER: "the recovery file was made by a newer version of p2pgrid",
        Reason.PASSPHRASE: "the passphrase is wrong",
        Reason.REVOKED: "the key in the recovery file was revoked",
        Reason.FROM_REVOKED: "the recovery file comes from a key that was revoked",
    }.get(reason, f"the recovery file cannot be used: {reason.sentence}")
    advice = "use another one, or ask an admin for an invite: p2pgrid invite"
    if reason is Reason.PASSPHRASE:
        advice = "type it again, or name a file that holds it: --passphrase-file FILE"
    elif reason in {Reason.NO_INVITE, Reason.TRUNCATED, Reason.DAMAGED}:
        advice = "use the whole file that p2pgrid grid export wrote"
    return GridError(sentence, next=advice, code="usage")
