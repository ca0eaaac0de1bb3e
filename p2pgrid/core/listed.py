"""A job in the list that every node has: enough to name it, to find who has it, and to say how it stands.

Entries of one job meet in any order, any number of times, and agree (a lattice): what was fixed when it was submitted
is the smaller of two (they differ only if somebody lied), its expiry and its state only rise
(open < finished < cancelled < forgotten, `core.record.State`). Of a forgotten job nothing is left but id and times.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from blake3 import blake3

from p2pgrid.core.errors import PeerError
from p2pgrid.core.ids import JOB_ID_LENGTH
from p2pgrid.core.record import State
from p2pgrid.core.wire import pack

NAME_MAX = 200
PROGRAM_MAX = 40
OWNER_MAX = 128
STATES = frozenset({"", "done", "failed", "cancelled", "abandoned"})
TIME_MAX_S = 1e11
COUNT_MAX = 1 << 62
UNKNOWN = -1
FINGERPRINT_BYTES = 8


class Standing(NamedTuple):
    """How a job stands; of two the greater counts. Counts are those of its end, `total` UNKNOWN before."""

    rank: int = State.OPEN
    state: str = ""
    done: int = 0
    failed: int = 0
    total: int = UNKNOWN


class Listed(NamedTuple):
    """One job. Times in unix seconds; `owner` is the node that accepted it."""

    job: bytes
    submitted_s: float
    name: str
    owner: str
    program: str
    expires_s: float
    standing: Standing

    @property
    def forgotten(self) -> bool:
        """Whether nothing of it shall be left anywhere."""
        return self.standing.rank == State.FORGOTTEN


def forgotten(job: bytes, submitted_s: float, expires_s: float) -> Listed:
    """Return what is left of a job that was forgotten, until it would have expired."""
    return Listed(job, submitted_s, "", "", "", expires_s, Standing(State.FORGOTTEN))


def merge(a: Listed, b: Listed) -> Listed:
    """Return what follows from knowing both entries of one job."""
    assert a.job == b.job
    standing = max(a.standing, b.standing)
    expires_s = max(a.expires_s, b.expires_s)
    if standing.rank == State.FORGOTTEN:
        return forgotten(a.job, min(a.submitted_s, b.submitted_s), expires_s)
    fixed = min(a[1:5], b[1:5])
    return Listed(a.job, *fixed, expires_s, standing)


def wire(entry: Listed) -> list[Any]:
    """Return an entry as it travels."""
    return [*entry[:6], list(entry.standing)]


def read(value: Any) -> Listed:
    """Return an entry that came from a member. Raises PeerError unless it is well formed."""
    match value:
        case [bytes(job), int() | float() as submitted, str(name), str(owner), str(program), int() | float() as expires,
              [int(rank), str(state), int(done), int(failed), int(total), *_], *_]:  # fmt: skip
            times = all(math.isfinite(at) and 0 <= at < TIME_MAX_S for at in (submitted, expires))
            texts = len(name) <= NAME_MAX and len(owner) <= OWNER_MAX and len(program) <= PROGRAM_MAX
            counts = all(0 <= one < COUNT_MAX for one in (done, failed)) and UNKNOWN <= total < COUNT_MAX
            known = 0 <= rank <= State.FORGOTTEN and state in STATES
            if len(job) == JOB_ID_LENGTH and times and texts and counts and known:
                if rank == State.FORGOTTEN:
                    return forgotten(job, float(submitted), float(expires))
                standing = Standing(rank, state, done, failed, total)
                return Listed(job, float(submitted), name, owner, program, float(expires), standing)
    msg = "a malformed entry of the list of jobs"
    raise PeerError(msg)


def fingerprint(entry: Listed) -> int:
    """Return 64 bits that are equal for equal entries."""
    return int.from_bytes(blake3(pack(wire(entry))).digest(FINGERPRINT_BYTES), "big")
