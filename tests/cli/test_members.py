"""`members` and `top`, once and live."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.oracle import Oracle
from tests.cli.test_verbs import JOB, LOADS, MEMBERS


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens in each second of a view that goes on; then Ctrl-C. Nobody really waits."""
    script: list[Any] = []

    def sleep(_: float) -> None:
        if not script:
            raise KeyboardInterrupt
        script.pop(0)()

    monkeypatch.setattr("p2pgrid.cli.live.sleep", sleep)
    return script


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stdout is one, 100 columns wide."""
    monkeypatch.setattr("p2pgrid.cli.members.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")


def renamed(name: str) -> dict[str, Any]:
    """Return an answer with the second member under another name."""
    return {"members": [MEMBERS[0], {**MEMBERS[1], "name": name}]}


def test_watch_prints_a_line_per_change(run: Run, oracle: Oracle, seconds: list[Any]) -> None:
    """Not one per second; it ends by Ctrl-C, without a word."""
    oracle.answers["members"] = {"members": MEMBERS}
    seconds += [lambda: None, lambda: oracle.answers.update(members=renamed("new-name")), lambda: None]

    ran = run("members", "--watch", "--json")

    names = [json.loads(line)["members"][1]["name"] for line in ran.out.splitlines()]
    assert (ran.code, ran.err, names) == (130, "", ["red-crow", "new-name"])
    assert len(oracle.heard) == 4


def test_watch_prints_a_table_per_change_where_nothing_can_be_redrawn(
    run: Run, oracle: Oracle, seconds: list[Any]
) -> None:
    """Into a file or a pipe."""
    oracle.answers["members"] = {"members": MEMBERS}
    seconds += [lambda: oracle.answers.update(members=renamed("new-name"))]

    ran = run("members", "--watch")

    assert ran.code == 130
    first = [line.split(maxsplit=1)[0] for line in ran.out.splitlines()]
    assert first == ["NAME", "quiet-fox", "red-crow", "NAME", "quiet-fox", "new-name"]


@pytest.mark.usefixtures("_terminal")
def test_watch_redraws_a_terminal(run: Run, oracle: Oracle, seconds: list[Any]) -> None:
    """What peers call themselves is text there: no markup, no control characters."""
    oracle.answers["members"] = renamed("[red]x\x1b[2J[/nope]")

    ran = run("members", "--watch")

    assert ran.code == 130
    assert "quiet-fox" in ran.out
    assert "[red]x·[2J[/nope]" in ran.out


def test_a_node_that_ends_ends_the_watch(run: Run, oracle: Oracle, seconds: list[Any]) -> None:
    """Exit 3."""
    oracle.answers["members"] = {"members": MEMBERS}
    seconds += [lambda: oracle.answers.update(members=None)]

    assert run("members", "--watch", "--json").code == 3


@pytest.mark.usefixtures("_terminal", "seconds")
@pytest.mark.parametrize("columns", [80, 92, 100, 120])
def test_a_narrow_terminal_takes_room_from_addresses(
    run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """The id stays one that can be typed."""
    monkeypatch.setenv("COLUMNS", str(columns))
    oracle.answers["members"] = {"members": MEMBERS}

    lines = run("members", "--watch").out.splitlines()

    assert max(map(len, lines)) <= columns
    assert lines[1].split()[-1] == MEMBERS[0]["id"][:14]


@pytest.mark.usefixtures("_terminal", "seconds")
def test_json_is_never_redrawn(run: Run, oracle: Oracle) -> None:
    """Also on a terminal: lines."""
    oracle.answers["members"] = {"members": MEMBERS}

    assert json.loads(run("members", "--watch", "--json").out)["members"][0]["name"] == "quiet-fox"


def test_the_shown_id_can_be_typed(run: Run, oracle: Oracle) -> None:
    """The short form is a prefix."""
    oracle.answers["members"] = {"members": MEMBERS}

    shown = run("members").out.splitlines()[1].split()[-1]

    assert MEMBERS[0]["id"].startswith(shown)
    assert len(shown) == 14


def test_a_long_name_does_not_spoil_the_table(run: Run, oracle: Oracle) -> None:
    """It is cut; JSON has it whole."""
    oracle.answers["members"] = renamed("x" * 5000)

    assert max(map(len, run("members").out.splitlines())) < 200
    assert json.loads(run("members", "--json").out)["members"][1]["name"] == "x" * 5000


@pytest.mark.usefixtures("_terminal")
def test_top_shows_messages_per_second(
    run: Run, oracle: Oracle, seconds: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second sample on: 80 messages in 4 seconds are 20.0/s; a node that began anew is not negative."""
    clock = iter(range(100, 1000, 4))
    monkeypatch.setattr("p2pgrid.cli.members.monotonic", lambda: float(next(clock)))
    oracle.answers["top"] = {"nodes": LOADS, "jobs": [JOB]}
    later = [{**LOADS[0], "messages": 200}, {**LOADS[1], "messages": 0}]
    seconds += [lambda: oracle.answers.update(top={"nodes": later, "jobs": [JOB], "unanswered": ["old-owl"]})]

    ran = run("top")

    assert ran.code == 130
    assert "2 nodes, 2 of 18 slots busy" in ran.out
    assert "MESSAGES/S" in ran.out
    assert "20.0" in ran.out
    assert "calm-river-42" in ran.out
    assert "18%" in ran.out
    assert "no answer from old-owl" in ran.out


def test_top_is_one_snapshot_where_nothing_can_be_redrawn(run: Run, oracle: Oracle) -> None:
    """Nodes and the jobs that have not ended."""
    oracle.answers["top"] = {"nodes": LOADS, "jobs": [JOB, {**JOB, "id": "over-1", "state": "done"}]}

    plain, as_json = run("top"), run("top", "--json")

    assert "over-1" not in plain.out
    assert [job["id"] for job in json.loads(as_json.out)["jobs"]] == ["calm-river-42"]
    assert len(oracle.heard) == 2
