"""Names that people can say: jobs `calm-river-42`, nodes `quiet-fox`, grids `blue-otter`.

The id is the bytes; the name is derived from them and never stored, so that any peer shows the same one. 2^20 pairs
of words times 10,000 numbers are enough to type and to tell jobs apart; where two collide, `match` finds both and
the caller lists them with their hex.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from p2pgrid.core.words import ADJECTIVES, ANIMALS, NOUNS

JOB_ID_LENGTH = 16
NUMBERS = 10_000
HEX_PREFIX_MIN = 4
INDEX_MAX = 2**63 - 1

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""What a node may be called."""
_TASKS = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """What a verb is aimed at: a whole job (`lo` and `hi` None), or its tasks lo <= i < hi.

    `job_text` may also be `last` or `all`; who knows the jobs gives them their meaning.
    """

    job_text: str
    lo: int | None = None
    hi: int | None = None


def job_name(job_id: bytes) -> str:
    """Return `calm-river-42` for the 16 random bytes of a job."""
    if len(job_id) != JOB_ID_LENGTH:
        msg = f"a job id has {JOB_ID_LENGTH} bytes, not {len(job_id)}"
        raise ValueError(msg)
    rest, adjective = divmod(int.from_bytes(job_id, "big"), len(ADJECTIVES))
    rest, noun = divmod(rest, len(NOUNS))
    return f"{ADJECTIVES[adjective]}-{NOUNS[noun]}-{rest % NUMBERS}"


def node_name(key: bytes) -> str:
    """Return `quiet-fox` for a node's public key."""
    return _pair(key, b"p2pgrid node")


def grid_name(key: bytes) -> str:
    """Return `blue-otter` for a grid's public key."""
    return _pair(key, b"p2pgrid grid")


def _pair(key: bytes, person: bytes) -> str:
    # Hashed, because keys come with constant prefixes, and so that one key names a node and a grid differently.
    drawn = int.from_bytes(blake2b(key, digest_size=8, person=person).digest(), "big")
    rest, adjective = divmod(drawn, len(ADJECTIVES))
    return f"{ADJECTIVES[adjective]}-{ANIMALS[rest % len(ANIMALS)]}"


def parse_target(text: str) -> Target:
    """Read `JOB`, `JOB/17`, `JOB/3-9` (both ends included), `last`, `all`.

    Raises:
        ValueError: it is none of them.
    """
    job_text, slash, tasks = text.strip().partition("/")
    if not job_text:
        msg = f"not a target: {text[:80]!r}; write JOB, JOB/17, JOB/3-9, last or all"
        raise ValueError(msg)
    if not slash:
        return Target(job_text)
    found = _TASKS.fullmatch(tasks)
    lo = int(found[1]) if found else 0
    last = int(found[2] or found[1]) if found else -1
    if not lo <= last < INDEX_MAX:
        msg = f"not a task of {job_text[:80]!r}: {tasks[:80]!r}; write JOB/17 or JOB/3-9"
        raise ValueError(msg)
    return Target(job_text, lo, last + 1)


def match(text: str, jobs: Mapping[bytes, str | None]) -> list[bytes]:
    """Return the jobs that `text` means; none is not found, two or more are ambiguous.

    Args:
        text: the words, the hex, a prefix of either (hex: at least 4 digits), or the name a user gave.
        jobs: the ids known here with the names users gave them.
    """
    lower = text.strip().lower()
    if not lower:
        return []
    exact = [
        job_id for job_id, given in jobs.items() if lower in (job_name(job_id), job_id.hex()) or text.strip() == given
    ]
    if exact:
        return exact
    as_hex = lower if len(lower) >= HEX_PREFIX_MIN and _HEX.fullmatch(lower) else None
    return [
        job_id for job_id in jobs if job_name(job_id).startswith(lower) or (as_hex and job_id.hex().startswith(as_hex))
    ]
