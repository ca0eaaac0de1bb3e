"""Whether the loop stood still, by a clock that the test moves."""

from __future__ import annotations

from p2pgrid.node.vitals import STALL_S, Standstill, boot_clock, costs


def test_a_loop_that_is_looked_at_stands_never_still() -> None:
    """A look each second is what the daemon does when nothing else happens."""
    times = iter(range(100))
    standstill = Standstill(lambda: float(next(times)))

    assert [standstill.look() for _ in range(99)] == [0.0] * 99


def test_a_gap_is_told_once() -> None:
    """In full, and then it is over."""
    times = iter([0.0, 1.0, 1.0 + STALL_S + 18.0, 22.0])
    standstill = Standstill(lambda: next(times))

    assert [standstill.look() for _ in range(3)] == [0.0, STALL_S + 18.0, 0.0]


def test_the_clock_runs() -> None:
    """Whatever the platform calls it."""
    assert 0 < boot_clock() <= boot_clock()


def test_costs_of_this_process() -> None:
    """As `status` shows them."""
    found = costs()

    assert found["pid"] > 0
    assert found["rss"] is None or found["rss"] > 1_000_000
