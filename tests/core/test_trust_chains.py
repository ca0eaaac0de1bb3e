"""Chains: their bytes, their bounds, their reasons, and what a node keeps and shows."""

from __future__ import annotations

import math

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core import trust
from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    CHAIN_BYTES_MAX,
    DEFAULT_ROLES,
    LINK_WORD,
    LINKS_MAX,
    OBSERVE,
    SUBMIT,
    TIME_MAX_S,
    WORK,
    Reason,
    Refused,
    found,
    join,
    newest_signed_at,
    parse_roles,
    public_of,
    read_chain,
    role_names,
    sign_link,
)
from p2pgrid.core.trust import CHAINS_KEPT_MAX, JOIN_FOR_S, Judge, judging_time
from p2pgrid.core.wire import pack, unpack

NOW = 1_800_000_000
USER = SUBMIT | WORK


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


ROOT, FOUNDER, NODE, VOUCHER, JOINER = (key(number) for number in range(1, 6))
GRID = public_of(ROOT)
FOUNDING = found(ROOT, public_of(FOUNDER), NOW)
INVITED = Judge(GRID).invite(FOUNDER, FOUNDING, public_of(VOUCHER), USER, NOW)
JOINED = join(VOUCHER, GRID, INVITED, public_of(JOINER))
MEMBER = Judge(GRID).promote(FOUNDER, FOUNDING, public_of(NODE), USER, NOW)


def deep(links: int) -> tuple[list[Ed25519PrivateKey], list[bytes]]:
    """Return admins, each signed by the one before, with the longest fields there are."""
    keys, chains = [FOUNDER], [FOUNDING]
    for i in range(links - 1):
        keys.append(key(100 + i))
        fields = ("n", public_of(keys[-1]), ALL_ROLES, TIME_MAX_S, TIME_MAX_S, bytes(32))
        chains.append(pack([*unpack(chains[-1]), sign_link(keys[-2], GRID, *fields)]))
    return keys, chains


def reason(chain: bytes, peer: Ed25519PrivateKey, now: float = NOW, grid: bytes = GRID) -> Reason:
    with pytest.raises(Refused) as caught:
        Judge(grid).check(chain, public_of(peer), now)
    return caught.value.reason


# ---- bytes ----------------------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_the_model() -> None:
    """Ed25519 over the word, the grid's key and the body; the sizes that the model prints."""
    ((body, signature),) = unpack(FOUNDING)
    ROOT.public_key().verify(signature, LINK_WORD + GRID + body)

    assert unpack(body) == ["n", public_of(FOUNDER), ALL_ROLES, NOW, 0, b""]
    assert (len(FOUNDING), len(JOINED)) == (116, 340)
    assert unpack(unpack(INVITED)[1][0]) == ["v", public_of(VOUCHER), USER, NOW, 0, NOW + JOIN_FOR_S]
    assert unpack(unpack(JOINED)[2][0]) == ["j", public_of(JOINER)]


def test_eight_of_the_longest_links_fit() -> None:
    """8 links and 2 KiB do not contradict each other; a ninth is refused before anything is verified."""
    keys, chains = deep(LINKS_MAX)
    judge = Judge(GRID)

    assert len(chains[-1]) < CHAIN_BYTES_MAX * 3 // 4
    assert judge.check(chains[-1], public_of(keys[-1]), NOW) == ALL_ROLES
    with pytest.raises(Refused) as caught:
        judge.promote(keys[-1], chains[-1], public_of(NODE), USER, NOW)
    assert caught.value.reason is Reason.LINKS
    with pytest.raises(Refused) as caught:
        judge.invite(keys[-2], chains[-2], public_of(VOUCHER), USER, NOW)
    assert caught.value.reason is Reason.LINKS
    assert judge.check_voucher(
        judge.invite(keys[-3], chains[-3], public_of(VOUCHER), USER, NOW), public_of(VOUCHER), NOW
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("n", bytes(32), True, NOW, 0, b""), Reason.MALFORMED),
        (("n", bytes(32), 1.0, NOW, 0, b""), Reason.MALFORMED),
        (("n", bytes(32), 0, NOW, 0, b""), Reason.MALFORMED),
        (("n", bytes(32), 256, NOW, 0, b""), Reason.MALFORMED),
        (("n", bytes(32), 1, -1, 0, b""), Reason.MALFORMED),
        (("n", bytes(32), 1, NOW, TIME_MAX_S + 1, b""), Reason.MALFORMED),
        (("n", bytes(32), 1, NOW, math.nan, b""), Reason.MALFORMED),
        (("n", bytes(32), 1, NOW, 0, bytes(31)), Reason.MALFORMED),
        (("n", bytes(32), 1, NOW, 0, b"", 1), Reason.MALFORMED),
        (("n", bytes(31), 1, NOW, 0, b""), Reason.MALFORMED),
        (("n", "x" * 32, 1, NOW, 0, b""), Reason.MALFORMED),
        (("v", bytes(32), 1, NOW, 0, None), Reason.MALFORMED),
        (("x", bytes(32)), Reason.MALFORMED),
        (("j", bytes(32)), Reason.KINDS),
        (("v", bytes(32), 1, NOW, 0, NOW), Reason.KINDS),
    ],
)
def test_a_link_of_another_shape_is_refused(fields: tuple[object, ...], expected: Reason) -> None:
    """Whoever signed it; a voucher or a joiner cannot come first."""
    assert reason(pack([sign_link(ROOT, GRID, *fields)]), NODE) is expected


def test_a_statement_has_one_encoding() -> None:
    """The same values in other bytes are malformed, in the body and around it."""
    ((body, signature),) = unpack(FOUNDING)
    long_list = b"\xdc\x00\x01" + FOUNDING[1:]  # array 16 instead of fixarray
    long_body = b"\xdc\x00\x06" + body[1:]
    resigned = pack([[long_body, ROOT.sign(LINK_WORD + GRID + long_body)]])

    assert unpack(long_list) == [[body, signature]]
    assert unpack(long_body) == unpack(body)
    assert reason(long_list, FOUNDER) is Reason.MALFORMED
    assert reason(resigned, FOUNDER) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (b"", Reason.MALFORMED),
        (pack([]), Reason.NO_CHAIN),
        (pack({}), Reason.MALFORMED),
        (b"\x91" * 2048, Reason.MALFORMED),
        (b"x" * (CHAIN_BYTES_MAX + 1), Reason.SIZE),
        (pack([[b"", bytes(64)]]), Reason.MALFORMED),
        (pack([[b"", bytes(63)]]), Reason.MALFORMED),
        (FOUNDING + b"\0", Reason.MALFORMED),
        (FOUNDING[:-1], Reason.MALFORMED),
    ],
)
def test_what_is_no_chain_is_refused(chain: bytes, expected: Reason) -> None:
    """Length and shape come first, and nothing else than Refused comes out."""
    assert reason(chain, FOUNDER) is expected


# ---- reasons --------------------------------------------------------------------------------------------------------


def test_each_reason_is_one_byte_and_one_line() -> None:
    """A byte that a later version sends is understood as other; 0 is no reason."""
    assert all(0 < int(one) < 256 and "\n" not in one.sentence for one in Reason)
    assert len({one.sentence for one in Reason}) == len(Reason)
    assert Reason.from_byte(int(Reason.ENDED)) is Reason.ENDED
    assert Reason.from_byte(200) is Reason.OTHER
    assert str(Refused(Reason.ENDED)) == "the membership has ended"


def test_the_reason_says_what_is_wrong() -> None:
    """Dates, roles, another's certificate, another grid, a wrong signature, an invite shown as a certificate."""
    judge = Judge(GRID)
    guest = judge.promote(FOUNDER, FOUNDING, public_of(NODE), USER, NOW, until=NOW + 10)
    forged = unpack(MEMBER)
    forged[-1][1] = bytes(64)
    by_member = pack([*unpack(MEMBER), sign_link(NODE, GRID, "n", public_of(JOINER), 1, NOW, 0, b"")])

    assert reason(guest, NODE, NOW + 11) is Reason.ENDED
    assert judge.check(guest, public_of(NODE), NOW + 10) == USER
    assert reason(JOINED, JOINER, NOW + JOIN_FOR_S + 1) is Reason.EXPIRED
    assert judge.check(JOINED, public_of(JOINER), NOW + JOIN_FOR_S) == USER
    assert reason(MEMBER, JOINER) is Reason.ANOTHERS
    assert reason(MEMBER, NODE, grid=public_of(JOINER)) is Reason.FOREIGN
    assert reason(pack(forged), NODE) is Reason.SIGNATURE
    assert reason(by_member, JOINER) is Reason.NOT_ADMIN
    assert reason(INVITED, VOUCHER) is Reason.KINDS


def test_a_joiner_signs_and_invites_nobody() -> None:
    """No admin has looked at it yet, whatever roles its voucher gives."""
    judge = Judge(GRID)
    invited = judge.invite(FOUNDER, FOUNDING, public_of(VOUCHER), DEFAULT_ROLES, NOW)
    joined = join(VOUCHER, GRID, invited, public_of(JOINER))

    assert judge.check(joined, public_of(JOINER), NOW) == DEFAULT_ROLES
    for act in (judge.promote, judge.invite):
        with pytest.raises(Refused) as caught:
            act(JOINER, joined, public_of(NODE), USER, NOW)
        assert caught.value.reason is Reason.PROVISIONAL
    with pytest.raises(Refused) as caught:
        judge.promote(NODE, MEMBER, public_of(JOINER), USER, NOW)
    assert caught.value.reason is Reason.NOT_ADMIN


def test_an_admin_replaces_only_a_joiner_that_holds_now() -> None:
    """The end of the membership is carried over; a late joiner or a member is not signed."""
    judge = Judge(GRID)
    invited = judge.invite(FOUNDER, FOUNDING, public_of(VOUCHER), USER, NOW, until=NOW + 100, join_until=NOW + 10)
    joined = join(VOUCHER, GRID, invited, public_of(JOINER))
    replaced = judge.replace(FOUNDER, FOUNDING, joined, NOW + 5)

    assert read_chain(replaced)[-1][4:] == read_chain(replaced)[-1]._replace(until=NOW + 100)[4:]
    assert judge.check(replaced, public_of(JOINER), NOW + 100) == USER
    with pytest.raises(Refused) as caught:
        judge.replace(FOUNDER, FOUNDING, joined, NOW + 11)
    assert caught.value.reason is Reason.EXPIRED
    with pytest.raises(Refused) as caught:
        judge.replace(FOUNDER, FOUNDING, MEMBER, NOW)
    assert caught.value.reason is Reason.KINDS
    with pytest.raises(Refused) as caught:
        join(VOUCHER, GRID, FOUNDING, public_of(JOINER))
    assert caught.value.reason is Reason.KINDS


# ---- costs ----------------------------------------------------------------------------------------------------------


def test_a_stranger_costs_one_verification_and_no_memory() -> None:
    """A chain of another grid fails at its first link; a cheap refusal verifies nothing."""
    judge = Judge(public_of(JOINER))
    keys, chains = deep(LINKS_MAX)
    for peer, verified in ((keys[-1], 1), (NODE, 1), (keys[-1], 2)):
        with pytest.raises(Refused):
            judge.check(chains[-1], public_of(peer), NOW)
        assert judge.verified == verified


def test_good_links_are_verified_once_and_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently seen goes first."""
    monkeypatch.setattr(trust, "CACHE_LINKS_MAX", 3)
    judge = Judge(GRID)
    keys, chains = deep(4)
    for _ in range(3):
        judge.check(chains[2], public_of(keys[2]), NOW)
    assert judge.verified == 3
    judge.check(chains[3], public_of(keys[3]), NOW)
    assert judge.verified == 4
    judge.check(chains[0], public_of(keys[0]), NOW)

    assert judge.verified == 5


# ---- a node's own chains --------------------------------------------------------------------------------------------


def test_the_shortest_chain_that_gives_most_is_shown() -> None:
    """A promotion from further down counts; of equals the shorter; an admin's word before a voucher's."""
    judge = Judge(GRID)
    keys, chains = deep(4)
    me = public_of(JOINER)
    far = judge.promote(keys[3], chains[3], me, DEFAULT_ROLES, NOW)
    near = judge.promote(keys[1], chains[1], me, DEFAULT_ROLES, NOW)
    user = judge.replace(keys[2], chains[2], JOINED, NOW)

    assert judge.best([JOINED, user, far, near], me, NOW) == near
    assert judge.best([JOINED, user, far], me, NOW) == far
    assert judge.best([JOINED, user], me, NOW) == user
    assert judge.best([MEMBER, JOINED], me, NOW) == JOINED
    with pytest.raises(Refused) as caught:
        judge.best([JOINED], me, NOW + JOIN_FOR_S + 1)
    assert caught.value.reason is Reason.EXPIRED
    with pytest.raises(Refused) as caught:
        judge.best([], me, NOW)
    assert caught.value.reason is Reason.NO_CHAIN


def test_a_node_keeps_its_chains_and_not_without_end() -> None:
    """The newer by one signer replaces the older; when full the new one waits; what holds no more makes room."""
    judge = Judge(GRID)
    me = public_of(JOINER)
    chains: tuple[bytes, ...] = (JOINED,)
    for i in range(CHAINS_KEPT_MAX + 5):
        admin = key(1000 + i)
        above = judge.promote(FOUNDER, FOUNDING, public_of(admin), ALL_ROLES, NOW)
        for at in (NOW, NOW + 1):
            chains = judge.keep(chains, judge.promote(admin, above, me, USER, at), me, NOW)
    assert len(chains) == CHAINS_KEPT_MAX
    assert chains[0] == JOINED
    newest = judge.promote(FOUNDER, FOUNDING, me, USER, NOW)
    assert newest not in judge.keep(chains, newest, me, NOW)

    assert judge.keep(chains, newest, me, NOW + JOIN_FOR_S + 1)[-1] == newest
    with pytest.raises(Refused):
        judge.keep(chains, MEMBER, me, NOW)


def test_roles_have_names() -> None:
    """As `--roles` takes them; a role of a later version has none."""
    assert parse_roles("submit, work") == USER
    assert role_names(ADMIN | OBSERVE | 64) == ["admin", "observe"]
    for text in ("", "root", "submit,,work"):
        with pytest.raises(ValueError, match="not roles"):
            parse_roles(text)


def test_a_role_of_a_later_version_means_nothing_here() -> None:
    """It is carried on by `replace` and not returned."""
    chain = pack([*unpack(FOUNDING), sign_link(FOUNDER, GRID, "n", public_of(NODE), 64 | SUBMIT, NOW, 0, b"")])

    assert Judge(GRID).check(chain, public_of(NODE), NOW) == SUBMIT


def test_a_grids_key_has_32_bytes() -> None:
    """Our own mistake, said at once."""
    with pytest.raises(ValueError, match="32 bytes"):
        Judge(b"short")


def test_the_time_that_dates_are_judged_by() -> None:
    """Offsets when there are any; else a dialler believes its chain and a listener the later of both."""
    assert judging_time(100, [5, 7, 1000], 90, dialler=True) == 107
    assert judging_time(100, [], 90, dialler=False) == 100
    assert judging_time(100, [], 90, dialler=True) == 90
    assert newest_signed_at(JOINED) == NOW


# ---- anything -------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=70) | st.just(bytes(64)) | st.just(bytes(32)) | st.sampled_from("nvj"),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)  # fmt: skip


def only_refused(chain: bytes, peer: bytes) -> None:
    judge = Judge(GRID)
    for use in (judge.check, judge.check_voucher):
        try:
            use(chain, peer, NOW)
        except Refused as refused:
            assert refused.reason in Reason  # noqa: PT017 - either it holds or it is refused


@given(st.binary(max_size=CHAIN_BYTES_MAX + 10))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Never another exception."""
    assert reason(data, NODE)


@given(VALUES, st.lists(VALUES, max_size=6))
def test_random_values_are_refused(value: object, fields: list[object]) -> None:
    """Around links and, well signed, inside them."""
    only_refused(pack(value), public_of(NODE))
    only_refused(pack([sign_link(ROOT, GRID, *fields)]), public_of(NODE))
    only_refused(pack([*unpack(FOUNDING), sign_link(FOUNDER, GRID, *fields)]), public_of(NODE))


@given(
    st.sampled_from([(FOUNDING, FOUNDER), (MEMBER, NODE), (JOINED, JOINER)]),
    st.integers(0, 400),
    st.integers(0, 3),
    st.binary(min_size=1, max_size=3),
)
def test_a_mutated_chain_is_refused(whose: tuple[bytes, Ed25519PrivateKey], at: int, cut: int, put: bytes) -> None:
    """Any bytes replaced, left out or put in: it holds only if it is the same chain."""
    chain, peer = whose
    changed = chain[: at % len(chain)] + put + chain[at % len(chain) + cut :]
    if changed == chain:
        assert Judge(GRID).check(changed, public_of(peer), NOW)
    else:
        assert reason(changed, peer)


@given(st.permutations(unpack(JOINED) + unpack(MEMBER)), st.integers(1, 5))
def test_links_in_another_order_are_refused(links: list[list[bytes]], count: int) -> None:
    """Each good link for itself makes no chain."""
    chain = pack(links[:count])
    if chain not in {JOINED, MEMBER, FOUNDING}:
        only_refused(chain, public_of(NODE))
        for peer in (FOUNDER, NODE, JOINER, VOUCHER):
            assert reason(chain, peer)
