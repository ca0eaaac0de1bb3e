"""The routing table."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.dht.keys import key_of, shared_bits
from p2pgrid.dht.table import Table, TableOptions
from tests.dht.world import contact, peer_id

ME = peer_id(0)
FAR = [n for n in range(1, 400) if shared_bits(key_of(peer_id(n)), key_of(ME)) == 0]
"""Numbers of peers that all belong into the bucket of no shared bit."""


def full(*, quiet_s: float = 300.0) -> Table:
    """Return a table whose far bucket is full of FAR[:20]; the first of them was heard of first."""
    table = Table(ME, TableOptions(quiet_s=quiet_s))
    for at, number in enumerate(FAR[:20]):
        assert table.answered(contact(number), float(at)) is None
    return table


def has(table: Table, number: int) -> bool:
    return table.entry(peer_id(number)) is not None


def test_a_newcomer_does_not_displace_whoever_is_there() -> None:
    """A full bucket of living peers stays as it is, however many answer later."""
    table = full()
    for number in FAR[20:60]:
        table.answered(contact(number), 100.0)

    assert [has(table, number) for number in FAR[:21]] == [True] * 20 + [False]
    assert len(table) == 20


def test_the_one_not_heard_of_for_longest_is_to_be_checked() -> None:
    """Only if it has been quiet for a while; the others are not bothered."""
    table = full()

    assert table.answered(contact(FAR[20]), 299.0) is None
    assert table.answered(contact(FAR[20]), 300.0) == contact(FAR[0])
    table.answered(contact(FAR[0]), 301.0)
    assert table.answered(contact(FAR[21]), 301.0) == contact(FAR[1])


def test_who_does_not_answer_twice_gives_way_to_the_newcomer_heard_of_last() -> None:
    """Once proves little; the replacement has answered before, as all that are in."""
    table = full()
    table.answered(contact(FAR[20]), 100.0)
    table.answered(contact(FAR[21]), 101.0)
    table.missed(peer_id(FAR[0]))
    assert has(table, FAR[0])
    table.missed(peer_id(FAR[0]))

    assert (has(table, FAR[0]), has(table, FAR[20]), has(table, FAR[21])) == (False, False, True)


def test_a_stale_peer_is_named_to_nobody_and_stays_until_replaced() -> None:
    """It is there when it answers again."""
    table = full()
    for _ in range(2):
        table.missed(peer_id(FAR[0]))

    assert contact(FAR[0]) not in table.closest(key_of(peer_id(FAR[0])), 20)
    assert has(table, FAR[0])
    table.answered(contact(FAR[0]), 100.0)
    assert table.closest(key_of(peer_id(FAR[0])), 1) == [contact(FAR[0])]


def test_an_answer_wipes_the_slate() -> None:
    """Two questions left without answer in a row, not two ever."""
    table = full()
    table.answered(contact(FAR[20]), 100.0)
    table.missed(peer_id(FAR[0]))
    table.answered(contact(FAR[0]), 101.0)
    table.missed(peer_id(FAR[0]))

    assert has(table, FAR[0])


def test_as_many_newcomers_wait_as_have_a_place() -> None:
    """Of sixty the twenty heard of last; when these are gone too, nobody is left."""
    table = full()
    for number in FAR[20:80]:
        table.answered(contact(number), 100.0)
    for number in FAR[:20]:
        table.remove(peer_id(number))
    assert all(has(table, number) for number in FAR[60:80])
    for number in FAR[60:80]:
        table.remove(peer_id(number))

    assert len(table) == 0


def test_a_newcomer_that_falls_silent_waits_no_more() -> None:
    """It gets no place when one is free."""
    table = full()
    table.answered(contact(FAR[20]), 100.0)
    table.missed(peer_id(FAR[20]))
    table.remove(peer_id(FAR[0]))

    assert not has(table, FAR[20])


def test_a_newcomer_takes_a_stale_place_at_once() -> None:
    """A peer that nobody is sent to holds no place."""
    table = full()
    for _ in range(2):
        table.missed(peer_id(FAR[5]))
    assert table.wants(peer_id(FAR[20]))
    table.answered(contact(FAR[20]), 100.0)

    assert (has(table, FAR[5]), has(table, FAR[20])) == (False, True)
    assert not table.wants(peer_id(FAR[21]))


def test_a_node_whose_own_network_was_down_finds_its_table_again() -> None:
    """If all are stale, they are all there is."""
    table = full()
    for number in FAR[:20] * 2:
        table.missed(peer_id(number))

    assert len(table.closest(key_of(b"x"), 20)) == 20


def test_a_member_that_died_leaves_its_place() -> None:
    """The member view knows better than a table."""
    table = full()
    table.answered(contact(FAR[20]), 100.0)
    table.remove(peer_id(FAR[3]))

    assert (has(table, FAR[3]), has(table, FAR[20])) == (False, True)


def test_idle_prefixes_are_refreshed_also_where_nobody_is_known() -> None:
    """Up to the deepest bucket with somebody in it, once in five minutes."""
    table = full()
    deep = next(n for n in range(1, 400) if shared_bits(key_of(peer_id(n)), key_of(ME)) == 5)
    table.answered(contact(deep), 0.0)
    assert table.idle(100.0) == [1, 2, 3, 4]
    for number in range(1, 400):
        table.looked(key_of(peer_id(number)), 100.0)

    assert table.idle(399.0) == []
    assert table.idle(400.0) == [0, 1, 2, 3, 4, 5]


def test_addresses_are_the_latest_known() -> None:
    """An answer by a peer whose address is unknown leaves the old one."""
    table = Table(ME)
    table.answered(contact(1), 0.0)
    table.answered(contact(1)._replace(addresses=()), 1.0)
    assert table.closest(0, 1) == [contact(1)]  # type: ignore[arg-type]
    moved = contact(1)._replace(addresses=(b"elsewhere",))
    table.answered(moved, 2.0)

    assert table.closest(0, 1) == [moved]  # type: ignore[arg-type]


class TableMachine(RuleBasedStateMachine):
    """Any sequence of answers, silences and deaths, in buckets of three."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(ME, TableOptions(k=3, spare=2, quiet_s=5.0))
        self.now = 0.0
        self.answered_once: set[int] = set()

    @rule(number=st.integers(0, 40), later=st.integers(0, 4))
    def answer(self, number: int, later: int) -> None:
        self.now += later
        before = {n for n in range(1, 41) if has(self.table, n) and not self.stale(n)}
        checked = self.table.answered(contact(number), self.now)
        self.answered_once.add(number)

        assert {n for n in before if not has(self.table, n)} == set(), "who is in and answers stays"
        assert checked is None or self.table.entry(checked.id) is not None

    def stale(self, number: int) -> bool:
        entry = self.table.entry(peer_id(number))
        return entry is not None and entry.misses >= 2

    @rule(number=st.integers(0, 40))
    def silence(self, number: int) -> None:
        self.table.missed(peer_id(number))

    @rule(number=st.integers(0, 40))
    def death(self, number: int) -> None:
        self.table.remove(peer_id(number))
        assert not has(self.table, number)

    @invariant()
    def bounded_and_sound(self) -> None:
        present = [n for n in range(41) if has(self.table, n)]
        assert set(present) <= self.answered_once - {0}, "only those that answered, never ourselves"
        assert len(present) == len(self.table)
        shared: dict[int, int] = {}
        for number in present:
            bits = shared_bits(key_of(peer_id(number)), key_of(ME))
            shared[bits] = shared.get(bits, 0) + 1
        assert max(shared.values(), default=0) <= 3

    @invariant()
    def nearest_are_the_fresh(self) -> None:
        target = key_of(b"target")
        present = [n for n in range(41) if has(self.table, n)]
        pool = [n for n in present if not self.stale(n)] or present
        expected: list[Any] = sorted((peer_id(n) for n in pool), key=lambda peer: key_of(peer) ^ target)
        assert [each.id for each in self.table.closest(target, 4)] == expected[:4]


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
