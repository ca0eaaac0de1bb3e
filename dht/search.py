"""One command on its way: a lookup, and what is gathered at the peers it passes or left at those where it ends.

Putting and getting walk to the same place. Who puts stores at the β = 8 nearest; who gets asks the 3 nearest and,
before he says that nobody has it, the same 8. (Kad's two rules differed; its searches met 18 % of the holders.)

Rule: what peers say is judged before it is kept; a wrong value is as good as none.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pgrid.dht.events import Found, ProvidersFound, Result, Stored, Value
from p2pgrid.dht.keys import key_of
from p2pgrid.dht.lookup import Ask, Done, Lookup, Wait
from p2pgrid.dht.records import Checked
from p2pgrid.dht.wire import Contact, Kind, Message

Judge = Callable[[bytes], Checked | None]
"""Returns None for a value that is not in order."""


class Search:
    """Walks to a key, and asks everybody on the way the same question."""

    def __init__(self, ticket: int | None, name: bytes, kind: Kind, lookup: Lookup) -> None:
        self.ticket = ticket
        """None: the machine's own."""
        self.name = name
        self.lookup = lookup
        self.question = Message(kind, name)
        self.over = False
        """Time is up, or enough was found."""
        self.closest: tuple[Contact, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the β = 3 nearest will do."""
        return True

    def next(self) -> Ask | Wait | Done:
        step = self._walk()
        if isinstance(step, Done):
            self.closest = step.closest
        return step

    def _walk(self) -> Ask | Wait | Done:
        if self.over:
            return self.lookup.done()
        step = self.lookup.next()
        if isinstance(step, Done) and not self.enough:
            self.lookup.beta = max(self.lookup.beta, self.lookup.options.beta_store)
            step = self.lookup.next()
        return step

    def answered(self, peer: Contact, asked: Message, message: Message, closer: list[Contact]) -> None:
        self.lookup.answered(peer.id, closer)

    def failed(self, peer: Contact, asked: Message) -> None:
        self.lookup.failed(peer.id)

    def result(self) -> Result:
        return Found(next((peer for peer in self.closest if peer.id == self.name), None), self.closest)


class Getting(Search):
    """Gathers values; the best counts."""

    def __init__(self, ticket: int | None, name: bytes, lookup: Lookup, judge: Judge) -> None:
        super().__init__(ticket, name, Kind.GET_VALUE, lookup)
        self._judge = judge
        self.best: Checked | None = None
        self.value = b""
        self._held: dict[bytes, bytes] = {}
        """Peers, and the good value that each has."""

    @property
    def enough(self) -> bool:
        return self.best is not None

    def holds(self, peer: bytes, value: bytes) -> None:
        checked = self._judge(value)
        if checked is not None:
            self._held[peer] = value
            if self.best is None or checked.rank > self.best.rank:
                self.best, self.value = checked, value

    def answered(self, peer: Contact, asked: Message, message: Message, closer: list[Contact]) -> None:
        super().answered(peer, asked, message, closer)
        if message.record is not None and message.record.key == self.name:
            self.holds(peer.id, message.record.value)

    def to_correct(self) -> list[Contact]:
        """Return who of the nearest answered with something worse, or nothing."""
        region = self.closest[: self.lookup.options.beta_store] if self.best is not None else ()
        return [peer for peer in region if self._held.get(peer.id) != self.value]

    def result(self) -> Result:
        return Value(None if self.best is None else self.best.payload)


class Seeking(Search):
    """Gathers providers."""

    def __init__(self, ticket: int | None, name: bytes, lookup: Lookup, count: int) -> None:
        super().__init__(ticket, name, Kind.GET_PROVIDERS, lookup)
        self._count = count
        self._found: dict[bytes, Contact] = {}

    @property
    def enough(self) -> bool:
        return bool(self._found)

    def gather(self, providers: list[Contact]) -> None:
        for provider in providers:
            if provider.id not in self._found or not self._found[provider.id].addresses:
                self._found[provider.id] = provider
        self.over = self.over or len(self._found) >= self._count

    def result(self) -> Result:
        return ProvidersFound(tuple(self._found.values())[: self._count])


class Storing(Search):
    """Walks to a key, then leaves something at the nearest nodes, of which we may be one."""

    def __init__(self, ticket: int | None, name: bytes, lookup: Lookup, left: Message, me: bytes) -> None:
        super().__init__(ticket, name, Kind.FIND_NODE, lookup)
        self._left = left
        self._me = me
        self._todo: list[Contact] | None = None
        """Who is still to be asked to store; None: still walking."""
        self._waiting: dict[bytes, None] = {}
        self.copies = 0
        self.here = False
        """Whether we are among the nearest ourselves."""

    def next(self) -> Ask | Wait | Done:
        if self._todo is None:
            step = super().next()
            if not isinstance(step, Done):
                return step
            distance = key_of(self.name)
            region = sorted((*self.closest, Contact(self._me)), key=lambda peer: key_of(peer.id) ^ distance)
            region = region[: self.lookup.options.beta_store]
            self.here = any(peer.id == self._me for peer in region)
            self._todo = [peer for peer in region if peer.id != self._me]
            self.question = self._left
        if self._todo and not self.over:
            peer = self._todo.pop(0)
            self._waiting[peer.id] = None
            return Ask(peer)
        return Wait() if self._waiting and not self.over else Done(self.closest)

    def answered(self, peer: Contact, asked: Message, message: Message, closer: list[Contact]) -> None:
        if asked is not self._left:
            super().answered(peer, asked, message, closer)
        else:
            self.copies += 1
            self._waiting.pop(peer.id, None)

    def failed(self, peer: Contact, asked: Message) -> None:
        if asked is not self._left:
            super().failed(peer, asked)
        else:
            self._waiting.pop(peer.id, None)

    def result(self) -> Result:
        return Stored(self.copies + self.here)
