"""Whom a thief asks, when it gives up, with whom it leaves lifelines."""

from __future__ import annotations

import random

import pytest

from p2pgrid.node.stealing import StealOptions, Thief, neighbours


def thief(**told: float) -> Thief:
    """Return a thief that was told of work at these members at 100 s."""
    one = Thief(StealOptions(), random.Random(1))
    one.begin(7)
    one.hear(told.items(), 100.0)
    return one


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 21, 64, 100])
def test_lifelines_reach_everybody(count: int) -> None:
    """Work that appears anywhere finds its way to every dormant node; log₂ n lifelines each, eight at most."""
    names = [f"n{i:03}" for i in range(count)]
    lines = {name: neighbours(name, set(names) - {name}, 8) for name in names}
    assert all(len(out) <= 8 and name not in out for name, out in lines.items())
    reached, fresh = {names[0]}, [names[0]]
    while fresh:
        here = fresh.pop()
        new = [name for name in names if here in lines[name] and name not in reached]
        reached.update(new)
        fresh += new

    assert reached == set(names)


def test_of_two_drawn_the_one_with_more_is_asked() -> None:
    """As it is by now, not as it was told."""
    one = thief(a=1.0, b=8.0)
    (ask,) = one.ask(["a", "b"], [], 100.0)
    assert ask.peer == "b"
    one = thief(b=8.0)
    one.hear([("a", 5.0)], 106.0)
    (ask,) = one.ask(["a", "b"], [], 106.0)

    assert ask.peer == "a"


def test_one_request_of_each_kind_and_two_attempts() -> None:
    """Whoever was asked in this search is not asked again; work here begins a new one."""
    one = thief(a=1.0, b=2.0, c=3.0, x=1.0)
    asks = one.ask(["a", "b", "c"], ["x"], 100.0)
    assert len(asks) == 2
    assert one.ask(["a", "b", "c"], ["x"], 100.0) == []
    for _ in range(2):
        for ask in asks:
            assert one.answered(ask.peer, ask.rid, 100.001, nothing=True)
            assert not one.answered(ask.peer, ask.rid, 100.001, nothing=True)
        asks = one.ask(["a", "b", "c"], ["x"], 100.002)
    assert asks == []
    one.rest()

    assert len(one.ask(["a", "b", "c"], ["x"], 100.003)) == 1  # what said that it has nothing is forgotten


def test_silence_counts_as_nothing() -> None:
    """After 300 ms, or what the round trips there suggest."""
    one = thief(a=9.0)
    one.ask(["a"], [], 100.0)
    assert one.next_s() == pytest.approx(100.3)
    assert not one.late(100.2)
    assert one.late(100.31)
    assert not one.open
    assert "a" not in one.told


def test_what_was_told_is_forgotten() -> None:
    """After a minute nobody is asked because of it."""
    assert thief(a=1000.0).ask(["a"], [], 161.0) == []
