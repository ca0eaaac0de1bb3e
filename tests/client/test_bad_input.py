"""What a person gives that cannot work: one line that says so, before anything of it is sent (issue 8, bad input)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import p2pgrid as pg
from p2pgrid.client import gathering
from p2pgrid.client.grid import Grid
from p2pgrid.client.programs import Program
from p2pgrid.core import messages as m
from tests.client.conftest import Connect
from tests.client.scripted import ScriptedNode

SENT = {m.OPEN, m.CODE, m.INPUT, m.CLOSE}
"""Frames by which work is handed over."""


class Given:
    """A project with a package of its own, and a Grid."""

    def __init__(self, folder: Path, grid: Grid, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.grid, self.patch = folder, grid, patch
        self.package = folder / "badpkg"
        self.package.mkdir()
        (self.package / "__init__.py").write_text("def f(x=0):\n    return x\n")

    def submit(self) -> None:
        """Submit a function of the package."""
        self.grid.submit(importlib.import_module("badpkg").f, 1)


@pytest.fixture
def given(tmp_path: Path, node: ScriptedNode, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield Given(folder, connect(), monkeypatch)
    sys.modules.pop("badpkg", None)


def too_large(given: Given) -> None:
    given.patch.setattr(gathering, "TREE_BYTES_MAX", 10_000)
    (given.package / "big.bin").write_bytes(bytes(20_000))
    given.submit()


def link_that_leaves(given: Given) -> None:
    (given.package / "out").symlink_to("/usr")
    given.submit()


def changed_while_packed(given: Given) -> None:
    log = given.package / "log.txt"
    log.write_text("")
    really = os.fstat

    def fstat(fd: int) -> os.stat_result:
        with log.open("a") as file:
            file.write("one more line\n")
        return really(fd)

    given.patch.setattr(os, "fstat", fstat)
    given.submit()


def folder_for_a_file(given: Given) -> None:
    given.grid.submit(len, pg.File(given.package))


def no_such_command(_: Given) -> None:
    Program(["./gone", "--now"])


def env_that_is_no_text(given: Given) -> None:
    given.grid.options(env={"LEVEL": 3})


def where_that_does_not_parse(given: Given) -> None:
    given.grid.options(where="cpus >> 3")


CASES: dict[Callable[[Given], Any], tuple[type[Exception], str]] = {
    too_large: (pg.QuotaExceeded, "big.bin"),
    link_that_leaves: (pg.NotSerializable, "badpkg/out is a link that leaves its package, to /usr"),
    changed_while_packed: (pg.NotSerializable, "badpkg/log.txt changes while it is packed"),
    folder_for_a_file: (IsADirectoryError, "badpkg is a folder: pass a File for each file in it"),
    no_such_command: (pg.GridError, "./gone: No such file or directory; next: check the path"),
    env_that_is_no_text: (TypeError, "'LEVEL' is int"),
    where_that_does_not_parse: (ValueError, "where, column 7: expected a name or a value, found >: cpus >▶> 3"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_one_line_before_anything_is_sent(
    given: Given, node: ScriptedNode, case: Callable[[Given], Any]
) -> None:
    """It names what is wrong; the Grid goes on, and what is given next is all that is sent."""
    kind, text = CASES[case]
    with pytest.raises(kind) as caught:
        case(given)

    said = str(caught.value)
    assert text in said
    assert "\n" not in said
    assert given.grid.submit(pow, 2, 5).result(10.0) == 32
    assert [one for one in node.kinds() if one in SENT].count(m.OPEN) == 1
    assert [one for one in node.kinds() if one in SENT].count(m.INPUT) == 1
