"""How long a frame may be that a member sends in bulk: as long as what its roles let it say.

It is kept in memory until all of it is here.
"""

from __future__ import annotations

from p2pgrid.core.chains import ADMIN, SUBMIT, WORK
from p2pgrid.core.pieces import MANIFEST_BYTES_MAX
from p2pgrid.core.wire import FRAME_MAX_CONTROL, FRAME_MAX_LOCAL


def largest_frame(roles: int, *, was_given_tasks: bool) -> int:
    """Return how many bytes at most a member of these roles has to say at once.

    Who submits sends inputs, and keeps records. Who only works sends results, which are long where there is no memory
    to share them by: if this node gave it tasks. All others ask and read; what is longest of that is the manifest of a
    large object that they have.
    """
    if roles & (SUBMIT | ADMIN) or (roles & WORK and was_given_tasks):
        return FRAME_MAX_LOCAL
    return MANIFEST_BYTES_MAX + FRAME_MAX_CONTROL
