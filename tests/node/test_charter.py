"""Who belongs, on disks: several charters in folders of their own are a grid of machines without a network."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    DEFAULT_ROLES,
    OBSERVE,
    SUBMIT,
    WORK,
    Reason,
    Refused,
    key_id,
    read_chain,
    role_names,
)
from p2pgrid.core.errors import ExitCode, GridError
from p2pgrid.core.invite import Membership, read_invite, write_invite
from p2pgrid.core.revocation import RECORDS_MAX, Revocations, read_revocation
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import FRAME_MAX_CONTROL, pack, unpack
from p2pgrid.node import charter_members, charter_revocations
from p2pgrid.node.charter import Admitted, Charter, Joining
from p2pgrid.node.charter_members import MEMBERS_FILE
from p2pgrid.node.charter_revocations import REVOCATIONS_FILE
from p2pgrid.node.identity import GRID_FILE, KEY_FILE, open_identity, peer_id, peer_public

T0, HOUR, DAY, YEAR = 1_800_000_000, 3600, 86_400, 31_557_600
Y1970, Y2040 = 10, 2_208_988_800
WEEK = 7 * DAY
HERE = ("/ip4/127.0.0.1/tcp/9471/p2p/12D3KooWHere",)
USER = SUBMIT | WORK
NEWER = "install the version that the other machine has: p2pgrid --version"


class Box:
    """A machine: a folder, a clock, and the charter that runs in it."""

    def __init__(self, folder: Path, name: str, clock_s: float = T0) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.name = name
        self.clock_s = clock_s
        self.start()

    def start(self) -> Charter:
        """Start it, or start it again: nothing but the disk is left of its former life."""
        identity = open_identity(self.folder, self.name, self.clock_s)
        self.charter = Charter(identity, self.folder, lambda: self.clock_s)
        return self.charter

    def restart(self) -> Charter:
        self.charter.flush_if_dirty()
        return self.start()

    @property
    def public(self) -> bytes:
        return self.charter.public

    @property
    def key(self) -> Ed25519PrivateKey:
        return self.charter._key


def row(box: Box, status: str = "alive") -> dict[str, object]:
    roles = role_names(box.charter.roles)
    return {"id": peer_id(box.public), "name": box.name, "status": status, "roles": roles}


def handshake(caller: Box, called: Box) -> tuple[Admitted, Admitted]:
    """What a connection does: the caller speaks first. Raises Refused."""
    seen = called.charter.admit(caller.charter.certificate, caller.public, dialler=False)
    back = caller.charter.admit(called.charter.certificate, called.public, dialler=True)
    return seen, back


def meet(caller: Box, called: Box) -> None:
    """A connection and what follows: revocations both ways, the joiner's node link, what was signed and not shown."""
    seen, back = handshake(caller, called)
    for one, other in ((caller, called), (called, caller)):
        for lot in one.charter.revocations():
            other.charter.heard(lot)
    for here, there, admitted in ((called, caller, seen), (caller, called, back)):
        signed = here.charter.replacement(admitted)
        for chain in [*([signed] if signed else []), *here.charter.pending_for(there.public)]:
            there.charter.offered(chain)
        here.charter.shown(there.public, there.charter.certificate)


def refused(caller: Box, called: Box) -> Reason:
    with pytest.raises(Refused) as caught:
        handshake(caller, called)
    return caught.value.reason


def join(box: Box, text: str) -> Joining:
    joining = box.charter.join(text)
    box.charter.adopt(joining)
    return joining


def grid_of(folder: Path, *names: str, roles: int = DEFAULT_ROLES) -> list[Box]:
    """The first founds, the others come by one invite of its; all have met."""
    boxes = [Box(folder, name) for name in names]
    text, _ = boxes[0].charter.invite(roles, WEEK, 0, HERE)
    for box in boxes[1:]:
        join(box, text)
        meet(box, boxes[0])
    for one, other in itertools.combinations(boxes, 2):
        meet(one, other)
    return boxes


def tell(records: Iterable[bytes], *boxes: Box) -> None:
    for box in boxes:
        box.charter.heard(list(records))


def error(call: object, *args: object, **more: object) -> GridError:
    with pytest.raises(GridError) as caught:
        call(*args, **more)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value


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


# ---- invites ---------------------------------------------------------------------------------------------------------


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

    assert modes == dict.fromkeys((KEY_FILE, GRID_FILE, MEMBERS_FILE, REVOCATIONS_FILE), 0o600)
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

    assert (str(caught), caught.exit_code) == (expected, ExitCode.WRONG)
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
    waiting = {str(error(call, joiner)) for call in calls}
    never = [error(call, worker) for call in calls]

    assert waiting == {
        "no admin has signed this node yet; next: wait until an admin of the grid is connected: p2pgrid members"
    }
    assert {str(one) for one in never} == {
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


# ---- signing ---------------------------------------------------------------------------------------------------------


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

    assert (later.chain, later.provisional) == (signed, False)

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


# ---- revoking --------------------------------------------------------------------------------------------------------


def test_the_founder_revoked_by_its_joiner_cuts_nobody_else_off(tmp_path: Path) -> None:
    """It is listed and told what is kept; after restarts everybody agrees."""
    founder, a, b, c = grid_of(tmp_path, "f", "a", "b", "c")
    revoking = a.charter.revoke(founder.public)

    assert set(revoking.kept) == {a.public, b.public, c.public}
    assert (revoking.cut, revoking.expelled) == ((), (founder.public,))

    heard = b.charter.heard(list(revoking.records))

    assert (heard.expelled, heard.lost, len(heard.fresh)) == ([founder.public], False, len(revoking.records))
    assert b.charter.heard(list(revoking.records)).fresh == []
    assert founder.charter.heard(list(revoking.records)).lost
    assert founder.charter.roles == 0
    assert "revoked" in founder.charter.warnings()[0]
    for box in (a, b):
        box.restart()
        assert refused(founder, box) is Reason.REVOKED
        assert not box.charter.holds(founder.public)
        assert box.charter.roles == DEFAULT_ROLES

    meet(c, a)
    meet(b, c)

    assert a.charter.digest() == b.charter.digest() == c.charter.digest()
    assert c.charter.invite(USER, WEEK, 0, HERE)
    assert error(founder.charter.invite, USER, WEEK, 0, HERE).exit_code == ExitCode.REFUSED


def test_the_founders_disk_is_destroyed_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Invite, promote, revoke: nobody needs the first."""
    _, a, b = grid_of(tmp_path, "f", "a", "b")
    late = Box(tmp_path, "late")
    for box in (a, b):
        box.restart()
    join(late, a.charter.invite(WORK, WEEK, 0, HERE)[0])
    meet(late, b)
    b.charter.promote(late.public, ALL_ROLES)
    meet(late, b)

    assert late.charter.roles == ALL_ROLES

    tell(late.charter.revoke(a.public).records, b)

    assert refused(a, b) is Reason.REVOKED
    meet(late, b)
    assert late.restart().roles == b.restart().roles | OBSERVE == ALL_ROLES


def test_a_stolen_machine_cannot_come_back(tmp_path: Path) -> None:
    """Not with its key, and not by the invite that was found on it; whoever came by the same invite stays."""
    founder, a, b = Box(tmp_path, "f"), Box(tmp_path, "a"), Box(tmp_path, "b")
    text, _ = founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)
    for box in (a, b):
        join(box, text)
        meet(box, founder)
    meet(a, b)
    founder.charter.promote(b.public, ALL_ROLES)
    meet(b, founder)
    revoking = a.charter.revoke(b.public)
    tell(revoking.records, founder)
    thief = Box(tmp_path, "thief")
    join(thief, text)

    assert len(revoking.records) == 2
    assert founder.charter.holds(a.public)
    assert refused(b, founder) is Reason.REVOKED
    for box in (a, founder):
        box.restart()
        assert refused(thief, box) is Reason.REVOKED
        assert error(box.charter.join, text).message == "the invite was revoked"
    meet(a, founder)
    tell(revoking.records, b)

    again = error(b.charter.join, founder.charter.invite(USER, WEEK, 0, HERE)[0])

    assert "was revoked in grid" in again.message
    (b.folder / KEY_FILE).unlink()
    (b.folder / GRID_FILE).unlink()
    b.start()
    join(b, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    meet(b, founder)

    assert founder.charter.holds(b.public)


def test_who_knows_the_invite_of_a_revoked_member_closes_it(tmp_path: Path) -> None:
    """The one who revoked it had only ever seen a later chain, in which no voucher stands."""
    founder, stolen = Box(tmp_path, "f"), Box(tmp_path, "s")
    text, _ = founder.charter.invite(USER, WEEK, 0, HERE)
    join(stolen, text)
    meet(stolen, founder)
    founder.charter.promote(stolen.public, ALL_ROLES)
    meet(stolen, founder)
    late, thief = Box(tmp_path, "l"), Box(tmp_path, "t")
    join(late, founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    meet(late, founder)
    meet(late, stolen)
    join(thief, text)
    revoking = late.charter.revoke(stolen.public)

    assert len(revoking.records) == 1

    tell(revoking.records, founder)
    closing = founder.charter.close_invites()
    tell(closing, late)

    assert len(closing) == 1
    assert founder.charter.close_invites() == late.charter.close_invites() == []
    assert refused(thief, late) is refused(thief, founder) is Reason.REVOKED
    meet(late, founder)


def test_with_admitted_undoes_what_it_let_in(tmp_path: Path) -> None:
    """Also after others signed; but not what it only met."""
    founder, a, friend = grid_of(tmp_path, "f", "a", "friend")
    guest = Box(tmp_path, "guest")
    join(guest, a.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    meet(guest, founder)
    meet(guest, friend)
    revoking = friend.charter.revoke(a.public, with_admitted=True)

    assert revoking.cut == (guest.public,)
    assert set(revoking.expelled) == {a.public, guest.public}

    heard = founder.charter.heard(list(revoking.records))

    assert set(heard.expelled) == {a.public, guest.public}
    assert refused(guest, founder) is Reason.FROM_REVOKED
    assert friend.restart().roles == founder.restart().roles_of(friend.public) == DEFAULT_ROLES


def test_with_admitted_does_not_cut_off_who_says_it(tmp_path: Path) -> None:
    """Nor does a node revoke itself by a slip; nothing is written."""
    founder, a = grid_of(tmp_path, "f", "a")
    caught = error(a.charter.revoke, founder.public, with_admitted=True)
    slip = error(a.charter.revoke, a.public)

    assert (caught.code, caught.message) == ("not-authorized", "this would cut this node itself off")
    assert slip.exit_code == ExitCode.WRONG
    assert a.charter.revocations() == []
    assert not (a.folder / REVOCATIONS_FILE).exists()


def test_a_second_thought_about_with_admitted_is_told_to_be_late(tmp_path: Path) -> None:
    """Lists unite: what was kept stays, unless it is named itself."""
    founder, a, friend = grid_of(tmp_path, "f", "a", "friend")
    guest = Box(tmp_path, "guest")
    join(guest, a.charter.invite(USER, WEEK, 0, HERE)[0])
    meet(guest, a)
    meet(guest, founder)
    first = founder.charter.revoke(a.public)
    second = founder.charter.revoke(a.public, with_admitted=True)

    assert guest.public in first.kept
    assert (second.records, len(second.notes)) == ((), 1)
    assert founder.charter.holds(guest.public)
    assert friend.charter.roles


@pytest.mark.parametrize("with_admitted", [False, True])
def test_an_invite_is_closed_by_its_text_or_its_first_digits(tmp_path: Path, *, with_admitted: bool) -> None:
    """Whoever is in stays, unless what it admitted is undone."""
    founder, other, joiner, late = (Box(tmp_path, name) for name in ("f", "o", "j", "l"))
    join(other, founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)[0])
    meet(other, founder)
    text, facts = founder.charter.invite(DEFAULT_ROLES, WEEK, 0, HERE)
    join(joiner, text)
    meet(joiner, founder)
    meet(joiner, other)
    join(late, text)
    founder.restart()
    (target,) = founder.charter.resolve(facts["key"][:8])

    assert founder.charter.resolve(text) == other.charter.resolve(f" {text}\n") == [target]
    assert len(other.charter.resolve(facts["key"])) == 1  # seen in the joiner's chain
    assert founder.charter.resolve("abc") == founder.charter.resolve("zzzzzz") == []

    revoking = founder.charter.revoke(target, with_admitted=with_admitted)
    tell(revoking.records, other)

    assert revoking.kept == (() if with_admitted else (joiner.public,))
    assert revoking.cut == ((joiner.public,) if with_admitted else ())
    assert refused(late, other) is refused(late, founder) is Reason.REVOKED
    assert other.charter.holds(joiner.public) is not with_admitted
    shown = {one["key"]: one["open"] for one in founder.charter.describe([])["invites"]}
    assert shown[facts["key"]] is False
    assert list(shown.values()).count(True) == 1


def test_an_invite_of_another_grid_is_not_ours_to_revoke(tmp_path: Path) -> None:
    """It says so."""
    founder, other = Box(tmp_path, "f"), Box(tmp_path, "o")
    text, _ = other.charter.invite(USER, WEEK, 0, HERE)

    assert error(founder.charter.resolve, text).message == "the invite is of another grid"
    assert error(founder.charter.resolve, text[:-4]).message == "the invite is cut short"


def test_of_two_admins_who_revoke_each_other_the_first_heard_wins(tmp_path: Path) -> None:
    """Each keeps both records, so the digests agree; a restart does not turn it round."""
    founder, a, b, c = grid_of(tmp_path, "f", "a", "b", "c")
    of_a, of_b = a.charter.revoke(b.public).records, b.charter.revoke(a.public).records
    tell(of_a, founder)
    tell(of_b, founder)
    tell(of_b, c)
    tell(of_a, c)
    for box in (founder, c):
        box.restart()

    assert (founder.charter.holds(a.public), founder.charter.holds(b.public)) == (True, False)
    assert (c.charter.holds(a.public), c.charter.holds(b.public)) == (False, True)
    assert founder.charter.digest() == c.charter.digest()


def test_a_revocation_by_somebody_who_is_no_admin_is_nonsense(tmp_path: Path) -> None:
    """Or of another grid, or with a wrong signature: the peer is to blame, and nothing is kept."""
    founder, worker, stranger = *grid_of(tmp_path, "f", "w", roles=USER), Box(tmp_path, "s")
    foreign = stranger.charter.revoke(worker.public).records[0]
    honest = read_revocation(founder.charter.revoke(stranger.public).records[0])
    target, listed, at, _ = unpack(honest.body)
    body = pack([target, listed, at, worker.charter.certificate])
    by_worker = pack([body, worker.key.sign(b"p2pgrid revoke 1\0" + founder.charter.grid + body)])
    forged = pack([honest.body, bytes(64)])
    judge = Box(tmp_path, "judge")
    join(judge, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    reasons = []
    for bad in (foreign, by_worker, forged):
        with pytest.raises(Refused) as caught:
            judge.charter.heard([honest.packed, bad])
        reasons.append(caught.value.reason)

    assert reasons == [Reason.FOREIGN, Reason.NOT_ADMIN, Reason.SIGNATURE]
    assert judge.charter.revocations() == []


@pytest.mark.parametrize("seed", range(12))
def test_all_agree_after_hearing_all_in_any_order(tmp_path: Path, seed: int) -> None:
    """Digest, and whom they let in; apart from admins who revoke each other, of whom there are none here."""
    rng = random.Random(seed)
    boxes = grid_of(tmp_path, *(f"n{i}" for i in range(rng.randint(4, 6))))
    records: list[bytes] = []
    gone: set[bytes] = set()
    for box in boxes[1:]:
        targets = [one for one in boxes if one is not box and one.public not in gone]
        if rng.random() < 0.7 and box.public not in gone:
            target = rng.choice(targets)
            gone.add(target.public)
            records += box.charter.revoke(target.public).records
            for other in boxes:
                if rng.random() < 0.5:
                    tell(records, other)
    verdicts = set()
    for box in boxes:
        order = list(records)
        rng.shuffle(order)
        for one in order:
            box.charter.heard([one])
        if rng.random() < 0.5:
            box.restart()
        verdicts.add((box.charter.digest(), tuple(sorted(one.public for one in boxes if _in(box, one)))))

    assert len({digest for digest, _ in verdicts}) == 1
    print(seed, len(records), len(verdicts))
    assert len(verdicts) == 1


def _in(judge: Box, box: Box) -> bool:
    return judge.charter.holds(box.public) if judge is not box else not box.charter.lost


# ---- clocks ----------------------------------------------------------------------------------------------------------


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


# ---- the recovery file -----------------------------------------------------------------------------------------------


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


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_a_grid_is_described(tmp_path: Path) -> None:
    """Admins, invites, exported and revoked keys, and what to worry about."""
    founder, a, worker = *grid_of(tmp_path, "f", "a"), Box(tmp_path, "w")
    text, facts = founder.charter.invite(WORK, WEEK, 0, HERE)
    join(worker, text)
    meet(worker, founder)
    founder.charter.revoke(worker.public)
    rows = [row(founder), row(a), row(worker, "left")]
    described = founder.charter.describe(rows)
    json.dumps(described)

    assert (described["id"], described["name"]) == (founder.charter.grid.hex(), founder.charter.grid_name)
    assert (described["roles"], described["provisional"], described["members"]) == (role_names(ALL_ROLES), False, 2)
    assert described["admins"] == [
        {"id": peer_id(box.public), "name": box.name, "status": "alive"} for box in (founder, a)
    ]
    assert [one["open"] for one in described["invites"]] == [True, False]
    assert described["invites"][1]["roles"] == facts["roles"] == ["work"]
    assert described["revoked"][0]["key"] == key_id(worker.public).hex()
    assert described["revoked"][0]["name"] == "w"
    assert described["warnings"] == []


def test_one_admin_alive_is_worth_a_warning(tmp_path: Path) -> None:
    """But not in a grid of one."""
    founder, a = grid_of(tmp_path, "f", "a")
    alone = Box(tmp_path, "alone")
    advice = "p2pgrid promote NODE, or p2pgrid grid export FILE"

    assert alone.charter.warnings([row(alone)]) == []
    assert founder.charter.warnings([row(founder), row(a)]) == []
    assert founder.charter.warnings([row(founder), row(a, "dead")]) == [f"only one admin is alive: {advice}"]
    assert a.charter.warnings([row(founder, "dead"), row(a, "left")])[0].startswith("no admin is alive")


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MEMBERS_FILE, REVOCATIONS_FILE])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-7],
        lambda _: bytes(100),
        lambda data: pack({**unpack(data), "v": 9}),
        lambda data: pack({**unpack(data), "members": 5, "heard": 5}),
        lambda data: pack({**unpack(data), "members": [[b"x", 1]], "heard": [b"x", 5]}),
        lambda data: pack({**unpack(data), "invites": [5], "heard": [b"\x92"]}),
        None,
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, name: str, damage: object) -> None:
    """Told once, in one line; the node runs, and learns it again from the others."""
    founder, a, b = grid_of(tmp_path, "f", "a", "b")
    tell(founder.charter.revoke(b.public).records, a)
    founder.charter.flush_if_dirty()
    path = founder.folder / name
    if damage is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    (note,) = founder.start().notes

    assert "\n" not in note
    assert path.name in note
    assert path.with_name(f"{name}.damaged").exists()

    meet(a, founder)
    founder.restart()

    assert founder.charter.notes == []
    assert founder.charter.holds(a.public)
    assert refused(b, founder) is Reason.REVOKED


def test_what_is_good_in_a_damaged_file_of_revocations_is_kept(tmp_path: Path) -> None:
    """Forgetting one would let somebody in again."""
    founder, a, b, c = grid_of(tmp_path, "f", "a", "b", "c")
    founder.charter.revoke(a.public)
    founder.charter.revoke(b.public)
    path = founder.folder / REVOCATIONS_FILE
    kept = unpack(path.read_bytes())
    last = kept["heard"][-1]
    path.write_bytes(pack({**kept, "heard": [*kept["heard"][:-1], last[:-1] + bytes([last[-1] ^ 1])]}))
    founder.start()

    assert len(founder.charter.notes) == 1
    assert refused(a, founder) is Reason.REVOKED
    assert founder.start().notes == []
    assert refused(a, founder) is Reason.REVOKED
    assert c.charter.roles


def test_files_of_a_grid_that_was_left_are_passed_over(tmp_path: Path) -> None:
    """As after a crash between writing one file and removing the others."""
    founder, a, b = grid_of(tmp_path, "f", "a", "b")
    founder.charter.revoke(b.public)
    founder.charter.flush_if_dirty()
    kept = {name: (founder.folder / name).read_bytes() for name in (MEMBERS_FILE, REVOCATIONS_FILE)}
    founder.charter.found_anew()
    for name, data in kept.items():
        (founder.folder / name).write_bytes(data)
    founder.start()

    assert founder.charter.notes == []
    assert founder.charter.alone
    assert founder.charter.revocations() == []
    assert a.charter.roles


def test_a_full_disk_does_not_let_a_thief_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is heard counts; what we would say ourselves is not said, and nothing changed."""
    founder, a, thief = grid_of(tmp_path, "f", "a", "t")
    revoking = a.charter.revoke(thief.public)

    def full(path: Path, data: bytes) -> None:
        raise GridError(f"{path} cannot be used: no space left", code="directory-unusable")

    monkeypatch.setattr("p2pgrid.node.charter_files.write_private", full)
    monkeypatch.setattr("p2pgrid.node.identity.write_private", full)

    assert founder.charter.heard(list(revoking.records)).expelled == [thief.public]
    assert refused(thief, founder) is Reason.REVOKED
    assert len(founder.charter.notes) == 1
    before = founder.charter.digest(), founder.charter.grid
    assert error(founder.charter.revoke, a.public).code == "directory-unusable"
    assert error(founder.charter.found_anew).code == "directory-unusable"
    assert error(founder.charter.invite, USER, WEEK, 0, HERE).code == "directory-unusable"
    assert (founder.charter.digest(), founder.charter.grid) == before


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_members_are_forgotten_by_when_they_were_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was seen longest ago goes first; of chains the oldest; vouchers are remembered beside them."""
    monkeypatch.setattr(charter_members, "MEMBERS_MAX", 3)
    founder, *others = grid_of(tmp_path, "f", "a", "b", "c", "d")
    handshake(others[1], founder)
    late = Box(tmp_path, "late")
    join(late, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    meet(late, founder)

    assert list(founder.charter._roster.members) == [one.public for one in (others[3], others[1], late)]

    known = founder.charter._roster.members[late.public]
    for i in range(6):
        chain = founder.charter._judge.promote(founder.key, founder.charter.certificate, late.public, USER, T0 + i)
        founder.charter.shown(late.public, chain)

    assert len(known.chains) == 4
    assert len(known.vouchers) == 1
    assert len(founder.charter.revoke(late.public).records) == 2


def test_addresses_are_remembered_for_members_only(tmp_path: Path) -> None:
    """The newest first; never those of somebody who is out."""
    founder, a, b, c = grid_of(tmp_path, "f", "a", "b", "c")
    for box in (a, b, c):
        founder.charter.saw(peer_id(box.public), [f"/ip4/10.0.0.1/tcp/{ord(box.name)}", "x" * 300])
    founder.charter.saw(peer_id(a.public), HERE)
    founder.charter.revoke(c.public)
    founder.restart()

    assert founder.charter.saved_peers() == [
        (peer_id(a.public), HERE), (peer_id(b.public), (f"/ip4/10.0.0.1/tcp/{ord('b')}",)),
    ]  # fmt: skip
    assert peer_public(peer_id(a.public)) == a.public
    for bad in ("", "12D3KooW", peer_id(a.public) + "1", "0" * 52, "x" * 100, peer_id(a.public)[:-1]):
        with pytest.raises(ValueError, match="not the id of a node"):
            founder.charter.saw(bad, HERE)


def test_what_does_not_count_is_bounded_and_all_choose_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thief with an admin's key fills no disk; the digests agree although the orders differ."""
    founder, thief, a, b = grid_of(tmp_path, "f", "t", "a", "b")
    monkeypatch.setattr(charter_revocations, "WAITING_BYTES_MAX", 4000)
    cut = founder.charter.revoke(thief.public).records
    tell(cut, a, b)
    told = Revocations(Judge(founder.charter.grid))
    chain = thief.charter.certificate
    flood = [told.revoke(thief.key, [chain], i.to_bytes(32, "big"), T0, []).packed for i in range(1, 60)]
    tell(flood, a)
    tell(reversed(flood), b)

    size = sum(len(one) for lot in a.charter.revocations() for one in lot)

    assert size < 8000
    assert a.charter.digest() == b.charter.digest()
    assert a.restart().digest() == b.charter.digest()
    assert a.charter.holds(founder.public)


def test_lots_fit_a_control_frame(tmp_path: Path) -> None:
    """However many revocations there are; and all of them are in some lot."""
    founder = Box(tmp_path, "f")
    told, chain = founder.charter._ledger.counting, founder.charter.certificate
    for i in range(400):
        record = told.revoke(founder.key, [chain], i.to_bytes(32, "big"), T0, [])
        founder.charter._ledger.hear([record])
    lots = founder.charter.revocations()

    assert len(lots) > 1
    assert sum(map(len, lots)) == 400 < RECORDS_MAX
    assert all(len(pack([lot])) < FRAME_MAX_CONTROL - 100 for lot in lots)


def test_invites_and_exports_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten; it can still be revoked by its text."""
    monkeypatch.setattr(charter_members, "SIGNED_MAX", 3)
    founder = Box(tmp_path, "f")
    texts = [founder.charter.invite(USER, WEEK, 0, HERE)[0] for _ in range(5)]

    assert len(founder.restart().describe([])["invites"]) == 3

    (target,) = founder.charter.resolve(texts[0])
    founder.charter.revoke(target)
    late = Box(tmp_path, "late")
    join(late, texts[0])

    assert refused(late, founder) is Reason.REVOKED


def test_nothing_private_is_shown(tmp_path: Path) -> None:
    """In no repr and no message."""
    founder = Box(tmp_path, "f")
    text, _ = founder.charter.export("a phrase")
    secret = founder.key.private_bytes_raw().hex()

    assert secret not in repr(vars(founder.charter))
    assert "a phrase" not in str(error(founder.charter.recover, text[:-9], "a phrase"))
