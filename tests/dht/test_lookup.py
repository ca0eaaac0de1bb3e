"""The lookup, told by hand."""

from __future__ import annotations

from p2pgrid.dht.keys import key_of
from p2pgrid.dht.lookup import Ask, Done, Lookup, LookupOptions, Wait
from p2pgrid.dht.wire import Contact
from tests.dht.world import contact

TARGET = key_of(b"somewhere")
PEERS = sorted((contact(number) for number in range(60)), key=lambda each: key_of(each.id) ^ TARGET)
"""Nearest first."""


def begin(seeds: list[Contact], beta: int = 3, **options: int) -> Lookup:
    return Lookup(TARGET, seeds, LookupOptions(**options), beta)


def asked(lookup: Lookup) -> list[Contact]:
    peers = []
    while isinstance(step := lookup.next(), Ask):
        peers.append(step.peer)
    return peers


def test_nobody_to_ask_is_done_at_once() -> None:
    """A node alone knows that it knows nobody."""
    assert begin([]).next() == Done(())


def test_alpha_are_asked_at_a_time_the_nearest_first() -> None:
    """Ten questions, then it waits; an answer makes room for one."""
    lookup = begin(PEERS[:20])

    assert asked(lookup) == PEERS[:10]
    assert lookup.next() == Wait()
    lookup.answered(PEERS[9].id, [])
    assert asked(lookup) == [PEERS[10]]


def test_it_ends_when_the_three_nearest_have_answered() -> None:
    """Others that were asked are not waited for, and are not in the result."""
    lookup = begin(PEERS[:20])
    asked(lookup)
    for peer in PEERS[:3]:
        lookup.answered(peer.id, [])

    assert lookup.next() == Done(tuple(PEERS[:3]))


def test_whoever_is_named_and_nearer_comes_first() -> None:
    """The farther half names the nearer one, and so on: the nearest of all is found."""
    lookup = begin(PEERS[50:55], alpha=2)
    assert asked(lookup) == PEERS[50:52]
    lookup.answered(PEERS[50].id, PEERS[:5])

    assert asked(lookup) == [PEERS[0]]
    assert lookup.rounds == 1


def test_silent_peers_are_given_up_and_the_next_nearest_take_their_place() -> None:
    """All of the nearest three are dead: the result begins with the fourth."""
    lookup = begin(PEERS[:8])
    asked(lookup)
    for peer in PEERS[:3]:
        lookup.failed(peer.id)
    for peer in PEERS[3:6]:
        lookup.answered(peer.id, [])

    assert lookup.next() == Done(tuple(PEERS[3:6]))


def test_an_answer_that_comes_late_still_counts() -> None:
    """Given up is not forgotten, as long as the lookup runs."""
    lookup = begin(PEERS[:4])
    asked(lookup)
    lookup.failed(PEERS[0].id)
    lookup.answered(PEERS[0].id, [PEERS[20]])
    for peer in PEERS[1:3]:
        lookup.answered(peer.id, [])

    assert lookup.next() == Done(tuple(PEERS[:3]))


def test_a_peer_never_asked_can_neither_answer_nor_fail() -> None:
    """What nobody asked for changes no state."""
    lookup = begin(PEERS[:2])
    lookup.answered(PEERS[0].id, [])
    lookup.failed(PEERS[1].id)

    assert asked(lookup) == PEERS[:2]


def test_everybody_failed_is_done_with_nobody() -> None:
    """It ends, empty."""
    lookup = begin(PEERS[:5])
    for peer in asked(lookup):
        lookup.failed(peer.id)

    assert lookup.next() == Done(())


def test_liars_who_name_ever_nearer_peers_are_not_followed_for_ever() -> None:
    """Each invented peer names nearer ones: after `questions_max` it ends."""
    lookup, count = begin([PEERS[0]], questions_max=30), 0
    invented = sorted((contact(n) for n in range(1000, 3000)), key=lambda each: -(key_of(each.id) ^ TARGET))
    while isinstance(step := lookup.next(), Ask):
        count += 1
        lookup.answered(step.peer.id, invented[count * 20 : count * 20 + 20])

    assert count == 30
    assert isinstance(lookup.next(), Done)


def test_one_asks_not_oneself() -> None:
    """However often others name us."""
    lookup = Lookup(TARGET, [PEERS[0], PEERS[1]], LookupOptions(), 3, me=PEERS[0].id)

    assert asked(lookup) == [PEERS[1]]
