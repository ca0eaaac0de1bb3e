"""`p2pgrid logs`: at every node, and as it is printed."""

from __future__ import annotations

import json

import pytest

from p2pgrid.cli.logs import KEPT_BYTES, Shown
from tests.cli.conftest import Run
from tests.cli.oracle import Oracle


def test_only_what_is_new_is_shown() -> None:
    """Of an output that grows, the rest; of a line that has not ended yet nothing, until the end."""
    shown = Shown()
    grows = [b"one\n", b"one\ntw", b"one\ntwo\n", b"one\ntwo\n", b"one\ntwo\nthr"]

    assert [shown.fresh(3, data, whole_lines=True) for data in grows] == [b"one\n", b"", b"two\n", b"", b""]
    assert shown.fresh(3, grows[-1], whole_lines=False) == b"thr"
    assert shown.fresh(4, b"other\n", whole_lines=True) == b"other\n"


def test_the_end_of_a_long_output_is_found_again() -> None:
    """Only its last 64 KiB are kept: what was shown of them is known by how it ended."""
    shown = Shown()
    lines = b"".join(b"%07d\n" % number for number in range(20_000))
    shown.fresh(0, lines[:KEPT_BYTES], whole_lines=True)

    assert shown.fresh(0, lines[800:][:KEPT_BYTES], whole_lines=True) == lines[KEPT_BYTES : KEPT_BYTES + 800]
    assert shown.fresh(0, lines[-KEPT_BYTES:], whole_lines=True) == lines[-KEPT_BYTES:]


def test_a_task_that_runs_again_is_shown_again() -> None:
    """Its output is shorter than it was."""
    shown = Shown()
    shown.fresh(0, b"one\ntwo\n", whole_lines=True)

    assert shown.fresh(0, b"one\n", whole_lines=True) == b"one\n"


def test_follow_ends_with_the_job(run: Run, oracle: Oracle) -> None:
    """As text with the index before each line, as JSON one line for each piece."""
    oracle.answers["show"] = {"job": {"state": "done", "total": 5}}
    oracle.answers["logs"] = {"logs": [[3, b"one\ntwo\n"], [4, b"half"]]}

    plain, as_json = run("logs", "-f", "nightly"), run("logs", "--follow", "nightly", "--json")

    assert (plain.code, plain.out, plain.err) == (0, "3 | one\n3 | two\n4 | half\n", "")
    told = [json.loads(line) for line in as_json.out.splitlines()]
    assert told == [{"v": 1, "index": 3, "text": "one\ntwo\n"}, {"v": 1, "index": 4, "text": "half"}]


@pytest.mark.parametrize("found", [{"job": {"state": "done", "total": 1}}, {"job": {}, "task": {"state": "failed"}}])
def test_a_single_task_is_followed_as_it_is(run: Run, oracle: Oracle, found: dict[str, object]) -> None:
    """A job of one task, or a task that was named: nothing stands before its lines."""
    oracle.answers["show"] = found
    oracle.answers["logs"] = {"logs": [[0, b"one\ntwo"]]}

    assert run("logs", "-f", "nightly").out == "one\ntwo"


def test_logs_of_all_jobs_name_theirs(run: Run, oracle: Oracle) -> None:
    """Each job is asked for by itself: tasks of one number are not mixed up."""
    oracle.answers["jobs"] = {"jobs": [{"id": "new-1", "hex": "b" * 32}, {"id": "old-1", "hex": "a" * 32}]}
    oracle.answers["logs"] = {"logs": [[0, b"one\ntwo\n"]]}

    plain, as_json = run("logs", "all"), run("logs", "all", "--json")

    assert plain.out == "old-1/0 | one\nold-1/0 | two\nnew-1/0 | one\nnew-1/0 | two\n"
    assert [arguments["target"] for verb, arguments in oracle.heard[:3] if verb == "logs"] == ["a" * 32, "b" * 32]
    told = json.loads(as_json.out)
    assert [(one["job"], one["index"], one["text"]) for one in told["logs"]] == [
        ("old-1", 0, "one\ntwo\n"), ("new-1", 0, "one\ntwo\n")
    ]  # fmt: skip


def test_one_job_is_followed_at_a_time(run: Run, oracle: Oracle) -> None:
    """It is said before anything is asked."""
    followed = run("logs", "-f", "all")

    assert (followed.code, oracle.heard) == (2, [])
    assert "one job at a time" in followed.err


def test_nothing_was_printed_by_any_job(run: Run, oracle: Oracle) -> None:
    """In one line; a job that is gone by then is named."""
    oracle.answers["jobs"] = {"jobs": [{"id": "old-1", "hex": "a" * 32}]}
    oracle.answers["logs"] = {"code": "not-found", "message": "no job 'a' here", "next": "p2pgrid jobs"}
    shown = run("logs", "all")

    assert (shown.code, shown.out) == (0, "")
    assert "old-1: no job 'a' here" in shown.err
    assert "there is no output of any job" in shown.err
