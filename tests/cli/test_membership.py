"""Invites go in and out as secrets; what is asked of the node for `invite join promote revoke` and `grid`."""

from __future__ import annotations

import io
import json
import stat
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.oracle import NODE_ID, Oracle

INVITE = "p2pgrid-invite-1.AbC-_"
JOINED = {"grid": "blue-otter", "id": NODE_ID, "name": "quiet-fox", "reached": 2, "joined": True}
SEALED = "p2pgrid-recovery-1.AbC"


class Typed(io.StringIO):
    """A terminal on which this was typed."""

    def isatty(self) -> bool:
        """It is one."""
        return True


# ---- invite ----------------------------------------------------------------------------------------------------------


def test_invite_prints_only_the_string_on_stdout(run: Run, oracle: Oracle) -> None:
    """Who may hold it, until when and how it is closed goes to stderr."""
    oracle.answers["invite"] = {"invite": INVITE, "roles": "submit,work,admin", "join_until": 4102444800, "key": "0a1b"}

    ran = run("invite")

    assert (ran.code, ran.out) == (0, f"{INVITE}\n")
    assert "whoever holds this can run code on every node with the work role" in ran.err
    assert "until 2100-01-01T00:00:00.000Z" in ran.err
    assert "p2pgrid revoke 0a1b\n" in ran.err
    assert INVITE not in ran.err


def test_an_invite_for_workers_alone_says_what_they_see(run: Run, oracle: Oracle) -> None:
    """They run nothing at others, but read what they are given."""
    oracle.answers["invite"] = {"invite": INVITE, "roles": "work"}

    assert "whoever holds this can read the code and the data of tasks" in run("invite", "--roles", "work").err


def test_invite_asks_for_what_was_typed(run: Run, oracle: Oracle) -> None:
    """Durations in seconds, a date in Unix seconds, roles in one form; the defaults without."""
    oracle.answers["invite"] = {"invite": INVITE}

    run("invite")
    run("invite", "--roles", " work, submit", "--expires", "1.5h", "--member-until", "2100-01-01T02:00+02:00")
    run("invite", "--member-until", "90d")

    assert oracle.heard[0] == ["invite", {"roles": "submit,work,admin", "expires": 604800.0, "member_until": 0}]
    assert oracle.heard[1] == ["invite", {"roles": "submit,work", "expires": 5400.0, "member_until": 4102444800}]
    assert 0 <= oracle.heard[2][1]["member_until"] - time.time() - 90 * 86400 + 60 <= 120


def test_flags_of_invite_come_from_the_environment_too(
    run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$P2PGRID_INVITE_<FLAG>."""
    oracle.answers["invite"] = {"invite": INVITE}
    monkeypatch.setenv("P2PGRID_INVITE_ROLES", "work")
    monkeypatch.setenv("P2PGRID_INVITE_MEMBER_UNTIL", "2100-01-01")

    run("invite")

    assert oracle.heard == [["invite", {"roles": "work", "expires": 604800.0, "member_until": 4102444800}]]


# ---- join ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["string", "pasted with line breaks", "-", "@file", "environment", "environment @"])
def test_join_takes_an_invite_from_anywhere(
    run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Only what was typed shows in ps, and only that is warned of."""
    oracle.answers["join"] = JOINED
    Path("invite.txt").write_text(f"{INVITE}\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"  {INVITE}\n"))
    if given.startswith("environment"):
        monkeypatch.setenv("P2PGRID_JOIN", "@invite.txt" if given.endswith("@") else INVITE)
    words = {
        "string": [INVITE], "pasted with line breaks": [INVITE[:9], INVITE[9:]], "-": ["-"], "@file": ["@invite.txt"]
    }.get(given, [])  # fmt: skip

    ran = run("join", *words)

    assert (ran.code, ran.out) == (0, "node quiet-fox joined grid blue-otter: 2 members answered\n")
    assert oracle.heard == [["join", {"invite": INVITE, "leave": False}]]
    shown = words and words[0][0] not in "-@"
    assert bool(ran.err) == bool(shown)
    assert not shown or ("- or @FILE" in ran.err and INVITE not in ran.err)


def test_join_asks_on_a_terminal(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the end of a file."""
    oracle.answers["join"] = JOINED
    monkeypatch.setattr("sys.stdin", Typed(f"{INVITE}\nmore"))

    ran = run("join", "-")

    assert "paste the invite" in ran.err
    assert oracle.heard[0][1]["invite"] == INVITE


@pytest.mark.parametrize("given", ["", "\n \n"])
def test_an_empty_stdin_is_no_invite(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """What stood before the pipe has failed: say so, and not that an invite is damaged."""
    monkeypatch.setattr("sys.stdin", io.StringIO(given))

    ran = run("join", "-")

    assert (ran.code, oracle.heard) == (2, [])
    assert "nothing came on stdin" in ran.err
    assert "p2pgrid invite" in ran.err


def test_join_twice_changes_nothing(run: Run, oracle: Oracle) -> None:
    """It is no error: a script may say it at each start."""
    oracle.answers["join"] = {**JOINED, "joined": False}

    ran = run("join", INVITE, "--leave")

    assert (ran.code, ran.out) == (0, "node quiet-fox was in grid blue-otter already\n")
    assert oracle.heard[0][1]["leave"] is True


def test_a_bad_invite_is_one_line(run: Run, oracle: Oracle) -> None:
    """Exit 2, and the string is not repeated."""
    oracle.answers["join"] = {"code": "bad-invite", "message": "the invite is cut short", "next": "copy the whole line"}
    Path("invite.txt").write_text(INVITE, encoding="utf-8")

    ran = run("join", "@invite.txt")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("p2pgrid: the invite is cut short; next: copy the whole line; more: ")
    assert ran.err.count("\n") == 1


def test_a_bug_report_has_no_invite_in_it(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the words, and no values either."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("p2pgrid.cli.membership._join", broken)
    monkeypatch.setattr("tempfile.tempdir", str(home))

    assert run("join", INVITE).code == 70
    (report,) = home.glob("p2pgrid-bug-*.txt")
    assert INVITE not in report.read_text(encoding="utf-8")


# ---- leave, promote, revoke ------------------------------------------------------------------------------------------


def test_what_is_asked_of_the_node(run: Run, oracle: Oracle) -> None:
    """Targets and roles as the node wants them."""
    for verb in ("leave", "promote", "revoke"):
        oracle.answers[verb] = {}

    run("leave")
    run("promote", "fox")
    run("promote", "fox", "--roles", "work")
    run("revoke", "fox")
    run("revoke", "0a1b", "--with-admitted")

    assert oracle.heard == [
        ["leave", {}],
        ["promote", {"target": "fox", "roles": "submit,work,admin"}],
        ["promote", {"target": "fox", "roles": "work"}],
        ["revoke", {"target": "fox", "with_admitted": False}],
        ["revoke", {"target": "0a1b", "with_admitted": True}],
    ]


def test_revoke_lists_whom_it_cuts_off(run: Run, oracle: Oracle) -> None:
    """By name where there is one."""
    oracle.answers["revoke"] = {
        "revoked": ["0a1b"],
        "kept": [],
        "cut": [{"id": "x1", "name": "old\nowl"}, {"id": "x2"}],
    }

    assert run("revoke", "0a1b", "--with-admitted").out == "revoked  0a1b\n cut     old·owl (x1), x2\n"


# ---- grid ------------------------------------------------------------------------------------------------------------


def test_export_writes_a_file_for_its_owner_alone(run: Run, oracle: Oracle) -> None:
    """Mode 0600; how it is used and closed is told."""
    oracle.answers["export"] = {"text": SEALED, "key": "0a1b"}
    Path("pass").write_text("open sesame\r\nmore", encoding="utf-8")

    ran = run("grid", "export", "key", "--passphrase-file", "pass")

    assert (ran.code, ran.out) == (0, "")
    assert Path("key").read_text(encoding="utf-8") == f"{SEALED}\n"
    assert stat.S_IMODE(Path("key").stat().st_mode) == 0o600
    assert oracle.heard == [["export", {"passphrase": "open sesame"}]]
    assert "p2pgrid revoke 0a1b" in ran.err
    assert "open sesame" not in ran.err


def test_export_as_json(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key itself is only in the file; the passphrase may come through a pipe."""
    oracle.answers["export"] = {"text": SEALED, "key": "0a1b"}
    monkeypatch.setattr("sys.stdin", io.StringIO("sesame\n"))

    ran = run("grid", "export", "key", "--passphrase-file", "-", "--json")

    assert json.loads(ran.out) == {"v": 1, "file": "key", "key": "0a1b"}
    assert ran.err == ""
    assert oracle.heard == [["export", {"passphrase": "sesame"}]]


def test_export_never_overwrites(run: Run, oracle: Oracle) -> None:
    """No key is made for a file that cannot be written."""
    Path("key").write_text("precious", encoding="utf-8")

    ran = run("grid", "export", "key", "--passphrase-file", "-")

    assert (ran.code, oracle.heard) == (2, [])
    assert "is there already" in ran.err
    assert Path("key").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("answer", [{"code": "not-authorized", "message": "no admin", "next": "ask"}, {}, None])
def test_a_failed_export_leaves_no_file(run: Run, oracle: Oracle, answer: dict[str, str] | None) -> None:
    """Whether the node refuses, says nonsense or ends."""
    oracle.answers["export"] = answer
    Path("pass").write_text("sesame", encoding="utf-8")

    assert run("grid", "export", "key", "--passphrase-file", "pass").code in (2, 3, 5, 1)
    assert not Path("key").exists()


@pytest.mark.parametrize(
    ("source", "said"), [([], "no passphrase"), (["pass"], "cannot be read"), (["empty"], "the passphrase is empty")]
)
@pytest.mark.parametrize("verb", ["export", "recover"])
def test_a_passphrase_is_wanted(
    run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, verb: str, source: list[str], said: str
) -> None:
    """Without a terminal from a file; exit 2, nothing is asked and nothing is left."""
    Path("empty").write_text("\n", encoding="utf-8")
    Path("sealed").write_text(SEALED, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO())

    ran = run(
        "grid", verb, "sealed" if verb == "recover" else "key", *(["--passphrase-file", *source] if source else [])
    )

    assert (ran.code, ran.out, oracle.heard) == (2, "", [])
    assert said in ran.err
    assert not Path("key").exists()


def test_a_terminal_is_asked_for_the_passphrase(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice for export, as a mistake would be noticed too late; once for recover; never shown."""
    asked: list[tuple[str, bool]] = []

    def getpass(prompt: str = "", *, echo_char: str | None = None) -> str:
        asked.append((prompt.split(maxsplit=1)[0], echo_char is None))
        return "sesame"

    monkeypatch.setattr("click.termui.hidden_prompt_func", getpass)
    monkeypatch.setattr("sys.stdin", Typed())
    oracle.answers |= {"export": {"text": SEALED, "key": "0a1b"}, "recover": {"roles": ["admin"], "grid": "otter"}}

    exported = run("grid", "export", "key")
    times = len(asked)
    recovered = run("grid", "recover", "key")

    assert (exported.code, recovered.code, times, len(asked)) == (0, 0, 2, 3)
    assert oracle.heard == [
        ["export", {"passphrase": "sesame"}],
        ["recover", {"text": SEALED, "passphrase": "sesame", "leave": False}],
    ]
    assert recovered.out == "this node may now in grid otter: admin\n"


def test_warnings_of_the_grid_go_to_stderr(run: Run, oracle: Oracle) -> None:
    """Like those of status."""
    oracle.answers["grid"] = {"id": "ab", "name": "otter", "warnings": ["fewer than two admins"]}

    assert run("grid", "show").err == "warning: fewer than two admins\n"
