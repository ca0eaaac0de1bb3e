"""The list of jobs that all nodes of a grid have: the newest ones, who has each, how it stands (DESIGN §6).

What is new is told to some members, each once, and those tell others; what gets lost is mended by anti-entropy: now and
then two members compare eight bytes, and only if these differ, hashes of 64 buckets, and then exchange what differs. A
member that connects does so at once. A grid without jobs says nothing.

Rule: entries only rise (`core.listed`), so this file never decides who is right. Whether somebody may say what he says
is looked at before it comes here.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor
from types import MappingProxyType
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.listed import Listed, fingerprint, merge, wire
from p2pgrid.core.member import BUCKETS
from p2pgrid.core.wire import pack
from p2pgrid.node.events import Job, NodeId, Send

HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class JobListOptions:
    """Times in seconds; as those of the member view, whose anti-entropy it shares."""

    gossip_s: float = 0.2
    fanout: int = 3
    told_factor: int = 4
    """Each piece of news is told to factor · ⌈log10(N + 1)⌉ members, or to all there are."""
    sync_s: float = 30.0
    jobs_max: int = 10_000
    news_max: int = 100
    """Of one frame of news."""
    chunk_bytes: int = 32 * 1024
    """Of one frame of records; control frames end at 64 KiB."""


PRESETS: Mapping[str, JobListOptions] = MappingProxyType(
    {
        "local": JobListOptions(gossip_s=0.1, sync_s=15.0),
        "lan": JobListOptions(),
        "wan": JobListOptions(gossip_s=0.5, sync_s=60.0),
        "edge": JobListOptions(gossip_s=1.0, fanout=2, sync_s=120.0),
    }
)


class JobList:
    """The jobs this node has heard of, its own among them."""

    def __init__(self, options: JobListOptions, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.jobs: dict[Job, Listed] = {}
        self._age: list[tuple[float, Job]] = []
        """Oldest first."""
        self._hashes = [0] * BUCKETS
        self._buckets: list[dict[Job, None]] = [{} for _ in range(BUCKETS)]
        self._news: OrderedDict[Job, set[NodeId]] = OrderedDict()
        """What is being told, and who knows it."""
        self._gossip_s: float | None = None
        self._sync_s: float | None = None

    # ---- knowledge --------------------------------------------------------------------------------------------------

    def learn(self, entry: Listed, now: float, *, source: NodeId = "") -> bool:
        """Take in an entry; return whether it says something new, which is then told to others."""
        before = self.jobs.get(entry.job)
        after = entry if before is None else merge(before, entry)
        if after == before:
            if source and entry.job in self._news:
                self._news[entry.job].add(source)
            return False
        if before is None and len(self.jobs) >= self.options.jobs_max and (entry.submitted_s, entry.job) < self._age[0]:
            return False  # older than all there is room for
        if before is not None:
            self._remove(before)
        self._put(after)
        if len(self.jobs) > self.options.jobs_max:
            self._remove(self.jobs[self._age[0][1]])
        knows = {source} if source and after == entry else set()
        self._news[entry.job] = knows
        self._news.move_to_end(entry.job)
        if self._gossip_s is None:
            self._gossip_s = now + self.rng.random() * self.options.gossip_s
        return True

    def _put(self, entry: Listed) -> None:
        bucket = bucket_of(entry.job)
        self.jobs[entry.job] = entry
        self._buckets[bucket][entry.job] = None
        self._hashes[bucket] ^= fingerprint(entry)
        insort(self._age, (entry.submitted_s, entry.job))

    def _remove(self, entry: Listed) -> None:
        bucket = bucket_of(entry.job)
        del self.jobs[entry.job]
        del self._buckets[bucket][entry.job]
        self._hashes[bucket] ^= fingerprint(entry)
        del self._age[bisect_left(self._age, (entry.submitted_s, entry.job))]
        self._news.pop(entry.job, None)

    def expire(self, wall_s: float) -> list[Listed]:
        """Drop the jobs whose time is over; return them."""
        over = [entry for entry in self.jobs.values() if entry.expires_s <= wall_s]
        for entry in over:
            self._remove(entry)
        return over

    # ---- telling ----------------------------------------------------------------------------------------------------

    def met(self, peer: NodeId) -> list[Send]:
        """A connection to a member came up: compare lists at once."""
        return [self._root(peer)] if self.jobs else []

    def _root(self, peer: NodeId) -> Send:
        return Send(peer, m.P_JOBS_DIGEST, [self._root_hash()])

    def _root_hash(self) -> bytes:
        return reduce(xor, self._hashes).to_bytes(HASH_BYTES, "big")

    def _gossip(self, partners: Sequence[NodeId]) -> list[Send]:
        enough = min(len(partners), self.options.told_factor * math.ceil(math.log10(len(partners) + 2)))
        effects: list[Send] = []
        for partner in self.rng.sample(partners, min(self.options.fanout, len(partners))):
            fresh = [job for job, told in self._news.items() if partner not in told][: self.options.news_max]
            if fresh:
                effects.append(Send(partner, m.P_JOBS, [[wire(self.jobs[job]) for job in fresh]]))
            for job in fresh:
                self._news[job].add(partner)
        for job in [job for job, told in self._news.items() if len(told) >= enough]:
            del self._news[job]
        return effects

    def received(self, peer: NodeId, kind: int, body: Any) -> list[Send]:
        """Answer a digest or the wish for buckets; what entries came with it has been learned before."""
        if kind == m.P_JOBS_DIGEST:
            return self._compare(peer, body[0])
        if kind == m.P_JOBS_RECORDS:
            told = {entry.job: entry for entry in body[1]}
            return list(self._chunks(peer, [(b, self._ahead(b, told)) for b in body[0]], pull=False))
        return []

    def _compare(self, peer: NodeId, theirs: bytes) -> list[Send]:
        if len(theirs) == HASH_BYTES:
            if theirs == self._root_hash():
                return []
            return [Send(peer, m.P_JOBS_DIGEST, [b"".join(one.to_bytes(HASH_BYTES, "big") for one in self._hashes)])]
        hashes = [int.from_bytes(theirs[at : at + HASH_BYTES], "big") for at in range(0, len(theirs), HASH_BYTES)]
        differ = [bucket for bucket in range(BUCKETS) if hashes[bucket] != self._hashes[bucket]]
        return list(self._chunks(peer, [(bucket, list(self._buckets[bucket])) for bucket in differ], pull=True))

    def _ahead(self, bucket: int, told: Mapping[Job, Listed]) -> list[Job]:
        """Return the jobs of a bucket of which this node knows more than was told."""
        mine = ((job, self.jobs[job]) for job in self._buckets[bucket])
        return [job for job, entry in mine if job not in told or merge(told[job], entry) != told[job]]

    def _chunks(self, peer: NodeId, buckets: Iterable[tuple[int, list[Job]]], *, pull: bool) -> Iterator[Send]:
        """Yield entries in frames of limited size; a bucket is asked for in the frame where its own entries end."""
        wanted: list[int] = []
        entries: list[Any] = []
        size = 0
        for bucket, jobs in buckets:
            for job in jobs:
                entries.append(wire(self.jobs[job]))
                size += len(pack(entries[-1]))
                if size >= self.options.chunk_bytes:
                    yield Send(peer, m.P_JOBS_RECORDS, [wanted, entries])
                    wanted, entries, size = [], [], 0
            if pull:
                wanted.append(bucket)
        if wanted or entries:
            yield Send(peer, m.P_JOBS_RECORDS, [wanted, entries])

    # ---- time -------------------------------------------------------------------------------------------------------

    def next_s(self, now: float) -> float | None:
        """Return when `tick` is due, where there is anybody to talk to."""
        if self._sync_s is None and self.jobs:
            self._sync_s = now + self.rng.random() * self.options.sync_s
        return min((at for at in (self._gossip_s, self._sync_s) if at is not None), default=None)

    def tick(self, partners: Callable[[], Sequence[NodeId]], now: float) -> list[Send]:
        """Do what is due; `partners` are the members that can be told now."""
        effects: list[Send] = []
        others = partners()
        if self._gossip_s is not None and self._gossip_s <= now:
            effects += self._gossip(others)
            if not others:
                self._news.clear()  # who comes compares lists
            self._gossip_s = now + self.options.gossip_s if self._news else None
        if self._sync_s is not None and self._sync_s <= now:
            if others and self.jobs:
                effects.append(self._root(self.rng.choice(others)))
            self._sync_s = now + self.options.sync_s * self.rng.uniform(0.9, 1.1) if self.jobs else None
        return effects

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long."""
        self._gossip_s = None if self._gossip_s is None else self._gossip_s + seconds
        self._sync_s = None if self._sync_s is None else self._sync_s + seconds


def bucket_of(job: Job) -> int:
    """Return the bucket of the digest that a job belongs to; ids are random."""
    return job[-1] % BUCKETS
