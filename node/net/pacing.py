"""How fast: bulk beside control, the frames of one peer, redials. Plain arithmetic; clock and dice are handed in.

`Window` keeps the bytes of bulk that are under way so few that control frames, which travel behind them on the same
connection, hardly notice: at most twice the idle round trip and 5 ms (DESIGN §4). It is steered by delay, not by loss,
like LEDBAT (RFC 6817) and TCP Vegas: the queue that one sender needs to keep a link busy is far smaller than those that
kernels and routers offer. The rule itself is simpler than theirs, because the one sender measures what it causes:
a full window makes a round trip of window / rate, so window × wanted / measured makes the wanted one.
"""

from __future__ import annotations

import random
from collections import deque
from statistics import median_low

from p2pgrid.core.errors import PeerError

# ---- bulk beside control --------------------------------------------------------------------------------------------
WINDOW_MIN = 1200
"""One packet: below that a link of 2 Mbit/s is no faster to answer, only slower to fill."""
WINDOW_FIRST = 16 << 10
"""What TCP itself begins with (RFC 6928), for the same reason."""
WINDOW_MAX = 4 << 20
"""The most that Yamux lets a stream have under way."""
QUEUE_S = 0.004
"""Waiting that bulk may cause beyond the idle round trip, roughly; the goal allows 5 ms, this is where we steer to."""
SAMPLES = 3
"""Round trips of which the shortest counts, as in LEDBAT: a busy machine only ever adds to them, and now and then."""
IDLE_SAMPLES = 9
IDLE_AGE_S = 1.0
IDLE_AGE_ROUNDS = 50
"""So old, or so many of itself, the idle round trip is measured anew, for which bulk pauses: 2 % of the time."""
CROSSED_BYTES = 1 << 20
CROSSED_STEP = 1.25
"""Up to so many bytes a window grows whatever the round trip, while the kernel shows that none of them queue on the
way: processes that wait for their CPU answer late, and a smaller window would not make them answer earlier."""


class Window:
    """How many bytes of bulk may be under way on one connection.

    Attributes:
        bytes: that many.
        idle_s: the round trip of control without bulk; 0 until measured.
    """

    def __init__(self) -> None:
        self.bytes = WINDOW_FIRST
        self.idle_s = 0.0
        self._idle: deque[float] = deque(maxlen=IDLE_SAMPLES)
        self._idle_at = float("-inf")
        self._changed_at = float("-inf")
        self._recent: list[float] = []  # round trips of this window

    @property
    def wanted_s(self) -> float:
        """The round trip of control that we steer to."""
        return 1.75 * self.idle_s + QUEUE_S

    def is_stale(self, now: float) -> bool:
        """Say whether bulk should pause until nothing is under way, for the idle round trip to be measured."""
        return now - self._idle_at > max(IDLE_AGE_S, IDLE_AGE_ROUNDS * self.idle_s)

    def measured(
        self, round_trip_s: float, sent_at: float, now: float, *, alone: bool, filled: bool, crossed: bool
    ) -> None:
        """Take in one round trip.

        Args:
            round_trip_s: what it took.
            sent_at: when its PING left.
            now: when its PONG came.
            alone: no bulk was under way when it was sent.
            filled: the window was what held bulk back since.
            crossed: the kernel had got most of what was under way across when the PING left.
        """
        if alone:
            self._idle.append(round_trip_s)
            self.idle_s = median_low(self._idle)  # the least is one that a busy machine seldom reaches
            self._idle_at = now
            return
        if sent_at < self._changed_at:
            return  # it tells of the window before this one
        self._recent.append(round_trip_s)
        if len(self._recent) < SAMPLES:
            return
        round_trip_s = min(self._recent)
        self._recent.clear()
        step = min(max(self.wanted_s / round_trip_s, 0.5), 2.0)
        if crossed and self.bytes < CROSSED_BYTES:
            step = max(step, CROSSED_STEP)  # it was no queue that took so long, but two busy machines
        if step > 1 and not filled:
            return  # nothing shows that more would fit
        self.bytes = int(min(max(self.bytes * step, WINDOW_MIN), WINDOW_MAX))
        self._changed_at = now


# ---- a peer's frames ------------------------------------------------------------------------------------------------
FRAMES_PER_S = 5000
FRAMES_BURST = 20_000
FLOOD_S = 10.0
"""So long over the rate without a pause, it is no burst any more."""


class Bucket:
    """A token bucket for the frames of one peer: who is over it is read more slowly, and in the end not at all."""

    def __init__(
        self, now: float, rate: float = FRAMES_PER_S, burst: float = FRAMES_BURST, flood_s: float = FLOOD_S
    ) -> None:
        self._rate, self._burst, self._flood_s = rate, burst, flood_s
        self._tokens, self._at = burst, now
        self._over_since: float | None = None

    def take(self, count: int, now: float) -> float:
        """Return how long to wait (s) before the next are read. Raises PeerError when this has gone on for too long."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - count
        self._at = now
        if self._tokens >= 0:
            self._over_since = None
            return 0.0
        if self._over_since is None:
            self._over_since = now
        if now - self._over_since > self._flood_s:
            raise PeerError(f"more than {self._rate:.0f} frames per second for {self._flood_s:.0f} s")
        return -self._tokens / self._rate


# ---- redials --------------------------------------------------------------------------------------------------------
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0
BACKOFF_SLOW_S = 5.0
"""Who said goodbye is not asked again before that."""


def backoff_s(failures: int, rng: random.Random, *, slow: bool = False) -> float:
    """Return how long to wait before the next dial: full jitter, so that those who lost one peer return spread out."""
    most = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(max(failures, 0), 16))
    if slow:
        return rng.uniform(BACKOFF_SLOW_S, max(most, 2 * BACKOFF_SLOW_S))
    return rng.uniform(0, most)
