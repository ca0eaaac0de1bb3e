"""`wait` and `result`: order, formats, failures, windows; and values that are shown by a child of their own."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli import shown
from p2pgrid.cli.parts import HELD_STEP_BYTES
from p2pgrid.cli.shown import Showing
from p2pgrid.core import messages as m
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ids import job_name
from p2pgrid.core.wire import pack
from tests.cli.conftest import Run
from tests.cli.oracle import Oracle
from tests.cli.test_verbs import JOB, TASKS, _golden

ID = bytes.fromhex(JOB["hex"])
NAME = job_name(ID)


def _value(lo: int, *values: Any) -> list[Any]:
    return [lo, lo + len(values), 0, [b"" if one is None else pickle.dumps(one, 5) for one in values], "n", 1]


def _packed(lo: int, *values: Any) -> list[Any]:
    return [lo, lo + len(values), 1, pickle.dumps(list(values), 5), "n", 1]


def _failed(lo: int, error: Exception) -> list[Any]:
    return [lo, lo + 1, 2, pack(encode_exception(error)), "n", 1]


def _scene(oracle: Oracle, *entries: list[Any], state: str = "done", total: int = 6, **found: Any) -> None:
    """Let the node know a job, send these results one frame each, and end."""
    oracle.answers["find"] = {"job": ID, "lo": None, "hi": None, **found}
    oracle.answers["show"] = {"job": {**JOB, "state": state, "total": total}, "tasks": TASKS}
    oracle.answers["members"] = {"members": []}
    oracle.frames = [(m.RESULT, [ID, [entry]]) for entry in entries]
    if state:
        oracle.frames.append((m.STATE, [ID, state, ""]))


MIXED = (_value(2, "b", None), _packed(4, 2.5, [1]), _failed(1, ValueError("no\nway")), _value(0, {"a": (1, 2)}))


def test_one_line_per_task_in_index_order(run: Run, oracle: Oracle) -> None:
    """Whatever the order in which they come; what failed is on stderr, and the exit code says so."""
    _scene(oracle, *MIXED, state="failed")
    ran = run("result", "last")

    assert ran.out == "{'a': (1, 2)}\n'b'\nNone\n2.5\n[1]\n"
    assert (ran.code, ran.err) == (1, f"{NAME}/1: ValueError: no way\n")


def test_follow_is_in_order_of_completion(run: Run, oracle: Oracle) -> None:
    """As they come."""
    _scene(oracle, *MIXED, state="failed")

    assert run("result", "last", "--follow").out == "'b'\nNone\n2.5\n[1]\n{'a': (1, 2)}\n"


def test_lines_of_json(run: Run, oracle: Oracle) -> None:
    """A line for each task, what failed among them; a value that JSON cannot say has its repr alone."""
    _scene(oracle, *MIXED, _value(6, {1, 2}), state="failed", total=7)
    ran = run("result", "last", "--format", "jsonl")

    assert (ran.code, ran.err) == (1, "")
    assert ran.out == _golden("result.jsonl", ran.out)
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["value"] for row in rows] == [{"a": [1, 2]}, None, "b", None, 2.5, [1], None]
    assert [row["state"] for row in rows] == ["done", "failed", *["done"] * 5]
    assert rows[6]["repr"] == "{1, 2}"


def test_one_object(run: Run, oracle: Oracle) -> None:
    """`--json` is one object; with `--follow` it is lines."""
    _scene(oracle, *MIXED, state="failed")
    ran = run("result", "last", "--json")

    text = json.dumps(json.loads(ran.out), indent=2) + "\n"
    assert text == _golden("result.json", text)
    assert ran.out.count("\n") == 1
    assert run("result", "last", "--json", "--follow").out.count("\n") == 6


def test_pickles_to_a_file(run: Run, oracle: Oracle, tmp_path: Path) -> None:
    """(index, value), one after the other; the file is there when it is whole."""
    _scene(oracle, *MIXED, state="failed")
    out = tmp_path / "found.pickle"
    ran = run("result", "last", "--format", "pickle", "--output", str(out))
    with out.open("rb") as file:
        found = [pickle.load(file) for _ in range(5)]

    assert (ran.code, ran.out) == (1, "")
    assert found == [(0, {"a": (1, 2)}), (2, "b"), (3, None), (4, 2.5), (5, [1])]
    assert [one.name for one in tmp_path.glob("*found*")] == ["found.pickle"]


def test_a_file_that_cannot_be_written(run: Run, oracle: Oracle, tmp_path: Path) -> None:
    """Is told before anything is asked."""
    ran = run("result", "last", "--output", str(tmp_path / "no" / "such"))

    assert (ran.code, oracle.heard) == (2, [])
    assert "cannot be written" in ran.err


def test_some_tasks_of_a_job(run: Run, oracle: Oracle) -> None:
    """Only they are asked for, and nobody waits for the end of the job."""
    _scene(oracle, _packed(2, 20, 30, 40, 50), state="", lo=3, hi=5)
    ran = run("result", "last/3-4")
    kind, body = oracle.told[0]

    assert (ran.code, ran.out) == (0, "30\n40\n")
    assert (kind, body[1][:3]) == (m.WATCH, [0, 3, 5])


def test_a_task_that_is_none(run: Run, oracle: Oracle) -> None:
    """The job has six."""
    _scene(oracle, lo=9, hi=10)
    ran = run("result", "last/9")

    assert (ran.code, ran.out) == (4, "")
    assert f"{NAME} has no task 9" in ran.err


def test_cancelled_tasks_are_named(run: Run, oracle: Oracle) -> None:
    """As far as the node says which; of the others how many there are."""
    _scene(oracle, _value(0, 1), state="cancelled")
    oracle.frames.insert(0, (m.CANCELLED, [ID, [2, 4]]))
    ran = run("result", "last")

    assert (ran.code, ran.out) == (1, "1\n")
    assert ran.err.splitlines() == [
        f"{NAME}/2: it was cancelled", f"{NAME}/3: it was cancelled",
        f"{NAME} is cancelled; 3 tasks of it without a result",
    ]  # fmt: skip


def test_a_job_that_nobody_has_any_more(run: Run, oracle: Oracle) -> None:
    """Exit 4, and why."""
    _scene(oracle, state="unknown")
    oracle.frames = [(m.STATE, [ID, "unknown", "n0, which had it, cannot be reached"])]

    for verb in ("result", "wait"):
        ran = run(verb, "last")
        assert (ran.code, ran.out) == (4, "")
        assert "n0, which had it, cannot be reached" in ran.err


def test_a_reader_who_may_not(run: Run, oracle: Oracle) -> None:
    """The refusal of the node that has the job."""
    why = {"code": "not-authorized", "message": "the role of n2 does not allow reading", "next": "p2pgrid promote n2"}
    _scene(oracle)
    oracle.frames = [(m.REFUSED, [ID, "watch", 0, why])]
    ran = run("result", "last")

    assert ran.code == 5
    assert "the role of n2 does not allow reading" in ran.err


def test_every_byte_is_credited_once(run: Run, oracle: Oracle) -> None:
    """Repeated results too; and when later ones fill up, the missing one is named."""
    big = "x" * (HELD_STEP_BYTES // 2)
    entries = [_value(2, big), _value(1, big), _value(1, big), _value(3, "c"), _value(0, "a"), _packed(3, "c", "d")]
    _scene(oracle, *entries, total=5)
    ran = run("result", "last", "--format", "jsonl")
    got = [body for kind, body in oracle.told if kind == m.GOT]
    sizes = sum(len(one[3]) if one[2] else len(one[3][0]) for one in entries)

    assert [json.loads(line)["value"] for line in ran.out.splitlines()] == ["a", big, big, "c", "d"]
    assert [ID, 0, 0] in got
    assert sizes - 200 <= sum(body[1] for body in got) <= sizes


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1), ("cancelled", 1), ("abandoned", 1)])
def test_wait_says_how_it_ended(run: Run, oracle: Oracle, state: str, code: int) -> None:
    """And asks for no results."""
    _scene(oracle, state=state)
    ran, as_json = run("wait", "last"), run("wait", "last", "--json")

    assert (ran.code, ran.out) == (code, f"{NAME} {state}\n")
    text = json.dumps(json.loads(as_json.out), indent=2) + "\n"
    assert state != "failed" or text == _golden("wait.json", text)
    assert oracle.told[0][1][1] == [0, (1 << 62) - 1]


def test_wait_gives_up(run: Run, oracle: Oracle) -> None:
    """Exit 6, and how to see why."""
    _scene(oracle, state="")
    ran = run("wait", "last", "--timeout", "100ms")

    assert (ran.code, ran.out) == (6, "")
    assert f"p2pgrid explain {NAME}" in ran.err
    assert run("wait", "last", "--timeout", "soon").code == 2


def test_pickles_are_for_no_terminal(run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no JSON."""
    assert run("result", "last", "--json", "--format", "pickle").code == 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run("result", "last", "--format", "pickle").code == 2


# ---- the child ------------------------------------------------------------------------------------------------------


class Calls:
    """A value whose pickle calls something when it is read."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> Any:
        return self.what


def _show(tmp_path: Path, form: str, *pickles: bytes) -> list[shown.Shown]:
    with Showing(tmp_path, sys.executable, form) as showing:
        return showing.show(0, pickles, len(pickles))


def test_nothing_is_unpickled_in_this_process(tmp_path: Path) -> None:
    """The process that reads a pickle is another, in a session and a folder of its own, without our environment."""
    os.environ["P2PGRID_JOIN"] = "a secret"
    try:
        pid, sid, environ, cwd = _show(
            tmp_path, "repr", *(pickle.dumps(Calls(*one)) for one in (
                (os.getpid,), (os.getsid, 0), (eval, "dict(__import__('os').environ)"), (os.getcwd,),
            )),
        )  # fmt: skip
    finally:
        del os.environ["P2PGRID_JOIN"]

    assert int(pid.text) == int(sid.text) != os.getpid()
    assert "secret" not in environ.text
    assert not Path(cwd.text.strip("'")).exists()


def test_a_value_writes_no_files_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its limits see to that."""
    target = tmp_path / "written"
    code = f"(lambda os: os.write(os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY), b'x'))(__import__('os'))"
    (one, two) = _show(tmp_path, "repr", pickle.dumps(Calls(eval, code)), pickle.dumps(Calls(print, "hello")))

    assert not one.readable
    assert not target.exists() or target.stat().st_size == 0
    assert (two.text, capfd.readouterr().out) == ("None", "")


@pytest.mark.parametrize("deadly", [Calls(os._exit, 3), Calls(os.kill, 0, 9), Calls(os.abort)])
def test_a_value_that_kills_the_child_spoils_no_other(tmp_path: Path, deadly: Calls) -> None:
    """It starts again for the rest."""
    if deadly.what[0] is os.kill:
        deadly = Calls(eval, "__import__('os').kill(__import__('os').getpid(), 9)")
    found = _show(tmp_path, "jsonl", pickle.dumps(1), pickle.dumps(deadly), pickle.dumps(3))

    assert [one.value for one in found] == [1, None, 3]
    assert [one.readable for one in found] == [True, False, True]
    assert "the process that was to show it" in found[1].text


def test_a_value_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it started."""
    monkeypatch.setattr(shown, "PATIENCE_S", 0.5)
    (one,) = _show(tmp_path, "repr", pickle.dumps(Calls(time.sleep, 600)))

    assert "took more than 0.5 s" in one.text


NOWHERE = b"cno_module_of_any_machine\nThing\n."
"""The pickle of a class that the child does not have."""


def test_values_whose_class_is_not_here_are_text(tmp_path: Path) -> None:
    """And in pickles a failure of their own; the others of that list as well, for they are one pickle."""
    (one,) = _show(tmp_path, "repr", NOWHERE)
    assert one.text.startswith("<a value that cannot be read here: ModuleNotFoundError: No module named 'no_mod")
    with Showing(tmp_path, sys.executable, "pickle") as showing:
        found = showing.show(1, b"(K\x01" + NOWHERE[:-1] + b"l.", 2)

    assert [one.readable for one in found] == [False, False]


def test_a_class_of_the_job_s_own_modules_is_found_in_its_source_tree(tmp_path: Path) -> None:
    """Where this node has run tasks of it; of several trees the last, and a name that is none is passed over."""
    for code, text in (("0a" * 16, "an old one"), ("0b" * 16, "a thing")):
        folder = tmp_path / "trees" / code / "module_of_the_job"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"class Thing:\n    def __repr__(self):\n        return {text!r}\n")
    pickled = b"cmodule_of_the_job\nThing\n)\x81."
    with Showing(tmp_path, sys.executable, "repr", ["0a" * 16, "0b" * 16, "../../etc", "0c" * 16]) as showing:
        (one,) = showing.show(0, [pickled], 1)

    assert (one.text, one.readable) == ("a thing", True)
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_list_of_another_length_is_none(tmp_path: Path) -> None:
    """A member that sends five values for two tasks."""
    with Showing(tmp_path, sys.executable, "repr") as showing:
        found = showing.show(1, pickle.dumps([1, 2, 3, 4, 5]), 2)

    assert [one.text for one in found] == ["<not as many values as there are tasks>"] * 2


@pytest.mark.parametrize(
    ("value", "is_json"),
    [
        (None, True), (True, True), (10**30, True), (1.5, True), (float("nan"), False), ("é", True), ("\ud800", True),
        (b"b", False),
        ([1, [2, "x"]], True), ((1, 2), True), ({"a": {"b": []}}, True), ({1: 2}, False), ({1}, False), (1j, False),
    ],
)  # fmt: skip
def test_what_json_can_say(tmp_path: Path, value: Any, is_json: bool) -> None:  # noqa: FBT001
    """Numbers, texts, lists and mappings of texts; the rest has its repr."""
    (one,) = _show(tmp_path, "jsonl", pickle.dumps(value))

    assert one.is_json is is_json
    assert one.text == repr(value)
    assert not is_json or one.value == json.loads(json.dumps(value))


def test_arrays_take_one_line(run: Run, oracle: Oracle) -> None:
    """One line per task, whatever its repr; and nothing that a terminal would obey."""
    _scene(oracle, _value(0, Calls(eval, "type('A', (), {'__repr__': lambda s: 'array([1,\\n       2])'})()")),
           _value(1, Calls(eval, "type('B', (), {'__repr__': lambda s: '\\x1b[2J'})()")), total=2)  # fmt: skip

    assert run("result", "last").out == "array([1, 2])\n·[2J\n"
