"""Which words of a command line travel as files, and what is refused before anything is sent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from p2pgrid.client.programs import Program
from p2pgrid.core.errors import GridError, QuotaExceeded
from p2pgrid.core.tree import read_tree
from p2pgrid.core.wire import unpack


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script of each kind, and a module beside them."""
    (tmp_path / "model.py").write_text("import consts\nprint(consts.X)\n")
    (tmp_path / "consts.py").write_text("X = 5\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "notes.txt").write_text("nothing to run")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(program: Program) -> tuple[list[object], list[str]]:
    """Return the words as they travel, and the files that go along."""
    kind, argv, tree = unpack(program.function.union)
    assert kind == "exec"
    files = program.function.tree
    assert (tree is None) == (files is None)
    return argv, [] if files is None else [one.path for one in read_tree(files.packed)]


@pytest.mark.parametrize(
    ("argv", "words", "files"),
    [
        (["uname", "-a"], ["uname", "-a"], []),
        (["/bin/sh", "-c", "x"], ["/bin/sh", "-c", "x"], []),
        (["./tool", "a"], [["file", "tool"], "a"], ["tool"]),
        (["./model.py", "-n"], [["python"], ["file", "model.py"], "-n"], ["consts.py", "model.py"]),
        (["python3", "-O", "model.py", "other.py"], ["python3", "-O", ["file", "model.py"], "other.py"],
         ["consts.py", "model.py"]),
        (["env/bin/python", "model.py"], ["env/bin/python", ["file", "model.py"]], ["consts.py", "model.py"]),
        (["sh", "tool", "notes.txt"], ["sh", ["file", "tool"], "notes.txt"], ["tool"]),
        (["python3", "-m", "model.py"], ["python3", "-m", "model.py"], []),
        (["cat", "notes.txt"], ["cat", "notes.txt"], []),
    ],
)  # fmt: skip
def test_what_goes_along(here: Path, argv: list[str], words: list[object], files: list[str]) -> None:
    """What is given by a path, the script of an interpreter, and what a Python script imports."""
    before = list(sys.path)
    assert said(Program(argv)) == (words, files)
    assert sys.path == before


def test_an_executable_stays_one(here: Path) -> None:
    """On the way."""
    tree = Program(["./tool"]).function.tree
    assert tree is not None
    assert [one.executable for one in read_tree(tree.packed)] == [True]


def test_an_edited_script_is_another_program(here: Path) -> None:
    """It travels anew; the same one does not."""
    first = Program(["./model.py"]).function
    again = Program(["./model.py"]).function
    (here / "consts.py").write_text("X = 6\n")
    assert first.id == again.id
    assert Program(["./model.py"]).function.id != first.id


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["./gone"], "No such file"),
        (["./sub"], "is a folder"),
        (["./notes.txt"], r"not executable; next: chmod \+x"),
        (["model.py"], r"a file here; next: give its path: \./model\.py"),
        ([""], "no command"),
        (["./a\0b"], "null"),
    ],
)
def test_what_cannot_run_is_refused_at_once(here: Path, argv: list[str], why: str) -> None:
    """In one line that says what to do."""
    with pytest.raises(GridError, match=why) as caught:
        Program(argv)
    assert caught.value.code == "usage"
    assert "\n" not in str(caught.value)


def test_a_script_by_its_name(here: Path) -> None:
    """`p2pgrid submit model.py` means the file."""
    assert said(Program(["model.py"], is_script=True))[0] == [["python"], ["file", "model.py"]]


def test_too_large(here: Path) -> None:
    """A program of more than 20 MiB is installed, not sent."""
    os.truncate("tool", 21 << 20)
    with pytest.raises(QuotaExceeded, match="install it where tasks run"):
        Program(["./tool"])
