"""The command line as a function, in a world without nodes; and a node that says what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from p2pgrid.cli.main import main
from tests.cli.oracle import Oracle


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own: no node of the developer's is ever found."""
    monkeypatch.delenv("P2PGRID_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("p2pgrid.core.locate.SYSTEM_DIR", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("jobs", "--json")`."""

    def run(*words: str) -> Ran:
        code = main(words)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def oracle(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Oracle]:
    """A scripted node where `P2PGRID_DIR` points."""
    folder = home / "n"
    folder.mkdir()
    monkeypatch.setenv("P2PGRID_DIR", str(folder))
    with Oracle(folder) as oracle:
        yield oracle
