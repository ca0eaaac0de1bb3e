"""Inquiries: what a person asks at one node about the jobs of all.

Until a job's record has several keepers ("No owner to lose"), the node that accepted it knows it and no other does. So
a request is asked of all connected members, at once; whoever has not answered in time is named in the answer instead of
being waited for. A target (`calm-river-42`, a prefix, `last`) is looked up in what all of them list, and the request
then goes to the node that has the job, by the full id.

The other side answers as if one of its own clients had asked, if the asking member's role allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.chains import may
from p2pgrid.core.errors import GridError, NotAuthorized, NotFound, QuotaExceeded, error_from_wire, error_to_wire
from p2pgrid.core.ids import match, parse_target
from p2pgrid.core.ranges import Span
from p2pgrid.node import events as e
from p2pgrid.node.clients import Door
from p2pgrid.node.parts import Handler, Parts

TIMER = "inquiry"
PATIENCE_S = 2.0
ASKERS_MAX = 256
"""Requests of members that may be under way here at once."""
EVERYWHERE = frozenset({"jobs", "top", "find", "show", "explain", "cancel", "logs", "forget", "keep"})
_NOT_PASSED_ON = frozenset({"find", "forget", "keep"})
_NEEDS = {"cancel": "submit"}
"""The act that a role must allow (core.chains.ACTS); the others only read."""

Row = Mapping[str, Any]
Answers = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Round:
    """One question to several members."""

    waiting: set[str]
    then: Callable[[Round], None]
    answers: Answers = field(default_factory=dict)
    errors: list[GridError] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """The names of those that did not answer in time."""
    ended_s: float = 0.0


class Inquiries(Handler):
    """Both sides of requests between nodes."""

    def __init__(self, parts: Parts, door: Door, names: Callable[[str], str]) -> None:
        super().__init__(parts)
        self.door = door
        self.names = names
        door.elsewhere = self.ask
        self._rounds: dict[int, Round] = {}
        self._number = 0
        self._asker = 0

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, event: e.ClientSent, verb: str, arguments: dict[str, Any], now: float) -> bool:
        """Answer a request of a client of this machine with the help of others; False: this node alone will do."""
        if event.client < 0 or verb not in EVERYWHERE or not self.peers or arguments.get("mine"):
            return False
        target = str(arguments.get("target", ""))
        if verb not in {"jobs", "top"} and self._is_here(target):
            return False
        everybody = sorted(self.peers)
        if verb == "top":
            self._send(everybody, "load", {}, lambda heard: self._top(event, heard), now)
        elif verb == "jobs":
            self._send(everybody, "jobs", {}, lambda heard: self._jobs(event, heard), now)
        else:
            known = frozenset(self.keeping.jobs)  # what is submitted while we ask was not meant
            self._send(everybody, "jobs", {}, lambda heard: self._targeted(event, verb, arguments, heard, known), now)
        return True

    def _is_here(self, target: str) -> bool:
        """Whether a target is the full id of a job of this node: then nobody else need be asked."""
        text = target.partition("/")[0].strip().lower()
        return any(text in (kept.name, kept.id.hex()) for kept in self.keeping.jobs.values())

    def _send(
        self, peers: Iterable[str], verb: str, arguments: dict[str, Any], then: Callable[[Round], None], now: float
    ) -> None:
        self._number += 1
        waiting = set(peers)
        self._rounds[self._number] = Round(waiting, then)
        rid = [self.keeping.incarnation, self._number]
        self.out += [e.Send(peer, m.P_ASK, [rid, verb, arguments]) for peer in sorted(waiting)]
        self.parts.timer((TIMER, self._number), now + PATIENCE_S)

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
            one.errors.append(error)
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

    # ---- putting together -------------------------------------------------------------------------------------------

    def _reply(self, event: e.ClientSent, answer: dict[str, Any], silent: list[str]) -> None:
        body = {**answer, "unanswered": silent} if silent else answer
        self.out.append(self.parts.reply(event.client, m.ANSWER, event.id, body))

    def _refuse(self, event: e.ClientSent, error: GridError) -> None:
        self.out.append(self.parts.reply(event.client, m.ERROR, event.id, dict(error_to_wire(error))))

    def _listed(self, found: Answers, now: float) -> list[Row]:
        """Return the jobs of all nodes, the newest first; what a member says of its jobs is only looked at."""
        rows: list[Row] = list(self.door.answer("jobs", {}, now)["jobs"])
        for peer, answer in found.items():
            said = answer.get("jobs")
            rows += [{**row, "owner": peer} for row in said if _is_row(row)] if isinstance(said, list) else []
        return sorted(rows, key=lambda row: (-row["submitted"], row["hex"]))

    def _may_not(self, event: e.ClientSent, heard: Round) -> bool:
        """Say so if everybody who answered has refused, and this node has nothing of its own to tell."""
        if heard.answers or not heard.errors or self.keeping.jobs:
            return False
        self._refuse(event, heard.errors[0])
        return True

    def _jobs(self, event: e.ClientSent, heard: Round) -> None:
        if self._may_not(event, heard):
            return
        self._reply(event, {"jobs": self._listed(heard.answers, heard.ended_s)}, heard.silent)

    def _top(self, event: e.ClientSent, heard: Round) -> None:
        answers = [self.door.answer("load", {}, heard.ended_s), *heard.answers.values()]
        nodes = [node for node in (one.get("node") for one in answers) if isinstance(node, dict)]
        nodes.sort(key=lambda node: str(node.get("name")))
        self._reply(event, {"nodes": nodes, "jobs": self._listed(heard.answers, heard.ended_s)}, heard.silent)

    def _targeted(
        self, event: e.ClientSent, verb: str, arguments: dict[str, Any], heard: Round, known: frozenset[bytes]
    ) -> None:
        now, me = heard.ended_s, self.config.node_id
        if self._may_not(event, heard):
            return
        try:
            listed = self._listed(heard.answers, now)
            rows = [row for row in listed if row["owner"] != me or bytes.fromhex(row["hex"]) in known]
            matched, span = self._resolve(str(arguments.get("target", "")), rows, heard.silent)
            ours = [row for row in matched if row["owner"] == me]
            others = [row for row in matched if row["owner"] != me]
            if others and verb in _NOT_PASSED_ON:
                raise _elsewhere(others[0], self.names(others[0]["owner"]))
            if verb != "cancel" and len(matched) != 1:
                raise NotFound(
                    f"{arguments.get('target')!r:.80} names {len(matched)} jobs, one is wanted", code="ambiguous"
                )
        except GridError as error:
            self._refuse(event, error)
            return
        suffix = "" if span is None else f"/{span[0]}-{span[1] - 1}"
        if verb == "cancel":
            count = sum(self.door.cancel_here(f"{row['hex']}{suffix}") for row in ours)
            self._cancel_rounds(event, [(row["owner"], f"{row['hex']}{suffix}") for row in others], count, [], now)
            return
        row = matched[0]
        wanted = {**arguments, "target": f"{row['hex']}{suffix}"}
        if ours:
            self.door.alone(event, verb, wanted, now)
        else:
            self._send([row["owner"]], verb, wanted, lambda got: self._passed_on(event, row, got), now)

    def _cancel_rounds(
        self, event: e.ClientSent, left: list[tuple[str, str]], count: int, silent: list[str], now: float
    ) -> None:
        """Cancel one job after the other at the nodes that have them."""
        if not left:
            answer = {"cancelled": count}
            body = {**answer, "unanswered": silent} if silent else answer
            _, effect = self.keeping.store([], [self.parts.reply(event.client, m.ANSWER, event.id, body)])
            self.out.append(effect)
            return
        (owner, target), rest = left[0], left[1:]

        def then(got: Round) -> None:
            if got.errors:
                self._refuse(event, got.errors[0])
                return
            said = got.answers.get(owner, {}).get("cancelled")
            more = said if isinstance(said, int) and 0 <= said < TASKS_MAX else 0
            self._cancel_rounds(
                event, rest, min(count + more, TASKS_MAX), list(dict.fromkeys([*silent, *got.silent])), got.ended_s
            )

        self._send([owner], "cancel", {"target": target}, then, now)

    def _passed_on(self, event: e.ClientSent, row: Row, got: Round) -> None:
        where = self.names(row["owner"])
        answer = got.answers.get(row["owner"])
        if answer is not None:
            self._reply(event, {**answer, "at": where}, [])
        elif got.errors:
            self._refuse(event, got.errors[0])
        else:
            why = f"{where}, which has {row['id']}, does not answer"
            self._refuse(event, GridError(why, code="timed-out", next="p2pgrid members shows who is alive"))

    def _resolve(self, text: str, rows: list[Row], silent: list[str]) -> tuple[list[Row], Span | None]:
        try:
            target = parse_target(text)
        except ValueError as error:
            raise NotFound(str(error), next="p2pgrid jobs lists what there is") from error
        span = None if target.lo is None or target.hi is None else (target.lo, target.hi)
        if target.job_text == "all":
            return rows, span
        if target.job_text == "last":
            if not rows:
                raise NotFound("there is no job yet", next="submit one: p2pgrid.Grid().map(f, xs)")
            return rows[:1], span
        by_id = {bytes.fromhex(row["hex"]): row for row in rows}
        found = match(target.job_text, {job: row["name"] or None for job, row in by_id.items()})
        if not found:
            unheard = f"; not heard: {', '.join(silent)}" if silent else ""
            raise NotFound(f"no job {text!r} in this grid{unheard}", next="p2pgrid jobs lists what there is")
        if len(found) > 1:
            names = ", ".join(sorted(str(by_id[job]["id"]) for job in found))
            raise NotFound(f"{text!r} is ambiguous: {names}", next="use one of these ids", code="ambiguous")
        return [by_id[found[0]]], span

    # ---- answering --------------------------------------------------------------------------------------------------

    def asked(self, peer: str, body: Any, now: float) -> None:
        """A member asks in the name of one of its clients."""
        rid, verb, arguments = body
        if len(self.parts.askers) >= ASKERS_MAX:  # all of them still get their answers, so none makes room
            busy = QuotaExceeded("this node answers as many requests of others as it can", next="ask again in a moment")
            self.out.append(e.Send(peer, m.P_ERROR, [list(rid), dict(error_to_wire(busy))]))
            return
        self._asker -= 1
        self.parts.askers[self._asker] = (peer, rid)
        event = e.ClientSent(self._asker, m.REQUEST, 0, [verb, arguments])
        if verb not in m.ASKED:
            self._refuse(
                event, GridError(f"this node does not answer {verb!r:.40} for others", code="version-mismatch")
            )
        elif not may(self.parts.roles.get(peer, 0), _NEEDS.get(verb, "read")):
            self._refuse(event, NotAuthorized(f"the role of {self.names(peer)} does not allow {verb!r}"))
        else:
            self.door.alone(event, verb, arguments, now)


def _is_row(row: Any) -> bool:
    """Whether it is a job as `answers.describe` describes it, as far as anything here depends on it."""
    if not isinstance(row, dict):
        return False
    texts = all(isinstance(row.get(key), str) for key in ("id", "hex", "name", "owner", "state"))
    number = isinstance(row.get("submitted"), int | float)
    return texts and number and len(row["hex"]) == 32 and all(digit in "0123456789abcdef" for digit in row["hex"])  # noqa: PLR2004


def _elsewhere(row: Row, where: str) -> NotFound:
    text = f"{row['id']} was given to node {where}: its results are there, and not yet at other nodes"
    return NotFound(text, code="elsewhere", next=f"ask at {where}; from here: p2pgrid show {row['id']}")
