"""Where a node stands: its chains, whom it admits and which revocations it heard (DESIGN §3).

Dates are judged by grid time. Before it is known there are two ways to doubt our own clock (`judging_time`): the
lenient one for what we show and are given, so that a machine that woke up in 2040 does not take its own membership for
ended; the strict one for whom we let in as a listener and for all that we sign, so that one that woke up in 1970 does
not make a member of whoever holds an old invite.

Rule: plain synchronous code; whoever is expelled by one call is refused by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.core.chains import (
    TIME_MAX_S,
    Reason,
    Refused,
    is_provisional,
    key_id,
    newest_signed_at,
    read_chain,
    refuse,
)
from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import grid_name
from p2pgrid.core.trust import Judge, judging_time
from p2pgrid.node.charter_members import Roster
from p2pgrid.node.charter_revocations import Ledger
from p2pgrid.node.charter_shown import admits, touched
from p2pgrid.node.identity import Identity, peer_id, peer_public, write_membership

SAVED_PEERS_MAX = 200
_NO_LONGER = frozenset({Reason.ENDED, Reason.EXPIRED, Reason.REVOKED, Reason.FROM_REVOKED})
"""Reasons for which a statement that was good once does not hold: nobody's fault."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A member that was let in.

    Attributes:
        id: its PeerId.
        chain: what it showed; roles and `provisional` may be by a better one that is known here.
        provisional: no admin has signed it yet.
    """

    public: bytes
    id: str
    roles: int
    chain: bytes
    provisional: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What followed from revocations: which to pass on, whose connections must end, whether we are out ourselves."""

    fresh: list[bytes]
    expelled: list[bytes]
    lost: bool


class Standing:
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

    def _switch(self, grid: bytes, chain: bytes) -> None:
        # grid.json first: the other files name their grid, and are passed over if this is cut off here.
        write_membership(self._folder, grid, (chain,))
        self._roster.forget_all()
        self._ledger.forget_all()
        self._enter(grid, (chain,))

    def need_disk(self) -> None:
        """Write our membership as it is: before something is begun that a full disk would leave half done.

        Raises:
            GridError: the directory cannot be used.
        """
        write_membership(self._folder, self.grid, self._chains)

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

    def roles_of(self, public: bytes) -> int:
        """Return what a member may do by the best of its chains known here; 0 if none holds."""
        return self._membership_of(public)[0]

    def _membership_of(self, public: bytes) -> tuple[int, int]:
        """Return roles and end (unix seconds, 0 is never) by the best of the chains known here."""
        chains = self._chains if public == self.public else self._roster.chains_of(public)
        now = self.now_s(lenient=True)
        try:
            best = self._judge.best(chains, public, now, self._ledger.counting)
            roles = self._judge.check(best, public, now, self._ledger.counting)
        except Refused:
            return 0, 0
        *_, last = (link for link in read_chain(best) if link.kind != "j")
        return roles, last.until

    @property
    def provisional(self) -> bool:
        """Whether no admin has signed us yet."""
        return is_provisional(read_chain(self.certificate))

    @property
    def alone(self) -> bool:
        """Whether this is a grid of one: we founded it and never met anybody."""
        return len(read_chain(self.certificate)) == 1 and not self._roster.members and not self._roster.is_damaged

    @property
    def lost(self) -> bool:
        """Whether we were revoked; a membership that has ended is not lost."""
        return not any(self._holds(chain, self.public, 0) for chain in self._chains)

    def offered(self, chain: bytes) -> bool:
        """Keep a chain that was given to us; return whether what we show changed.

        Raises:
            Refused: it is nonsense, which is the peer's fault; one that was good once is just not taken.
            GridError: the directory cannot be used; nothing is changed.
        """
        before = self.certificate
        _need_bytes(chain)
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

    # -- others

    def admit(self, certificate: bytes, public: bytes, *, dialler: bool) -> Admitted:
        """Return the member with this key, proved by the connection, or refuse it. `dialler`: we called.

        Raises:
            Refused: and why.
        """
        now = self.now_s(lenient=dialler)
        good = certificate
        try:
            roles = self._judge.check(good, public, now, self._ledger.counting)
            if public != self.public:
                self._roster.shown(public, good, self._wall())
        except Refused as refused:
            good = self._better(public, now, refused.reason)
            roles = self._judge.check(good, public, now, self._ledger.counting)
        return Admitted(public, peer_id(public), roles, certificate, is_provisional(read_chain(good)))

    def _better(self, public: bytes, now_s: float, reason: Reason) -> bytes:
        """Return a chain that a member does not show, and that holds; it is offered to it (`pending_for`).

        So a joiner whose invite ended before it heard of the link signed for it is a member all the same.

        Raises:
            Refused: there is none; the given reason.
        """
        if self._ledger.counting.names(public):
            refuse(Reason.REVOKED)  # and not that an invite by which it came was closed with it
        for chain in self._roster.chains_of(public) if reason in _NO_LONGER else []:
            if self._holds(chain, public, now_s):
                self._roster.gave(public, chain, self._wall())
                return chain
        raise Refused(reason)

    def shown(self, public: bytes, chain: bytes) -> Admitted:
        """Return what a connected member is by the chain that it shows from now on.

        Raises:
            Refused: it does not hold.
        """
        _need_bytes(chain)
        return self.admit(chain, public, dialler=True)

    def vouches(self, public: bytes, chain: bytes) -> bool:
        """Return whether this is a member by a chain that others pass on, or by one known here; it is remembered."""
        if public == self.public or not self._holds(chain, public, self.now_s(lenient=True)):
            return public == self.public or self.holds(public)
        self._roster.shown(public, chain, self._wall())
        return True

    def holds(self, public: bytes) -> bool:
        """Return whether a connected member still belongs here: asked after a revocation, and once time is known."""
        now = self.now_s(lenient=True)
        return any(self._holds(chain, public, now) for chain in self._roster.chains_of(public))

    def _holds(self, chain: bytes, public: bytes, now_s: float) -> bool:
        return admits(self._judge, chain, public, now_s, self._ledger.counting)

    def _touching(self, keys: set[bytes]) -> list[bytes]:
        """Return the members that a change in the standing of keys (ids) can concern; the grid's concerns all."""
        if key_id(self.grid) in keys:
            return list(self._roster.members)
        return [
            public
            for public in self._roster.members
            if any(not keys.isdisjoint(touched(chain)) for chain in self._roster.chains_of(public))
        ]

    def pending_for(self, public: bytes) -> list[bytes]:
        """Return chains signed here for a member that it has not shown yet: to be offered when it connects."""
        known = self._roster.members.get(public)
        now = self.now_s(lenient=True)
        return [chain for chain in known.given if self._holds(chain, public, now)] if known else []

    def saw(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a member that was met is to be reached; written lazily. Raises ValueError: no PeerId."""
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
        if (write := self.unwritten()) is not None:
            write()

    def unwritten(self) -> Callable[[], None] | None:
        """Return what does the same in another thread, if there is anything to write: it waits for the disk."""
        return self._roster.unwritten(self.grid) if self._roster.dirty else None

    # -- revocations

    def heard(self, packed: Sequence[bytes]) -> Heard:
        """Take in revocations from a peer; on the disk when this returns.

        Raises:
            Refused: one is nonsense, or no admin of this grid ever signed it; none was taken in.
        """
        records = [self._ledger.read(one) for one in packed]
        before = {record.id: record for record in self._ledger.counting.records()}
        fresh = self._ledger.hear(records)
        if not fresh:
            return Heard([], [], lost=False)
        try:
            self._ledger.write()
        except GridError as error:
            if str(error) not in self.notes:
                self.notes.append(str(error))  # a full disk is no reason to let a thief in
        after = {record.id: record for record in self._ledger.counting.records()}
        # One that counts no more matters as well: what it listed does not hold any longer.
        changed = {key_id((before | after)[one].target) for one in before.keys() ^ after.keys()}
        expelled = [public for public in self._touching(changed) if not self.holds(public)]
        return Heard(fresh, expelled, self.lost)

    def revocations(self) -> list[list[bytes]]:
        """Return every revocation heard, packed, in lots of which each fits a control frame."""
        return self._ledger.lots()

    def digest(self) -> bytes:
        """Return 32 bytes over every revocation heard, for comparison with a peer's."""
        return self._ledger.digest()


def _need_bytes(chain: object) -> None:
    """Refuse what a peer may have put into a frame instead of a chain."""
    if not isinstance(chain, bytes):
        refuse(Reason.MALFORMED)
