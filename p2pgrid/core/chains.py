r"""What a membership is made of (DESIGN §3): links and chains of them, roles, and why one is refused.

    chain = msgpack [[body, signature], …]        at most 8 links, 2 KiB; from the grid's key down to one peer
    body  = msgpack ["n", subject, roles, signed at, until or 0, b"" or inviter and voucher]    a node, by an admin
          | msgpack ["v", subject, roles, signed at, until or 0, join until]                    a voucher, by an admin
          | msgpack ["j", subject]                                                              a joiner, by a voucher
    signature = Ed25519 of "p2pgrid link 1\0" + grid's public key + body

A chain is n…n (a member), n…nvj (a joiner until an admin replaces voucher and joiner by a node link that remembers
them) or n…nv (inside an invite). Statements have one encoding: what msgpack could also have said in other bytes is
malformed. Inviter and voucher are key ids, the first 16 bytes of their keys.

Rule 1: nothing is verified here, only read and written; `core.trust` judges.
Rule 2: whatever a stranger sends ends in `Refused` and in no other exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

SUBMIT, WORK, ADMIN, OBSERVE = 1, 2, 4, 8
ALL_ROLES = SUBMIT | WORK | ADMIN | OBSERVE
DEFAULT_ROLES = SUBMIT | WORK | ADMIN
ROLE_NAMES = {"submit": SUBMIT, "work": WORK, "admin": ADMIN, "observe": OBSERVE}
ACTS = {
    "submit": SUBMIT, "claim": WORK, "result": WORK, "invite": ADMIN, "revoke": ADMIN, "read": SUBMIT | OBSERVE,
}  # fmt: skip
"""What a member does, and the roles of which it needs one."""

LINK_WORD = b"p2pgrid link 1\0"
LINKS_MAX = 8
CHAIN_BYTES_MAX = 2048
TIME_MAX_S = 253_402_300_799
"""The end of the year 9999: every date in a chain can be shown."""

KEY_LENGTH = 32
KEY_ID_LENGTH = 16
STATEMENT_ID_LENGTH = 16
SIGNATURE_LENGTH = 64
_ROLES_END = 256  # a later version may know more roles than we do: they are carried on and mean nothing here


class Reason(IntEnum):
    """Why something was refused: one byte on the wire (DESIGN §3), one line for people."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> Self:
        """Give each number its line."""
        reason = int.__new__(cls, value)
        reason._value_ = value
        reason.sentence = sentence
        return reason

    SIZE = 1, "the certificate is too long"
    MALFORMED = 2, "the certificate is malformed"
    LINKS = 3, "the certificate has more links than a grid allows"
    KINDS = 4, "the certificate's links do not follow each other like this"
    ANOTHERS = 5, "the certificate belongs to another node"
    NOT_ADMIN = 6, "it was signed by a member that is no admin"
    ENDED = 7, "the membership has ended"
    EXPIRED = 8, "the invite has expired"
    REVOKED = 9, "it was revoked"
    FROM_REVOKED = 10, "it comes from a key that was revoked"
    FOREIGN = 11, "it is of another grid"
    SIGNATURE = 12, "a signature is wrong"
    PROVISIONAL = 13, "no admin has signed this joiner yet"
    NO_CHAIN = 14, "there is no certificate"
    TOO_MANY = 32, "it let in more than one revocation can list"
    CUTS_SENDER = 33, "this would cut off the one who says it"
    NO_INVITE = 48, "this is not an invite"
    TRUNCATED = 49, "it is cut short"
    DAMAGED = 50, "it is damaged: a character is wrong"
    NEWER = 51, "it was made by a newer version"
    PASSPHRASE = 52, "the passphrase is wrong"
    OTHER = 255, "refused for a reason that this version does not know"

    @classmethod
    def from_byte(cls, byte: int) -> Reason:
        """Return the reason that a peer sent; an unknown one is OTHER (DESIGN §3). Raises nothing."""
        return cls._value2member_map_.get(byte, cls.OTHER)  # type: ignore[return-value]


class Refused(PeerError):
    """A chain, a revocation, an invite or a recovery file does not hold."""

    def __init__(self, reason: Reason) -> None:
        """Keep the reason; the message is its line."""
        super().__init__(reason.sentence)
        self.reason = reason


def refuse(reason: Reason) -> NoReturn:
    """Raise Refused (DESIGN §3)."""
    raise Refused(reason)


class Link(NamedTuple):
    """One link as it was read; nothing about it is verified yet.

    `roles` of a joiner are 0: it has those of its voucher. Times are unix seconds, `until` 0 means without end.
    """

    kind: str
    subject: bytes
    body: bytes
    signature: bytes
    roles: int = 0
    signed_at: int = 0
    until: int = 0
    join_until: int = 0
    inviter: bytes = b""
    voucher: bytes = b""


# ---- reading --------------------------------------------------------------------------------------------------------


def key_id(public: bytes) -> bytes:
    """Return what names a key in links and revocations: its first half (DESIGN §3). Raises nothing."""
    return public[:KEY_ID_LENGTH]


def statement_id(body: bytes) -> bytes:
    """Return what a revocation lists of a link or another revocation (DESIGN §3). Raises nothing."""
    return sha256(body).digest()[:STATEMENT_ID_LENGTH]


def read_exactly(data: bytes, limit: int) -> Any:
    """Return the one msgpack value in `data`, in the one encoding we would have written (DESIGN §3).

    Raises:
        Refused: SIZE, MALFORMED.
    """
    if len(data) > limit:
        refuse(Reason.SIZE)
    try:
        value = unpack(data, limit=limit)
        if pack(value) == data:
            return value
    except (PeerError, ValueError, TypeError, OverflowError, RecursionError):
        pass
    refuse(Reason.MALFORMED)


def is_whole(value: object, end: int) -> bool:
    """Return whether it is an integer, no bool, with 0 <= value < end (DESIGN §3). Raises nothing."""
    return type(value) is int and 0 <= value < end


def read_chain(chain: bytes) -> tuple[Link, ...]:
    """Return the links of a chain: its length and shape are right, nothing else is known (DESIGN §3).

    Raises:
        Refused: SIZE, MALFORMED, LINKS, KINDS.
    """
    pairs = read_exactly(chain, CHAIN_BYTES_MAX)
    if not isinstance(pairs, list):
        refuse(Reason.MALFORMED)
    if not pairs:
        refuse(Reason.NO_CHAIN)
    if len(pairs) > LINKS_MAX:
        refuse(Reason.LINKS)
    links = tuple(_link(pair) for pair in pairs)
    kinds = "".join(link.kind for link in links)
    members = kinds.removesuffix("j").removesuffix("v") if kinds.endswith("vj") else kinds.removesuffix("v")
    if not members or members.strip("n"):
        refuse(Reason.KINDS)
    return links


def _link(pair: Any) -> Link:
    match pair:
        case [bytes(body), bytes(signature)] if len(signature) == SIGNATURE_LENGTH:
            pass
        case _:
            refuse(Reason.MALFORMED)
    match read_exactly(body, CHAIN_BYTES_MAX):
        case ["j", bytes(subject)]:
            link = Link("j", subject, body, signature)
        case ["v", bytes(subject), roles, at, until, join_until]:
            link = Link("v", subject, body, signature, roles, at, until, join_until)
        case ["n", bytes(subject), roles, at, until, bytes(via)] if len(via) in {0, 2 * KEY_ID_LENGTH}:
            inviter, voucher = via[:KEY_ID_LENGTH], via[KEY_ID_LENGTH:]
            link = Link("n", subject, body, signature, roles, at, until, inviter=inviter, voucher=voucher)
        case _:
            refuse(Reason.MALFORMED)
    dates = (link.signed_at, link.until, link.join_until)
    good = all(is_whole(date, TIME_MAX_S + 1) for date in dates) and is_whole(link.roles, _ROLES_END)
    if len(subject) != KEY_LENGTH or not good or (link.kind != "j" and not link.roles):
        refuse(Reason.MALFORMED)
    return link


def is_provisional(links: Sequence[Link]) -> bool:
    """Return whether the chain ends with a joiner whom no admin has signed yet (DESIGN §3). Raises nothing."""
    return links[-1].kind == "j"


def newest_signed_at(chain: bytes) -> int:
    """Return the latest date in a chain: what its owner knows of the time before it has peers (DESIGN §6).

    Raises:
        Refused: SIZE, MALFORMED, LINKS, KINDS.
    """
    return max(link.signed_at for link in read_chain(chain))


# ---- roles ----------------------------------------------------------------------------------------------------------


def may(roles: int, act: str) -> bool:
    """Return whether a member with these roles may do one of ACTS (DESIGN §3). Raises KeyError on another act."""
    return bool(roles & ACTS[act])


def role_names(roles: int) -> list[str]:
    """Return `["submit", "work"]` (DESIGN §3); roles of a later version have no name. Raises nothing."""
    return [name for name, role in ROLE_NAMES.items() if roles & role]


def parse_roles(text: str) -> int:
    """Return the roles in `submit,work` (DESIGN §3, INTERFACE `--roles`).

    Raises:
        ValueError: it is empty, or one of them is no role.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(name in ROLE_NAMES for name in names):
        msg = f"not roles: {text[:80]!r}; write some of {','.join(ROLE_NAMES)}"
        raise ValueError(msg)
    return sum(ROLE_NAMES[name] for name in dict.fromkeys(names))


# ---- signing --------------------------------------------------------------------------------------------------------


def public_of(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of its public half (DESIGN §3). Raises nothing."""
    return key.public_key().public_bytes_raw()


def sign_link(key: Ed25519PrivateKey, grid: bytes, *fields: object) -> list[bytes]:
    """Return [body, signature] over any fields: no rule is looked at (DESIGN §3). Raises nothing."""
    body = pack(list(fields))
    return [body, key.sign(LINK_WORD + grid + body)]


def found(grid_key: Ed25519PrivateKey, founder: bytes, now: float) -> bytes:
    """Return the chain of the first node: all roles, no end (DESIGN §3). Raises nothing."""
    return pack([sign_link(grid_key, public_of(grid_key), "n", founder, ALL_ROLES, int(now), 0, b"")])


def below(chain: bytes, link: list[bytes]) -> bytes:
    """Return the chain with one more link (DESIGN §3). Raises Refused as `read_chain`."""
    longer = pack([*([one.body, one.signature] for one in read_chain(chain)), link])
    read_chain(longer)
    return longer


def join(voucher: Ed25519PrivateKey, grid: bytes, chain: bytes, node: bytes) -> bytes:
    """Return the chain by which a joiner is let in until the voucher's `join_until` (DESIGN §3).

    Raises:
        Refused: KINDS if `chain` does not end with a voucher, or as `read_chain`.
    """
    return below(chain, sign_link(voucher, grid, "j", node))
