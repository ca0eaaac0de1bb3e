"""Who may stand in the door, and to whom it stays closed."""

from __future__ import annotations

import pytest

from p2pgrid.node.net.door import Door, Limits, origin

STRANGER, OTHER = "192.0.2.1", "192.0.2.2"


def fail(door: Door, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        ticket, _ = door.enter(address)
        door.leave(ticket, address, now, failed=True)


def test_four_of_one_address_stand_in_the_door() -> None:
    """The fifth is let in, and the oldest of that address goes; those of other addresses stay."""
    door = Door()
    door.enter(OTHER)
    tickets = [door.enter(STRANGER)[0] for _ in range(4)]
    _, displaced = door.enter(STRANGER)

    assert displaced == tickets[:1]
    assert door.half_open_count == 5


def test_sixty_four_stand_in_the_door() -> None:
    """The next is let in, and the oldest of all goes."""
    door = Door()
    tickets = [door.enter(f"198.51.100.{number}")[0] for number in range(64)]
    _, displaced = door.enter(STRANGER)

    assert displaced == tickets[:1]
    assert door.half_open_count == 64


def test_one_who_had_to_go_is_not_sent_away_twice() -> None:
    """Until he has left, his place already belongs to another."""
    door = Door()
    first, second = (door.enter(STRANGER)[0] for _ in range(2))
    door.enter(STRANGER)
    door.enter(STRANGER)

    assert [door.enter(STRANGER)[1], door.enter(STRANGER)[1]] == [[first], [second]]


def test_ten_failures_a_minute_close_an_address() -> None:
    """The eleventh is turned away before Noise; other addresses are not."""
    door = Door()
    fail(door, STRANGER, 9)
    before = door.turns_away(STRANGER, 1.0)
    fail(door, STRANGER, 1, now=1.0)

    assert (before, door.turns_away(STRANGER, 2.0), door.turns_away(OTHER, 2.0)) == (False, True, False)
    assert (door.failed_count, door.turned_away_count) == (10, 1)


def test_an_address_opens_again_when_its_failures_are_a_minute_old() -> None:
    """It is counted over the last minute, not since the last quiet one."""
    door = Door()
    fail(door, STRANGER, 5, now=0.0)
    fail(door, STRANGER, 5, now=30.0)

    assert (door.turns_away(STRANGER, 59.9), door.turns_away(STRANGER, 60.0)) == (True, False)


def test_members_do_not_count() -> None:
    """Whoever got in may come as often as he likes."""
    door = Door()
    for _ in range(50):
        ticket, _ = door.enter(STRANGER)
        door.leave(ticket, STRANGER, 0.0, failed=False)

    assert not door.turns_away(STRANGER, 0.0)


def test_only_so_many_addresses_are_remembered() -> None:
    """The one that failed longest ago is forgotten first."""
    door = Door(Limits(addresses_max=2, failures_max=1))
    for address in (STRANGER, OTHER, STRANGER, "192.0.2.3"):
        fail(door, address, 1)
    closed = [door.turns_away(address, 0.0) for address in (STRANGER, OTHER, "192.0.2.3")]

    assert closed == [True, False, True]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.5.0.1", "::1", "::ffff:127.0.0.1"])
def test_nodes_of_this_machine_are_not_taken_for_one_stranger(address: str) -> None:
    """They share their address; only the common limit holds for them."""
    door = Door()
    displaced = [door.enter(address)[1] for _ in range(10)]
    fail(door, address, 20)

    assert displaced == [[]] * 10
    assert not door.turns_away(address, 0.0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_network_is_one_stranger(address: str, expected: str) -> None:
    """Every IPv6 host has 2**64 addresses to come from."""
    assert origin(address) == expected
