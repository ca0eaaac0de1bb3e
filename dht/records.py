r"""What a node keeps for others: values and providers. Every one is checked, bounded, counted to a member, and expires.

A value's key is `/namespace/…`; the namespace says how values are checked and which of two is better (libp2p's Validate
and Select). The grid's own, `/p2pgrid/…`, holds values that a member signed:

    value = msgpack [written, payload, public key, signature]        written: grid time in milliseconds
    signature = Ed25519 of "p2pgrid value 1\0" + grid's public key + msgpack [key, written, payload]

The later one wins. `/p2pgrid/own/HEX-OF-A-PUBLIC-KEY/…` is writable by that member alone; under other keys any member
may write, and since `written` can be no more than the skew ahead, nobody outbids the others for ever.

Rule: what is refused raises `NotStored`, and nothing of it stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack
from p2pgrid.dht.keys import peer_id_of
from p2pgrid.dht.wire import NAME_MAX, Contact, Record

GRID_NAMESPACE = "p2pgrid"
VALUE_WORD = b"p2pgrid value 1\0"
KEY_LENGTH = 32
SIGNATURE_LENGTH = 64
MILLISECONDS_MAX = 2**53
ENVELOPE_MAX = 128
"""What msgpack, key and signature add to a payload."""


class Reason(StrEnum):
    """Why something was not stored; what the counters count."""

    MALFORMED = "malformed"
    NAMESPACE = "unknown namespace"
    SIGNATURE = "bad signature"
    STRANGER = "from no member"
    NOT_OWNER = "another member's key"
    EXPIRED = "expired"
    FUTURE = "from the future"
    OLDER = "older than what is here"
    TOO_LARGE = "too large"
    TOO_MANY = "too many from one member"
    FULL = "full"
    NOT_SENDER = "provider is not the sender"


class NotStored(PeerError):
    """A record was refused."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"a DHT record was refused: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Lives and intervals of ALGORITHMS §1.7: minutes, for nodes come and go; limits are per node that stores."""

    value_life_s: float = 900.0
    value_renew_s: float = 300.0
    provider_life_s: float = 1800.0
    provider_renew_s: float = 600.0
    skew_s: float = 300.0
    """How wrong the clock of a writer may be."""
    value_max: int = 8 * 1024
    values_max: int = 16_384
    bytes_max: int = 64 * 1024 * 1024
    member_values_max: int = 1024
    member_bytes_max: int = 1024 * 1024
    providers_max: int = 65_536
    member_providers_max: int = 4096
    key_providers_max: int = 64
    answer_providers_max: int = 20
    addresses_max: int = 8


class Checked(NamedTuple):
    """A value that is in order."""

    payload: bytes
    rank: tuple[int, bytes]
    """The larger, the better."""
    author: bytes | None
    """PeerId of the member it counts to, if the value says it; else whoever sent it."""
    until_s: float | None
    """Grid time at which it ends; None: as long as any value is kept."""


class Namespace(Protocol):
    """How the values of one namespace are made and judged; the same value is judged the same everywhere."""

    def seal(self, key: bytes, payload: bytes, unix_s: float) -> bytes:
        """Return the value that carries this payload."""

    def check(self, key: bytes, value: bytes, unix_s: float) -> Checked:
        """Judge a value. Raises NotStored."""


class Open:
    """Anything goes, and what came last is best: for conformance with other libp2ps, for no grid."""

    def seal(self, key: bytes, payload: bytes, unix_s: float) -> bytes:
        return payload

    def check(self, key: bytes, value: bytes, unix_s: float) -> Checked:
        return Checked(value, (0, b""), None, None)


class Signed:
    """Values that members signed, in the form of this page's head."""

    def __init__(
        self,
        grid: bytes,
        belongs: Callable[[bytes], bool],
        key: Ed25519PrivateKey | None = None,
        options: RecordOptions | None = None,
    ) -> None:
        """Judge for a grid, by its public key; `belongs` says whether a public key is a member's; `key` seals."""
        self._grid = grid
        self._belongs = belongs
        self._key = key
        self._options = options or RecordOptions()

    def _body(self, key: bytes, written: int, payload: bytes) -> bytes:
        return VALUE_WORD + self._grid + pack([key, written, payload])

    def seal(self, key: bytes, payload: bytes, unix_s: float) -> bytes:
        assert self._key is not None, "only a member seals"
        written = int(unix_s * 1000)
        public = self._key.public_key().public_bytes_raw()
        return pack([written, payload, public, self._key.sign(self._body(key, written, payload))])

    def check(self, key: bytes, value: bytes, unix_s: float) -> Checked:
        """Judge a value, cheap things first. Raises NotStored."""
        written, payload, public, signature = _parts(value)
        if not may_write(key, public):
            raise NotStored(Reason.NOT_OWNER)
        until_s = written / 1000 + self._options.value_life_s + self._options.skew_s
        if unix_s > until_s:
            raise NotStored(Reason.EXPIRED)
        if written / 1000 > unix_s + self._options.skew_s:
            raise NotStored(Reason.FUTURE)
        if not self._belongs(public):
            raise NotStored(Reason.STRANGER)
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, self._body(key, written, payload))
        except (InvalidSignature, ValueError) as error:
            raise NotStored(Reason.SIGNATURE) from error
        return Checked(payload, (written, value), peer_id_of(public), until_s)


def _parts(value: bytes) -> tuple[int, bytes, bytes, bytes]:
    try:
        parts = unpack(value, limit=len(value))
    except PeerError as error:
        raise NotStored(Reason.MALFORMED) from error
    match parts:
        case [int(written), bytes(payload), bytes(public), bytes(signature)]:
            if (
                0 <= written < MILLISECONDS_MAX
                and len(public) == KEY_LENGTH
                and len(signature) == SIGNATURE_LENGTH
                and pack(parts) == value  # one encoding, so that one statement is one value
            ):
                return written, payload, public, signature
    raise NotStored(Reason.MALFORMED)


def own_key(public: bytes, name: str) -> bytes:
    """Return a key that only this member may write."""
    return f"/{GRID_NAMESPACE}/own/{public.hex()}/{name}".encode()


def may_write(key: bytes, public: bytes) -> bool:
    parts = key.split(b"/", 4)
    return parts[2:3] != [b"own"] or parts[3:4] == [public.hex().encode()]


def namespace_of(key: bytes) -> str:
    """Return `ns` of `/ns/…`; "" for a key in another form."""
    parts = key.split(b"/", 2)
    return parts[1].decode("ascii", "replace") if len(parts) == 3 and not parts[0] else ""  # noqa: PLR2004 - "", ns, rest


class _Kept(NamedTuple):
    value: bytes
    rank: tuple[int, bytes]
    member: bytes
    received_unix_s: float
    expires_s: float


class Values:
    """Values kept for others, and for ourselves where we are among the nearest."""

    def __init__(self, namespaces: Mapping[str, Namespace], options: RecordOptions | None = None) -> None:
        """Keep what these namespaces allow; "" stands for keys that are in none of them."""
        self.options = options or RecordOptions()
        self._namespaces = dict(namespaces)
        self._kept: dict[bytes, _Kept] = {}
        self._count: Counter[bytes] = Counter()
        self._bytes: Counter[bytes] = Counter()
        self._bytes_all = 0

    def __len__(self) -> int:
        return len(self._kept)

    def _namespace(self, key: bytes) -> Namespace:
        found = self._namespaces.get(namespace_of(key)) or self._namespaces.get("")
        if found is None:
            raise NotStored(Reason.NAMESPACE)
        return found

    def seal(self, key: bytes, payload: bytes, unix_s: float) -> bytes:
        """Return the value that carries this payload under that key. Raises NotStored: too large, or no namespace."""
        self._fits(key, payload)
        value = self._namespace(key).seal(key, payload, unix_s)
        self._fits(key, value)
        return value

    def _fits(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= NAME_MAX or not value:
            raise NotStored(Reason.MALFORMED)
        if len(value) > self.options.value_max:
            raise NotStored(Reason.TOO_LARGE)

    def check(self, key: bytes, value: bytes, unix_s: float) -> Checked:
        """Judge a value, ours or another's. Raises NotStored."""
        self._fits(key, value)
        return self._namespace(key).check(key, value, unix_s)

    def put(self, record: Record, sender: bytes, now: float, unix_s: float) -> None:
        """Keep a value. Raises NotStored; the same again is no error and lives no longer than its signature."""
        checked = self.check(record.key, record.value, unix_s)
        old = self._kept.get(record.key)
        if old is not None and old.expires_s <= now:
            self._drop(record.key)
            old = None
        if old is not None and checked.rank < old.rank:
            raise NotStored(Reason.OLDER)
        member = checked.author or sender
        self._need_room(member, len(record.value), old)
        life_s = self.options.value_life_s
        if checked.until_s is not None:
            life_s = min(life_s, checked.until_s - unix_s)
        self._drop(record.key)
        self._kept[record.key] = _Kept(record.value, checked.rank, member, unix_s, now + life_s)
        self._count[member] += 1
        self._bytes[member] += len(record.value)
        self._bytes_all += len(record.value)

    def _need_room(self, member: bytes, size: int, old: _Kept | None) -> None:
        mine = old is not None and old.member == member
        gone, gone_bytes = (1, len(old.value)) if old is not None else (0, 0)
        if (
            self._count[member] - gone * mine >= self.options.member_values_max
            or self._bytes[member] - gone_bytes * mine + size > self.options.member_bytes_max
        ):
            raise NotStored(Reason.TOO_MANY)
        total = self._bytes_all - gone_bytes + size
        if len(self._kept) - gone >= self.options.values_max or total > self.options.bytes_max:
            raise NotStored(Reason.FULL)

    def _drop(self, key: bytes) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._bytes_all -= len(old.value)
            for counter, less in ((self._count, 1), (self._bytes, len(old.value))):
                counter[old.member] -= less
                if not counter[old.member]:
                    del counter[old.member]

    def get(self, key: bytes, now: float) -> tuple[bytes, float] | None:
        """Return the value, and when it was received (unix seconds)."""
        kept = self._kept.get(key)
        return None if kept is None or kept.expires_s <= now else (kept.value, kept.received_unix_s)

    def expire(self, now: float) -> None:
        for key in [key for key, kept in self._kept.items() if kept.expires_s <= now]:
            self._drop(key)


class Providers:
    """Who said that it has what: a peer speaks for itself alone, so the connection is signature enough."""

    def __init__(self, options: RecordOptions | None = None) -> None:
        self.options = options or RecordOptions()
        self._kept: dict[bytes, dict[bytes, tuple[Contact, float]]] = {}
        self._count: Counter[bytes] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: bytes, provider: Contact, now: float) -> None:
        """Note that a peer provides; the latest word counts. Raises NotStored."""
        if not 0 < len(key) <= NAME_MAX:
            raise NotStored(Reason.MALFORMED)
        known = self._kept.get(key, {})
        if provider.id not in known:
            if self._count[provider.id] >= self.options.member_providers_max:
                raise NotStored(Reason.TOO_MANY)
            if len(known) >= self.options.key_providers_max or len(self) >= self.options.providers_max:
                raise NotStored(Reason.FULL)
            self._count[provider.id] += 1
            self._size += 1
        known.pop(provider.id, None)
        contact = provider._replace(addresses=provider.addresses[: self.options.addresses_max])
        known[provider.id] = (contact, now + self.options.provider_life_s)
        self._kept[key] = known

    def get(self, key: bytes, now: float) -> list[Contact]:
        """Return those heard of last, at most as many as fit into an answer."""
        fresh = [contact for contact, expires_s in self._kept.get(key, {}).values() if expires_s > now]
        return fresh[: -self.options.answer_providers_max - 1 : -1]

    def remove(self, key: bytes, peer: bytes) -> None:
        known = self._kept.get(key, {})
        if known.pop(peer, None) is not None:
            self._size -= 1
            self._count[peer] -= 1
            if not self._count[peer]:
                del self._count[peer]
        if not known:
            self._kept.pop(key, None)

    def expire(self, now: float) -> None:
        over = [(k, p) for k, known in self._kept.items() for p, (_, expires_s) in known.items() if expires_s <= now]
        for key, peer in over:
            self.remove(key, peer)
