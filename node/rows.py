"""Rows: what one copy of a job's record consists of, as a set of names that two copies compare.

A copy of a record is a set of journal rows, each of which is written once and says the same for ever. So two copies
agree when they have the same rows, and what one of them lacks can be told by name: the 8-byte *tags* of rows, in 256
buckets by their first byte (anti-entropy; ALGORITHMS §4.5, delta form). A digest is the sum of the rows' hashes, so
that it costs nothing to keep: it tells copies of honest members apart, which is all it is for.

Logs are no part of it: they go to one other keeper, and are compared with nobody's (`logs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from p2pgrid.node.events import Row

LOCAL = frozenset({"log", "copied", "tomb", "life", "*"})
"""Kinds of rows that are no part of a copy, and in which none is believed: "life" are those of the node itself."""
BUCKETS = 256
SMALL = 512
"""Up to so many rows are told by their tags at once, without asking which buckets differ."""
FRESH_MAX = 1024
"""Rows that are hashed together."""
DIGEST_LENGTH = 16
TAG_LENGTH = 8
_MASK = (1 << 128) - 1

Name = tuple[str, bytes]
"""Kind and key of a row."""


def hash_of(row: Row) -> int:
    """Return the 128-bit hash of a row; its value counts by the content id in its key or meta."""
    return _hash(row.kind, row.key, row.meta)


def _hash(kind: str, key: bytes, meta: bytes) -> int:
    data = b"".join((kind.encode(), len(key).to_bytes(4, "big"), key, meta))
    return int.from_bytes(blake3(data).digest(DIGEST_LENGTH), "big")


class Rows:
    """The rows of one copy, by name.

    Rows are hashed when somebody asks about them, or FRESH_MAX are there that were not: not while a task waits for its
    result.
    """

    __slots__ = ("_buckets", "_fresh", "_known", "_sum")

    def __init__(self) -> None:
        self._known: dict[Name, int] = {}
        self._fresh: dict[Name, bytes | None] = {}
        """What was put and not hashed yet: its meta, or None if it is gone."""
        self._sum = 0
        self._buckets: dict[int, int] = {}

    @property
    def _hashes(self) -> dict[Name, int]:
        if self._fresh:
            self._settle()
        return self._known

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: Name) -> bool:
        meta = self._fresh.get(name, b"")
        return meta is not None and (name in self._fresh or name in self._known)

    def keys_of(self, kind: str) -> list[bytes]:
        """Return the keys of all rows of one kind."""
        return [key for known, key in self._hashes if known == kind]

    def put(self, row: Row) -> None:
        """Take in a row that was written (or deleted: its value is None)."""
        if row.kind in LOCAL:
            if row.kind == "*":
                self.clear()
            return
        self._fresh[row.kind, row.key] = None if row.value is None else row.meta
        if len(self._fresh) >= FRESH_MAX:
            self._settle()

    def clear(self) -> None:
        """Let all rows go."""
        self._known.clear()
        self._fresh.clear()
        self._buckets.clear()
        self._sum = 0

    def _settle(self) -> None:
        for name, meta in self._fresh.items():
            before = self._known.pop(name, None)
            if before is not None:
                self._add(before, -1)
            if meta is not None:
                now = self._known[name] = _hash(*name, meta)
                self._add(now, 1)
        self._fresh.clear()

    def _add(self, one: int, sign: int) -> None:
        bucket = one >> 120
        self._sum = (self._sum + sign * one) & _MASK
        self._buckets[bucket] = (self._buckets.get(bucket, 0) + sign * one) & _MASK

    def wants(self, row: Row) -> bool:
        """Whether a row of another copy is new here.

        Two rows under one name mean that a writer lied or its disk did: that with the smaller hash stands everywhere.
        """
        mine = self._hashes.get((row.kind, row.key))
        return mine is None or hash_of(row) < mine

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for equal sets of rows."""
        if self._fresh:
            self._settle()
        return self._sum.to_bytes(DIGEST_LENGTH, "big")

    def buckets(self) -> list[tuple[int, bytes]]:
        """Return the digests of the buckets that are not empty."""
        if self._fresh:
            self._settle()
        return [(at, one.to_bytes(DIGEST_LENGTH, "big")) for at, one in sorted(self._buckets.items()) if one]

    def differing(self, theirs: Iterable[tuple[int, bytes]]) -> list[int]:
        """Return the buckets that are not as in another copy."""
        mine, other = dict(self.buckets()), dict(theirs)
        return sorted(at for at in mine.keys() | other.keys() if mine.get(at) != other.get(at))

    def tags(self, buckets: Iterable[int] | None) -> bytes:
        """Return the tags of the rows in these buckets (None: of all), one after the other."""
        return b"".join(tag for _, tag in self._tagged(buckets))

    def besides(self, buckets: Iterable[int] | None, tags: Iterable[bytes]) -> list[Name]:
        """Return the rows in these buckets whose tags are not among `tags`."""
        theirs = set(tags)
        return [name for name, tag in self._tagged(buckets) if tag not in theirs]

    def lacks(self, tags: Iterable[bytes]) -> list[bytes]:
        """Return those of these tags of which no row is here."""
        mine = {one.to_bytes(DIGEST_LENGTH, "big")[:TAG_LENGTH] for one in self._hashes.values()}
        return [tag for tag in tags if tag not in mine]

    def named(self, tags: Iterable[bytes]) -> list[Name]:
        """Return the rows with these tags."""
        wanted = set(tags)
        return [name for name, tag in self._tagged(None) if tag in wanted]

    def _tagged(self, buckets: Iterable[int] | None) -> Iterator[tuple[Name, bytes]]:
        chosen = None if buckets is None else set(buckets)
        for name, one in self._hashes.items():
            if chosen is None or one >> 120 in chosen:
                yield name, one.to_bytes(DIGEST_LENGTH, "big")[:TAG_LENGTH]
