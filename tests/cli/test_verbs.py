"""What verbs make of the node's answers: golden files for people (.txt) and for scripts (.json).

`UPDATE_GOLDEN=1 pytest tests/cli/test_verbs.py` writes them anew; look at the difference before you commit it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.wire import frame
from tests.cli.conftest import Run
from tests.cli.oracle import NODE_ID, WELCOME, Oracle

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs" / "json.md"

# Submitted in the year 2100, so that its age is always "now".
JOB: dict[str, Any] = {
    "id": "calm-river-42", "hex": "00112233445566778899aabbccddeeff", "name": "squares", "state": "running",
    "done": 17, "failed": 1, "total": 100, "known": 100, "submitted": 4102444800.25, "expires": 4103049600.25,
    "program": "squares.py", "owner": NODE_ID, "owner_name": "quiet-fox", "detached": True, "reason": "", "waiting": "",
}  # fmt: skip
WAITS: dict[str, Any] = {
    **JOB, "id": "bold-acre-7", "hex": "ff" * 16, "name": "", "state": "queued", "done": 0, "failed": 0, "total": None,
    "detached": False, "waiting": "0 of 1 nodes: gpu ≥ 1 (none has it)",
}  # fmt: skip
TASKS = {"waiting": 0, "queued": 80, "running": 2, "done": 17, "failed": 1, "cancelled": 0}
TASK: dict[str, Any] = {"index": 17, "state": "failed", "node": "quiet-fox", "attempts": 2, "error": "ValueError: 17"}
STATUS: dict[str, Any] = {
    "node": {
        "id": NODE_ID, "name": "quiet-fox", "version": "0.1.0", "slots": 2, "busy": 1, "python": "3.11",
        "embedded": False, "pid": 4711, "clients": 1, "dir": "/data",
    },
    "grid": {"name": "blue-otter", "nodes": 1, "slots": 2},
    "jobs": {"open": 1, "all": 3, "ready": 80},
    "warnings": ["the disk is nearly full"],
    "process": {"pid": 4711, "rss": 44040192, "pss": 31457280, "fds": 28, "tasks": 17},
}  # fmt: skip

OTHER_ID = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
ELSEWHERE: dict[str, Any] = {**JOB, "id": "dark-hill-3", "hex": "0f" * 16, "owner": OTHER_ID, "owner_name": "red-crow"}
MOVED: dict[str, Any] = {
    **ELSEWHERE, "stolen": 4, "prefetched": 6, "rerun": 1,
    "moves": [
        {"node": "quiet-fox", "stolen": 4, "prefetched": 0, "rerun": 1},
        {"node": "red-crow", "stolen": 0, "prefetched": 6, "rerun": 0},
    ],
}  # fmt: skip
MEMBERS: list[dict[str, Any]] = [
    {
        "id": NODE_ID, "name": "quiet-fox", "status": "alive", "slots": 2, "roles": ["submit", "work", "admin"],
        "addresses": [f"/ip4/192.168.1.20/tcp/9471/p2p/{NODE_ID}", "/ip6/fd00::20/tcp/9471"],
        "pythons": [{"path": "/usr/bin/python3", "version": "3.11.7"}], "version": "0.1.0",
        "facts": {"arch": "x86_64", "ram": 8 << 30}, "connected": True,
    },
    {
        "id": OTHER_ID, "name": "red-crow", "status": "suspect", "slots": 16, "roles": ["work"], "addresses": [],
        "pythons": [], "version": "0.1.0", "facts": {}, "connected": False,
    },
]  # fmt: skip
LOADS: list[dict[str, Any]] = [
    {"id": NODE_ID, "name": "quiet-fox", "status": "alive", "slots": 2, "busy": 2, "queued": 80, "jobs": 1, "done": 17,
     "stolen": 4, "prefetched": 6, "rerun": 1, "messages": 120},
    {"id": OTHER_ID, "name": "red-crow", "status": "alive", "slots": 16, "busy": 0, "queued": 0, "jobs": 0, "done": 5},
]  # fmt: skip
IN_GRID: dict[str, Any] = {
    **STATUS,
    "network": {
        "addresses": [f"/ip4/192.168.1.20/tcp/9471/p2p/{NODE_ID}", f"/ip6/fd00::20/tcp/9471/p2p/{NODE_ID}"],
        "connected": 2, "messages_sent": 40, "messages_received": 50, "refused": 0, "dropped": 0,
    },
    "grid": {"name": "blue-otter", "id": "ab" * 32, "nodes": 3, "slots": 6},
    "objects": {
        "count": 3, "bytes": 104857600, "pinned": 52428800, "on_disk": 52428800, "quota": 10000000000,
        "arena": 6000000000, "arena_used": 52428800, "arena_resident": 120586240, "fetching": 0, "kept_for_others": 1,
        "wrong_pieces": 0,
    },
}  # fmt: skip
INVITE = "p2pgrid-invite-1.AbC-_"
UNTIL_S = 4102444800
GRID: dict[str, Any] = {
    "id": "ab" * 32, "name": "blue-otter", "roles": ["submit", "work", "admin"], "provisional": False,
    "admins": [{"id": NODE_ID, "name": "quiet-fox", "status": "alive"}], "members": 2,
    "invites": [
        {"key": "0a1b2c3d4e5f6071", "roles": ["work"], "join_until": UNTIL_S, "open": True},
        {"key": "1111111111111111", "roles": ["work"], "join_until": 1, "open": False},
    ],
    "exported": [{"key": "2222222222222222", "signed_at": UNTIL_S, "revoked": False}],
    "revoked": [
        {"key": "3333333333333333", "at": UNTIL_S, "by": NODE_ID},
        {"key": "4444444444444444", "at": UNTIL_S, "by": NODE_ID, "id": OTHER_ID, "name": "red-crow"},
    ],
    "warnings": ["only one admin is alive: p2pgrid promote NODE, or p2pgrid grid export FILE"],
}  # fmt: skip

CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "jobs": (["jobs"], {"jobs": [WAITS, JOB]}),
    "show": (["show", "calm-river"], {"job": JOB, "tasks": TASKS}),
    "show-task": (["show", "calm-river/17"], {"job": JOB, "tasks": TASKS, "task": TASK}),
    "explain": (["explain", "last"], {"lines": ["bold-acre-7 is queued", "tasks wait: 0 of 1 nodes: gpu ≥ 1"]}),
    "logs": (["logs", "last"], {"logs": [[3, b"one\ntwo\n"], [4, "café".encode()]]}),
    "cancel": (["cancel", "last"], {"cancelled": 83}),
    "forget": (["forget", "last"], {"forgotten": 1}),
    "keep": (["keep", "last", "--for", "30d"], {"expires": 4105728000.25, "at": "red-crow"}),
    "status": (["status"], STATUS),
    "status-grid": (["status"], IN_GRID),
    "jobs-grid": (["jobs"], {"jobs": [JOB, ELSEWHERE], "unanswered": ["old-owl", "wet-cat"]}),
    "jobs-moved": (["jobs"], {"jobs": [MOVED, {**MOVED, "state": "done"}]}),
    "members": (["members"], {"members": MEMBERS}),
    "top": (["top"], {"nodes": LOADS, "jobs": [JOB, {**WAITS, "state": "done"}]}),
    "invite": (
        ["invite", "--roles", "work,submit", "--expires", "1h", "--member-until", "2100-01-01"],
        {"invite": INVITE, "roles": "submit,work", "join_until": UNTIL_S, "member_until": UNTIL_S, "key": "0a1b2c3d"},
    ),
    "join": (
        ["join", INVITE],
        {"grid": "blue-otter", "id": NODE_ID, "name": "quiet-fox", "reached": 1, "joined": True},
    ),
    "leave": (["leave"], {"left": "blue-otter", "grid": "green-elk"}),
    "promote": (["promote", "red-crow"], {"id": OTHER_ID, "name": "red-crow", "roles": "submit,work,admin"}),
    "revoke": (
        ["revoke", "red-crow"],
        {"revoked": [{"id": OTHER_ID, "name": "red-crow"}], "kept": ["0a1b2c3d"], "cut": []},
    ),
    "grid-show": (["grid", "show"], GRID),
    "grid-recover": (
        ["grid", "recover", "key", "--passphrase-file", "pass"],
        {"roles": ["submit", "work", "admin"], "grid": "blue-otter"},
    ),
}  # fmt: skip


REQUEST_OF = {"grid-recover": "recover"}
"""The request that a case's answer is for, where it is not the verb."""


def _golden(name: str, text: str) -> str:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def told(oracle: Oracle) -> Oracle:
    """A node that knows an answer to everything."""
    Path("key").write_text("p2pgrid-recovery-1.AbC", encoding="utf-8")  # the test stands in a directory of its own
    Path("pass").write_text("open sesame\n", encoding="utf-8")
    for case, (words, answer) in CASES.items():
        oracle.answers.setdefault(REQUEST_OF.get(case, words[0]), answer)
    return oracle


@pytest.mark.parametrize("case", CASES)
def test_text_is_as_agreed(run: Run, told: Oracle, case: str) -> None:
    """For people."""
    words, answer = CASES[case]
    told.answers[REQUEST_OF.get(case, words[0])] = answer

    ran = run(*words)

    assert ran.code == 0
    text = ran.out.replace(str(told.dir), "/data")
    assert text == _golden(f"{case}.txt", text)


@pytest.mark.parametrize("case", CASES)
def test_json_is_as_agreed(run: Run, told: Oracle, case: str) -> None:
    """For scripts: one object, one line, and nothing on stderr."""
    words, answer = CASES[case]
    told.answers[REQUEST_OF.get(case, words[0])] = answer

    ran = run(*words, "--json")

    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    text = json.dumps(json.loads(ran.out.replace(str(told.dir), "/data")), indent=2, ensure_ascii=False) + "\n"
    assert text == _golden(f"{case}.json", text)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_key_is_documented(path: Path) -> None:
    """docs/json.md names every key that is printed; facts are whatever a node says of itself."""
    documented = set(re.findall(r"[\w-]+", DOCS.read_text(encoding="utf-8")))
    keys: set[str] = set()
    todo = [json.loads(path.read_text(encoding="utf-8"))]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            keys |= value.keys()
            todo += [one for key, one in value.items() if key != "facts"]
        elif isinstance(value, list):
            todo += value

    assert keys - documented == set()


TARGETED = ["show", "explain", "logs", "cancel", "forget", "keep", "promote", "revoke"]


@pytest.mark.parametrize("verb", [*TARGETED, "jobs", "status", "stop", "members", "top"])
@pytest.mark.parametrize("target", ["calm-river-42", "last", "all", "calm/3-9"])
def test_the_node_resolves_targets(run: Run, told: Oracle, verb: str, target: str) -> None:
    """They are passed on as typed, by a client without a session."""
    told.answers["stop"] = {}
    with_target = verb in TARGETED

    if verb == "logs" and target == "all":
        return  # of each job by itself: tests/cli/test_logs.py
    if verb in ("forget", "keep") and "/" in target:
        assert run(verb, target, *(["--for", "1d"] if verb == "keep" else [])).code == 2
        return
    run(verb, *([target] if with_target else []), *(["--for", "1d"] if verb == "keep" else []))

    asked, arguments = told.heard[-1]
    assert asked == verb
    assert arguments.get("target") == (target if with_target else None)
    assert told.hello["session"] == b""


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("not-found", 4), ("ambiguous", 4), ("elsewhere", 4), ("not-authorized", 5), ("bad-invite", 2), ("odd", 1)],
)
def test_errors_of_the_node_are_passed_on(run: Run, oracle: Oracle, code: str, exit_code: int) -> None:
    """With their code, message and next step."""
    oracle.answers["show"] = {"code": code, "message": "'c' is ambiguous: calm-river-42, cold-sun-1", "next": "more"}

    plain, as_json = run("show", "c"), run("show", "c", "--json")

    assert (plain.code, plain.out) == (exit_code, "")
    assert plain.err.startswith("p2pgrid: 'c' is ambiguous: calm-river-42, cold-sun-1; next: more")
    assert plain.err.count("\n") == 1
    told = json.loads(as_json.err)
    assert told.pop("v") == 1
    assert (oracle.answers["show"] or {}).items() <= told["error"].items()


@pytest.mark.parametrize("given", ["", "7 moons", "-1d"])
def test_how_long_to_keep_is_a_duration(run: Run, told: Oracle, given: str) -> None:
    """Else nothing is asked."""
    ran = run("keep", "last", "--for", given)

    assert (ran.code, ran.out) == (2, "")
    assert "--for" in ran.err
    assert told.heard == []


def test_no_jobs_is_no_output(run: Run, oracle: Oracle) -> None:
    """Stdout is for what was asked; a hint goes to stderr."""
    oracle.answers["jobs"] = {"jobs": []}

    ran = run("jobs")

    assert (ran.code, ran.out) == (0, "")
    assert "pg.Grid()" in ran.err


def test_one_log_is_printed_byte_for_byte(run: Run, oracle: Oracle) -> None:
    """So that it can be piped."""
    oracle.answers["logs"] = {"logs": [[3, b"a\tb\nno newline"]]}

    assert run("logs", "last/3").out == "a\tb\nno newline"


def test_logs_that_are_not_text_are_replaced(run: Run, oracle: Oracle) -> None:
    """JSON has no bytes."""
    oracle.answers["logs"] = {"logs": [[0, b"caf\xe9"]]}

    assert json.loads(run("logs", "last", "--json").out)["logs"] == [{"index": 0, "text": "caf\ufffd"}]


def test_names_cannot_move_the_cursor(run: Run, oracle: Oracle) -> None:
    """Names and reasons come from elsewhere."""
    oracle.answers["jobs"] = {"jobs": [{**JOB, "name": "a\x1b[2Jb\nc", "waiting": "x\x07\ny"}]}

    out = run("jobs").out

    assert "a·[2Jb·c" in out
    assert out.count("\n") == 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)


@pytest.mark.parametrize("char", ["\x9b", "\x7f", "\u202e", "\u2028", "\U000e0001"])
def test_json_cannot_move_the_cursor_either(run: Run, oracle: Oracle, char: str) -> None:
    """JSON only has to escape what is below a space, terminals obey more."""
    oracle.answers["jobs"] = {"jobs": [{**JOB, "name": f"a{char}b"}]}

    out = run("jobs", "--json").out

    assert char not in out
    assert json.loads(out)["jobs"][0]["name"] == f"a{char}b"


def test_logs_cannot_move_the_cursor_of_a_terminal(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of other members wrote them; lines and colours stay."""
    oracle.answers["logs"] = {"logs": [[3, b"a\x1b[31mb\x1b[0m\x1b[2Jc\x07\r\n\x1b]0;title\x07"]]}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    assert run("logs", "last/3").out == "a\x1b[31mb\x1b[0m·[2Jc·\r\n·]0;title·"


@pytest.mark.parametrize("verb", ["jobs", "show", "explain", "logs", "cancel", "top"])
def test_who_did_not_answer_is_named(run: Run, told: Oracle, verb: str) -> None:
    """One line on stderr; `--json` has it in the object."""
    (answer,) = [CASES[verb][1]]
    told.answers[verb] = {**answer, "unanswered": ["old-owl", "wet\x1bcat"]}
    words = CASES[verb][0]

    plain, as_json = run(*words), run(*words, "--json")

    assert plain.code == as_json.code == 0
    assert plain.err.startswith("warning: no answer from old-owl, wet·cat")
    assert plain.err.count("\n") == 1
    assert json.loads(as_json.out)["unanswered"] == ["old-owl", "wet\x1bcat"]
    assert as_json.err == ""


def test_jobs_name_their_node_where_there_are_several(run: Run, oracle: Oracle) -> None:
    """A column `AT`, not in a grid of one."""
    oracle.answers["jobs"] = {"jobs": [JOB]}

    alone = run("jobs").out
    oracle.greeting = frame(m.WELCOME, {**WELCOME, "nodes": 2})
    several = run("jobs").out

    assert "AT" not in alone.splitlines()[0].split()
    assert "AT" in several.splitlines()[0].split()
    assert "quiet-fox" in several


def test_warnings_go_to_stderr(run: Run, told: Oracle) -> None:
    """`status` for people."""
    assert run("status").err == "warning: the disk is nearly full\n"


def test_status_of_a_node_that_was_revoked(run: Run, told: Oracle) -> None:
    """The first line says so."""
    told.answers["status"] = {**STATUS, "grid": {**STATUS["grid"], "revoked": True}}

    assert run("status").out.startswith("node quiet-fox   revoked from grid blue-otter: 1 node, 2 slots\n")
    assert json.loads(run("status", "--json").out)["grid"]["revoked"] is True


def test_status_waits_for_members(run: Run, told: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough: 0; too few until the end: 6."""
    monkeypatch.setattr("p2pgrid.cli.node.WAIT_S", 0.0)

    enough, few = run("status", "--wait", "1"), run("status", "--wait", "2")

    assert enough.code == 0
    assert (few.code, few.out) == (6, "")
    assert "only 1 of 2 members alive" in few.err


def test_status_wait_ends_without_a_node(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6, not 3: it is the waiting that failed. The number may come from the environment."""
    monkeypatch.setattr("p2pgrid.cli.node.WAIT_S", 0.0)
    monkeypatch.setenv("P2PGRID_STATUS_WAIT", "3")

    ran = run("status")

    assert ran.code == 6
    assert "p2pgrid node" in ran.err


def test_stop_waits_for_the_end(run: Run, oracle: Oracle) -> None:
    """It returns when the node has hung up."""
    oracle.answers["stop"] = {}

    plain, as_json = run("stop"), run("stop", "--json")

    assert (plain.code, plain.out) == (0, "")
    assert plain.err.startswith("stopped node quiet-fox")
    assert json.loads(as_json.out) == {"v": 1, "stopped": {"id": NODE_ID, "name": "quiet-fox"}}


def test_a_node_that_does_not_stop_is_timed_out(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is named, so that it can be killed."""
    monkeypatch.setattr("p2pgrid.cli.node.REAP_S", 0.0)
    oracle.greeting = frame(m.WELCOME, {**WELCOME, "pid": os.getpid()})
    oracle.answers["stop"] = {}

    ran = run("stop")

    assert ran.code == 6
    assert f"kill {os.getpid()}" in ran.err


def test_a_silent_node_is_timed_out(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6."""
    monkeypatch.setattr("p2pgrid.cli.link.TIMEOUT_S", 0.05)

    assert run("jobs").code == 6


def test_a_node_that_hangs_up_is_gone(run: Run, oracle: Oracle) -> None:
    """Exit 3, as if it had not been there."""
    oracle.answers["jobs"] = None

    ran = run("jobs")

    assert ran.code == 3
    assert "p2pgrid node" in ran.err


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", frame(m.WELCOME, {**WELCOME, "v": 9}), frame(m.RESULT, []), b"\0\0\0\1\xc1"],
    ids=["http", "newer", "other", "garbage"],
)
def test_what_is_no_node_is_told(run: Run, oracle: Oracle, greeting: bytes) -> None:
    """Exit 2: repeating will not help."""
    oracle.greeting = greeting

    ran = run("jobs")

    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_a_refusal_is_told(run: Run, oracle: Oracle) -> None:
    """An ERROR for the connection."""
    oracle.greeting = frame(m.ERROR, {"code": "quota-exceeded", "message": "512 clients are enough", "next": "wait"})

    ran = run("jobs")

    assert (ran.code, ran.err) == (5, f"p2pgrid: 512 clients are enough; next: wait; more: {QuotaExceeded().page}\n")


def test_a_killed_node_is_no_node(run: Run, home: Path) -> None:
    """Its file points to a socket nobody answers at."""
    (home / "node.json").write_text(json.dumps({"socket": str(home / "s")}), encoding="utf-8")
    (home / "s").touch()

    assert run("jobs", "--dir", str(home)).code == 3


def test_a_node_that_a_program_has_started_says_so(run: Run, oracle: Oracle) -> None:
    """Whoever has just typed `p2pgrid node &` would take it for that one."""
    oracle.answers["status"] = {"node": {"name": "heron", "embedded": True}, "grid": {"name": "blue-otter"}}
    embedded = run("status").out
    oracle.answers["status"] = {"node": {"name": "heron", "embedded": False}, "grid": {"name": "blue-otter"}}

    assert " until    its last program and job end" in embedded
    assert " until " not in run("status").out
