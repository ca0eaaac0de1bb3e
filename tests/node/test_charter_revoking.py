"""Who belongs no more: revocations said, heard, kept on disks, in any order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from p2pgrid.core.chains import (
    ALL_ROLES,
    DEFAULT_ROLES,
    OBSERVE,
    WORK,
    Reason,
    Refused,
)
from p2pgrid.core.errors import ExitCode
from p2pgrid.core.revocation import Revocations, read_revocation
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node.charter_revocations import REVOCATIONS_FILE
from p2pgrid.node.identity import GRID_FILE, KEY_FILE
from tests.node.boxes import (
    HERE,
    T0,
    USER,
    WEEK,
    Box,
    error,
    grid_of,
    join,
    meet,
    refused,
    tell,
)


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


def test_who_was_listed_by_what_counts_no_more_is_out(tmp_path: Path) -> None:
    """Two revoked the founder, one of them knew the member; that one turns out to have been a thief."""
    founder, a, b, c, d = grid_of(tmp_path, "f", "a", "b", "c", "d")
    member = Box(tmp_path, "m")
    join(member, founder.charter.invite(USER, WEEK, 0, HERE)[0])
    for box in (founder, a, b):
        meet(member, box)
    of_c, of_a = c.charter.revoke(founder.public).records, a.charter.revoke(founder.public).records
    tell(of_c, b)

    assert not b.charter.holds(member.public)

    tell(of_a, b)

    assert b.charter.holds(member.public)

    heard = b.charter.heard(list(d.charter.revoke(a.public).records))

    assert set(heard.expelled) >= {a.public, member.public}
    assert b.charter.holds(c.public)
    assert b.charter.holds(d.public)


def test_the_grids_own_key_cannot_be_revoked_by_a_slip(tmp_path: Path) -> None:
    """Nor by a thief on purpose: it must list the founder's link or cut itself off, and all hang from that one."""
    founder, thief, a = grid_of(tmp_path, "f", "t", "a")
    told = Revocations(Judge(founder.charter.grid))
    record = told.revoke(
        thief.key, [thief.charter.certificate], founder.charter.grid, T0, [thief.charter.certificate]
    )  # fmt: skip

    assert error(founder.charter.revoke, founder.charter.grid).exit_code == ExitCode.WRONG

    heard = a.charter.heard([record.packed])

    assert (heard.fresh, heard.expelled, heard.lost) == ([record.packed], [], False)
    assert founder.charter.heard([record.packed]).expelled == []


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


@pytest.mark.parametrize("seed", range(8))
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
