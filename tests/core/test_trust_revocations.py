"""Revocations: what they list, which count, and that all of it is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core import revocation
from p2pgrid.core.chains import (
    ALL_ROLES,
    SUBMIT,
    WORK,
    Reason,
    Refused,
    found,
    join,
    public_of,
    read_chain,
    sign_link,
    statement_id,
)
from p2pgrid.core.revocation import (
    LISTED_MAX,
    REVOCATION_BYTES_MAX,
    REVOKE_WORD,
    Revocation,
    Revocations,
    named_by_id,
    read_revocation,
    vouchers_of,
)
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import FRAME_MAX_CONTROL, frame, pack, unpack

NOW = 1_800_000_000
USER = SUBMIT | WORK


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


ROOT, F, A, B, C, M = (key(number) for number in range(1, 7))
GRID = public_of(ROOT)
JUDGE = Judge(GRID)
FOUNDING = found(ROOT, public_of(F), NOW)
CHAIN = {
    public_of(F): FOUNDING,
    **{public_of(one): JUDGE.promote(F, FOUNDING, public_of(one), ALL_ROLES, NOW) for one in (A, B, C)},
    public_of(M): JUDGE.promote(F, FOUNDING, public_of(M), USER, NOW),
}
KNOWN = list(CHAIN.values())


def says(
    by: Ed25519PrivateKey, target: Ed25519PrivateKey, known: Sequence[bytes] = KNOWN, *, with_admitted: bool = False
) -> Revocation:
    """Nobody has heard of anything else."""
    heard = Revocations(JUDGE)
    chain = CHAIN[public_of(by)]
    return heard.revoke(by, [chain], public_of(target), NOW, known, with_admitted=with_admitted)


def raw(by: Ed25519PrivateKey, *fields: object) -> bytes:
    body = pack(list(fields))
    return pack([body, by.sign(REVOKE_WORD + GRID + body)])


def reason(data: bytes) -> Reason:
    with pytest.raises(Refused) as caught:
        read_revocation(data)
    return caught.value.reason


def test_a_revocation_travels() -> None:
    """Packed and read it is the same; its layout is that of the model."""
    record = says(A, F)
    target, listed, at, chain = unpack(record.body)

    assert read_revocation(record.packed) == record
    assert (target, at, chain) == (public_of(F), NOW, CHAIN[public_of(A)])
    assert listed == b"".join(sorted(statement_id(read_chain(one)[-1].body) for one in KNOWN[1:]))


def test_the_longest_revocation_fits_a_control_frame() -> None:
    """3,900 links; one more is refused to whom it is asked of, and malformed if sent all the same."""
    links = [unpack(FOUNDING)[0], sign_link(F, GRID, "n", public_of(A), ALL_ROLES, NOW, NOW, bytes(32))]
    while len(links) < 8:
        links.append(sign_link(A, GRID, "n", public_of(A), ALL_ROLES, NOW, NOW, bytes(32)))
    listed = [number.to_bytes(16, "big") for number in range(LISTED_MAX + 1)]
    longest = raw(A, public_of(F), b"".join(listed[:-1]), NOW, pack(links))

    assert read_revocation(longest).listed == frozenset(listed[:-1])
    assert len(longest) <= REVOCATION_BYTES_MAX
    assert len(frame(255, pack([longest]), 2**63)) <= FRAME_MAX_CONTROL
    assert reason(raw(A, public_of(F), b"".join(listed), NOW, FOUNDING)) is Reason.MALFORMED


def test_too_many_to_list_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thief who mints without end cannot stop `--with-admitted`."""
    monkeypatch.setattr(revocation, "LISTED_MAX", 3)
    with pytest.raises(Refused) as caught:
        says(A, F)

    assert caught.value.reason is Reason.TOO_MANY
    assert says(F, A, with_admitted=True).listed == frozenset()


@pytest.mark.parametrize(
    "fields",
    [
        (public_of(F), b"", NOW),
        (public_of(F)[:16], b"", NOW, FOUNDING),
        (public_of(F), b"x", NOW, FOUNDING),
        (public_of(F), bytes(32), NOW, FOUNDING),
        (public_of(F), bytes(15) + b"\1" + bytes(16), NOW, FOUNDING),
        (public_of(F), b"", -1, FOUNDING),
        (public_of(F), b"", True, FOUNDING),
        (public_of(F), b"", NOW, b""),
        (public_of(F), b"", NOW, FOUNDING, 1),
    ],
)
def test_another_shape_is_malformed(fields: tuple[object, ...]) -> None:
    """Twice the same or unsorted ids too: one statement, one encoding."""
    assert reason(raw(F, *fields)) is Reason.MALFORMED
    assert reason(b"x" * (REVOCATION_BYTES_MAX + 1)) is Reason.SIZE


def test_what_no_admin_of_this_grid_said_does_not_count() -> None:
    """A plain member, another grid, another's chain, a wrong signature, a joiner."""
    heard = Revocations(JUDGE)
    forged = unpack(says(F, M).packed)
    forged[1] = bytes(64)
    voucher = key(50)
    invited = JUDGE.invite(F, FOUNDING, public_of(voucher), ALL_ROLES, NOW)
    joined = join(voucher, GRID, invited, public_of(key(51)))
    for data in (
        raw(M, public_of(F), b"", NOW, CHAIN[public_of(M)]),
        raw(A, public_of(M), b"", NOW, found(key(60), public_of(A), NOW)),
        raw(M, public_of(B), b"", NOW, CHAIN[public_of(A)]),
        pack(forged),
    ):
        assert not heard.add(read_revocation(data))
    assert reason(raw(key(51), public_of(M), b"", NOW, joined)) is Reason.KINDS
    with pytest.raises(Refused) as caught:
        heard.revoke(M, [CHAIN[public_of(M)]], public_of(A), NOW, KNOWN)

    assert caught.value.reason is Reason.NOT_ADMIN
    assert heard.records() == ()


def test_it_is_taken_once_and_kept_in_order() -> None:
    """What is stored and read back in its order is the same state."""
    heard = Revocations(JUDGE)
    first, second = says(A, M), says(B, C)

    assert [heard.add(one) for one in (first, second, first)] == [True, True, False]
    assert heard.records() == (first, second)
    assert Revocations(JUDGE, heard.records()).records() == heard.records()
    assert heard.names(public_of(M))
    assert not heard.names(public_of(A))


def test_an_admin_may_revoke_itself() -> None:
    """Its own laptop, lost: what it let in is listed."""
    heard = Revocations(JUDGE, [says(F, F)])

    assert heard.names(public_of(F))
    assert JUDGE.check(CHAIN[public_of(A)], public_of(A), NOW, heard)
    with pytest.raises(Refused):
        JUDGE.check(FOUNDING, public_of(F), NOW, heard)


def test_the_chain_that_holds_afterwards_goes_with_it() -> None:
    """An admin with two chains may undo one of them, together with whoever signed it."""
    other = JUDGE.promote(A, CHAIN[public_of(A)], public_of(C), ALL_ROLES, NOW)
    heard = Revocations(JUDGE)
    record = heard.revoke(C, [CHAIN[public_of(C)], other], public_of(A), NOW, KNOWN, with_admitted=True)
    assert record.chain == CHAIN[public_of(C)]
    assert heard.add(record)
    with pytest.raises(Refused) as caught:
        Revocations(JUDGE).revoke(C, [other], public_of(A), NOW, KNOWN, with_admitted=True)

    assert caught.value.reason is Reason.CUTS_SENDER
    assert JUDGE.best([other, CHAIN[public_of(C)]], public_of(C), NOW, heard) == CHAIN[public_of(C)]


def test_who_was_refused_is_not_listed_again() -> None:
    """A second, plain revocation by one who heard the first does not bring the thief's guests back."""
    guest = JUDGE.promote(A, CHAIN[public_of(A)], public_of(key(70)), USER, NOW)
    heard = Revocations(JUDGE, [says(F, A, with_admitted=True)])
    again = heard.revoke(B, [CHAIN[public_of(B)]], public_of(A), NOW + 1, [*KNOWN, guest])

    assert again.listed == frozenset()
    assert says(B, A, [*KNOWN, guest]).listed == {statement_id(read_chain(guest)[-1].body)}


def test_garbage_among_known_chains_is_passed_over() -> None:
    """Only what holds here is listed: nobody gets a link listed that the target never signed."""
    forged = pack([*unpack(CHAIN[public_of(A)]), [pack(["n", bytes(32), 1, NOW, 0, b""]), bytes(64)]])

    assert says(F, A, [*KNOWN, forged, b"", b"x" * 5000]).listed == frozenset()


def test_the_invite_by_which_a_node_came_is_known_by_half_its_key() -> None:
    """So the revoked machine cannot come back by it; who came by it before stays."""
    voucher, node, guest = key(80), key(81), key(82)
    invited = JUDGE.invite(F, FOUNDING, public_of(voucher), USER, NOW)
    joined = {one: join(voucher, GRID, invited, public_of(one)) for one in (node, guest)}
    members = {one: JUDGE.replace(F, FOUNDING, chain, NOW) for one, chain in joined.items()}
    (target,) = vouchers_of([b"", *members.values()], public_of(node))
    assert target == named_by_id(public_of(voucher)[:16])
    assert vouchers_of(joined.values(), public_of(node)) == [target]
    heard = Revocations(JUDGE)
    heard.add(heard.revoke(A, [CHAIN[public_of(A)]], target, NOW, [*KNOWN, *members.values()]))

    assert JUDGE.check(members[guest], public_of(guest), NOW, heard)
    with pytest.raises(Refused):
        JUDGE.check(joined[guest], public_of(guest), NOW, heard)
    with pytest.raises(Refused) as caught:
        JUDGE.check_voucher(invited, public_of(voucher), NOW, heard)
    assert caught.value.reason is Reason.REVOKED
    with pytest.raises(ValueError, match="16 bytes"):
        named_by_id(b"short")


def test_a_closed_invite_stays_closed_whatever_is_listed() -> None:
    """A hand-made list that names the joiner's own link does not open it again: only node links can be kept."""
    voucher, guest = key(80), key(82)
    invited = JUDGE.invite(F, FOUNDING, public_of(voucher), USER, NOW)
    joined = join(voucher, GRID, invited, public_of(guest))
    listed = statement_id(read_chain(joined)[-1].body)
    heard = Revocations(JUDGE)
    assert heard.add(read_revocation(raw(A, public_of(voucher), listed, NOW, CHAIN[public_of(A)])))
    with pytest.raises(Refused) as caught:
        JUDGE.check(joined, public_of(guest), NOW, heard)

    assert caught.value.reason is Reason.REVOKED


def test_what_was_dropped_returns_when_who_dropped_it_is_revoked() -> None:
    """A thief's revocation of an honest admin undoes the admin's own, until the thief is revoked."""
    honest, thief_says, thief_gone = says(A, M), says(C, A), says(F, C)
    heard = Revocations(JUDGE, [honest, thief_says])
    assert heard.records() == (thief_says,)
    heard.add(thief_gone)

    assert heard.records() == (thief_gone,)
    assert heard.add(honest)
    assert not heard.add(thief_says)


def test_a_revocation_that_undermines_itself_is_not_taken() -> None:
    """Guest G of A lives by B's list alone, C listed nobody: G revoking B would drop that list, and so itself."""
    guest = key(90)
    chain = JUDGE.promote(A, CHAIN[public_of(A)], public_of(guest), ALL_ROLES, NOW)
    by_list, by_nobody = says(B, A, [*KNOWN, chain]), says(C, A, [])
    against = Revocations(JUDGE).revoke(guest, [chain], public_of(B), NOW, [])
    heard = Revocations(JUDGE, [by_list, by_nobody])
    assert not heard.add(against)

    assert heard.records() == (by_list, by_nobody)
    assert JUDGE.check(chain, public_of(guest), NOW, heard)


def test_three_thieves_in_a_circle_come_to_rest() -> None:
    """Each drops another's word; without a bound anti-entropy would turn for ever."""
    circle = [says(A, B, []), says(B, C, []), says(C, A, [])]
    heard = Revocations(JUDGE)
    turns = sum(heard.add(record) for _ in range(100) for record in reversed(circle))

    assert turns < 60
    assert len(heard.records()) >= 1


def test_a_flood_by_a_stolen_admins_key_ends_with_its_revocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """When full nothing more is taken, but for what makes room."""
    monkeypatch.setattr(revocation, "RECORDS_MAX", 4)
    heard = Revocations(JUDGE, [says(A, key(200 + i)) for i in range(9)])
    assert len(heard.records()) == 4
    assert not heard.add(says(B, M))
    assert heard.add(says(F, A))

    assert len(heard.records()) == 1
    assert heard.add(says(B, M))


def test_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, but long."""
    monkeypatch.setattr(revocation, "RECORDS_BYTES_MAX", 1000)
    heard = Revocations(JUDGE, [says(A, key(200 + i)) for i in range(9)])

    assert 1 < len(heard.records()) < 9


def test_a_copy_is_independent() -> None:
    """To try something out."""
    heard = Revocations(JUDGE, [says(A, M)])
    other = heard.copy()
    other.add(says(B, C))

    assert (len(heard.records()), len(other.records())) == (1, 2)


@settings(max_examples=60)
@given(st.data())
def test_whoever_hears_the_same_in_the_same_order_agrees(data: st.DataObject) -> None:
    """Whatever four admins say of each other: the state can be stored and read back; no unlisted word is left in it."""
    admins = [F, A, B, C]
    pairs = st.tuples(st.sampled_from(admins), st.sampled_from([*admins, M]), st.booleans())
    records = []
    for by, target, listing in data.draw(st.lists(pairs, max_size=7)):
        fields = read_revocation(raw(by, public_of(target), b"", NOW, CHAIN[public_of(by)]))
        records.append(says(by, target) if listing else fields)
    heard = Revocations(JUDGE, records * 2)
    again = Revocations(JUDGE, records * 2)

    assert heard.records() == again.records()
    assert set(Revocations(JUDGE, heard.records()).records()) == set(heard.records())
    assert all(heard._counts(record) for record in heard.records())
    for record in heard.records():
        others = [one for one in heard.records() if one is not record and one.target == record.signer]
        assert not others or any(record.id in one.listed for one in others)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Never another exception."""
    assert reason(data)


@given(st.integers(0, 2000), st.integers(0, 3), st.binary(min_size=1, max_size=3))
def test_a_mutated_revocation_does_not_count(at: int, cut: int, put: bytes) -> None:
    """It is refused, or read and not taken."""
    good = says(A, F).packed
    data = good[: at % len(good)] + put + good[at % len(good) + cut :]
    try:
        record = read_revocation(data)
    except Refused:
        return
    assert Revocations(JUDGE).add(record) == (data == good)


def test_all_orders_of_two_admins_and_a_thief_agree_on_the_thief() -> None:
    """Once all have heard all, nobody lets the thief in."""
    records = [says(F, C), says(A, C), says(C, M, with_admitted=True)]
    for order in itertools.permutations(records):
        heard = Revocations(JUDGE, order * 2)

        assert heard.names(public_of(C))
        assert JUDGE.check(CHAIN[public_of(M)], public_of(M), NOW, heard) == USER
