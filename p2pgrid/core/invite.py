r"""Texts that people carry about (DESIGN §3): the invite that lets a machine in, and the recovery file of an admin.

Both are one line that survives chats, wrapped mails and double clicks:

    p2pgrid-invite-1.<base64url of u16 length | msgpack | 4 bytes of SHA-256>
        msgpack [grid's public key, [address, …], voucher's private key, chain]
    p2pgrid-recovery-1.<the same envelope>
        msgpack [salt, ChaCha20-Poly1305 of msgpack [grid's public key, [address, …], admin's private key, chain]]

The length is there so that a text that was cut short is called that, the sum so that a wrong character is not taken for
a wrong passphrase or a foreign grid, the number so that an old version can say that it is too old.

Rule: private keys come in and go out as objects; no text with a key in it is ever put into a message.
"""

from __future__ import annotations

import binascii
import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from p2pgrid.core.chains import CHAIN_BYTES_MAX, KEY_LENGTH, Reason, Refused, join, public_of, read_exactly, refuse
from p2pgrid.core.errors import GridError
from p2pgrid.core.trust import NOBODY_REVOKED, Judge, Revoked
from p2pgrid.core.wire import pack

INVITE_WORD = "p2pgrid-invite-"
RECOVERY_WORD = "p2pgrid-recovery-"
VERSION = "1"
ADDRESSES_MAX = 8
ADDRESS_LENGTH_MAX = 256
CONTENT_BYTES_MAX = CHAIN_BYTES_MAX + ADDRESSES_MAX * (ADDRESS_LENGTH_MAX + 3) + 256
TEXT_LENGTH_MAX = 2 * CONTENT_BYTES_MAX
"""With room for the line breaks of a mail."""
SALT_LENGTH = 16
PASSPHRASE_LENGTH_MAX = 1024
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 1
"""32 MiB and some 70 ms per guess; fixed by the version of the text."""

_SUM_LENGTH = 4
_LENGTH = struct.Struct(">H")
_RECOVERY_CONTEXT = b"p2pgrid recovery 1"
_VERSION_DIGITS_MAX = 4
_INVITE_SENTENCES = {
    Reason.NO_INVITE: "this is not an invite",
    Reason.TRUNCATED: "the invite is cut short",
    Reason.DAMAGED: "the invite is damaged: some character is wrong",
    Reason.NEWER: "the invite was made by a newer version of p2pgrid",
    Reason.EXPIRED: "the invite has expired",
    Reason.REVOKED: "the invite was revoked",
    Reason.FROM_REVOKED: "the invite comes from a key that was revoked",
    Reason.FOREIGN: "the invite is of another grid",
    Reason.ENDED: "the membership that the invite gives has ended",
}


@dataclass(frozen=True, slots=True)
class Membership:
    """What an invite and a recovery file hold.

    Attributes:
        grid: the grid's public key.
        addresses: multiaddrs of members, to be tried all.
        key: of the voucher, or of the admin that was exported.
        chain: from the grid's key to `key`.
    """

    grid: bytes
    addresses: tuple[str, ...]
    key: Ed25519PrivateKey = field(repr=False)
    chain: bytes = field(repr=False)

    def check_invite(self, now: float = 0, revoked: Revoked = NOBODY_REVOKED, *, grid: bytes = b"") -> int:
        """Return the roles that this invite gives (DESIGN §3).

        Args:
            now: grid time; 0 looks at no date: a joiner's own clock may be years off, members know better.
            revoked: the revocations known here.
            grid: the grid it should be of, if there is one.

        Raises:
            Refused: EXPIRED, ENDED, REVOKED, FROM_REVOKED, FOREIGN, or as `Judge.check_voucher`.
        """
        if grid not in {b"", self.grid}:
            refuse(Reason.FOREIGN)
        return Judge(self.grid).check_voucher(self.chain, public_of(self.key), now, revoked)

    def join(self, node: bytes) -> bytes:
        """Return the chain by which the node with this public key is let in (DESIGN §3).

        Raises:
            Refused: the chain does not end with a voucher (KINDS).
        """
        return join(self.key, self.grid, self.chain, node)


def write_invite(invite: Membership) -> str:
    """Return the text that `p2pgrid invite` prints (DESIGN §3).

    Raises:
        ValueError: too many addresses, or one that is too long.
    """
    return _write(INVITE_WORD, _pack(invite))


def read_invite(text: str) -> Membership:
    """Return what an invite holds; `check_invite` says whether it is still good (DESIGN §3).

    Raises:
        Refused: NO_INVITE, TRUNCATED, DAMAGED, NEWER.
    """
    return _unpack(_read(INVITE_WORD, text))


def see_invite(text: str) -> None:
    """See that a text is an invite, whatever the time is.

    Raises:
        GridError: it is none, or damaged (bad-invite).
    """
    try:
        read_invite(text).check_invite(0)
    except Refused as refused:
        raise bad_invite(refused.reason) from None


def bad_invite(reason: Reason) -> GridError:
    """Return the error that tells a user why an invite, or the joiner who came by it, was refused (INTERFACE §2).

    Raises nothing.
    """
    sentence = _INVITE_SENTENCES.get(reason, f"the invite cannot be used: {reason.sentence}")
    advice = "ask an admin of the grid for a new one: p2pgrid invite"
    if reason in {Reason.NO_INVITE, Reason.TRUNCATED, Reason.DAMAGED}:
        advice = "copy the whole line that p2pgrid invite printed"
    elif reason is Reason.NEWER:
        advice = "install the version that the other machine has: p2pgrid --version"
    elif reason is Reason.FOREIGN:
        advice = "leave the grid this node is in, or use an invite of that one: p2pgrid leave"
    return GridError(sentence, next=advice, code="bad-invite")


def export_admin(admin: Membership, passphrase: str, salt: bytes) -> str:
    """Return the text of a recovery file: an admin's key under a passphrase (DESIGN §3). Takes 70 ms and 32 MiB.

    Args:
        admin: a fresh key with a chain of its own (`Judge.promote`), so that it is listed and can be revoked.
        passphrase: any text; compared in Unicode's composed form.
        salt: 16 fresh random bytes, never used twice.

    Raises:
        GridError: the passphrase is empty or longer than 1,024 characters.
        ValueError: the salt has another length, or too many or too long addresses.
    """
    if len(salt) != SALT_LENGTH:
        msg = f"a salt has {SALT_LENGTH} bytes, not {len(salt)}"
        raise ValueError(msg)
    sealed = _cipher(passphrase, salt).encrypt(bytes(12), _pack(admin), _RECOVERY_CONTEXT)  # one key, one nonce
    return _write(RECOVERY_WORD, pack([salt, sealed]))


def recover_admin(text: str, passphrase: str) -> Membership:
    """Return the admin's key in a recovery file (DESIGN §3). Takes 70 ms and 32 MiB.

    Raises:
        Refused: NO_INVITE, TRUNCATED, DAMAGED, NEWER, PASSPHRASE.
        GridError: the passphrase is empty or longer than 1,024 characters.
    """
    match _content(_read(RECOVERY_WORD, text)):
        case [bytes(salt), bytes(sealed)] if len(salt) == SALT_LENGTH:
            pass
        case _:
            refuse(Reason.DAMAGED)
    try:
        data = _cipher(passphrase, salt).decrypt(bytes(12), sealed, _RECOVERY_CONTEXT)
    except InvalidTag:
        raise Refused(Reason.PASSPHRASE) from None
    return _unpack(data)


def _cipher(passphrase: str, salt: bytes) -> ChaCha20Poly1305:
    if not 0 < len(passphrase) <= PASSPHRASE_LENGTH_MAX:
        raise GridError(
            "a passphrase has 1 to 1,024 characters",
            next="type another one, or name a file that holds it: --passphrase-file FILE",
            code="usage",
        )
    phrase = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return ChaCha20Poly1305(Scrypt(salt=salt, length=KEY_LENGTH, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(phrase))


# ---- envelope -------------------------------------------------------------------------------------------------------


def _pack(held: Membership) -> bytes:
    if len(held.addresses) > ADDRESSES_MAX or not all(_is_address(address) for address in held.addresses):
        msg = f"at most {ADDRESSES_MAX} addresses of {ADDRESS_LENGTH_MAX} characters"
        raise ValueError(msg)
    return pack([held.grid, list(held.addresses), held.key.private_bytes_raw(), held.chain])


def _is_address(value: object) -> bool:
    short = isinstance(value, str) and 0 < len(value) <= ADDRESS_LENGTH_MAX
    return short and isinstance(value, str) and value.isascii() and value.isprintable()


def _unpack(data: bytes) -> Membership:
    match _content(data):
        case [bytes(grid), list(addresses), bytes(key), bytes(chain)] if len(grid) == len(key) == KEY_LENGTH:
            if 0 < len(chain) <= CHAIN_BYTES_MAX and len(addresses) <= ADDRESSES_MAX and _all_addresses(addresses):
                return Membership(grid, tuple(addresses), Ed25519PrivateKey.from_private_bytes(key), chain)
    raise Refused(Reason.DAMAGED)


def _all_addresses(values: Sequence[object]) -> bool:
    return all(_is_address(value) for value in values)


def _content(data: bytes) -> Any:
    try:
        return read_exactly(data, CONTENT_BYTES_MAX)
    except Refused:
        refuse(Reason.DAMAGED)


def _sum(word: str, content: bytes) -> bytes:
    return sha256(word.encode() + content).digest()[:_SUM_LENGTH]


def _write(word: str, content: bytes) -> str:
    data = _LENGTH.pack(len(content)) + content + _sum(word, content)
    return f"{word}{VERSION}." + _base64url(data)


def _base64url(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii").rstrip("=").translate(_TO_URL)


_TO_URL = str.maketrans("+/", "-_")
_FROM_URL = str.maketrans("-_", "+/")


def _read(word: str, text: str) -> bytes:
    """Return the content of the envelope; white space anywhere in it is passed over."""
    if len(text) > TEXT_LENGTH_MAX:
        refuse(Reason.NO_INVITE)
    head, dot, rest = "".join(text.split()).partition(".")
    version = head.removeprefix(word)
    if not head.startswith(word):
        # The first characters alone are a text cut short; an empty one is nothing.
        refuse(Reason.TRUNCATED if head and word.startswith(head) and not dot else Reason.NO_INVITE)
    if not dot and version in {"", VERSION}:
        refuse(Reason.TRUNCATED)
    if version != VERSION:
        newer = version.isascii() and version.isdigit() and len(version) <= _VERSION_DIGITS_MAX
        refuse(Reason.NEWER if newer else Reason.NO_INVITE)
    return _opened(word, rest)


def _opened(word: str, rest: str) -> bytes:
    if len(rest) < 4:  # noqa: PLR2004 - four characters are three bytes: the length is in them
        refuse(Reason.TRUNCATED)
    try:
        (length,) = _LENGTH.unpack_from(_bytes(rest[:4]))
        missing = -(-(_LENGTH.size + length + _SUM_LENGTH) * 4 // 3) - len(rest)
        if missing:
            refuse(Reason.TRUNCATED if missing > 0 else Reason.DAMAGED)
        data = _bytes(rest)
    except ValueError:  # binascii.Error is one
        refuse(Reason.DAMAGED)
    content = data[_LENGTH.size : _LENGTH.size + length]
    if data[_LENGTH.size + length :] != _sum(word, content) or _base64url(data) != rest:
        refuse(Reason.DAMAGED)
    return content


def _bytes(text: str) -> bytes:
    return binascii.a2b_base64(text.translate(_FROM_URL) + "=" * (-len(text) % 4), strict_mode=True)
