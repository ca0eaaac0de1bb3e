"""`p2pgrid join` where no node runs: the membership is on the disk for the next `p2pgrid node`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from p2pgrid.core.chains import ALL_ROLES, WORK
from p2pgrid.node.charter import Charter
from p2pgrid.node.identity import open_identity, read_way
from p2pgrid.node.local import DirectoryLock
from tests.cli.conftest import Run


def charter_in(folder: Path) -> Charter:
    """Return the charter of the node whose directory that is."""
    folder.mkdir(exist_ok=True)
    return Charter(open_identity(folder, None, time.time()), folder, time.time)


def invited(charter: Charter, expires_s: float = 3600.0, file: str = "invite.txt") -> str:
    """Write an invite of that grid into a file; return the word that names it."""
    text, _ = charter.invite(ALL_ROLES, expires_s, 0, ["/ip4/127.0.0.1/tcp/1/p2p/x"])
    Path(file).write_text(text, encoding="utf-8")
    return f"@{file}"


@pytest.fixture
def admin(home: Path) -> Charter:
    """The only node of a grid, on another machine."""
    return charter_in(home / "admin")


def test_join_writes_the_membership(run: Run, home: Path, admin: Charter) -> None:
    """Exit 0, and what to do now."""
    ran = run("join", invited(admin), "--dir", "d")

    joined = charter_in(home / "d")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "now: p2pgrid node --dir d"
    assert joined.grid == admin.grid
    assert joined.provisional
    assert read_way(home / "d", admin.grid) == ("/ip4/127.0.0.1/tcp/1/p2p/x",)


def test_the_directory_is_that_of_the_next_node(run: Run, home: Path, admin: Charter) -> None:
    """Where none is named: the user's data folder, or $P2PGRID_DIR."""
    ran = run("join", invited(admin))

    assert ran.out.endswith("now: p2pgrid node\n")
    assert charter_in(home / "data" / "p2pgrid").grid == admin.grid


def test_join_twice_changes_nothing(run: Run, home: Path, admin: Charter) -> None:
    """It says so."""
    word = invited(admin)
    run("join", word, "--dir", "d")
    before = (home / "d" / "grid.json").read_bytes()

    ran = run("join", word, "--dir", "d", "--json")

    told = json.loads(ran.out)
    assert (ran.code, told["joined"], told["running"], told["reached"]) == (0, False, False, 0)
    assert told["grid"] == admin.grid_name
    assert (home / "d" / "grid.json").read_bytes() == before


@pytest.mark.parametrize("spoil", ["cut", "wrong letter", "no invite", "expired", "empty"])
def test_a_bad_invite_leaves_no_trace(
    run: Run, home: Path, admin: Charter, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """One line that says what is wrong with it, exit 2; nothing is made for it."""
    word = invited(admin)
    text = Path("invite.txt").read_text(encoding="utf-8")
    middle = len(text) // 2
    texts = {
        "cut": text[:-9],
        "wrong letter": text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :],
        "no invite": "https://example.org/",
        "empty": "",
    }
    Path("invite.txt").write_text(texts.get(spoil, text), encoding="utf-8")
    if spoil == "expired":
        later = time.time() + 7200.0
        monkeypatch.setattr("time.time", lambda: later)
    said = {"cut": "cut short", "wrong letter": "damaged", "expired": "expired"}.get(spoil, "not an invite")

    ran = run("join", word, "--dir", "d")

    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert not (home / "d").exists()


def test_a_grid_with_others_is_left_only_when_told_to(run: Run, home: Path, admin: Charter) -> None:
    """Without --leave: refused, exit 5, and nothing changes."""
    run("join", invited(admin), "--dir", "d")
    charter_in(home / "d").admit(admin.certificate, admin.public, dialler=True)
    other = charter_in(home / "other")
    word = invited(other, file="other.txt")

    refused = run("join", word, "--dir", "d")
    stayed = charter_in(home / "d").grid
    left = run("join", "--leave", word, "--dir", "d")

    assert (refused.code, refused.out, stayed) == (5, "", admin.grid)
    assert "--leave" in refused.err
    assert left.code == 0
    assert charter_in(home / "d").grid == other.grid


def test_a_directory_in_use_is_not_touched(
    run: Run, home: Path, admin: Charter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts is waited for; one that does not answer is named, exit 2."""
    monkeypatch.setattr("p2pgrid.cli.offline.STARTING_S", 0.0)
    (home / "d").mkdir()
    lock = DirectoryLock(home / "d")
    assert lock.take()

    ran = run("join", invited(admin), "--dir", "d")

    lock.release()
    assert ran.code == 2
    assert "in use by node" in ran.err
    assert not (home / "d" / "grid.json").exists()


def test_roles_of_the_invite_are_those_of_the_member(run: Run, home: Path, admin: Charter) -> None:
    """A worker stays one."""
    text, _ = admin.invite(WORK, 3600.0, 0, [])
    Path("invite.txt").write_text(text, encoding="utf-8")

    run("join", "@invite.txt", "--dir", "d")

    assert charter_in(home / "d").roles == WORK
