"""What a charter says to people, and small questions about chains.

Rule: nothing is decided here, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from p2pgrid.core.chains import KEY_ID_LENGTH, Reason, Refused, key_id, read_chain, role_names
from p2pgrid.core.errors import GridError, NotAuthorized, QuotaExceeded
from p2pgrid.core.revocation import Revocations
from p2pgrid.core.trust import Judge, Revoked
from p2pgrid.node.identity import peer_id

APART_S = 300.0
"""Clocks further apart are worth a warning (DESIGN §6)."""
ADMINS_WANTED = 2
REVOKED_SHOWN_MAX = 256
TOUCHED_MAX = 8192
"""Chains of which it is remembered what they depend on: with thousands of members, reading all takes half a second."""
_GONE = {"dead", "left"}


def admits(judge: Judge, chain: bytes, public: bytes, now_s: float, revoked: Revoked) -> bool:
    """Return whether the chain holds."""
    try:
        judge.check(chain, public, now_s, revoked)
    except Refused:
        return False
    return True


@lru_cache(maxsize=TOUCHED_MAX)
def touched(chain: bytes) -> frozenset[bytes]:
    """Return the ids of all keys on which a chain depends, its own included.

    Only what is said of one of them can change whether it holds. Raises Refused if it is malformed.
    """
    return frozenset(
        part for link in read_chain(chain) for part in (key_id(link.subject), link.inviter, link.voucher) if part
    )


def described(
    members: Sequence[dict[str, Any]],
    invites: Iterable[bytes],
    exported: Iterable[bytes],
    revoked: Revocations,
    now_s: float,
) -> dict[str, Any]:
    """Return the parts of the answer to `grid` that are lists of keys and members."""
    vouchers = [read_chain(chain)[-1] for chain in invites]
    keys = [read_chain(chain)[-1] for chain in exported]
    return {
        "admins": [{name: row.get(name) for name in ("id", "name", "status")} for row in members if _is_admin(row)],
        "members": sum(row.get("status") not in _GONE for row in members),
        "invites": [
            {
                "key": key_id(one.subject).hex(),
                "roles": role_names(one.roles),
                "join_until": one.join_until,
                "open": now_s <= one.join_until and not revoked.names(one.subject),
            }
            for one in vouchers
        ],
        "exported": [
            {
                "key": key_id(one.subject).hex(),
                "signed_at": one.signed_at,
                "revoked": revoked.names(one.subject),
            }
            for one in keys
        ],
        "revoked": _revoked(members, revoked),
    }


def _is_admin(row: dict[str, Any]) -> bool:
    return "admin" in (row.get("roles") or ())


def _revoked(members: Sequence[dict[str, Any]], revoked: Revocations) -> list[dict[str, Any]]:
    names = {row.get("id"): row.get("name") for row in members}
    shown: dict[bytes, dict[str, Any]] = {}
    for record in revoked.records()[-REVOKED_SHOWN_MAX:]:
        name = key_id(record.target)
        shown[name] = {"key": name.hex(), "at": record.at, "by": peer_id(record.signer)}
        # Where only the id was known (a voucher), the rest of the key is zeros and makes no PeerId.
        if any(record.target[KEY_ID_LENGTH:]) and (id_ := peer_id(record.target)) in names:
            shown[name] |= {"id": id_, "name": names[id_]}
    return list(shown.values())


def warned(
    reason: Reason | None, offset_s: float | None, members: Iterable[dict[str, Any]], *, alone: bool
) -> list[str]:
    """Return the lines that a person should read.

    Args:
        reason: why our own chains do not hold, or None.
        offset_s: grid time minus own clock.
        members: rows as in the request `members`.
        alone: a grid of one needs no second admin.
    """
    lines = []
    if reason is not None:
        what = f"this node is out of the grid: {reason.sentence}"
        revoked = reason in {Reason.REVOKED, Reason.FROM_REVOKED}
        lines.append(f"{what}; next: {f'p2pgrid leave; {NEW_KEY}' if revoked else _ASK}")
    rows = list(members)
    admins = sum(_is_admin(row) and row.get("status") not in _GONE for row in rows)
    unmet = any(not row.get("roles") and row.get("status") not in _GONE for row in rows)  # it may be an admin
    if rows and not alone and not unmet and admins < ADMINS_WANTED:
        advice = "p2pgrid promote NODE, or p2pgrid grid export FILE"
        lines.append(f"only one admin is alive: {advice}" if admins else f"no admin is alive: {_RECOVER}")
    if offset_s is not None and abs(offset_s) > APART_S:
        way = "behind" if offset_s > 0 else "ahead of"
        lines.append(f"this machine's clock is {_span(abs(offset_s))} {way} the grid's; next: set it")
    return lines


NEW_KEY = "to come back: stop it, move node.key and grid.json away, and join with a new invite"
"""A revocation names a key for ever."""

_ASK = "ask an admin for an invite, or p2pgrid leave"
_RECOVER = "start a node that is one, or p2pgrid grid recover FILE"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def refused_to_sign(reason: Reason) -> GridError:
    """Return the error that tells an admin why the judge did not let it sign or revoke."""
    if reason is Reason.CUTS_SENDER:
        return NotAuthorized(
            "this would cut this node itself off", next="leave out --with-admitted, or say it at another admin's node"
        )
    if reason is Reason.TOO_MANY:
        return QuotaExceeded(reason.sentence, next="cut off what it let in, too: p2pgrid revoke --with-admitted")
    if reason is Reason.LINKS:
        return NotAuthorized(
            "this node is too far from the grid's first to sign others",
            next="ask an admin nearer to it; this lists them: p2pgrid grid show",
        )
    return NotAuthorized(f"that cannot be signed: {reason.sentence}")


def bad_recovery(reason: Reason) -> GridError:
    """Return the error that tells why a recovery file cannot be used."""
    sentence = {
        Reason.NO_INVITE: "this is not a recovery file",
        Reason.TRUNCATED: "the recovery file is cut short",
        Reason.DAMAGED: "the recovery file is damaged: some character is wrong",
        Reason.NEWER: "the recovery file was made by a newer version of p2pgrid",
        Reason.PASSPHRASE: "the passphrase is wrong",
        Reason.REVOKED: "the key in the recovery file was revoked",
        Reason.FROM_REVOKED: "the recovery file comes from a key that was revoked",
    }.get(reason, f"the recovery file cannot be used: {reason.sentence}")
    advice = "use another one, or ask an admin for an invite: p2pgrid invite"
    if reason is Reason.PASSPHRASE:
        advice = "type it again, or name a file that holds it: --passphrase-file FILE"
    elif reason in {Reason.NO_INVITE, Reason.TRUNCATED, Reason.DAMAGED}:
        advice = "use the whole file that p2pgrid grid export wrote"
    return GridError(sentence, next=advice, code="usage")
