"""What a charter tells, what it does with damaged files and full disks, and that all of it is bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pgrid.core.chains import (
    ALL_ROLES,
    WORK,
    Reason,
    key_id,
    role_names,
)
from p2pgrid.core.errors import GridError
from p2pgrid.core.revocation import RECORDS_MAX, Revocations
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import FRAME_MAX_CONTROL, pack, unpack
from p2pgrid.node import charter_members, charter_revocations
from p2pgrid.node.charter_members import MEMBERS_FILE
from p2pgrid.node.charter_revocations import REVOCATIONS_FILE
from p2pgrid.node.identity import peer_id, peer_public
from tests.node.boxes import (
    HERE,
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
    row,
    tell,
)


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
    assert founder.charter.warnings([row(founder), {**row(a), "roles": []}]) == [], "who joins does not know yet"
    assert a.charter.warnings([row(founder, "dead"), row(a, "left")])[0].startswith("no admin is alive")


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


def test_whoever_holds_an_invite_pushes_no_member_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fresh keys he can join as often as he likes: those whom no admin has signed are forgotten first."""
    founder, a, b = grid_of(tmp_path, "f", "a", "b")
    monkeypatch.setattr(charter_members, "MEMBERS_MAX", 3)
    text, _ = founder.charter.invite(USER, WEEK, 0, HERE)
    for number in range(6):
        stranger = Box(tmp_path, f"s{number}")
        join(stranger, text)
        handshake(stranger, founder)
        assert list(founder.charter._roster.members) == [a.public, b.public, stranger.public]
    again = founder.restart()
    assert [known.is_final for known in again._roster.members.values()] == [True, True, False]


def test_a_founder_whose_memory_is_damaged_does_not_take_itself_for_alone(tmp_path: Path) -> None:
    """Or it would leave its grid without being told to; also after another start, until it goes elsewhere."""
    founder, _ = grid_of(tmp_path, "f", "a")
    founder.charter.flush_if_dirty()
    (founder.folder / MEMBERS_FILE).write_bytes(b"\xff not what we write")

    assert len(founder.start().notes) == 1
    assert not founder.charter.alone
    assert founder.start().notes == []
    assert not founder.charter.alone
    founder.charter.found_anew()
    assert founder.charter.alone
    assert founder.start().alone


def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    """The file is written every few seconds while there is news, and a member's addresses are told all the time."""
    founder, a = grid_of(tmp_path, "f", "a")
    founder.charter.saw(peer_id(a.public), HERE)
    founder.charter.flush_if_dirty()
    founder.charter.saw(peer_id(a.public), HERE)
    assert not founder.charter._roster.dirty
    founder.charter.saw(peer_id(a.public), (*HERE, "/ip4/10.0.0.1/tcp/1"))
    assert founder.charter._roster.dirty


def test_what_is_written_beside_the_loop_does_not_undo_what_was_written_since(tmp_path: Path) -> None:
    """A slow disk may have an older state of the file under way while somebody signs something, or goes elsewhere."""
    founder, a = grid_of(tmp_path, "f", "a")
    founder.charter.saw(peer_id(a.public), HERE)
    older = founder.charter.unwritten()
    assert older is not None
    assert founder.charter.unwritten() is None
    founder.charter.invite(USER, WEEK, 0, HERE)
    older()
    assert len(founder.start()._roster.invites) == 2

    founder.charter.saw(peer_id(a.public), HERE * 2)
    older = founder.charter.unwritten()
    assert older is not None
    founder.charter.found_anew()
    older()
    assert not (founder.folder / MEMBERS_FILE).exists()


def test_what_could_not_be_written_beside_the_loop_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    founder, a = grid_of(tmp_path, "f", "a")
    founder.charter.saw(peer_id(a.public), HERE)
    write = founder.charter.unwritten()
    assert write is not None
    with monkeypatch.context() as patch:
        patch.setattr(charter_members, "write_kept", full)
        with pytest.raises(GridError):
            write()
    founder.restart()
    assert dict(founder.charter.saved_peers())[peer_id(a.public)] == HERE


def full(*_: object, **__: object) -> None:
    raise GridError("no space left", code="directory-unusable")


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
