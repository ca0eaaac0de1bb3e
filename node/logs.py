"""Logs: what tasks printed, from all who kept some of it.

The node that serves a job keeps the last 64 KiB of each task, and so does another keeper, the next in rank that has its
record (`replicas`): best effort, for output is no result and nothing waits for it. Who served a job before has what its
tasks printed then. So whoever is asked adds to its own what the other keepers have: of two texts of a task the longer
one, for a task that was under way when its node died has told its beginning only.

Rule: this file looks for logs; what is kept where others decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import NotFound, QuotaExceeded
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node import events as e
from p2pgrid.node.inquiries import Inquiries, full_id
from p2pgrid.node.kept import Kept
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.rounds import Round
from p2pgrid.node.targets import targets

LOGS_MAX = 10_000
"""Tasks whose output one answer has."""
LOGS_BYTES_MAX = 64 << 20
READ_ROWS = 256
"""Texts of 64 KiB at most that are read from disk at once."""
ACTIVE_MAX, WAITING_MAX = 2, 256
"""Answers that are put together at once, and requests that wait for that, of each kind."""
PATIENCE_S = 1.0
"""How long other keepers are waited for: less than whoever asked this node for another waits (`inquiries`)."""
HERE = "here"
"""An argument of the request: what this node has, and nobody else is to be asked."""


@dataclass(slots=True)
class _Gathering:
    """One request whose answer is being put together."""

    client: int
    id: int
    lane: _Lane
    names: Iterator[tuple[bytes, str, bytes]]
    """What is still to be read here."""
    others: tuple[Kept, Span | None] | None
    """What the other keepers are to be asked for."""
    waits: int = 0
    """For the disk, for others."""
    found: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    """Bytes of what was found."""

    def add(self, logs: Iterable[tuple[int, bytes]]) -> None:
        for index, text in logs:
            had = len(self.found.get(index, b""))
            if len(text) > had:
                self.found[index] = text
                self.size += len(text) - had


@dataclass(slots=True)
class _Lane:
    """Requests of one kind: a few are under way, for each may hold as much as an answer takes; the others wait."""

    active: int = 0
    waiting: deque[_Gathering] = field(default_factory=deque)
    is_moving: bool = False


class Logs(Handler):
    """What is asked about output."""

    def __init__(self, parts: Parts, inquiries: Inquiries, keepers: Callable[[Kept], list[str]]) -> None:
        super().__init__(parts)
        self.inquiries = inquiries
        self.keepers = keepers
        """Who else should hold the record of a job."""
        self.reading: dict[int, _Gathering] = {}
        self._lanes = {"client": _Lane(), "member": _Lane(), HERE: _Lane()}
        """Neither waits for another: what keepers ask each other never waits for what they are asked by others."""
        inquiries.door.logs = self.request

    def request(self, event: e.ClientSent, arguments: dict[str, Any], _now: float) -> None:
        """Answer with what tasks printed, later.

        Raises:
            NotFound: there is no such job or task; the target is ambiguous.
            QuotaExceeded: more ask at once than can wait.
        """
        target = str(arguments.get("target", ""))
        alone = arguments.get(HERE) is True
        jobs = self._copies(target) if alone else targets(self.keeping, target)
        if len(jobs) > 1:  # tasks of one number would be mixed up
            raise NotFound(f"{target!r:.80} names {len(jobs)} jobs, one is wanted", code="ambiguous")
        for kept, span in jobs:
            if span is not None and not kept.known.within(*span) and not alone:
                raise NotFound(f"{kept.name} has no task {span[0]}", next=f"p2pgrid show {kept.name}")
        lane = self._lanes[HERE if alone else "client" if event.client >= 0 else "member"]
        if len(lane.waiting) >= WAITING_MAX:
            raise QuotaExceeded("too many ask this node for logs at once", next="ask again in a moment")
        names = islice(chain.from_iterable(_newest(*one) for one in jobs), LOGS_MAX)
        others = jobs[0] if not alone and jobs else None
        lane.waiting.append(_Gathering(event.client, event.id, lane, names, others))
        self._move(lane)

    def _move(self, lane: _Lane) -> None:
        """Begin with what there is room for."""
        if lane.is_moving:
            return
        lane.is_moving = True
        while lane.waiting and lane.active < ACTIVE_MAX:
            one = lane.waiting.popleft()
            lane.active += 1
            one.waits = 1
            if one.others is not None:
                self._ask(one, *one.others, self.parts.now)
            self._read_on(one)
        lane.is_moving = False

    def _read_on(self, one: _Gathering) -> None:
        """Read a lot of the rest from disk, unless there is enough for an answer."""
        keys = list(islice(one.names, READ_ROWS)) if one.size <= LOGS_BYTES_MAX else []
        if not keys:
            self._came(one)
            return
        token = self.parts.token()
        self.reading[token] = one
        self.out.append(e.Fetch(token, keys))

    def _copies(self, target: str) -> list[tuple[Kept, Span | None]]:
        """Return the job that a keeper asks for by its full id, whoever serves it."""
        job, span = full_id(target)
        kept = None if job is None else self.keeping.jobs.get(job)
        return [] if kept is None else [(kept, span)]

    def _ask(self, one: _Gathering, kept: Kept, span: Span | None, now: float) -> None:
        peers = [peer for peer in self.keepers(kept) if peer in self.peers]
        if not peers:
            return

        def heard(got: Round) -> None:
            for answer in got.answers.values():
                one.add(_read(answer.get("logs"), kept.known, span))
            self._came(one)

        one.waits += 1
        target = kept.id.hex() if span is None else f"{kept.id.hex()}/{span[0]}-{span[1] - 1}"
        self.inquiries.rounds.questions(peers, "logs", {"target": target, HERE: True}, heard, now, PATIENCE_S)

    def fetched(self, event: e.Fetched) -> bool:
        """Logs of this node were read from disk; False: they were not asked for here."""
        one = self.reading.pop(event.token, None)
        if one is None:
            return False
        one.add((int.from_bytes(row.key, "big"), row.value or b"") for row in event.rows)
        self._read_on(one)
        return True

    def _came(self, one: _Gathering) -> None:
        one.waits -= 1
        if not one.waits:
            logs = last_logs([[index, text] for index, text in one.found.items()])
            self.out.append(self.parts.reply(one.client, m.ANSWER, one.id, {"logs": logs}))
            one.lane.active -= 1
            self._move(one.lane)


def _newest(kept: Kept, span: Span | None) -> Iterable[tuple[bytes, str, bytes]]:
    """Yield the names of the logs that are here, those of the last tasks first."""
    there = list(kept.logs) if span is None else kept.logs.within(*span)
    for lo, hi in reversed(there):
        for index in range(hi - 1, lo - 1, -1):
            yield kept.id, "log", index.to_bytes(8, "big")


def _read(said: Any, known: RangeSet, span: Span | None) -> Iterable[tuple[int, bytes]]:
    """Yield what another keeper says of tasks that are meant; the rest of it is passed over."""
    lo, hi = span or (0, 1 << 62)
    for one in said if isinstance(said, list) else ():
        match one:
            case [int(index), bytes(text)] if lo <= index < hi and index in known:
                yield index, text


def last_logs(logs: Sequence[list[Any]]) -> list[list[Any]]:
    """Return outputs of tasks, `[index, bytes]` each, in order; the last ones, as many as one answer takes."""
    chosen: list[list[Any]] = []
    size = 0
    for one in sorted(logs, reverse=True)[:LOGS_MAX]:
        size += len(one[1])
        if size > LOGS_BYTES_MAX:
            break
        chosen.append(one)
    return chosen[::-1]
