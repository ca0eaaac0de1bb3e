"""How fast bulk, frames and redials may go: arithmetic alone."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from p2pgrid.core.errors import PeerError
from p2pgrid.node.net.pacing import (
    BACKOFF_MAX_S,
    BACKOFF_SLOW_S,
    CROSSED_BYTES,
    FLOOD_S,
    SAMPLES,
    WINDOW_FIRST,
    WINDOW_MAX,
    WINDOW_MIN,
    Bucket,
    Window,
    backoff_s,
)


def steer(rate: float, idle_s: float, rounds: int = 200) -> tuple[Window, float]:
    """Let a window find its size on a link of so many bytes per second; return it and the last round trip."""
    window, now = Window(), 0.0
    window.measured(idle_s, now, now + idle_s, alone=True, filled=False, crossed=False)
    round_trip_s = idle_s
    for _ in range(rounds):
        sent_at = now = now + round_trip_s
        round_trip_s = max(idle_s, window.bytes / rate)
        now += round_trip_s
        window.measured(round_trip_s, sent_at, now, alone=False, filled=True, crossed=False)
    return window, round_trip_s


@pytest.mark.parametrize("mbit", [2, 10, 50, 1000])
@pytest.mark.parametrize("idle_s", [0.0005, 0.002, 0.03, 0.15])
def test_bulk_fills_the_link_and_control_hardly_notices(mbit: int, idle_s: float) -> None:
    """On links of any speed and length: full, and a round trip of at most twice the idle one and 5 ms."""
    rate = mbit * 125_000.0

    window, round_trip_s = steer(rate, idle_s)

    assert round_trip_s <= 2 * idle_s + 0.005
    assert window.bytes >= min(rate * idle_s, WINDOW_MAX) or window.bytes == WINDOW_MIN


def test_a_window_that_was_not_full_does_not_grow() -> None:
    window = Window()
    window.measured(0.001, 0.0, 0.001, alone=True, filled=False, crossed=False)
    for _ in range(SAMPLES):
        window.measured(0.001, 0.002, 0.003, alone=False, filled=False, crossed=False)

    assert window.bytes == WINDOW_FIRST


def test_a_round_trip_of_an_older_window_changes_nothing() -> None:
    """Otherwise each full window would be halved once for every PING that was sent within it."""
    window = Window()
    window.measured(0.001, 0.0, 0.001, alone=True, filled=False, crossed=False)
    for number in range(10 * SAMPLES):
        sent_at = 0.002 + number / 1000
        window.measured(1.0, sent_at, sent_at + 1, alone=False, filled=True, crossed=False)

    assert window.bytes == WINDOW_FIRST // 2


def test_a_round_trip_that_was_late_by_chance_makes_no_window_smaller() -> None:
    """Of a few the shortest counts: a queue delays all of them."""
    window = Window()
    window.measured(0.001, 0.0, 0.001, alone=True, filled=False, crossed=False)
    for number in range(10 * SAMPLES):
        late = 0.5 if number % SAMPLES else 0.001
        window.measured(late, number + 1, number + 1 + late, alone=False, filled=False, crossed=False)

    assert window.bytes == WINDOW_FIRST


def test_the_idle_round_trip_is_measured_anew_after_a_while() -> None:
    window = Window()
    assert window.is_stale(0.0)

    window.measured(0.001, 0.0, 0.001, alone=True, filled=False, crossed=False)

    assert not window.is_stale(0.9)
    assert window.is_stale(1.1)


def test_what_is_late_without_a_queue_makes_no_window_smaller() -> None:
    """Two busy machines answer late; as long as the kernel gets everything across at once, bulk goes on."""
    window = Window()
    window.measured(0.001, 0.0, 0.001, alone=True, filled=False, crossed=True)
    for second in range(1, 100):
        window.measured(0.5, second, second + 0.5, alone=False, filled=True, crossed=True)

    assert CROSSED_BYTES // 2 <= window.bytes <= 2 * CROSSED_BYTES


def test_a_peer_within_its_rate_never_waits() -> None:
    bucket = Bucket(0.0, rate=100, burst=50)

    assert [bucket.take(10, second / 10) for second in range(100)] == [0.0] * 100


def test_a_flood_is_read_at_the_rate_and_ends_in_the_end() -> None:
    bucket, now, taken = Bucket(0.0, rate=100, burst=50), 0.0, 0

    with suppress(PeerError):
        while now < 60:
            taken += 25
            now += bucket.take(25, now)

    assert FLOOD_S <= now <= FLOOD_S + 1
    assert taken <= 50 + 100 * (now + 1)


def test_redials_spread_out_and_come_less_and_less_often() -> None:
    """Full jitter: anything from nothing to a limit that doubles up to 30 s; after a goodbye never below 5 s."""
    rng = random.Random(7)
    for failures, most in [(0, 0.2), (1, 0.4), (5, 6.4), (8, BACKOFF_MAX_S), (10_000, BACKOFF_MAX_S)]:
        waits = [backoff_s(failures, rng) for _ in range(300)]

        assert 0 <= min(waits) < most / 10
        assert most * 0.9 < max(waits) <= most

    slow = [backoff_s(failures, rng, slow=True) for failures in range(20) for _ in range(20)]
    assert BACKOFF_SLOW_S <= min(slow) < max(slow) <= BACKOFF_MAX_S
