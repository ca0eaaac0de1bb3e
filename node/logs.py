"""Logs: what tasks printed, from all who kept some of it.

The node that serves a job keeps the last 64 KiB of each task, and so does another keeper, the next in rank that has its
record (`replicas`): best effort, for output is no result and nothing waits for it. Who served a job before has what its
tasks printed then. So whoever is asked adds to its own what the other keepers have: of two texts of a task the longer
one, for a task that was under way when its node died has told its beginning only.

Rule: this file looks for logs; what is kept where others decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import NotFound
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node import events as e
from p2pgrid.node.inquiries import Inquiries, Round, full_id
from p2pgrid.node.kept import Kept
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.targets import targets

LOGS_MAX = 10_000
"""Tasks whose output one answer has."""
LOGS_BYTES_MAX = 64 << 20
PATIENCE_S = 1.0
"""How long other keepers are waited for: less than whoever asked this node for another waits (`inquiries`)."""
HERE = "here"
"""An argument of the request: what this node has, and nobody else is to be asked."""


@dataclass(slots=True)
class _Gathering:
    """One request whose answer is being put together."""

    client: int
    id: int
    waits: int = 0
    """For the disk, for others."""
    found: dict[int, bytes] = field(default_factory=dict)

    def add(self, logs: Iterable[tuple[int, bytes]]) -> None:
        for index, text in logs:
            if len(text) > len(self.found.get(index, b"")):
                self.found[index] = text


class Logs(Handler):
    """What is asked about output."""

    def __init__(self, parts: Parts, inquiries: Inquiries, keepers: Callable[[Kept], list[str]]) -> None:
        super().__init__(parts)
        self.inquiries = inquiries
        self.keepers = keepers
        """Who else should hold the record of a job."""
        self.reading: dict[int, _Gathering] = {}
        inquiries.door.logs = self.request

    def request(self, event: e.ClientSent, arguments: dict[str, Any], now: float) -> dict[str, Any] | None:
        """Answer with what tasks printed, `None`: later.

        Raises:
            NotFound: there is no such job or task; the target is ambiguous.
        """
        target = str(arguments.get("target", ""))
        alone = arguments.get(HERE) is True
        jobs = self._copies(target) if alone else targets(self.keeping, target)
        keys: list[tuple[bytes, str, bytes]] = []
        for kept, span in jobs:
            if span is not None and not kept.known.within(*span) and not alone:
                raise NotFound(f"{kept.name} has no task {span[0]}", next=f"p2pgrid show {kept.name}")
            keys += islice(_newest(kept, span), LOGS_MAX - len(keys))
        one = _Gathering(event.client, event.id)
        if keys:
            one.waits += 1
            token = self.parts.token()
            self.reading[token] = one
            self.out.append(e.Fetch(token, keys))
        if not alone and len(jobs) == 1:
            self._ask(one, *jobs[0], now)
        return None if one.waits else {"logs": []}

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
        self.inquiries.questions(peers, "logs", {"target": target, HERE: True}, heard, now, PATIENCE_S)

    def fetched(self, event: e.Fetched) -> bool:
        """Logs of this node were read from disk; False: they were not asked for here."""
        one = self.reading.pop(event.token, None)
        if one is None:
            return False
        one.add((int.from_bytes(row.key, "big"), row.value or b"") for row in event.rows)
        self._came(one)
        return True

    def _came(self, one: _Gathering) -> None:
        one.waits -= 1
        if not one.waits:
            logs = last_logs([[index, text] for index, text in one.found.items()])
            self.out.append(self.parts.reply(one.client, m.ANSWER, one.id, {"logs": logs}))


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
