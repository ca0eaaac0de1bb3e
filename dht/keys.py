"""Keys: 256 bits, where a peer or a record lives; two are as far apart as their XOR (Kademlia §2.1).

As in libp2p a key is the sha256 of a *name*: of a binary PeerId, or of the bytes that a record is stored under. Whoever
asks sends the name, so that the one who answers hashes it himself.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import NewType

Key = NewType("Key", int)
"""Its distance to another is `a ^ b`."""

KEY_BITS = 256
PEER_ID_MAX = 64
PREFIX_MAX = 12
"""Names with a longer given prefix take too long to find (2 ** 13 hashes: 8 ms); a walk to ourselves covers those."""

_ED25519_ID = b"\x00\x24\x08\x01\x12\x20"
_SHA256_ID = b"\x12\x20"
_DIGEST = 32


@lru_cache(maxsize=65_536)
def key_of(name: bytes) -> Key:
    """Return where that name lives."""
    return Key(int.from_bytes(sha256(name).digest(), "big"))


def shared_bits(a: Key, b: Key) -> int:
    """Return the length of the common prefix: 256 for equal keys, 0 if already the first bit differs."""
    return KEY_BITS - (a ^ b).bit_length()


def peer_id_of(public: bytes) -> bytes:
    """Return the binary PeerId of an Ed25519 key."""
    return _ED25519_ID + public


def public_of(peer: bytes) -> bytes | None:
    """Return the Ed25519 key inside a PeerId, or None if it is another kind of id."""
    public = peer.removeprefix(_ED25519_ID)
    return public if len(public) == _DIGEST < len(peer) else None


def is_peer_id(name: bytes) -> bool:
    """Whether these bytes are a multihash that PeerIds are made of: identity, or sha256."""
    if not _DIGEST + 2 <= len(name) <= PEER_ID_MAX:
        return False
    return (name[0] == 0 and name[1] == len(name) - 2) or (name.startswith(_SHA256_ID) and len(name) == _DIGEST + 2)


def name_near(me: Key, shared: int, rng: random.Random) -> bytes:
    """Draw a name, in the form of a PeerId, whose key shares exactly that many bits with ours (or almost).

    There is no way back from a key to a name, so it is tried: 2 ** (shared + 1) hashes on average, and bounded.
    """
    name = b""
    for _ in range(2 ** (min(shared, PREFIX_MAX) + 5)):
        name = _SHA256_ID + rng.randbytes(_DIGEST)
        if shared_bits(Key(int.from_bytes(sha256(name).digest(), "big")), me) == shared:
            break
    return name


class Nearest:
    """Names by key, sorted, so that the n nearest to any key are found without looking at the rest.

    Keys with a common prefix are neighbours in the list: the range is halved bit by bit towards the target until a half
    would hold fewer than n; what is left (2n on average) is sorted by distance.
    """

    __slots__ = ("_keys",)

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._keys: list[tuple[Key, bytes]] = sorted((key_of(name), name) for name in set(names))

    def __len__(self) -> int:
        return len(self._keys)

    def _at(self, name: bytes) -> tuple[int, bool]:
        at = bisect_left(self._keys, (key_of(name), name))
        return at, at < len(self._keys) and self._keys[at][1] == name

    def __contains__(self, name: bytes) -> bool:
        return self._at(name)[1]

    def add(self, name: bytes) -> None:
        if name not in self:
            insort(self._keys, (key_of(name), name))

    def remove(self, name: bytes) -> None:
        at, found = self._at(name)
        if found:
            del self._keys[at]

    def closest(self, target: Key, n: int) -> list[bytes]:
        """Return at most n names, nearest first."""
        keys, lo, hi, start = self._keys, 0, len(self._keys), 0
        for bit in range(KEY_BITS - 1, -1, -1):
            if hi - lo <= n:
                break
            middle = start | 1 << bit
            cut = bisect_left(keys, (Key(middle), b""), lo, hi)
            right = bool(target >> bit & 1)
            if (hi - cut if right else cut - lo) < n:
                break
            lo, hi, start = (cut, hi, middle) if right else (lo, cut, start)
        return [name for _, name in sorted(keys[lo:hi], key=lambda each: each[0] ^ target)[:n]]
