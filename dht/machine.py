"""The DHT of one node: everything it decides, as `handle(event, now) -> effects`.

It answers requests, walks for commands, keeps the table fresh, renews what this node has put and provides, and forgets
what has expired. `now` is any clock that only goes forward; grid time is `now` plus what `Clock` said last.

Rule 1: no clock, no network, no dice but `rng`; peers' mistakes end in a counter, never in an exception.
Rule 2: local work first: of the searches at most `own_max` are the machine's own, and commands do not wait for those.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import Any, assert_never

from p2pgrid.dht import events as e
from p2pgrid.dht.keys import Nearest, is_peer_id, key_of, name_near
from p2pgrid.dht.lookup import Ask, Lookup, LookupOptions, Wait
from p2pgrid.dht.patience import Patience, PatienceOptions
from p2pgrid.dht.records import Checked, Namespace, NotStored, Providers, Reason, RecordOptions, Values
from p2pgrid.dht.search import Getting, Search, Seeking, Storing
from p2pgrid.dht.table import Table, TableOptions
from p2pgrid.dht.wire import NAME_MAX, Contact, Kind, Message, Record

_LEAVING = frozenset({Kind.PUT_VALUE, Kind.ADD_PROVIDER})


@dataclass(frozen=True, slots=True)
class Options:
    lookup: LookupOptions = field(default_factory=LookupOptions)
    table: TableOptions = field(default_factory=TableOptions)
    records: RecordOptions = field(default_factory=RecordOptions)
    patience: PatienceOptions = field(default_factory=PatienceOptions)
    searches_max: int = 16
    """At once; more wait."""
    own_max: int = 4
    """Of those, for refreshing and renewing."""
    waiting_max: int = 65_536
    published_max: int = 16_384
    """Values and provided keys of our own that are renewed."""
    search_s: float = 30.0
    """After that a search ends with what it has."""
    late_s: float = 10.0
    """An answer is still welcome so long after it was given up."""
    checks_max: int = 8
    """Peers that asked us, being asked themselves, at once."""
    check_again_s: float = 600.0
    sweep_s: float = 60.0


@dataclass(slots=True)
class _Asked:
    peer: Contact
    message: Message
    sent_s: float
    search: Search | None
    """None: only to see whether it answers."""
    given_up: bool = False


@dataclass(slots=True)
class _Due:
    """What is to be done when; the heap may hold things that are settled meanwhile."""

    heap: list[tuple[float, int, str, Any]] = field(default_factory=list)
    count: int = 0

    def at(self, when_s: float, what: str, which: Any = None) -> None:
        self.count += 1
        heappush(self.heap, (when_s, self.count, what, which))


class Machine:
    """One node's part of the DHT."""

    def __init__(
        self, me: bytes, namespaces: Mapping[str, Namespace], rng: random.Random, options: Options | None = None
    ) -> None:
        """Be the peer with this binary PeerId; `namespaces` judge values (`dht.records`)."""
        self.me = Contact(me)
        self.options = options or Options()
        self.table = Table(me, self.options.table)
        self.values = Values(namespaces, self.options.records)
        self.providers = Providers(self.options.records)
        self.refused: Counter[str] = Counter()
        """What peers sent that was not in order, by reason."""
        self.counts: Counter[str] = Counter()
        """Questions, answers, timeouts, searches."""
        self._rng = rng
        self._patience = Patience(self.options.patience)
        self._offset_s = 0.0
        self._members: dict[bytes, Contact] = {}
        self._serving = Nearest()
        self._token = 0
        self._asked: dict[int, _Asked] = {}
        self._checked: OrderedDict[bytes, float] = OrderedDict()
        self._checks = 0
        self._searches: dict[Search, None] = {}
        self._own = 0
        self._commands: deque[e.Command] = deque()
        self._chores: deque[e.Command] = deque()
        self._published: dict[bytes, bytes] = {}
        self._provided: dict[bytes, None] = {}
        self._renewals: dict[tuple[str, bytes], float] = {}
        """When each is due: what was withdrawn and put again is renewed once, not by its old timer as well."""
        self._due = _Due()
        self._timer_s: float | None = None
        self._walked_s: float | None = None
        self._effects: list[e.Effect] = []

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Take in what happened; return what is to be done, in this order."""
        self._effects = effects = list[e.Effect]()
        self._take(event, now)
        self._start_searches(now)
        heap = self._due.heap
        if heap and heap[0][0] != self._timer_s:
            self._timer_s = heap[0][0]
            effects.append(e.SetTimer(self._timer_s))
        return effects

    def _take(self, event: e.Event, now: float) -> None:
        match event:
            case e.Requested():
                self._serve(event, now)
            case e.Answered(token, message):
                self._answered(token, message, now)
            case e.Failed(token):
                self._failed(token, now)
            case e.Tick():
                self._tick(now)
            case e.MemberUp(contact, serves):
                self._member_up(contact, serves=serves, now=now)
            case e.MemberDown(peer):
                self._members.pop(peer, None)
                self._serving.remove(peer)
                self.table.remove(peer)
            case e.Clock(offset_s):
                self._offset_s = offset_s
            case e.Listens(addresses):
                self.me = self.me._replace(addresses=addresses[: self.options.records.addresses_max])
            case e.Started():
                self._due.at(now + self.options.sweep_s * self._rng.random(), "sweep")
                self._due.at(now, "refresh")
            case e.Withdraw(key):
                self._published.pop(key, None)
                self._provided.pop(key, None)
                self._renewals.pop(("renew", key), None)
                self._renewals.pop(("provide", key), None)
                self.providers.remove(key, self.me.id)
            case e.Find() | e.Put() | e.Get() | e.Provide() | e.FindProviders():
                self._command(event, now)
            case _:
                assert_never(event)

    def unix_s(self, now: float) -> float:
        return now + self._offset_s

    # ---- who is there ------------------------------------------------------------------------------------------------

    def _member_up(self, contact: Contact, *, serves: bool, now: float) -> None:
        if contact.id == self.me.id or not is_peer_id(contact.id):
            return
        first = not self._members and not len(self.table)
        self._members[contact.id] = contact
        if serves:
            self._serving.add(contact.id)
        else:
            self._serving.remove(contact.id)
        if first:  # nodes that start together shall not all walk at the same moment
            self._walked_s = None
            self._due.at(now + self._rng.random(), "walk")

    def nearest(self, name: bytes, n: int, without: bytes = b"") -> list[Contact]:
        """Return the nearest peers of table and member view together."""
        target = key_of(name)
        found = {contact.id: contact for contact in self.table.closest(target, n + 1)}
        for peer in self._serving.closest(target, n + 1):
            contact = self._members[peer]
            if contact.addresses or peer not in found:  # the view knows the latest addresses
                found[peer] = contact
        found.pop(without, None)
        return sorted(found.values(), key=lambda contact: key_of(contact.id) ^ target)[:n]

    def _usable(self, contacts: tuple[Contact, ...]) -> list[Contact]:
        """Return of what a peer names as much as an honest one would, and only what can be a peer."""
        limit = self.options.lookup.k + 1
        return [each for each in contacts[:limit] if is_peer_id(each.id) and each.id != self.me.id]

    # ---- questions ---------------------------------------------------------------------------------------------------

    def _ask(self, peer: Contact, message: Message, search: Search | None, now: float) -> None:
        self._token += 1
        self._asked[self._token] = _Asked(peer, message, now, search)
        self._due.at(now + self._patience.timeout_s(peer.id), "asked", self._token)
        self.counts["asked"] += 1
        self._effects.append(e.Ask(self._token, peer, message))

    def _answered(self, token: int, message: Message, now: float) -> None:
        asked = self._asked.get(token)
        if asked is None:
            return
        if message.kind is not asked.message.kind:
            self.refused[Reason.MALFORMED] += 1
            self._failed(token, now)
            return
        del self._asked[token]
        self.counts["answered"] += 1
        self._patience.answered(asked.peer.id, now - asked.sent_s)
        doubtful = self.table.answered(asked.peer, now)
        if doubtful is not None:
            self._check(doubtful, now)
        if asked.search is None:
            self._checks -= not asked.given_up
        elif asked.search in self._searches:
            if isinstance(asked.search, Seeking):
                asked.search.gather(self._usable(message.providers))
            asked.search.answered(asked.peer, asked.message, message, self._usable(message.closer))
            self._advance(asked.search, now)

    def _failed(self, token: int, now: float) -> None:
        asked = self._asked.pop(token, None)
        if asked is not None and not asked.given_up:
            self.counts["failed"] += 1
            self._miss(asked, now)

    def _overdue(self, token: int, now: float) -> None:
        asked = self._asked.get(token)
        if asked is None:
            return
        if asked.given_up:
            del self._asked[token]
            return
        asked.given_up = True
        self._due.at(now + self.options.late_s, "asked", token)
        self.counts["timeouts"] += 1
        self._miss(asked, now)

    def _miss(self, asked: _Asked, now: float) -> None:
        self.table.missed(asked.peer.id)
        if asked.search is None:
            self._checks -= 1
        elif asked.search in self._searches:
            asked.search.failed(asked.peer, asked.message)
            self._advance(asked.search, now)

    def _check(self, peer: Contact, now: float) -> None:
        """See whether a peer answers, unless that was seen to lately."""
        if self._checks >= self.options.checks_max or self._checked.get(peer.id, now) > now:
            return
        self._checked.pop(peer.id, None)
        self._checked[peer.id] = now + self.options.check_again_s
        if len(self._checked) > 1024:  # noqa: PLR2004 - enough to remember
            self._checked.popitem(last=False)
        self._checks += 1
        self._ask(peer, Message(Kind.FIND_NODE, self.me.id), None, now)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, event: e.Requested, now: float) -> None:
        self.counts["requests"] += 1
        try:
            if not event.is_member and event.message is not None and event.message.kind in _LEAVING:
                raise NotStored(Reason.STRANGER)
            answer = self._answer(event.peer, event.message, now)
        except NotStored as refused:
            self.refused[refused.reason] += 1
            self._effects.append(e.Answer(event.token, None))
            return
        self._effects.append(e.Answer(event.token, answer))
        if not event.is_member:
            return
        known = self.table.entry(event.peer.id)
        if known is not None and not known.contact.addresses:  # it asked and answered before it had said where it is
            known.contact = event.peer
        if is_peer_id(event.peer.id) and self.table.wants(event.peer.id):
            self._check(event.peer, now)  # it enters only if it answers us

    def _answer(self, peer: Contact, message: Message | None, now: float) -> Message:
        if message is None:
            raise NotStored(Reason.MALFORMED)
        kind, key = message.kind, message.key
        if not 0 < len(key) <= NAME_MAX and kind is not Kind.PING:
            raise NotStored(Reason.MALFORMED)
        match kind:
            case Kind.PING:
                return Message(Kind.PING)
            case Kind.FIND_NODE:
                return Message(kind, key, closer=self._closer(peer, key, exact=True))
            case Kind.GET_VALUE:
                return Message(kind, key, self._kept(key, now), self._closer(peer, key))
            case Kind.GET_PROVIDERS:
                return Message(kind, key, None, self._closer(peer, key), tuple(self.providers.get(key, now)))
            case Kind.PUT_VALUE:
                if message.record is None or message.record.key != key:
                    raise NotStored(Reason.MALFORMED)
                self.values.put(message.record, peer.id, now, self.unix_s(now))
                return message
            case Kind.ADD_PROVIDER:
                own = [each for each in message.providers if each.id == peer.id]
                if not own:
                    raise NotStored(Reason.NOT_SENDER)
                self.providers.add(key, own[0], now)
                return Message(kind, key)
            case _:
                assert_never(kind)

    def _closer(self, asker: Contact, name: bytes, *, exact: bool = False) -> tuple[Contact, ...]:
        """Return the nearest but the asker; with `exact` also the one asked for, be it a leaf or ourselves."""
        found = self.nearest(name, self.options.lookup.k, without=asker.id)
        named = self.me if name == self.me.id else self._members.get(name)
        if exact and named is not None and name != asker.id and all(contact.id != name for contact in found):
            found.insert(0, named)
        limit = self.options.records.addresses_max
        return tuple(
            contact if len(contact.addresses) <= limit else contact._replace(addresses=contact.addresses[:limit])
            for contact in found
        )

    def _kept(self, key: bytes, now: float) -> Record | None:
        kept = self.values.get(key, now)
        if kept is None:
            return None
        value, received_s = kept
        return Record(key, value, datetime.fromtimestamp(received_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _command(self, command: e.Command, now: float) -> None:
        reason = self._reason_against(command, now)
        if reason is not None:
            self._effects.append(e.Done(command.ticket, e.Refused(reason)))
            return
        if isinstance(command, e.Put) and command.renew:
            self._published[command.key] = command.payload
            self._renew_later("renew", command.key, now)
        elif isinstance(command, e.Provide):
            self._provided[command.key] = None
            self._renew_later("provide", command.key, now)
        self._commands.append(command)

    def _reason_against(self, command: e.Command, now: float) -> Reason | None:
        name = command.peer if isinstance(command, e.Find) else command.key
        if not 0 < len(name) <= NAME_MAX:
            return Reason.MALFORMED
        if isinstance(command, e.Put):
            try:
                self.values.seal(command.key, command.payload, self.unix_s(now))
            except NotStored as refused:  # too large, or nobody judges such keys
                return refused.reason
        ours = len(self._published) + len(self._provided)
        known = name in self._published or name in self._provided
        if isinstance(command, e.Put | e.Provide) and not known and ours >= self.options.published_max:
            return Reason.TOO_MANY
        return Reason.FULL if len(self._commands) >= self.options.waiting_max else None

    def _renew_later(self, what: str, key: bytes, now: float) -> None:
        records = self.options.records
        every_s = records.value_renew_s if what == "renew" else records.provider_renew_s
        due_s = self._later(now, every_s)
        self._renewals[what, key] = due_s
        self._due.at(due_s, what, (key, due_s))

    def _later(self, now: float, seconds: float) -> float:
        """Spread what was put at once."""
        return now + seconds * (0.9 + 0.2 * self._rng.random())

    # ---- searches ----------------------------------------------------------------------------------------------------

    def _start_searches(self, now: float) -> None:
        while self._commands and len(self._searches) - self._own < self.options.searches_max - self.options.own_max:
            self._start(self._commands.popleft(), now, own=False)
        while self._chores and self._own < self.options.own_max:
            self._start(self._chores.popleft(), now, own=True)

    def _start(self, command: e.Command, now: float, *, own: bool) -> None:
        ticket = None if own else command.ticket
        search = self._search(command, ticket, now)
        self.counts["searches"] += 1
        self._searches[search] = None
        self._own += own
        self._due.at(now + self.options.search_s, "search", search)
        self._advance(search, now)

    def _search(self, command: e.Command, ticket: int | None, now: float) -> Search:
        match command:
            case e.Find(_, peer):
                return Search(ticket, peer, Kind.FIND_NODE, self._lookup(peer))
            case e.Put(_, key, payload):
                record = Record(key, self.values.seal(key, payload, self.unix_s(now)))
                left = Message(Kind.PUT_VALUE, key, record)
                return Storing(ticket, key, self._lookup(key, store=True), left, self.me.id)
            case e.Provide(_, key):
                left = Message(Kind.ADD_PROVIDER, key, providers=(self.me,))
                return Storing(ticket, key, self._lookup(key, store=True), left, self.me.id)
            case e.Get(_, key):
                getting = Getting(ticket, key, self._lookup(key), lambda value: self._judge(key, value, now))
                kept = self.values.get(key, now)
                if kept is not None:
                    getting.holds(self.me.id, kept[0])
                return getting
            case e.FindProviders(_, key, count):
                seeking = Seeking(ticket, key, self._lookup(key), max(count, 1))
                seeking.gather(self.providers.get(key, now))
                return seeking
            case _:
                assert_never(command)

    def _lookup(self, name: bytes, *, store: bool = False) -> Lookup:
        options = self.options.lookup
        beta = options.beta_store if store else options.beta_find
        return Lookup(key_of(name), self.nearest(name, options.k), options, beta, self.me.id)

    def _judge(self, key: bytes, value: bytes, now: float) -> Checked | None:
        try:
            return self.values.check(key, value, self.unix_s(now))
        except NotStored as refused:
            self.refused[refused.reason] += 1
            return None

    def _advance(self, search: Search, now: float) -> None:
        """Ask whom the search wants asked; end it if it wants nobody and waits for nobody."""
        while isinstance(step := search.next(), Ask):
            self._ask(step.peer, search.question, search, now)
        if isinstance(step, Wait):
            return
        del self._searches[search]
        self._own -= search.ticket is None
        self.table.looked(search.lookup.target, now)
        if isinstance(search, Storing) and search.here:
            search.here = self._leave_here(search.question, now)
        if isinstance(search, Getting):  # who should have had the value shall have it
            for peer in search.to_correct():
                self._ask(peer, Message(Kind.PUT_VALUE, search.name, Record(search.name, search.value)), search, now)
        if search.ticket is not None:
            self._effects.append(e.Done(search.ticket, search.result()))

    def _leave_here(self, message: Message, now: float) -> bool:
        try:
            self._answer(self.me, message, now)
        except NotStored as refused:
            self.refused[refused.reason] += 1
            return False
        return True

    # ---- time --------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        heap = self._due.heap
        self._timer_s = None
        while heap and heap[0][0] <= now:
            _, _, what, which = heappop(heap)
            match what:
                case "asked":
                    self._overdue(which, now)
                case "search":
                    if which in self._searches:
                        which.over = True
                        self._advance(which, now)
                case "walk":
                    self._refresh(now)
                case "refresh":
                    self._refresh(now)
                    self._due.at(self._later(now, self.options.table.refresh_s / 5), "refresh")
                case "renew" | "provide":
                    self._renew(what, which, now)
                case "sweep":
                    self.values.expire(now)
                    self.providers.expire(now)
                    self._due.at(now + self.options.sweep_s, "sweep")

    def _renew(self, what: str, which: tuple[bytes, float], now: float) -> None:
        key, due_s = which
        if self._renewals.get((what, key)) == due_s:
            again = e.Put(0, key, self._published[key]) if what == "renew" else e.Provide(0, key)
            self._chores.append(again)
            self._renew_later(what, key, now)

    def _refresh(self, now: float) -> None:
        """Walk to our own key, and into every prefix where nothing was looked up for long."""
        every_s = self.options.table.refresh_s
        if self._walked_s is None or self._walked_s + every_s <= now:
            self._walked_s = now
            self._chores.append(e.Find(0, self.me.id))
        for shared in self.table.idle(now):
            name = name_near(key_of(self.me.id), shared, self._rng)
            self.table.looked(key_of(name), now)  # or it would be due again before the walk has ended
            self._chores.append(e.Find(0, name))
