"""What is known of a member: a verdict on its life and the card it shows of itself. Both only ever grow newer.

A verdict is ALIVE(n) < SUSPECT(n) < DEAD(n) < LEFT(n) < ALIVE(n + 1), with n the *incarnation*, which only the member
itself raises. A card is ordered by the incarnation it was written in and a counter. Two chains, so that merging in any
order, any number of times, gives the same (a lattice).

Rule: no policy here; who decides on verdicts and how they travel is the business of `node.liveness` and `node.view`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from blake3 import blake3

from p2pgrid.core.wire import pack

ALIVE, SUSPECT, DEAD, LEFT = range(4)
STATUS_NAMES = ("alive", "suspect", "dead", "left")

INCARNATION_MAX = 2**53
LIFE_BYTES = 8
CARD_WORD = b"p2pgrid card 1\0"
BUCKETS = 64
RINGS = 8


class Verdict(NamedTuple):
    """What somebody says of a member's life."""

    id: str
    incarnation: int
    status: int
    by: str
    leaf: bool = False

    @property
    def gone(self) -> bool:
        """Whether the member is no longer counted on."""
        return self.status >= DEAD


class Card(NamedTuple):
    """What a member says of itself."""

    incarnation: int
    seq: int
    life: bytes
    """Drawn at each start: tells a clone of this node from its former self."""
    leaf: bool
    addresses: tuple[str, ...]
    facts: dict[str, Any]
    load: tuple[int, ...]
    chain: bytes = b""
    """Its certificate: who passes a card on proves with it that this is a member."""
    proof: bytes = b""
    """Its signature over all of this (`said`)."""


class Seal(Protocol):
    """Signs this node's cards, and looks whether those of others are theirs; the keys are the shell's."""

    def sign(self, card: Card) -> bytes:
        """Return the proof of a card of this node."""

    def holds(self, node: str, card: Card) -> bool:
        """Whether a member of this grid with that id has said so. Raises nothing."""


class Known(NamedTuple):
    """All that is known of a member."""

    incarnation: int
    status: int
    card: Card


class Update(NamedTuple):
    """A piece of news, as it travels."""

    id: str
    incarnation: int
    status: int
    by: str
    card: Card | None


def shown(card: Card) -> list[Any]:
    """Return a card as it travels; `core.shapes.read_card` reads it."""
    return [*card[:4], list(card.addresses), card.facts, list(card.load), card.chain, card.proof]


def said(node: str, grid: bytes, card: Card) -> bytes:
    """Return the bytes that the proof of a card signs."""
    return CARD_WORD + grid + pack([node, *shown(card)[:-1]])


def newer(a: Card, b: Card) -> Card:
    """Return the later of two cards of one member."""
    if a[:2] != b[:2]:
        return a if a[:2] > b[:2] else b
    return a if a == b or pack(a) >= pack(b) else b  # a clone's: any choice will do if all make the same


def merge(a: Known, b: Known) -> Known:
    """Return what follows from knowing both."""
    incarnation, status = max(a[:2], b[:2])
    return Known(incarnation, status, newer(a.card, b.card))


@lru_cache(maxsize=8192)
def positions(node: str) -> tuple[int, ...]:
    """Return where a node stands on each hash ring (64 bits)."""
    name = node.encode()
    return tuple(int.from_bytes(blake3(bytes([ring]) + name).digest(length=8), "big") for ring in range(RINGS))


def fingerprint(node: str, known: Known) -> int:
    """Return 64 bits that change whenever the knowledge does."""
    text = pack([node, known.incarnation, known.status, known.card.incarnation, known.card.seq])
    return int.from_bytes(blake3(text).digest(length=8), "big")
