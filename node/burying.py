"""Burying: `forget` returns once a second node has the tombstone on disk, where others keep copies (DESIGN §7).

A tombstone spreads with the list of jobs, but nobody says by that when he has it on disk. So the keepers of what was
forgotten are told by a request of its own; the first that answers has it synced. Whoever is silent is asked again as
long as a keeper lives; where none does, this node's own disk is what was promised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import JOB_ID_LENGTH
from p2pgrid.core.listed import TIME_MAX_S
from p2pgrid.node.kept import Job, Promise
from p2pgrid.node.parts import Handler, Parts

TIMER = "bury"
AGAIN_S = 1.0
TOMBS_MAX = 10_000
"""In one request."""

Tomb = tuple[Job, float, float]
"""A job, when it was submitted and when it would have expired."""


class Heard(Protocol):
    """What came of a question."""

    answers: dict[str, dict[str, Any]]


Question = Callable[[str, str, dict[str, Any], Callable[[Any], None], float], None]


class Burying(Handler):
    """What was forgotten here, and is to be on a second disk before that is said."""

    def __init__(self, parts: Parts, question: Question) -> None:
        super().__init__(parts)
        self.question = question
        self.living: Callable[[], Collection[str]] = lambda: parts.peers
        """Returns the other nodes that are not dead."""
        self._fresh: list[Tomb] = []
        self._keepers: set[str] = set()
        self._graves: dict[int, tuple[list[Tomb], set[str], Promise]] = {}
        self._number = 0

    def add(self, job: Job, submitted_s: float, expires_s: float, keepers: Sequence[str]) -> None:
        """A job is forgotten here by request; who else keeps it."""
        self._fresh.append((job, submitted_s, expires_s))
        self._keepers.update(keepers)

    def promise(self, answer: Promise, now: float) -> None:
        """Say this once all that was added is on disk, here and at another."""
        tombs, self._fresh = self._fresh, []
        keepers, self._keepers = self._keepers, set()
        if not tombs or not keepers & set(self.living()):
            self.out.append(self.keeping.store([], [answer])[1])
            return
        self._number += 1
        self._graves[self._number] = tombs[-TOMBS_MAX:], keepers, answer
        self.ask(now, self._number)

    def ask(self, now: float, number: int) -> None:
        """Ask the keepers that are connected; be called again while there is no answer."""
        grave = self._graves.get(number)
        if grave is None:
            return
        tombs, keepers, _ = grave
        if not keepers & set(self.living()):
            self._over(number)
            return
        for peer in sorted(keepers & self.peers.keys()):
            told = [list(one) for one in tombs]
            self.question(peer, "forget", {"tombs": told}, lambda got: self._heard(number, got), now)
        self.parts.timer((TIMER, number), now + AGAIN_S + len(tombs) / TOMBS_MAX)

    def _heard(self, number: int, got: Heard) -> None:
        if got.answers:
            self._over(number)

    def _over(self, number: int) -> None:
        grave = self._graves.pop(number, None)
        if grave is not None:
            self.parts.timer((TIMER, number), None)
            self.out.append(self.keeping.store([], [grave[2]])[1])


def read_tombs(value: Any) -> list[Tomb]:
    """Return what another node says was forgotten. Raises GridError if that is malformed."""
    if not isinstance(value, list) or len(value) > TOMBS_MAX:
        raise _malformed()
    return [_tomb(one) for one in value]


def _tomb(value: Any) -> Tomb:
    match value:
        case [bytes(job), int() | float() as submitted_s, int() | float() as expires_s] if (
            len(job) == JOB_ID_LENGTH and 0 <= submitted_s < TIME_MAX_S and 0 <= expires_s < TIME_MAX_S
        ):
            return job, float(submitted_s), float(expires_s)
    raise _malformed()


def _malformed() -> GridError:
    return GridError("a malformed list of forgotten jobs", code="usage", next="p2pgrid forget --help")
