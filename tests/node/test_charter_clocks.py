"""Memberships on machines whose clocks are years off, and the recovery file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from p2pgrid.core.chains import (
    ALL_ROLES,
    DEFAULT_ROLES,
    WORK,
    Reason,
    Refused,
)
from p2pgrid.core.errors import ExitCode
from tests.node.boxes import (
    DAY,
    HERE,
    HOUR,
    T0,
    USER,
    WEEK,
    Y1970,
    Y2040,
    YEAR,
    Box,
    error,
    grid_of,
    handshake,
    join,
    meet,
    refused,
    tell,
)


@pytest.mark.parametrize("clock", [Y1970, -5.0, Y2040, 1e13])
def test_a_joiner_whose_clock_is_years_off_joins(tmp_path: Path, clock: float) -> None:
    """It calls; it is called; it restarts; then it learns what time it is and warns."""
    founder, joiner, third = Box(tmp_path, "f"), Box(tmp_path, "j", clock), Box(tmp_path, "t")
    text, _ = founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)
    for box in (joiner, third):
        join(box, text)
    meet(joiner, founder)
    joiner.restart()
    meet(third, founder)
    meet(third, joiner)
    joiner.charter.offset_s = T0 - clock
    meet(joiner, third)

    assert not joiner.charter.provisional
    assert "clock" in joiner.charter.warnings()[0]
    assert joiner.charter.invite(USER, WEEK, 0, HERE)[1]["join_until"] == T0 + WEEK


def test_a_founder_in_1970_is_told_to_set_its_clock_before_it_invites(tmp_path: Path) -> None:
    """Everybody else would find the invite expired; once other clocks are known, it may."""
    founder = Box(tmp_path, "f", Y1970)
    caught = error(founder.charter.invite, USER, WEEK, 0, HERE)
    founder.charter.offset_s = T0 - Y1970

    assert "1970-01-01" in caught.message
    assert "set the clock" in caught.next
    assert caught.exit_code is ExitCode.WRONG
    assert founder.charter.invite(USER, WEEK, 0, HERE)[1]["join_until"] == T0 + WEEK


def test_a_listener_in_1970_does_not_open_to_an_expired_invite(tmp_path: Path) -> None:
    """The newest date in its own chain is later; nor does an admin there make a member of the joiner."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    old, _ = founder.charter.invite(USER, HOUR, 0, HERE)
    admin = Box(tmp_path, "a")
    founder.clock_s = T0 + DAY
    join(admin, founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    meet(admin, founder)
    admin.clock_s = Y1970
    admin.restart()
    join(joiner, old)

    assert refused(joiner, admin) is Reason.EXPIRED
    with pytest.raises(Refused):
        admin.charter.admit(joiner.charter.certificate, joiner.public, dialler=True)


def test_an_admin_who_calls_signs_only_by_the_strict_clock(tmp_path: Path) -> None:
    """A dialler does not believe its clock, but what it signs is for ever."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    join(joiner, founder.charter.invite(USER, HOUR, 0, HERE)[0])
    founder.clock_s = T0 + DAY
    seen = founder.charter.admit(joiner.charter.certificate, joiner.public, dialler=True)

    assert seen.provisional
    assert founder.charter.replacement(seen) is None

    founder.charter.offset_s = -1.0 * DAY

    assert founder.charter.replacement(seen) is not None


def test_everybody_wakes_up_in_2040(tmp_path: Path) -> None:
    """Members stay members, guests too until somebody knows the time."""
    founder, guest, member = Box(tmp_path, "f"), Box(tmp_path, "g"), Box(tmp_path, "m")
    join(guest, founder.charter.invite(USER, WEEK, T0 + YEAR, HERE)[0])
    join(member, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    for box in (guest, member):
        meet(box, founder)
    for box in (founder, guest, member):
        box.clock_s = Y2040
        box.restart()
    meet(member, founder)
    meet(founder, guest)

    assert guest.charter.roles == USER
    assert refused(guest, founder) is Reason.ENDED
    for box in (founder, guest):
        box.charter.offset_s = T0 - Y2040
    meet(guest, founder)


def test_a_clock_eight_days_ahead_after_joining_still_works(tmp_path: Path) -> None:
    """No date of its membership is in question any more; it warns once the others' clocks are known."""
    founder, a, b = grid_of(tmp_path, "f", "a", "b")
    a.clock_s = T0 + 8 * DAY
    a.restart()
    for one, other in itertools.permutations((founder, a, b), 2):
        meet(one, other)
    a.charter.offset_s = -8.0 * DAY
    text, facts = a.charter.invite(USER, WEEK, 0, HERE)
    joiner = Box(tmp_path, "j")
    join(joiner, text)
    meet(joiner, a)
    meet(joiner, b)

    assert facts["join_until"] == T0 + WEEK
    assert a.charter.warnings() == ["this machine's clock is 8 days ahead of the grid's; next: set it"]


def test_a_provisional_peer_is_judged_again_once_time_is_known(tmp_path: Path) -> None:
    """Its invite had expired all along."""
    founder, member, joiner = Box(tmp_path, "f"), Box(tmp_path, "m"), Box(tmp_path, "j")
    join(member, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    meet(member, founder)
    join(joiner, founder.charter.invite(USER, HOUR, 0, HERE)[0])
    handshake(joiner, member)
    member.charter.offset_s = 1.0 * DAY

    assert not member.charter.holds(joiner.public)
    assert member.charter.holds(founder.public)


def test_a_recovery_file_makes_an_admin(tmp_path: Path) -> None:
    """Of a plain member in its grid, of a fresh machine in that grid; listed where it was made; survives its maker."""
    founder, worker, fresh = *grid_of(tmp_path, "f", "w", roles=WORK), Box(tmp_path, "new", Y1970)
    text, name = founder.charter.export("a phrase", HERE)
    wrong = error(worker.charter.recover, text, "another")

    assert (str(wrong), wrong.exit_code) == (
        "the passphrase is wrong; next: type it again, or name a file that holds it: --passphrase-file FILE",
        ExitCode.WRONG,
    )
    assert worker.charter.roles == WORK
    assert [one["key"] for one in founder.restart().describe([])["exported"]] == [name]

    worker.charter.recover(text, "a phrase")
    recovering = fresh.charter.recovering(text, "a phrase")

    assert (recovering.addresses, recovering.already) == (HERE, False)

    fresh.charter.adopt(recovering)
    for box in (worker, fresh):
        box.restart()
        meet(box, founder)
        assert box.charter.roles == ALL_ROLES
    tell(worker.charter.revoke(founder.public).records, fresh)

    assert worker.charter.roles == ALL_ROLES
    assert refused(founder, fresh) is Reason.REVOKED


def test_an_exported_key_is_revoked_like_any(tmp_path: Path) -> None:
    """By its first digits; what it made stays, the file is worth nothing."""
    founder, worker, other = grid_of(tmp_path, "f", "w", "o", roles=WORK)
    text, name = founder.charter.export("a phrase")
    worker.charter.recover(text, "a phrase")
    meet(worker, founder)
    (target,) = founder.charter.resolve(name[:6])
    revoking = founder.charter.revoke(target)
    tell(revoking.records, other, worker)

    assert revoking.kept == (worker.public,)
    assert worker.charter.roles == ALL_ROLES
    assert error(other.charter.recover, text, "a phrase").message == "the key in the recovery file was revoked"
    assert founder.charter.describe([])["exported"][0]["revoked"]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda _: "x", "this is not a recovery file"),
        (lambda text: text[:100], "the recovery file is cut short"),
        (
            lambda text: text.replace("y-1", "y-7"),
            "the recovery file was made by a newer version of p2pgrid",
        ),
        (lambda text: text[:-9] + "!" + text[-8:], "the recovery file is damaged: some character is wrong"),
    ],
)
def test_a_bad_recovery_file_is_called_what_it_is(tmp_path: Path, spoil: object, expected: str) -> None:
    """One line, exit code 2."""
    founder = Box(tmp_path, "f")
    text, _ = founder.charter.export("a phrase")
    caught = error(founder.charter.recover, spoil(text), "a phrase")  # type: ignore[operator]

    assert (caught.message, caught.exit_code) == (expected, ExitCode.WRONG)
