"""Grid time: the median of what other clocks say."""

from __future__ import annotations

import random

from p2pgrid.core import messages as m
from p2pgrid.node.events import Log, Send
from p2pgrid.node.gridtime import GridTime, GridTimeOptions

UNIX = 1_800_000_000.0


def ask(ours: GridTime, peer: str, ahead_s: float, now: float = 0.0, rtt_s: float = 0.02) -> list[Send | Log]:
    """Compare with a peer whose wall clock is so much ahead of ours."""
    [question] = ours.met(peer, now)
    assert isinstance(question, Send)
    there = now + rtt_s / 2 + UNIX + ahead_s
    return ours.received(peer, m.P_CLOCK_IS, (question.body[0], there), now + rtt_s)


def node() -> GridTime:
    ours = GridTime(GridTimeOptions(), random.Random(1))
    ours.wall_offset(UNIX)
    return ours


def test_before_any_other_clock_is_known_there_is_no_grid_time() -> None:
    """The node judges by its own chain then, elsewhere."""
    assert node().grid_s(5.0) is None


def test_grid_time_is_own_time_and_the_median_offset() -> None:
    """Half of the round trip is taken off."""
    ours = node()
    for peer, ahead in (("a", 10.0), ("b", 12.0), ("c", -5.0)):
        ask(ours, peer, ahead)

    assert abs((ours.grid_s(100.0) or 0) - (UNIX + 110.0)) < 0.001


def test_one_clock_that_is_years_off_moves_nothing() -> None:
    """1970 and 2040 among three."""
    ours = node()
    effects = [e for peer, ahead in (("a", 0.5), ("b", 0.6), ("c", -UNIX)) for e in ask(ours, peer, ahead)]

    assert abs((ours.offset_s() or 0) - 0.5) < 0.001
    assert effects == []


def test_a_node_far_from_the_grid_warns_once_and_again_when_it_is_well() -> None:
    """More than five minutes; it runs on."""
    ours = node()
    said = [e for peer in "abc" for e in ask(ours, peer, 400.0)]
    ours.wall_offset(UNIX + 399.0)
    well = ask(ours, "d", 1.0 - 399.0 + 399.0 + 399.0)

    assert [(e.level, "400 s behind the grid's" in e.text) for e in said if isinstance(e, Log)] == [("warning", True)]
    assert [e.level for e in well if isinstance(e, Log)] == ["info"]


def test_when_our_clock_is_set_all_offsets_move() -> None:
    """Nobody has to be asked again."""
    ours = node()
    ask(ours, "a", 100.0)
    ours.wall_offset(UNIX + 100.0)

    assert abs(ours.offset_s() or 0) < 0.001


def test_a_slow_answer_and_one_to_nobodys_question_say_nothing() -> None:
    """Nor does an answer from another than who was asked."""
    ours = node()
    ask(ours, "a", 100.0, rtt_s=6.0)
    [question] = ours.met("b", 10.0)
    assert isinstance(question, Send)
    ours.received("c", m.P_CLOCK_IS, (question.body[0], 0.0), 10.1)
    ours.received("b", m.P_CLOCK_IS, (12345, 0.0), 10.1)

    assert ours.clocks == {}


def test_a_question_is_answered_with_the_wall_clock() -> None:
    """Unix time."""
    assert node().received("a", m.P_CLOCK, (7,), 3.0) == [Send("a", m.P_CLOCK_IS, [7, UNIX + 3.0])]


def test_at_most_eight_clocks_are_looked_at_every_ten_minutes() -> None:
    """Known ones first."""
    ours = node()
    for i in range(8):
        ask(ours, f"n{i}", 0.0)
    assert ours.met("n9", 1.0) == []

    asked = ours.tick([f"n{i}" for i in range(30)], ours.next_s() or 0.0)

    assert [e.peer for e in asked if isinstance(e, Send)] == [f"n{i}" for i in range(8)]


def test_a_stall_makes_answers_that_run_worthless() -> None:
    """They would look like a clock that is far ahead."""
    ours = node()
    [question] = ours.met("a", 0.0)
    assert isinstance(question, Send)
    ours.stalled(3.0)
    ours.received("a", m.P_CLOCK_IS, (question.body[0], UNIX), 3.1)

    assert ours.clocks == {}


def test_of_two_other_clocks_one_that_is_years_off_moves_nobody() -> None:
    """The mean of the two would be years off as well; with ours they are three."""
    ours = node()
    ask(ours, "right", 0.5)
    ask(ours, "born in 1970", -1.8e9)

    assert ours.offset_s() == 0.0
