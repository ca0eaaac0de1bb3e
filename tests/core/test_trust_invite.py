"""Invites and recovery files: there and back, and every way to damage them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from p2pgrid.core import invite as module
from p2pgrid.core.chains import ALL_ROLES, SUBMIT, WORK, Reason, Refused, found, public_of
from p2pgrid.core.errors import GridError
from p2pgrid.core.invite import (
    ADDRESSES_MAX,
    TEXT_LENGTH_MAX,
    Membership,
    bad_invite,
    export_admin,
    read_invite,
    recover_admin,
    write_invite,
)
from p2pgrid.core.revocation import Revocations
from p2pgrid.core.trust import JOIN_FOR_S, Judge
from p2pgrid.core.wire import pack

NOW = 1_800_000_000
USER = SUBMIT | WORK
ADDRESSES = ("/ip4/192.168.1.7/tcp/9471/p2p/12D3KooWGRID", "/ip6/fe80::1/tcp/9471/p2p/12D3KooWGRID")


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


ROOT, FOUNDER, VOUCHER, NODE = (key(number) for number in range(1, 5))
GRID = public_of(ROOT)
JUDGE = Judge(GRID)
FOUNDING = found(ROOT, public_of(FOUNDER), NOW)
INVITE = Membership(GRID, ADDRESSES, VOUCHER, JUDGE.invite(FOUNDER, FOUNDING, public_of(VOUCHER), USER, NOW))
TEXT = write_invite(INVITE)
ADMIN = Membership(GRID, ADDRESSES, FOUNDER, FOUNDING)
SALT = bytes(range(16))


def parts(held: Membership) -> tuple[object, ...]:
    return held.grid, held.addresses, held.key.private_bytes_raw(), held.chain


def reason(text: str) -> Reason:
    with pytest.raises(Refused) as caught:
        read_invite(text)
    return caught.value.reason


@pytest.fixture(scope="module")
def recovery() -> str:
    return export_admin(ADMIN, "a phrase", SALT)


def test_an_invite_comes_back() -> None:
    """The same grid, addresses, key and chain; a joiner made from it is let in."""
    held = read_invite(TEXT)
    joined = held.join(public_of(NODE))

    assert parts(held) == parts(INVITE)
    assert held.check_invite(NOW) == USER
    assert JUDGE.check(joined, public_of(NODE), NOW) == USER


def test_an_invite_is_one_word_of_plain_characters() -> None:
    """It survives shells, chats and mails; a wrapped and indented one is read all the same."""
    wrapped = "\r\n> ".join(TEXT[i : i + 60] for i in range(0, len(TEXT), 60)).replace(">", " ")

    assert TEXT.startswith("p2pgrid-invite-1.")
    assert not set(TEXT) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert len(TEXT) < 800
    assert parts(read_invite(f"  {wrapped}\n")) == parts(INVITE)


def test_a_text_cut_short_is_called_that() -> None:
    """Wherever it was cut."""
    assert {reason(TEXT[:length]) for length in range(1, len(TEXT))} == {Reason.TRUNCATED}


def test_a_wrong_last_character_is_noticed() -> None:
    """Also where base64 has bits to spare."""
    for length in range(1, 5):
        text = write_invite(Membership(GRID, ("x" * length,), VOUCHER, INVITE.chain))
        others = [text[:-1] + last for last in "ABCDEFGHQghwx_" if last != text[-1]]

        assert {reason(other) for other in others} == {Reason.DAMAGED}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Reason.NO_INVITE),
        ("  ", Reason.NO_INVITE),
        ("hello", Reason.NO_INVITE),
        ("p2pgrid-recovery-1.AAAA", Reason.NO_INVITE),
        ("p2pgrid-invite-.AAAA", Reason.NO_INVITE),
        ("p2pgrid-invite-٣.AAAA", Reason.NO_INVITE),
        ("p2pgrid-invite-2.anything", Reason.NEWER),
        ("p2pgrid-invite-12.", Reason.NEWER),
        ("p2pgrid-invite-1.!!!!", Reason.DAMAGED),
        ("p2pgrid-invite-1.ÄÖÜß", Reason.DAMAGED),
        (TEXT + "A", Reason.DAMAGED),
        (TEXT + "=", Reason.DAMAGED),
        (TEXT + TEXT, Reason.DAMAGED),
        (TEXT[:-5] + "\N{SNOWMAN}" + TEXT[-4:], Reason.DAMAGED),
        ("x" * (TEXT_LENGTH_MAX + 1), Reason.NO_INVITE),
    ],
)
def test_what_is_no_invite_is_called_what_it_is(text: str, expected: Reason) -> None:
    """Empty, another text, a newer version, too long, pasted twice."""
    assert reason(text) is expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pack(None),
        pack([GRID, [], bytes(32)]),
        pack([GRID[1:], [], bytes(32), FOUNDING]),
        pack([GRID, [], bytes(31), FOUNDING]),
        pack([GRID, [1], bytes(32), FOUNDING]),
        pack([GRID, ["a\nb"], bytes(32), FOUNDING]),
        pack([GRID, ["x"] * (ADDRESSES_MAX + 1), bytes(32), FOUNDING]),
        pack([GRID, ["x" * 257], bytes(32), FOUNDING]),
        pack([GRID, [], bytes(32), b""]),
        pack([GRID, [], bytes(32), bytes(2049)]),
    ],
)
def test_a_right_sum_over_wrong_things_helps_nobody(content: bytes) -> None:
    """Everything in it is bounded and typed; an address cannot write into a terminal."""
    assert reason(module._write(module.INVITE_WORD, content)) is Reason.DAMAGED


def test_an_invite_says_why_it_is_no_good() -> None:
    """Expired, revoked, its inviter revoked, of another grid, its key exchanged: told apart, one line each, exit 2."""
    by_id = Revocations(JUDGE)
    by_id.add(by_id.revoke(FOUNDER, [FOUNDING], public_of(VOUCHER), NOW, []))
    inviter = Revocations(JUDGE)
    inviter.add(inviter.revoke(FOUNDER, [FOUNDING], public_of(FOUNDER), NOW, []))
    foreign = Membership(public_of(NODE), (), VOUCHER, INVITE.chain)
    stolen = Membership(GRID, (), NODE, INVITE.chain)
    found_reasons = []
    checks: tuple[Callable[[], int], ...] = (
        lambda: INVITE.check_invite(NOW + JOIN_FOR_S + 1),
        lambda: INVITE.check_invite(NOW, by_id),
        lambda: INVITE.check_invite(NOW, inviter),
        lambda: INVITE.check_invite(NOW, grid=public_of(NODE)),
        lambda: foreign.check_invite(NOW),
        lambda: stolen.check_invite(NOW),
    )
    for check in checks:
        with pytest.raises(Refused) as caught:
            check()
        found_reasons.append(caught.value.reason)

    assert found_reasons == [
        Reason.EXPIRED, Reason.REVOKED, Reason.FROM_REVOKED, Reason.FOREIGN, Reason.FOREIGN, Reason.ANOTHERS,
    ]  # fmt: skip
    assert INVITE.check_invite(grid=GRID) == USER


def test_every_reason_is_an_error_of_one_line() -> None:
    """Exit code 2, and what to do next."""
    errors = [bad_invite(reason) for reason in Reason]

    assert all(error.exit_code == 2 and error.code == "bad-invite" and error.next for error in errors)
    assert all("\n" not in str(error) and "invite" in error.message for error in errors)
    assert len({error.message for error in errors}) == len(errors)


def test_only_so_many_addresses() -> None:
    """A mistake of ours, said at once."""
    for addresses in (("x",) * (ADDRESSES_MAX + 1), ("x" * 257,), ("",)):
        with pytest.raises(ValueError, match="addresses"):
            write_invite(Membership(GRID, addresses, VOUCHER, INVITE.chain))


def test_keys_are_not_shown() -> None:
    """The repr of an invite is fit for a log."""
    assert "Private" not in repr(INVITE)
    assert INVITE.key.private_bytes_raw().hex() not in repr(INVITE)


@given(st.text(max_size=300))
@example("p2pgrid-invite-1." + "A" * 50)
def test_random_texts_are_refused(text: str) -> None:
    """Never another exception."""
    assert reason(text)
    assert reason("p2pgrid-invite-1." + text)


@given(st.integers(0, len(TEXT)), st.integers(0, 3), st.text(min_size=1, max_size=3))
def test_a_damaged_invite_is_refused(at: int, cut: int, put: str) -> None:
    """Any characters replaced, left out or put in; white space alone does no harm."""
    text = TEXT[:at] + put + TEXT[at + cut :]
    if "".join(text.split()) == TEXT:
        assert parts(read_invite(text)) == parts(INVITE)
    else:
        assert reason(text)


def test_an_admins_key_comes_back_with_its_passphrase(recovery: str) -> None:
    """However the passphrase's accents are encoded; the key makes admins."""
    held = recover_admin(f"\n{recovery}\n", "a phrase")
    accented = export_admin(ADMIN, "caf\u00e9", SALT)

    assert parts(held) == parts(ADMIN)
    assert parts(recover_admin(accented, "cafe\u0301")) == parts(ADMIN)
    assert JUDGE.check(
        JUDGE.promote(held.key, held.chain, public_of(NODE), ALL_ROLES, NOW), public_of(NODE), NOW
    )  # fmt: skip
    assert FOUNDER.private_bytes_raw() not in module._read(module.RECOVERY_WORD, recovery)


def test_a_recovery_file_tells_damage_from_a_wrong_passphrase(recovery: str) -> None:
    """Nobody tries passphrases on a file that was cut short."""
    cases = [
        (recovery, "a phrasf", Reason.PASSPHRASE),
        (recovery[:-1], "a phrase", Reason.TRUNCATED),
        (recovery[:-9] + ("A" if recovery[-9] != "A" else "B") + recovery[-8:], "a phrase", Reason.DAMAGED),
        (TEXT, "a phrase", Reason.NO_INVITE),
        (module._write(module.RECOVERY_WORD, pack([SALT])), "a phrase", Reason.DAMAGED),
        (module._write(module.RECOVERY_WORD, pack([SALT, b""])), "a phrase", Reason.PASSPHRASE),
    ]
    for text, phrase, expected in cases:
        with pytest.raises(Refused) as caught:
            recover_admin(text, phrase)
        assert caught.value.reason is expected


def test_what_cannot_be_exported_is_said(recovery: str) -> None:
    """An empty passphrase protects nothing; a salt has 16 bytes."""
    for phrase in ("", "x" * 1025):
        with pytest.raises(GridError) as caught:
            export_admin(ADMIN, phrase, SALT)
        assert caught.value.exit_code == 2
        with pytest.raises(GridError):
            recover_admin(recovery, phrase)
    with pytest.raises(ValueError, match="16 bytes"):
        export_admin(ADMIN, "a phrase", b"")
