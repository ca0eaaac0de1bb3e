"""How long answers are waited for."""

from __future__ import annotations

import pytest

from p2pgrid.dht.patience import LAN, WAN, Patience


def test_patience_grows_with_a_peers_own_round_trips_and_their_spread() -> None:
    """Mean and four deviations; steady answers shorten it again."""
    patience = Patience(LAN)
    patience.answered(b"far", 0.4)
    assert patience.timeout_s(b"far") == pytest.approx(0.4 + 4 * 0.2)
    for _ in range(40):
        patience.answered(b"far", 0.4)

    assert patience.timeout_s(b"far") == pytest.approx(0.4, abs=0.01)


def test_patience_has_a_floor_and_an_end() -> None:
    """150 ms in one building, 500 ms across the world, 3 s for anybody."""
    for options, floor_s in ((LAN, 0.15), (WAN, 0.5)):
        patience = Patience(options)
        patience.answered(b"near", 0.001)
        patience.answered(b"lost", 60.0)

        assert patience.timeout_s(b"near") == floor_s
        assert patience.timeout_s(b"lost") == 3.0


def test_a_stranger_is_given_the_time_to_be_dialled() -> None:
    """Four of the round trips that others take; before any answer, one second."""
    patience = Patience(LAN)
    assert patience.timeout_s(b"stranger") == 1.0
    for _ in range(60):
        patience.answered(b"known", 0.1)

    assert patience.timeout_s(b"stranger") == pytest.approx(0.4, abs=0.01)
