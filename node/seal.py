"""The seal of a node: its signature on its cards, and the check that a card is a member's own (DESIGN §3).

What a member says of itself is passed on by others, so it proves itself: its certificate stands on it, by which the
grid's key vouches for the member's, and its signature, over the grid's key as well. To check one takes 0.2 ms; the
machine asks only for cards that would change what it knows.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.core.member import Card, said
from p2pgrid.node.charter import Charter
from p2pgrid.node.identity import peer_public


class CardSeal:
    """Signs by the node's key, and believes whom the charter does."""

    def __init__(self, charter: Charter, key: Ed25519PrivateKey, me: str) -> None:
        self._charter = charter
        self._key = key
        self._me = me

    def sign(self, card: Card) -> bytes:
        return self._key.sign(said(self._me, self._charter.grid, card))

    def holds(self, node: str, card: Card) -> bool:
        try:
            public = peer_public(node)
            Ed25519PublicKey.from_public_bytes(public).verify(card.proof, said(node, self._charter.grid, card))
        except (ValueError, InvalidSignature):
            return False
        return self._charter.vouches(public, card.chain)
