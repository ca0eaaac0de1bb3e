"""Every Python snippet of the README and of docs/python.md runs, as a program of its own, in a folder of its own; so
does the README's tour of two machines, line by line, in two shells.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pgrid.core.errors import ExitCode
from tests.cli.processes import environment, left

ROOT = Path(__file__).parent.parent
README, PYTHON = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/python.md"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README + PYTHON, re.DOTALL)
LINE = re.compile(r"^(\w+)\$ +(.*?)(?: {2,}#.*)?$", re.MULTILINE)
"""`first$ command  # remark`: at which machine, and what."""
TOUR = LINE.findall(README.partition("<!-- tour -->")[2].partition("<!-- /tour -->")[0])
READ_AND_RUN = """
while IFS= read -r line <&3
do eval "$line" </dev/null 3<&- 4>&-; echo "$?" >&4
done 3<&0 4>&1 >>"$0" 2>&1
"""
"""Lines come in on stdin, their exit codes go out on stdout, what they say goes into the file."""
LINE_S = 240
TYPED_AGAIN = 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int, tmp_path: Path) -> None:
    """A reader who pastes it gets no error."""
    program = tmp_path / "snippet.py"
    program.write_text(SNIPPETS[number], encoding="utf-8")
    environment = {**os.environ, "P2PGRID_DIR": "", "XDG_DATA_HOME": str(tmp_path / "data")}
    del environment["P2PGRID_DIR"]

    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


class Shell:
    """A shell on a machine of its own: a data folder, and a port on loopback."""

    def __init__(self, home: Path, name: str, folder: Path) -> None:
        self.told = home / f"{name}.out"
        ours = {"XDG_DATA_HOME": str(home / name), "P2PGRID_NODE_LISTEN": "127.0.0.1:0"}
        path = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
        self._shell = subprocess.Popen(
            ["bash", "-c", READ_AND_RUN, str(self.told)],
            cwd=folder, env={**environment(home), **ours, "PATH": path}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def type(self, line: str) -> tuple[int, str]:
        """Type a line; return what it ended with, and what has been printed meanwhile."""
        before = len(self.told.read_text()) if self.told.exists() else 0
        stdin, stdout = self._shell.stdin, self._shell.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{line}\n")
        stdin.flush()
        status = int(stdout.readline())
        return status, self.told.read_text()[before:]

    def must(self, line: str) -> tuple[int, str]:
        """Type a line, again where it says that others were not noticed in time: a machine may have much else to do."""
        for _ in range(TYPED_AGAIN):
            status, text = self.type(line)
            if status != ExitCode.TIMED_OUT:
                return status, text
        return self.type(line)

    def close(self) -> None:
        """End it, and what it started with it."""
        self._shell.communicate(timeout=LINE_S)


@contextmanager
def two_machines(home: Path, *, folders: bool) -> Iterator[dict[str, Shell]]:
    """Have two shells with the commands, in one folder or (`folders`) in one each; their nodes end with them."""
    (home / "bin").mkdir()
    for name, words in (("p2pgrid", "-m p2pgrid"), ("python", "")):
        script = home / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    shells: dict[str, Shell] = {}
    for name in ("first", "second"):
        folder = home / f"at-{name}" if folders else home
        folder.mkdir(exist_ok=True)
        shells[name] = Shell(home, name, folder)
    try:
        yield shells
    finally:
        for shell in shells.values():
            shell.type("p2pgrid stop; kill -TERM $(jobs -p)")
            shell.close()
        assert left(home) == []


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[dict[str, Shell]]:
    """Two machines that have the commands, and the program of the tour, and share nothing else but a folder."""
    for name in ("where.py", "later.py"):
        (program,) = [snippet for snippet in SNIPPETS if snippet.startswith(f"# {name}\n")]
        (tmp_path / name).write_text(program, encoding="utf-8")
    with two_machines(tmp_path, folders=False) as shells:
        yield shells


@pytest.mark.slow
def test_tour_of_two_machines(shells: dict[str, Shell]) -> None:
    """Line by line: two nodes become one grid, a program uses both, one is killed amid its job, the other tells it."""
    said: list[str] = []
    typed: list[str] = []
    for name, line in TOUR:
        status, text = shells[name].must(line)
        for _ in range(TYPED_AGAIN):
            if line != "python where.py" or "kill -9 %1" in typed or "'wren':" in text:
                break
            status, text = shells[name].must(line)  # wren came too late for so short a job
        said.append(text)
        typed.append(line)

        assert status == 0, f"{name}$ {line}: {text}"

    lines = [line for _, line in TOUR]
    members = said[lines.index("p2pgrid members")]
    first, second = (text for line, text in zip(lines, said, strict=True) if line == "python where.py")
    squares = said[lines.index("p2pgrid result squares")]
    assert [line for line in squares.splitlines() if line.isdecimal()] == [str(number**2) for number in range(200)]
    assert "otter" in members
    assert "wren" in members
    assert "'otter':" in first
    assert "'wren':" in first
    assert "{'otter': 200}" in second
