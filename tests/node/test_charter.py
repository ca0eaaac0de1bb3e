"""Who belongs, on disks: several charters in folders of their own are a grid of machines without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    DEFAULT_ROLES,
    OBSERVE,
    SUBMIT,
    WORK,
    Reason,
    Refused,
    read_chain,
)
from p2pgrid.core.errors import ExitCode
from p2pgrid.core.invite import Membership, read_invite, write_invite
from p2pgrid.node.charter_members import MEMBERS_FILE
from p2pgrid.node.charter_revocations import REVOCATIONS_FILE
from p2pgrid.node.identity import GRID_FILE, KEY_FILE, NAME_FILE, peer_id
from tests.node.boxes import (
    DAY,
    HERE,
    HOUR,
    NEWER,
    T0,
    USER,
    WEEK,
    Box,
    error,
    grid_of,
    handshake,
    join,
    meet,
    refused,
    tell,
)


def test_a_joiner_is_let_in_and_then_signed(tmp_path: Path) -> None:
    """Provisional by the voucher at first, a node link afterwards; each restart finds it on the disk."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    assert founder.charter.alone
    text, facts = founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)
    joining = join(joiner, text)

    assert (joining.grid, joining.addresses, joining.already) == (founder.charter.grid, HERE, False)
    assert facts["roles"] == ["submit", "work", "admin"]
    assert facts["join_until"] == T0 + WEEK
    assert joiner.restart().provisional
    assert joiner.charter.grid_name == founder.charter.grid_name
    assert not joiner.charter.alone

    seen, back = handshake(joiner, founder)

    assert (seen.public, seen.id, seen.provisional) == (joiner.public, peer_id(joiner.public), True)
    assert (back.roles, back.provisional) == (ALL_ROLES, False)

    signed = founder.charter.replacement(seen)
    founder.restart()

    assert signed is not None
    assert founder.charter.replacement(seen) == signed
    assert founder.charter.pending_for(joiner.public) == [signed]
    assert joiner.charter.offered(signed)
    assert not joiner.charter.offered(signed)
    assert not joiner.restart().provisional
    assert joiner.charter.certificate == signed
    assert founder.charter.shown(joiner.public, signed).roles == DEFAULT_ROLES
    assert founder.charter.pending_for(joiner.public) == []
    assert not founder.charter.alone


def test_the_voucher_key_is_not_kept_by_the_joiner(tmp_path: Path) -> None:
    """Nor by the inviter: only whoever holds the text can join by it."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    text, _ = founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)
    secret = read_invite(text).key.private_bytes_raw()
    joining = join(joiner, text)
    meet(joiner, founder)
    for box in (founder, joiner):
        box.restart().flush_if_dirty()

    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert secret not in data, path
            assert secret.hex().encode() not in data, path
    assert secret.hex() not in repr(joining)
    assert repr(secret)[2:-1] not in repr(joining)


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """All of mode 0600."""
    founder, other, third = grid_of(tmp_path, "f", "a", "b")
    founder.charter.revoke(third.public)
    founder.charter.flush_if_dirty()
    modes = {path.name: path.stat().st_mode & 0o777 for path in founder.folder.iterdir()}

    assert modes == dict.fromkeys((KEY_FILE, NAME_FILE, GRID_FILE, MEMBERS_FILE, REVOCATIONS_FILE), 0o600)
    assert other.charter.roles


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda _: "hello", "this is not an invite; next: copy the whole line that p2pgrid invite printed"),
        (lambda text: text[:90], "the invite is cut short; next: copy the whole line that p2pgrid invite printed"),
        (
            lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
            "the invite is damaged: some character is wrong; next: copy the whole line that p2pgrid invite printed",
        ),
        (
            lambda text: text.replace("invite-1", "invite-2"),
            f"the invite was made by a newer version of p2pgrid; next: {NEWER}",
        ),
    ],
)
def test_a_bad_invite_is_called_what_it_is(tmp_path: Path, spoil: object, expected: str) -> None:
    """One line, exit code 2, and nothing is changed."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    text, _ = founder.charter.invite(USER, WEEK, 0, HERE)
    before = (joiner.folder / GRID_FILE).read_text()
    caught = error(joiner.charter.join, spoil(text))  # type: ignore[operator]

    assert (str(caught), caught.exit_code) == (f"{expected}; more: {caught.page}", ExitCode.WRONG)
    assert (joiner.folder / GRID_FILE).read_text() == before


def test_an_invite_whose_chain_is_of_another_grid_is_foreign(tmp_path: Path) -> None:
    """Somebody pasted two invites together."""
    founder, other, joiner = Box(tmp_path, "f"), Box(tmp_path, "o"), Box(tmp_path, "j")
    held = read_invite(founder.charter.invite(USER, WEEK, 0, HERE)[0])
    text = write_invite(Membership(other.charter.grid, (), held.key, held.chain))
    caught = error(joiner.charter.join, text)

    assert caught.message == "the invite is of another grid"


def test_an_expired_invite_is_refused_by_whoever_is_there(tmp_path: Path) -> None:
    """The joiner looks at no date; the member does."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    text, _ = founder.charter.invite(USER, HOUR, 0, HERE)
    join(joiner, text)
    founder.clock_s = T0 + 2 * HOUR

    assert refused(joiner, founder) is Reason.EXPIRED


def test_a_member_of_another_grid_is_a_stranger(tmp_path: Path) -> None:
    """Also after it was a member here and left."""
    founder, other = grid_of(tmp_path, "f", "o")
    other.charter.found_anew()
    other.restart()

    assert refused(other, founder) is Reason.FOREIGN
    assert other.charter.alone
    assert not (other.folder / MEMBERS_FILE).exists()


def test_an_invite_of_our_own_grid_changes_nothing(tmp_path: Path) -> None:
    """Joining is said to be done already; where our membership has ended, it is one chain more."""
    founder, other = grid_of(tmp_path, "f", "o")
    text, _ = founder.charter.invite(ALL_ROLES, WEEK, 0, HERE)
    before = (other.folder / GRID_FILE).read_text()

    assert other.charter.join(text).already
    assert (other.folder / GRID_FILE).read_text() == before

    guest = Box(tmp_path, "g")
    join(guest, founder.charter.invite(USER, WEEK, T0 + DAY, HERE)[0])
    meet(guest, founder)
    guest.charter.offset_s = 2.0 * DAY
    founder.clock_s = T0 + 2 * DAY
    again = guest.charter.join(text)

    assert guest.charter.roles == 0
    assert "the membership has ended" in guest.charter.warnings()[0]
    assert refused(guest, founder) is Reason.ENDED
    assert not again.already

    guest.charter.adopt(again)
    meet(guest, founder)

    assert guest.restart().roles == ALL_ROLES
    assert founder.charter.holds(guest.public)


def test_only_an_admin_whom_an_admin_signed_may_sign(tmp_path: Path) -> None:
    """Exit code 5, and whom to ask."""
    founder, joiner, worker = Box(tmp_path, "f"), Box(tmp_path, "j"), Box(tmp_path, "w")
    join(joiner, founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    join(worker, founder.charter.invite(WORK, WEEK, 0, HERE)[0])
    meet(worker, founder)
    calls = [
        lambda one: one.charter.invite(USER, WEEK, 0, HERE),
        lambda one: one.charter.promote(founder.public, ADMIN),
        lambda one: one.charter.revoke(founder.public),
        lambda one: one.charter.export("a phrase"),
    ]
    waiting = {str(error(call, joiner)).partition("; more: ")[0] for call in calls}
    never = [error(call, worker) for call in calls]

    assert waiting == {
        "no admin has signed this node yet; next: wait until an admin of the grid is connected: p2pgrid members"
    }
    assert {str(one).partition("; more: ")[0] for one in never} == {
        "this node is no admin of the grid; next: ask an admin; this lists them: p2pgrid grid show"
    }
    assert {one.exit_code for one in never} == {ExitCode.REFUSED}
    assert joiner.charter.close_invites() == worker.charter.close_invites() == []
    assert joiner.charter.rank() > 8 < worker.charter.rank()


@pytest.mark.parametrize(
    ("roles", "expires", "until"),
    [(0, WEEK, 0), (16, WEEK, 0), (USER, 0, 0), (USER, -5, 0), (USER, 1e18, 0), (USER, float("nan"), 0), (USER, 5, 5)],
)
def test_nonsense_is_not_signed(tmp_path: Path, roles: int, expires: float, until: int) -> None:
    """Usage, exit code 2."""
    founder = Box(tmp_path, "f")

    assert error(founder.charter.invite, roles, expires, until, HERE).exit_code == ExitCode.WRONG
    assert error(founder.charter.promote, founder.public, 16).exit_code == ExitCode.WRONG


def test_addresses_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """Rather than no invite at all."""
    founder = Box(tmp_path, "f")
    many = [*HERE, "x" * 300, "", *(f"/ip4/10.0.0.{i}/tcp/1" for i in range(20))]
    text, _ = founder.charter.invite(USER, WEEK, 0, many)

    assert read_invite(text).addresses == (*HERE, *(f"/ip4/10.0.0.{i}/tcp/1" for i in range(7)))


def test_the_shallowest_admin_signs_first(tmp_path: Path) -> None:
    """Rank is the length of the own chain; chains do not grow with the grid."""
    founder, other = grid_of(tmp_path, "f", "o")
    third = Box(tmp_path, "t")
    join(third, other.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])

    assert (founder.charter.rank(), other.charter.rank()) == (1, 2)

    meet(third, founder)

    assert len(read_chain(third.charter.certificate)) == 2


def test_too_deep_a_node_says_so(tmp_path: Path) -> None:
    """Eight links are the end."""
    boxes = [Box(tmp_path, "n0")]
    for i in range(1, 8):
        box = Box(tmp_path, f"n{i}")
        if i < 7:
            join(box, boxes[-1].charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
            meet(box, boxes[-1])
            boxes.append(box)
            continue
        caught = error(boxes[-1].charter.invite, DEFAULT_ROLES, WEEK, 0, HERE)

        assert "too far from the grid's first" in caught.message
        assert error(boxes[-1].charter.export, "x").code == "not-authorized"


def test_a_promotion_waits_until_it_was_shown(tmp_path: Path) -> None:
    """The node was off: after restarts of both it is offered when they meet; roles are added, not exchanged."""
    founder, worker = grid_of(tmp_path, "f", "w", roles=WORK)
    founder.charter.promote(worker.public, OBSERVE | ADMIN)
    founder.start()
    worker.restart()

    assert len(founder.charter.pending_for(worker.public)) == 1
    assert founder.charter.roles_of(worker.public) == WORK | OBSERVE | ADMIN

    meet(worker, founder)

    assert founder.restart().pending_for(worker.public) == []
    assert worker.restart().roles == WORK | OBSERVE | ADMIN
    assert worker.charter.invite(USER, WEEK, 0, HERE)


def test_a_promotion_gives_no_time(tmp_path: Path) -> None:
    """A guest stays one."""
    founder, guest = Box(tmp_path, "f"), Box(tmp_path, "g")
    join(guest, founder.charter.invite(WORK, WEEK, T0 + DAY, HERE)[0])
    meet(guest, founder)
    founder.charter.promote(guest.public, SUBMIT)
    meet(guest, founder)
    founder.clock_s = T0 + 2 * DAY

    assert guest.charter.roles == USER
    assert refused(guest, founder) is Reason.ENDED


def test_the_own_node_can_be_promoted(tmp_path: Path) -> None:
    """It takes the chain itself."""
    founder, other = grid_of(tmp_path, "f", "o")
    other.charter.promote(other.public, OBSERVE)

    assert other.restart().roles == ALL_ROLES
    assert handshake(other, founder)[0].roles == ALL_ROLES


def test_a_joiner_signed_in_time_is_in_although_it_never_heard_of_it(tmp_path: Path) -> None:
    """The link was lost on its way and the invite has expired since; the signer knows."""
    founder, joiner = Box(tmp_path, "f"), Box(tmp_path, "j")
    join(joiner, founder.charter.invite(USER, HOUR, 0, HERE)[0])
    seen, _ = handshake(joiner, founder)
    signed = founder.charter.replacement(seen)
    founder.restart()
    founder.clock_s = T0 + DAY
    later, _ = handshake(joiner, founder)

    assert not later.provisional
    founder.charter.shown(joiner.public, later.chain)
    assert founder.charter.pending_for(joiner.public) == [signed]

    meet(joiner, founder)

    assert not joiner.charter.provisional


def test_an_offered_chain_that_is_nonsense_is_the_peers_fault(tmp_path: Path) -> None:
    """Refused; one that was good once is passed over."""
    founder, other, third = grid_of(tmp_path, "f", "o", "t")
    stale = founder.charter.promote(other.public, ALL_ROLES)
    revoking = third.charter.revoke(founder.public)
    tell(revoking.records, other)

    assert not other.charter.offered(stale)
    for bad in (b"", b"\xc0", third.charter.certificate, None, 17):
        with pytest.raises(Refused):
            other.charter.offered(bad)  # type: ignore[arg-type]
        with pytest.raises(Refused):
            other.charter.shown(third.public, bad if bad != third.charter.certificate else b"x")  # type: ignore[arg-type]
        with pytest.raises(Refused):
            other.charter.heard([bad])  # type: ignore[list-item]
