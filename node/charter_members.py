"""The members that this node has met: the chains they showed, what was signed for them here, where they were.

A revocation keeps what the revoked key let in only if it is listed, so a node remembers the chains of others as long as
it can: `members.msgpack`, written lazily, but at once when something was signed here.

Rule: bounded everywhere; whoever was seen longest ago goes first, but those whom no admin has signed yet before all
others: whoever holds an invite can make as many of them as he likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from p2pgrid.core.chains import CHAIN_BYTES_MAX, KEY_LENGTH, Refused, is_provisional, read_chain
from p2pgrid.core.errors import GridError
from p2pgrid.core.revocation import vouchers_of
from p2pgrid.node.charter_files import DamagedError, aside_of, read_kept, set_aside, write_kept

MEMBERS_FILE = "members.msgpack"
MEMBERS_MAX = 4096
CHAINS_MAX = 4
VOUCHERS_MAX = 8
ADDRESSES_MAX = 8
ADDRESS_LENGTH_MAX = 256
SIGNED_MAX = 256
"""Invites and exported keys that are remembered, of each."""


@dataclass(slots=True)
class Known:
    """What is remembered of one member.

    Attributes:
        chains: what it showed, the newest last.
        given: what was signed here for it and it has not shown yet.
        vouchers: targets that close the invites by which it came (`core.revocation.vouchers_of`); kept beside the
            chains, for a thief would show other chains until these are forgotten.
        addresses: where it was last reached.
        seen_s: unix seconds by this machine.
        is_final: an admin has signed it.
    """

    chains: list[bytes] = field(default_factory=list)
    given: list[bytes] = field(default_factory=list)
    vouchers: list[bytes] = field(default_factory=list)
    addresses: tuple[str, ...] = ()
    seen_s: int = 0
    is_final: bool = False


class Roster:
    """Members by public key, the one seen last at the end; and the chains of the keys made here, by public key.

    Attributes:
        is_damaged: the file was, now or at an earlier start: there may be members that nobody here knows of.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEMBERS_FILE
        self.members: dict[bytes, Known] = {}
        self.invites: dict[bytes, bytes] = {}
        self.exported: dict[bytes, bytes] = {}
        self.dirty = False
        self.is_damaged = False
        self._writing = Lock()
        self._made = self._written = 0
        """How often what is known was gathered to be written, and which of these is on the disk."""

    def load(self, grid: bytes) -> list[str]:
        """Take in what was kept; return what is to be told about it."""
        try:
            kept = read_kept(self._path, grid)
            members = [_member(row) for row in _list(kept, "members")]
            invites, exported = (
                {read_chain(_chain(one))[-1].subject: one for one in _list(kept, name)[-SIGNED_MAX:]}
                for name in ("invites", "exported")
            )
        except DamagedError as error:
            self.is_damaged = True
            return [set_aside(self._path, error)]
        self.is_damaged = aside_of(self._path).exists()
        self.members = dict(members[-MEMBERS_MAX:])
        self.invites, self.exported = invites, exported
        return []

    def write(self, grid: bytes) -> None:
        """Write all of it. Raises GridError: the directory cannot be used."""
        self.unwritten(grid)()

    def unwritten(self, grid: bytes) -> Callable[[], None]:
        """Return what writes all of it as it is now. It may be called in any thread; raises GridError as `write`.

        Of several that are called at once, in whatever order, the one made last is what stays on the disk.
        """
        members = [
            [public, known.seen_s, list(known.chains), list(known.given), list(known.vouchers), list(known.addresses)]
            for public, known in self.members.items()
        ]
        invites, exported = list(self.invites.values()), list(self.exported.values())
        self._made += 1
        number, self.dirty = self._made, False

        def write() -> None:
            with self._writing:
                if number < self._written:
                    return
                try:
                    write_kept(self._path, grid, members=members, invites=invites, exported=exported)
                except GridError:
                    self.dirty = True
                    raise
                self._written = number

        return write

    def forget_all(self) -> None:
        """Forget everything, on the disk too: this node went to another grid."""
        self.members, self.invites, self.exported, self.dirty, self.is_damaged = {}, {}, {}, False, False
        with self._writing:
            self._made += 1
            self._written = self._made  # what was gathered before is not written any more
            for path in (self._path, aside_of(self._path)):
                with suppress(OSError):  # it names its grid, and is passed over in another
                    path.unlink()

    def made(self, kind: dict[bytes, bytes], public: bytes, chain: bytes) -> None:
        """Remember an invite or an exported key; `kind` is one of the two dicts."""
        kind[public] = chain
        if len(kind) > SIGNED_MAX:
            del kind[next(iter(kind))]
        self.dirty = True

    # -- taking in

    def meet(self, public: bytes, now_s: float) -> Known:
        """Return what is known of a member that is here now; it is the last to be forgotten."""
        known = self.members.pop(public, None) or Known()
        known.seen_s = max(0, int(now_s))
        self.members[public] = known
        if len(self.members) > MEMBERS_MAX:
            others = (one for one, each in self.members.items() if not each.is_final and one != public)
            del self.members[next(others, next(iter(self.members)))]
        return known

    def shown(self, public: bytes, chain: bytes, now_s: float) -> None:
        """Remember the chain that a member showed; it is good."""
        known = self.meet(public, now_s)
        if chain in known.given:
            known.given.remove(chain)
            self.dirty = True
        if known.chains and known.chains[-1] == chain:
            return
        # Where there is an admin's word, that of a voucher is needed no more.
        final = not is_provisional(read_chain(chain))
        known.is_final = known.is_final or final
        kept = [old for old in known.chains if old != chain and not (final and is_provisional(read_chain(old)))]
        known.chains = [*kept, chain][-CHAINS_MAX:]
        for voucher in vouchers_of([chain], public):
            if voucher not in known.vouchers and len(known.vouchers) < VOUCHERS_MAX:
                known.vouchers.append(voucher)
        self.dirty = True

    def gave(self, public: bytes, chain: bytes, now_s: float) -> None:
        """Remember what was signed here for a node."""
        known = self.meet(public, now_s)
        known.given = [*(old for old in known.given if old != chain), chain][-CHAINS_MAX:]
        known.is_final = True
        self.dirty = True

    def saw(self, public: bytes, addresses: Sequence[str], now_s: float) -> None:
        """Remember where a member is said to be; one that was never met is hearsay, and would push others out."""
        if public not in self.members:
            return
        known = self.meet(public, now_s)
        had = known.addresses
        known.addresses = tuple(one for one in addresses if 0 < len(one) <= ADDRESS_LENGTH_MAX)[:ADDRESSES_MAX]
        self.dirty = self.dirty or known.addresses != had

    # -- looking up

    def chains_of(self, public: bytes) -> list[bytes]:
        """Return the chains known of a member, the last one shown first."""
        known = self.members.get(public)
        return [*reversed(known.chains), *reversed(known.given)] if known else []

    def all_chains(self) -> Iterator[bytes]:
        """Yield every chain known here but our own."""
        for known in self.members.values():
            yield from known.chains
            yield from known.given
        yield from self.invites.values()
        yield from self.exported.values()

    def revocable(self) -> Iterator[bytes]:
        """Yield every key known here that can be revoked; of a voucher perhaps only what names it (`named_by_id`)."""
        yield from self.members
        yield from self.invites
        yield from self.exported
        for known in self.members.values():
            yield from known.vouchers


def _list(kept: dict[str, Any], name: str) -> list[Any]:
    value = kept.get(name, [])
    if not isinstance(value, list):
        raise DamagedError(f"{name} are no list")
    return value


def _chain(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) > CHAIN_BYTES_MAX:
        raise DamagedError("a chain is none")
    try:
        read_chain(value)
    except Refused as refused:
        raise DamagedError(refused.reason.sentence) from refused
    return value


def _member(row: object) -> tuple[bytes, Known]:
    match row:
        case [bytes(public), int(seen), list(chains), list(given), list(vouchers), list(addresses)] if (
            len(public) == KEY_LENGTH
            and max(len(chains), len(given)) <= CHAINS_MAX
            and len(vouchers) <= VOUCHERS_MAX
            and len(addresses) <= ADDRESSES_MAX
        ):
            pass
        case _:
            raise DamagedError("a member is none")
    if not all(isinstance(one, str) for one in addresses):
        raise DamagedError("an address is none")
    if not all(isinstance(one, bytes) and len(one) == KEY_LENGTH for one in vouchers):
        raise DamagedError("a key is none")
    shown, signed = ([_chain(one) for one in some] for some in (chains, given))
    is_final = any(not is_provisional(read_chain(one)) for one in (*shown, *signed))
    return public, Known(shown, signed, vouchers, tuple(addresses), seen, is_final)
