"""Timers and lag."""

from __future__ import annotations

from p2pgrid.node.timers import Lag, Timers


def test_timers_fire_in_order_of_their_deadlines() -> None:
    """Those that are due, and no others."""
    timers = Timers()
    timers.set(("b",), 2.0)
    timers.set(("a",), 1.0)
    timers.set(("c",), 3.0)

    assert timers.due(2.0) == [("a",), ("b",)]
    assert timers.next() == 3.0


def test_a_timer_of_the_same_key_is_replaced() -> None:
    """It fires once, at the newer time."""
    timers = Timers()
    timers.set(("a",), 1.0)
    timers.set(("a",), 5.0)

    assert timers.due(4.0) == []
    assert timers.due(5.0) == [("a",)]
    assert timers.due(9.0) == []


def test_a_timer_is_cancelled() -> None:
    """None takes it away, also where there is none."""
    timers = Timers()
    timers.set(("a",), 1.0)
    timers.set(("a",), None)
    timers.set(("b",), None)

    assert timers.next() is None
    assert timers.due(9.0) == []


def test_replaced_timers_do_not_pile_up() -> None:
    """A timer that is set a million times costs one entry."""
    timers = Timers()
    for i in range(10_000):
        timers.set(("a",), float(i))

    assert len(timers._heap) <= 66
    assert timers.due(1e9) == [("a",)]


def test_quantiles_of_the_lag() -> None:
    """None before the first sample; early is not late."""
    lag = Lag()

    assert lag.quantile(0.5) is None
    for i in range(100):
        lag.add(i / 100)
    lag.add(-1.0)

    assert (lag.quantile(0.5), lag.quantile(0.99)) == (0.49, 0.98)
