"""What is kept for others, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.wire import pack, unpack
from p2pgrid.dht.keys import peer_id_of
from p2pgrid.dht.records import NotStored, Open, Providers, Reason, RecordOptions, Signed, Values, own_key
from p2pgrid.dht.wire import Record
from tests.dht.world import UNIX_S, contact, peer_id

GRID = bytes(32)
ANN, BOB, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
ANNS, BOBS, EVES = (key.public_key().public_bytes_raw() for key in (ANN, BOB, EVE))
KEY = b"/p2pgrid/job/1"
SMALL = RecordOptions(
    value_max=400, values_max=6, member_values_max=3, member_bytes_max=1000, member_providers_max=3, key_providers_max=4
)


def belongs(public: bytes) -> bool:
    return public in (ANNS, BOBS)


def by(key: Ed25519PrivateKey) -> Signed:
    return Signed(GRID, belongs, key, SMALL)


def values() -> Values:
    return Values({"p2pgrid": by(ANN)}, SMALL)


def signed(payload: bytes = b"here", key: bytes = KEY, who: Ed25519PrivateKey = ANN, unix_s: float = UNIX_S) -> Record:
    return Record(key, by(who).seal(key, payload, unix_s))


def why_not(store: Values, record: Record, now: float = 0.0, unix_s: float = UNIX_S) -> Reason:
    before = {key: store.get(key, now) for key in list(store._kept)}
    with pytest.raises(NotStored) as refused:
        store.put(record, peer_id(1), now, unix_s)
    assert {key: store.get(key, now) for key in list(store._kept)} == before, "what is refused leaves no trace"
    return refused.value.reason


def changed(record: Record, at: int, what: Callable[[object], object]) -> Record:
    parts = unpack(record.value)
    parts[at] = what(parts[at])
    return record._replace(value=pack(parts))


def test_a_signed_value_is_kept_and_expires() -> None:
    """Fifteen minutes, then it is gone and its room is free."""
    store = values()
    store.put(signed(), peer_id(1), 0.0, UNIX_S)

    assert store.get(KEY, 899.0) == (signed().value, UNIX_S)
    assert store.get(KEY, 900.0) is None
    store.expire(900.0)
    assert len(store) == 0


def test_the_later_value_wins_whoever_brings_it_first() -> None:
    """Both orders end with the same; the same value twice is no error."""
    old, new = signed(b"old"), signed(b"new", unix_s=UNIX_S + 1)
    one, other = values(), values()
    one.put(old, peer_id(1), 0.0, UNIX_S)
    for _ in range(2):
        one.put(new, peer_id(1), 0.0, UNIX_S)
    other.put(new, peer_id(1), 0.0, UNIX_S)

    assert why_not(other, old) is Reason.OLDER
    assert one.get(KEY, 0.0) == other.get(KEY, 0.0) == (new.value, UNIX_S)


def test_an_old_signature_does_not_live_again() -> None:
    """Putting the same value over and over does not outlast its life and the skew."""
    store = values()
    store.put(signed(), peer_id(1), 1000.0, UNIX_S + 1000)

    assert store.get(KEY, 1199.0) is not None
    assert store.get(KEY, 1200.0) is None
    assert why_not(store, signed(), 1201.0, UNIX_S + 1201) is Reason.EXPIRED


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (signed(who=EVE), Reason.STRANGER),
        (changed(signed(), 1, lambda _: b"other"), Reason.SIGNATURE),
        (changed(signed(), 0, lambda written: int(str(written)) + 1), Reason.SIGNATURE),
        (changed(signed(), 3, lambda _: bytes(64)), Reason.SIGNATURE),
        (changed(signed(), 2, lambda _: BOBS), Reason.SIGNATURE),
        (signed()._replace(key=b"/p2pgrid/job/2"), Reason.SIGNATURE),
        (
            Record(KEY, Signed(b"another grid's key, 32 bytes lon", belongs, ANN).seal(KEY, b"x", UNIX_S)),
            Reason.SIGNATURE,
        ),
        (changed(signed(), 3, lambda _: b"short"), Reason.MALFORMED),
        (changed(signed(), 0, lambda _: -1), Reason.MALFORMED),
        (changed(signed(), 0, lambda _: "1"), Reason.MALFORMED),
        (Record(KEY, b"garbage"), Reason.MALFORMED),
        (Record(KEY, b""), Reason.MALFORMED),
        (Record(b"", b"x"), Reason.MALFORMED),
        (Record(b"/" + bytes(200), b"x"), Reason.MALFORMED),
        (Record(KEY, b"\xdc\x00\x04" + signed().value[1:]), Reason.MALFORMED),
        (signed(unix_s=UNIX_S + 301), Reason.FUTURE),
        (signed(unix_s=UNIX_S - 1201), Reason.EXPIRED),
        (Record(b"/pk/x", b"x"), Reason.NAMESPACE),
        (Record(b"no slash", b"x"), Reason.NAMESPACE),
        (Record(KEY, bytes(401)), Reason.TOO_LARGE),
        (signed(key=own_key(BOBS, "x")), Reason.NOT_OWNER),
        (signed(key=b"/p2pgrid/own"), Reason.NOT_OWNER),
    ],
)
def test_what_is_not_in_order_is_refused(record: Record, reason: Reason) -> None:
    """Each for its own reason; nothing is stored."""
    assert why_not(values(), record) is reason


def test_a_clock_that_is_five_minutes_off_is_good_enough() -> None:
    """Ahead and behind."""
    store = values()
    for skew in (-300, 300):
        store.put(signed(unix_s=UNIX_S + skew), peer_id(1), 0.0, UNIX_S)

    assert len(store) == 1


def test_a_member_writes_under_its_own_key() -> None:
    """And there nobody else does."""
    store, key = values(), own_key(ANNS, "x")
    store.put(signed(key=key), peer_id(1), 0.0, UNIX_S)

    assert store.get(key, 0.0) is not None


def test_one_member_has_room_for_so_many_whoever_brings_them() -> None:
    """The author counts, not the carrier: another member still has room, and what expires makes some."""
    store = values()
    for number in range(3):
        store.put(signed(key=b"/p2pgrid/%d" % number), peer_id(number), 0.0, UNIX_S)
    another = signed(key=b"/p2pgrid/3")
    assert why_not(store, another) is Reason.TOO_MANY
    store.put(signed(key=b"/p2pgrid/0", unix_s=UNIX_S + 1), peer_id(1), 1.0, UNIX_S)  # replacing is no more
    store.put(signed(key=b"/p2pgrid/4", who=BOB), peer_id(1), 0.0, UNIX_S)
    store.expire(900.0)
    store.put(signed(key=b"/p2pgrid/3"), peer_id(1), 900.0, UNIX_S)

    assert store.get(b"/p2pgrid/3", 900.0) is not None


def test_one_member_has_room_for_so_many_bytes() -> None:
    """Three values of 350 bytes are more than 1,000."""
    store = values()
    for number in range(2):
        store.put(signed(bytes(240), b"/p2pgrid/%d" % number), peer_id(1), 0.0, UNIX_S)

    assert why_not(store, signed(bytes(260), b"/p2pgrid/2")) is Reason.TOO_MANY


def test_all_together_have_room_for_so_many() -> None:
    """Then no more are taken, and none is lost."""
    store = Values({"": Open()}, SMALL)
    for number in range(6):
        store.put(Record(b"%d" % number, b"x"), peer_id(number), 0.0, UNIX_S)

    assert why_not(store, Record(b"6", b"x")) is Reason.FULL


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 390), st.integers(0, 600)), max_size=30))
def test_the_books_are_right_whatever_comes(puts: list[tuple[int, int, int, int]]) -> None:
    """Counts and bytes by member are those of what is kept; limits hold."""
    store, now = Values({"": Open()}, SMALL), 0.0
    for key, sender, size, later in puts:
        now += later
        try:
            store.put(Record(b"%d" % key, bytes(size)), peer_id(sender), now, UNIX_S + now)
        except NotStored:
            store.expire(now)
        kept = list(store._kept.values())
        for member in map(peer_id, range(1, 4)):
            sizes = [len(each.value) for each in kept if each.member == member]
            assert (store._count[member], store._bytes[member]) == (len(sizes), sum(sizes))
            assert len(sizes) <= SMALL.member_values_max
            assert sum(sizes) <= SMALL.member_bytes_max
        assert store._bytes_all == sum(len(each.value) for each in kept)


def test_providers_are_named_the_latest_first_until_they_expire() -> None:
    """Half an hour after their last word."""
    store = Providers(SMALL)
    store.add(b"x", contact(1), 0.0)
    store.add(b"x", contact(2), 1.0)
    store.add(b"x", contact(1), 2.0)

    assert store.get(b"x", 1800.0) == [contact(1), contact(2)]
    assert store.get(b"x", 1801.0) == [contact(1)]
    store.expire(1802.0)
    assert (len(store), store._count, store._kept) == (0, {}, {})


def test_an_answer_names_so_many_providers() -> None:
    """The two heard of last."""
    store = Providers(RecordOptions(answer_providers_max=2))
    for number in range(5):
        store.add(b"x", contact(number), float(number))

    assert store.get(b"x", 5.0) == [contact(4), contact(3)]


def test_too_many_provider_records_of_one_member_are_refused() -> None:
    """Three keys; its fourth is refused, another member's is not."""
    store = Providers(SMALL)
    for number in range(3):
        store.add(b"%d" % number, contact(1), 0.0)
    with pytest.raises(NotStored, match="too many"):
        store.add(b"3", contact(1), 0.0)
    store.add(b"3", contact(2), 0.0)

    assert store.get(b"3", 0.0) == [contact(2)]


def test_too_many_providers_of_one_key_are_refused() -> None:
    """Four; the first of them can still renew its word."""
    store = Providers(SMALL)
    for number in range(4):
        store.add(b"x", contact(number), 0.0)
    with pytest.raises(NotStored, match="full"):
        store.add(b"x", contact(4), 0.0)
    store.add(b"x", contact(0), 5.0)

    assert store.get(b"x", 0.0)[0] == contact(0)


def test_the_owner_is_who_signed() -> None:
    """A checked value names the member it counts to."""
    assert values().check(KEY, signed(who=BOB).value, UNIX_S).author == peer_id_of(BOBS)
