"""What a peer says that we do not know: a later version's, most likely. It is told so once, and remains a peer.

Plain decisions, no sockets. Only a flood of it is a fault: DESIGN §4, "unknown versions and types answered with a typed
refusal, never a crash".
"""

from __future__ import annotations

from collections import deque

from p2pgrid.core.errors import PeerError

FLOOD_FRAMES = 1000
FLOOD_S = 60.0
"""More than so many within that are no misunderstanding."""
ANSWERED_MAX = 256
"""Kinds of frames for which a peer is told; no version has as many that another lacks."""


class Unknown:
    """What one peer has said that we do not know.

    Attributes:
        is_logged: that we do not know what it says; for the caller, and never unset, as the next.
        is_refusal_logged: that it does not know what we say.
    """

    def __init__(self, life: bytes) -> None:
        self.life = life
        self.is_logged = self.is_refusal_logged = False
        self._answered: set[tuple[int, int]] = set()
        self._times: deque[float] = deque(maxlen=FLOOD_FRAMES + 1)

    def born(self, life: bytes) -> None:
        """Take in that the peer has restarted: it remembers no answer. That it flooded us is not forgotten."""
        if life != self.life:
            self.life = life
            self._answered.clear()

    def heard(self, version: int, kind: int, now: float) -> bool:
        """Say whether to answer this frame. Raises PeerError when there are too many of them."""
        self._times.append(now)
        if len(self._times) > FLOOD_FRAMES and now - self._times[0] < FLOOD_S:
            raise PeerError(f"more than {FLOOD_FRAMES} unknown frames in {FLOOD_S:.0f} s, the last of type {kind}")
        what = version, kind
        if what in self._answered or len(self._answered) >= ANSWERED_MAX:
            return False
        self._answered.add(what)
        return True
