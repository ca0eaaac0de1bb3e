"""Inquiries: what a person asks at one node about the jobs of all.

One of a job's keepers serves it and answers for it. So a request is asked of all connected members, at once; whoever
has not answered in time is named in the answer instead of being waited for. A target (`calm-river-42`, a prefix,
`last`) is looked up in what all of them list, and the request then goes to the node that has the job, by the full id;
if that one is silent or gone, it is asked again who has it, for another keeper may go on with it by then.

The other side answers as if one of its own clients had asked, if the asking member's role allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.chains import may
from p2pgrid.core.errors import GridError, NotAuthorized, NotFound, QuotaExceeded, error_to_wire
from p2pgrid.core.ids import JOB_ID_LENGTH, job_name, match, parse_target
from p2pgrid.core.listed import Listed
from p2pgrid.core.ranges import Span
from p2pgrid.node import events as e
from p2pgrid.node.clients import Door
from p2pgrid.node.listing import Listing
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.relaying import Relays
from p2pgrid.node.rounds import Answers, Round, Rounds

ASKERS_MAX = 256
"""Requests of members that may be under way here at once."""
ASKED_MAX = 32
"""Up to so many members, all are asked what jobs they have; above, the list says whom to ask."""
LATE_MAX = 256
"""Requests about what nobody knows that wait for members who are about to be here."""
LATE = "late"
AGAIN_S = 0.5
"""Who has a job does not answer, or is not here: so long until it is asked again who has it."""
WITNESSES = 6
"""Of a tombstone of a job nobody of whose keepers is here."""
LISTS = frozenset({"jobs", "top"})
COUNTED = {"cancel": "cancelled", "forget": "forgotten"}
"""Verbs that take several jobs, and what they answer."""
EVERYWHERE = LISTS | COUNTED.keys() | {"find", "show", "explain", "logs", "keep"}
_NEEDS = {"cancel": "submit", "forget": "submit", "keep": "submit", "drain": "revoke"}
"""The act that a role must allow (core.chains.ACTS); the others only read."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client of this machine asks about jobs, and until when it waits for somebody who knows them."""

    event: e.ClientSent
    verb: str
    arguments: dict[str, Any]
    until_s: float

    @property
    def target(self) -> str:
        """The jobs, and the tasks of one, that are meant."""
        return str(self.arguments.get("target", ""))


@dataclass(slots=True)
class Count:
    """Jobs that are cancelled or forgotten one after the other."""

    request: Request
    left: list[tuple[str, str]]
    """At which node, which target."""
    total: int = 0
    silent: list[str] = field(default_factory=list)

    def add(self, more: int) -> None:
        self.total = min(self.total + more, TASKS_MAX)


class Inquiries(Handler):
    """Both sides of requests between nodes."""

    def __init__(
        self, parts: Parts, door: Door, relays: Relays, listing: Listing, rounds: Rounds, names: Callable[[str], str]
    ) -> None:
        super().__init__(parts)
        self.rounds = rounds
        self.door = door
        self.relays = relays
        self.listing = listing
        relays.ask = self.has
        self.patience_s: Callable[[float, float], float] = lambda *_: 0.0
        self.is_lost: Callable[[str, float], bool] = lambda *_: False
        """Whether a member has been gone for long (`Neighbours.is_lost`)."""
        self.seeks: Callable[[bytes, float], bool] = lambda *_: False
        """Whether a job may be with members that are not connected, and is being looked for there (`locating`)."""
        self.names = names
        door.elsewhere = self.ask
        self.node: Callable[[str], str | None] = lambda _: None
        """Who a text names; None: this node."""
        self._number = 0
        self._asker = 0
        self._late: dict[int, tuple[Request, GridError]] = {}
        """What nobody who is there knows."""

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, event: e.ClientSent, verb: str, arguments: dict[str, Any], now: float) -> bool:
        """Answer a request of a client of this machine with the help of others; False: this node alone will do."""
        if verb == "drain" and event.client >= 0 and arguments.get("target"):
            return self._drain(event, arguments, now)
        if event.client < 0 or verb not in EVERYWHERE or arguments.get("mine"):
            return False
        if not self.peers and not self._by_hearsay():
            within_s = 0.0 if verb in LISTS else self.patience_s(_within(arguments), now)
            if not within_s:
                return False
        target = str(arguments.get("target", ""))
        if verb not in LISTS and self._is_here(target):
            return False
        if verb == "top":
            self.rounds.questions(sorted(self.peers), "load", {}, lambda heard: self._top(event, heard), now)
        elif verb == "jobs":
            self.rounds.questions(self._who_has_jobs(), "jobs", {}, lambda heard: self._jobs(event, heard), now)
        else:
            self._ask_about(Request(event, verb, arguments, now + _within(arguments)), now)
        return True

    def _drain(self, event: e.ClientSent, arguments: dict[str, Any], now: float) -> bool:
        """Pass on what is asked of another node; False: it is this one."""
        try:
            peer = self.node(str(arguments["target"]))
        except GridError as error:
            self._refuse(event, error)
            return True
        if peer is None:
            return False
        if peer not in self.peers:
            away = GridError(f"{self.names(peer)} cannot be reached", code="timed-out", next="p2pgrid members")
            self._refuse(event, away)
            return True
        passed = {key: value for key, value in arguments.items() if key != "target"}
        row = {"owner": peer, "id": "what is asked"}
        self.rounds.questions([peer], "drain", passed, lambda got: self._passed_on(event, row, got), now)
        return True

    def _ask_about(self, one: Request, now: float) -> None:
        """Ask who serves the job, if that is known; else everybody what jobs there are."""
        job, span = full_id(one.target)
        server = None if job is None else self.parts.serving(job)
        if job is not None and server in self.peers:
            assert server is not None
            self.rounds.questions([server], one.verb, one.arguments, lambda got: self._served(one, job, span, got), now)
        else:
            self._ask_all_about(one, now)

    def _ask_all_about(self, one: Request, now: float) -> None:
        known = frozenset(self.keeping.jobs)  # what is submitted while we ask was not meant
        self.rounds.questions(self._who_has_jobs(), "jobs", {}, lambda heard: self._targeted(one, heard, known), now)

    def _by_hearsay(self) -> bool:
        """Whether this node has heard of jobs of others."""
        return any(
            not entry.forgotten and job not in self.keeping.jobs for job, entry in self.listing.list.jobs.items()
        )

    def _who_has_jobs(self) -> list[str]:
        """Return whom to ask what jobs there are: everybody; in a large grid those who have some by the list."""
        if len(self.peers) <= ASKED_MAX:
            return sorted(self.peers)
        return sorted({entry.owner for entry in self.listing.list.jobs.values()} & self.peers.keys())

    def _served(self, one: Request, job: bytes, span: Span | None, got: Round) -> None:
        """Pass on what the serving node said; if it does not have the job any more, somebody else may."""
        (peer,) = {*got.answers, *got.refusals, *got.waiting}
        lost = any(error.code == "not-found" for error in got.errors) and span is None
        if lost:
            self.relays.has_not(peer, job, got.ended_s)
            self._ask_all_about(one, got.ended_s)
        elif one.verb == "find" and got.answers:
            self._reply(one.event, _found(job, span), [])
        else:
            self._told(one, {"id": job_name(job), "owner": peer}, got)

    def has(self, peer: str, job: bytes, now: float) -> None:
        """Ask a member whether it has a job, in the name of a reader here."""

        def heard(got: Round) -> None:
            if got.answers.get(peer, {}).get("job") == job:
                self.relays.has(peer, job, got.ended_s)
            elif peer in got.waiting:
                self.relays.is_silent(peer, job)
            else:
                self.relays.has_not(peer, job, got.ended_s)

        self.rounds.questions([peer], "find", {"target": job.hex()}, heard, now)

    def _is_here(self, target: str) -> bool:
        """Whether a target is the full id of a job of this node: then nobody else need be asked."""
        text = target.partition("/")[0].strip().lower()
        return any(kept.answers and text in (kept.name, kept.id.hex()) for kept in self.keeping.jobs.values())

    # ---- what nobody knows yet --------------------------------------------------------------------------------------

    def _not_yet(self, one: Request, error: GridError, now: float) -> None:
        """Say so; but first wait for members that are about to be here, as long as whoever asked has time."""
        wait_s = self.patience_s(one.until_s - now, now) if one.until_s > now else 0.0
        job, _ = full_id(one.target)
        if job is not None and one.until_s > now and self.seeks(job, now):
            wait_s = one.until_s - now
        if not wait_s or error.code == "ambiguous":
            self._refuse(one.event, error)
        else:
            self._wait_with(one, error, now + wait_s)

    def _wait_with(self, one: Request, error: GridError, until_s: float) -> None:
        """Put a request off, if there is room; else it is refused."""
        if len(self._late) >= LATE_MAX:
            self._refuse(one.event, error)
            return
        self._number += 1
        self._late[self._number] = one, error
        self.parts.timer((LATE, self._number), until_s)

    def in_vain(self, job: bytes) -> None:
        """It was looked for elsewhere, and nobody is to be asked any more."""
        for number, (one, error) in list(self._late.items()):
            if full_id(one.target)[0] == job and error.code == "not-found":
                del self._late[number]
                self.parts.timer((LATE, number), None)
                self._refuse(one.event, error)

    def up(self, peer: str, now: float) -> None:
        """A member is there: it may know what was not found."""
        late, self._late = self._late, {}
        for number, (one, _) in late.items():
            self.parts.timer((LATE, number), None)
            self._ask_about(one, now)

    def _again(self, one: Request, error: GridError, now: float) -> None:
        """Who has it is frozen, cut off or gone: in a moment a keeper may go on with it, so ask once more."""
        if now + AGAIN_S >= one.until_s:
            self._refuse(one.event, error)
        else:
            self._wait_with(one, error, now + AGAIN_S)

    def too_late(self, number: int, now: float) -> None:
        """Nobody came who knows it; or it is time to ask again who has it."""
        one, error = self._late.pop(number)
        if error.code == "timed-out":
            self._ask_about(one, now)
        else:
            self._refuse(one.event, error)

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
        once = {row["hex"]: row for row in reversed(rows)}
        rows = [row for row in once.values() if not self.listing.forgotten(bytes.fromhex(row["hex"]))]
        rows += self.listing.rows(but=set(once), heard={*found, self.config.node_id})
        return sorted(rows, key=lambda row: (-row["submitted"], row["hex"]))

    def _may_not(self, event: e.ClientSent, heard: Round) -> bool:
        """Say so if everybody who answered has refused, and this node has nothing of its own to tell."""
        if heard.answers or not heard.errors or any(kept.answers for kept in self.keeping.jobs.values()):
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

    def _targeted(self, one: Request, heard: Round, known: frozenset[bytes]) -> None:
        now, me = heard.ended_s, self.config.node_id
        if self._may_not(one.event, heard):
            return
        try:
            listed = self._listed(heard.answers, now)
            rows = [row for row in listed if row["owner"] != me or bytes.fromhex(row["hex"]) in known]
            matched, span = self._resolve(one.target, rows, heard.silent)
            if one.verb not in COUNTED and len(matched) != 1:
                raise NotFound(f"{one.target!r:.80} names {len(matched)} jobs, one is wanted", code="ambiguous")
        except GridError as error:
            if error.code == "not-found" and self.peers.keys() - heard.asked and now < one.until_s:
                self._ask_about(one, now)  # somebody came meanwhile
            else:
                self._not_yet(one, error, now)
            return
        for row in matched:
            if row["owner"] != me:
                self.relays.place(bytes.fromhex(row["hex"]), row["owner"])
        suffix = "" if span is None else f"/{span[0]}-{span[1] - 1}"
        if one.verb in COUNTED:
            matched.sort(key=lambda row: row["owner"] == me)  # the last of this node's own answers for all of these
            self._count_rounds(Count(one, [(row["owner"], f"{row['hex']}{suffix}") for row in matched]), now)
            return
        row = matched[0]
        wanted = {**one.arguments, "target": f"{row['hex']}{suffix}"}
        if row["owner"] == me:
            self.door.alone(one.event, one.verb, wanted, now)
        elif one.verb == "find":
            self._reply(one.event, _found(bytes.fromhex(row["hex"]), span), [])
        elif row["owner"] not in self.peers:
            where = self.names(row["owner"])
            why = f"{where}, which has {row['id']}, is not here"
            hopes = self.seeks(bytes.fromhex(row["hex"]), now)
            if not hopes and self.is_lost(row["owner"], now):
                why = f"{where}, which has {row['id']}, is gone, and nobody who is here has a copy"
                self._refuse(
                    one.event, GridError(why, code="timed-out", next="start it again: it goes on from its disk")
                )
                return
            self._again(one, GridError(why, code="timed-out", next="p2pgrid members shows who is alive"), now)
        else:
            self.rounds.questions([row["owner"]], one.verb, wanted, lambda got: self._told(one, row, got), now)

    def _count_rounds(self, count: Count, now: float) -> None:
        """Cancel or forget one job after the other at the nodes that have them."""
        event, verb = count.request.event, count.request.verb
        while count.left and count.left[0][0] not in self.peers:
            owner, target = count.left.pop(0)
            if owner == self.config.node_id and verb == "cancel" and not count.left:
                self._cancel_last(count, target)
                return
            if owner == self.config.node_id:
                count.add(self.door.here(verb, target))
            elif (
                verb == "forget" and may(self.parts.own_roles, "submit") and (entry := self._by_id(target)) is not None
            ):
                self.listing.bury(entry.job, entry.submitted_s, entry.expires_s)
                self.door.burying.add(entry.job, entry.submitted_s, entry.expires_s, sorted(self.peers)[:WITNESSES])
                count.add(1)  # whoever has it hears of it when it is back
            else:
                count.silent = list(dict.fromkeys([*count.silent, self.names(owner)]))
        if not count.left:
            answer = {COUNTED[verb]: count.total}
            body = {**answer, "unanswered": count.silent} if count.silent else answer
            self.door.burying.promise(self.parts.reply(event.client, m.ANSWER, event.id, body), now)
            return
        owner, target = count.left.pop(0)

        def then(got: Round) -> None:
            if got.errors:
                self._refuse(event, got.errors[0])
                return
            said = got.answers.get(owner, {}).get(COUNTED[verb])
            count.add(said if isinstance(said, int) and said >= 0 else 0)
            count.silent = list(dict.fromkeys([*count.silent, *got.silent]))
            self._count_rounds(count, got.ended_s)

        self.rounds.questions([owner], verb, {"target": target}, then, now)

    def _cancel_last(self, count: Count, target: str) -> None:
        """Cancel a job of this node, and answer for all of them once that is on two disks."""
        event = count.request.event
        body: dict[str, Any] = {COUNTED["cancel"]: count.total}
        if count.silent:
            body["unanswered"] = count.silent
        answer = self.parts.reply(event.client, m.ANSWER, event.id, body)
        count.add(self.door.cancel_here(target, [answer]))
        body[COUNTED["cancel"]] = count.total

    def _by_id(self, target: str) -> Listed | None:
        return self.listing.list.jobs.get(bytes.fromhex(target.partition("/")[0]))

    def _told(self, one: Request, row: Row, got: Round) -> None:
        """Pass on what the node that has it said; if it was silent, there may be another soon."""
        if got.answers or got.errors:
            self._passed_on(one.event, row, got)
        else:
            self._again(one, self._silent(row), got.ended_s)

    def _passed_on(self, event: e.ClientSent, row: Row, got: Round) -> None:
        where = self.names(row["owner"])
        answer = got.answers.get(row["owner"])
        if answer is not None:
            self._reply(event, {**answer, "at": where}, [])
        elif got.errors:
            self._refuse(event, got.errors[0])
        else:
            self._refuse(event, self._silent(row))

    def _silent(self, row: Row) -> GridError:
        why = f"{self.names(row['owner'])}, which has {row['id']}, does not answer"
        return GridError(why, code="timed-out", next="p2pgrid members shows who is alive")

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


def full_id(target: str) -> tuple[bytes | None, Span | None]:
    """Return the job and the tasks that a target names, if it gives all digits of the job's id."""
    try:
        parsed = parse_target(target)
        job = bytes.fromhex(parsed.job_text)
    except ValueError:
        return None, None
    span = None if parsed.lo is None or parsed.hi is None else (parsed.lo, parsed.hi)
    return (job, span) if len(job) == JOB_ID_LENGTH else (None, None)


def _within(arguments: Mapping[str, Any]) -> float:
    """Return how many seconds whoever asks has time for what nobody knows yet."""
    within = arguments.get("within")
    return min(float(within), m.WATCH_S) if isinstance(within, int | float) and within > 0 else 0.0


def _found(job: bytes, span: Span | None) -> dict[str, Any]:
    return {"job": job, "lo": span[0] if span else None, "hi": span[1] if span else None}
