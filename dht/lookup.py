"""Finding the peers nearest to a key (Kademlia §2.3): ask the nearest you know of; they name nearer ones; ask those.

    lookup = Lookup(target, seeds, beta=3)
    while not isinstance(step := lookup.next(), Done):
        Ask(peer): ask it, and later call `answered` or `failed`, whichever comes; Wait: until one of them was called

Three numbers: of the k nearest candidates that have not failed, at most α are asked at a time, until the β nearest of
them have answered (ALGORITHMS §1.2). 3 find what is there; 8 are where a record is stored, so 8 must be known for sure.

Rule 1: no clock and no network; who waits, and for how long, is the caller's business.
Rule 2: it ends. Every peer is asked once, and no more than `questions_max` are, whatever liars name.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from p2pgrid.dht.keys import Key, key_of
from p2pgrid.dht.wire import Contact


@dataclass(frozen=True, slots=True)
class LookupOptions:
    k: int = 20
    alpha: int = 10
    """α: questions at a time. libp2p's; the paper's 3 takes three times as many rounds."""
    beta_find: int = 3
    beta_store: int = 8
    questions_max: int = 128
    """An honest network of a million peers, half of its table entries stale, needs 60."""


@dataclass(frozen=True, slots=True)
class Ask:
    peer: Contact


@dataclass(frozen=True, slots=True)
class Wait:
    pass


@dataclass(frozen=True, slots=True)
class Done:
    closest: tuple[Contact, ...]
    """Peers that answered, nearest first, at most k."""


class State(Enum):
    HEARD_OF = "heard of"
    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


class Lookup:
    """One walk towards one key."""

    def __init__(
        self, target: Key, seeds: Iterable[Contact], options: LookupOptions, beta: int, me: bytes = b""
    ) -> None:
        self.target = target
        self.options = options
        self.beta = beta
        self.asked = 0
        """Questions so far."""
        self._answers = 0
        """Round trips so far, one after the other."""
        self._me = me
        self._candidates: list[tuple[int, bytes]] = []
        """By distance."""
        self._contacts: dict[bytes, Contact] = {}
        self._state: dict[bytes, State] = {}
        self._round: dict[bytes, int] = {}
        for contact in seeds:
            self.heard_of(contact)

    def heard_of(self, contact: Contact) -> None:
        if contact.id != self._me and contact.id not in self._state:
            self._state[contact.id] = State.HEARD_OF
            self._contacts[contact.id] = contact
            insort(self._candidates, (key_of(contact.id) ^ self.target, contact.id))

    def next(self) -> Ask | Wait | Done:
        # Only the k nearest that have not failed can still change the result.
        hopeful = (peer for _, peer in self._candidates if self._state[peer] is not State.FAILED)
        front = list(islice(hopeful, self.options.k))
        if all(self._state[peer] is State.ANSWERED for peer in front[: self.beta]):
            return self.done()

        waiting = sum(state is State.ASKED for state in self._state.values())
        if waiting < self.options.alpha and self.asked < self.options.questions_max:
            for peer in front:
                if self._state[peer] is State.HEARD_OF:
                    return self._ask(peer)
        return Wait() if waiting else self.done()

    def _ask(self, peer: bytes) -> Ask:
        self._state[peer] = State.ASKED
        self._round[peer] = self._answers + 1
        self.asked += 1
        return Ask(self._contacts[peer])

    def done(self) -> Done:
        """Return what there is so far."""
        nearest = (peer for _, peer in self._candidates if self._state[peer] is State.ANSWERED)
        return Done(tuple(self._contacts[peer] for peer in islice(nearest, self.options.k)))

    def answered(self, peer: bytes, closer: Iterable[Contact]) -> None:
        """Take in an answer: also one of a peer that was given up, for late is better than never."""
        if peer in self._round:
            self._state[peer] = State.ANSWERED
            self._answers = max(self._answers, self._round[peer])
        for contact in closer:
            self.heard_of(contact)

    def failed(self, peer: bytes) -> None:
        """Give up a peer that refused, or did not answer in time."""
        if self._state.get(peer) is State.ASKED:
            self._state[peer] = State.FAILED

    @property
    def rounds(self) -> int:
        """Return how many round trips, one after the other, led to the β nearest; silence is not counted."""
        return max((self._round[peer.id] for peer in self.done().closest[: self.beta]), default=0)

    def candidates(self) -> list[tuple[Contact, State]]:
        """Return all that were heard of, nearest first: for transcripts."""
        return [(self._contacts[peer], self._state[peer]) for _, peer in self._candidates]
