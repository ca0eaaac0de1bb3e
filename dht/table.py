"""The routing table: for every length of prefix shared with us a bucket of at most k peers (Kademlia §2.2 to §2.4).

* A peer enters after it answered a question of ours; what others say of it, or what it asks, is no reason.
* Who is in stays: the longer a peer has been there, the longer it will be (ALGORITHMS §1.1). A newcomer to a full
  bucket waits in the replacement cache; the peer not heard of for longest is checked, and gives way only if it does not
  answer.
* A peer that did not answer twice is stale: nobody is sent to it. It goes when another can take its place, and not
  before: a node whose own network was down shall find its table again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.dht.keys import PREFIX_MAX, Key, Nearest, key_of, shared_bits
from p2pgrid.dht.wire import Contact


@dataclass(frozen=True, slots=True)
class TableOptions:
    k: int = 20
    """Peers in a bucket."""
    spare: int = 20
    """Newcomers that wait for a place in one."""
    misses: int = 2
    """Questions in a row left without answer that make a peer stale; one proves little when patience is short."""
    quiet_s: float = 300.0
    """A peer heard of within this is not checked when a newcomer wants its place."""
    refresh_s: float = 300.0
    """A bucket in which nothing was looked up for so long is refreshed."""


@dataclass(slots=True)
class Entry:
    contact: Contact
    since_s: float
    seen_s: float
    misses: int = 0


@dataclass(slots=True)
class Bucket:
    looked_s: float
    peers: dict[bytes, Entry] = field(default_factory=dict)
    """The one heard of last is last."""
    waiting: dict[bytes, Entry] = field(default_factory=dict)
    """The replacement cache, in the same order."""


class Table:
    """Peers that answered us, by how much of our key they share."""

    def __init__(self, me: bytes, options: TableOptions | None = None) -> None:
        self.me = me
        self.options = options or TableOptions()
        self._key = key_of(me)
        self._buckets: dict[int, Bucket] = {}
        self._fresh = Nearest()

    def __len__(self) -> int:
        return sum(len(bucket.peers) for bucket in self._buckets.values())

    def _bucket(self, peer: bytes, now: float) -> Bucket:
        return self._buckets.setdefault(shared_bits(self._key, key_of(peer)), Bucket(now))

    def entry(self, peer: bytes) -> Entry | None:
        """Return what is known of a peer of the table."""
        bucket = self._buckets.get(shared_bits(self._key, key_of(peer)))
        return None if bucket is None else bucket.peers.get(peer)

    def _is_stale(self, entry: Entry) -> bool:
        return entry.misses >= self.options.misses

    # ---- who is in ---------------------------------------------------------------------------------------------------

    def answered(self, contact: Contact, now: float) -> Contact | None:
        """Take in a peer that answered. Returns whom to check before this one can have a place, if anybody."""
        peer = contact.id
        if peer == self.me:
            return None
        bucket = self._bucket(peer, now)
        room = bucket.peers if peer in bucket.peers or len(bucket.peers) < self.options.k else bucket.waiting
        entry = bucket.peers.pop(peer, None) or bucket.waiting.pop(peer, None) or Entry(contact, now, now)
        entry.contact = contact if contact.addresses else entry.contact
        entry.seen_s, entry.misses = now, 0
        room[peer] = entry  # at the end: heard of last
        if room is bucket.peers:
            self._fresh.add(peer)
            return None
        if len(bucket.waiting) > self.options.spare:
            del bucket.waiting[next(iter(bucket.waiting))]
        self._replace(bucket)
        oldest = next(iter(bucket.peers.values()))
        quiet = oldest.seen_s + self.options.quiet_s <= now
        return oldest.contact if bucket.waiting and quiet else None

    def missed(self, peer: bytes) -> None:
        """Note that a peer did not answer."""
        bucket = self._buckets.get(shared_bits(self._key, key_of(peer)))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        entry = bucket.peers.get(peer)
        if entry is not None:
            entry.misses += 1
            if self._is_stale(entry):
                self._fresh.remove(peer)
                self._replace(bucket)

    def remove(self, peer: bytes) -> None:
        """Forget a peer that is known to be gone."""
        bucket = self._buckets.get(shared_bits(self._key, key_of(peer)))
        if bucket is not None:
            bucket.waiting.pop(peer, None)
            if bucket.peers.pop(peer, None) is not None:
                self._fresh.remove(peer)
                self._fill(bucket)

    def _replace(self, bucket: Bucket) -> None:
        """Let those that wait have the places of stale peers, the stalest first."""
        stale = sorted((e for e in bucket.peers.values() if self._is_stale(e)), key=lambda e: (-e.misses, e.seen_s))
        for entry in stale[: len(bucket.waiting)]:
            del bucket.peers[entry.contact.id]
            self._fill(bucket)

    def _fill(self, bucket: Bucket) -> None:
        if bucket.waiting:
            peer, entry = bucket.waiting.popitem()  # the one heard of last is the likeliest to be there
            bucket.peers[peer] = entry
            self._fresh.add(peer)

    def wants(self, peer: bytes) -> bool:
        """Whether a peer that is not in the table would get a place if it answered."""
        bucket = self._buckets.get(shared_bits(self._key, key_of(peer)))
        if peer == self.me or (bucket is not None and peer in bucket.peers):
            return False
        return bucket is None or len(bucket.peers) < self.options.k or any(map(self._is_stale, bucket.peers.values()))

    def closest(self, target: Key, n: int) -> list[Contact]:
        """Return at most n peers, nearest first; stale ones only if all are, for then it is likely ourselves."""
        names = self._fresh if len(self._fresh) else Nearest(p for b in self._buckets.values() for p in b.peers)
        found = [self.entry(peer) for peer in names.closest(target, n)]
        return [entry.contact for entry in found if entry is not None]

    # ---- refresh -----------------------------------------------------------------------------------------------------

    def looked(self, target: Key, now: float) -> None:
        """Note that a lookup went to that key: its bucket needs no refresh for a while."""
        bucket = self._buckets.get(shared_bits(self._key, target))
        if bucket is not None:
            bucket.looked_s = now

    def idle(self, now: float) -> list[int]:
        """Return the prefixes in which something should be looked up.

        Also those between the furthest and the deepest bucket in which nobody is known: there may be somebody. The
        deepest ones are left to a lookup of our own key, which goes through them all.
        """
        deepest = max((shared for shared, bucket in self._buckets.items() if bucket.peers), default=-1)
        prefixes = range(min(deepest, PREFIX_MAX) + 1)
        due = now - self.options.refresh_s
        return [shared for shared in prefixes if self._buckets.setdefault(shared, Bucket(due)).looked_s <= due]
