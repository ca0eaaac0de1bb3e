"""Rounds: what a node asks other members in its own name, and their answers, as far as they come in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, error_from_wire
from p2pgrid.node import events as e
from p2pgrid.node.parts import Handler, Parts

TIMER = "inquiry"
PATIENCE_S = 2.0

Answers = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Round:
    """One question to several members."""

    waiting: set[str]
    then: Callable[[Round], None]
    asked: frozenset[str]
    answers: Answers = field(default_factory=dict)
    refusals: dict[str, GridError] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    """The names of those that did not answer in time."""
    ended_s: float = 0.0

    @property
    def errors(self) -> list[GridError]:
        """What those said who refused."""
        return list(self.refusals.values())


class Rounds(Handler):
    """The questions that are under way."""

    def __init__(self, parts: Parts, names: Callable[[str], str]) -> None:
        super().__init__(parts)
        self.names = names
        self._rounds: dict[int, Round] = {}
        self._number = 0

    def question(
        self, peer: str, verb: str, arguments: dict[str, Any], then: Callable[[Round], None], now: float
    ) -> None:
        """Ask one member something."""
        self.questions([peer], verb, arguments, then, now)

    def questions(
        self, peers: Iterable[str], verb: str, arguments: dict[str, Any], then: Callable[[Round], None], now: float,
        within_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        """Ask some members something."""
        self._number += 1
        waiting = set(peers)
        self._rounds[self._number] = Round(waiting, then, frozenset(waiting))
        rid = [self.keeping.incarnation, self._number]
        self.out += [e.Send(peer, m.P_ASK, [rid, verb, arguments]) for peer in sorted(waiting)]
        if waiting:
            self.parts.timer((TIMER, self._number), now + within_s)
        else:
            self.due(self._number, now)

    def answered(self, peer: str, body: Any, now: float) -> None:
        self._settle(peer, body[0], body[1], None, now)

    def refused(self, peer: str, body: Any, now: float) -> None:
        said = body[1]
        error = error_from_wire(str(said.get("code", "")), str(said.get("message", "")), str(said.get("next", "")))
        self._settle(peer, body[0], None, error, now)

    def _settle(
        self, peer: str, rid: tuple[int, int], answer: dict[str, Any] | None, error: GridError | None, now: float
    ) -> None:
        one = self._rounds.get(rid[1])
        if rid[0] != self.keeping.incarnation or one is None or peer not in one.waiting:
            return
        one.waiting.discard(peer)
        if answer is not None:
            one.answers[peer] = answer
        if error is not None:
            one.refusals[peer] = error
        if not one.waiting:
            self.parts.timer((TIMER, rid[1]), None)
            self.due(rid[1], now)

    def gone(self, peer: str, now: float) -> None:
        """Nobody waits for a member that is not connected any more."""
        for number, one in list(self._rounds.items()):
            if peer in one.waiting and len(one.waiting) == 1:
                self.parts.timer((TIMER, number), None)
                self.due(number, now)

    def due(self, number: int, now: float) -> None:
        """All have answered, or the time is over."""
        one = self._rounds.pop(number)
        one.silent = [self.names(peer) for peer in sorted(one.waiting)]
        one.ended_s = now
        one.then(one)
