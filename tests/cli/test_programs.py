"""`p2pgrid run`, `map` and `submit` at real nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.cli.programs import _Done, _Streams
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.cli.processes import environment, until

SOON_S = 60.0
SCRIPT = """\
import sys
import parts
print(parts.NAME, sys.argv[1:])
print("to errors", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Two nodes of one slot."""
    with LocalGrid(nodes=2) as local:
        yield local


class Shell:
    """A folder in which verbs are typed."""

    def __init__(self, home: Path, directory: Path) -> None:
        self.home = home
        (home / "model.py").write_text(SCRIPT)
        (home / "parts.py").write_text("NAME = 'mine'\n")
        self._words = [sys.executable, "-m", "p2pgrid", "--dir", str(directory)]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._words, *words], cwd=self.home, env=environment(self.home), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, said: str = "") -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(said, timeout=240)
        return process.returncode, out, err


@pytest.fixture
def shell(tmp_path: Path, local: LocalGrid) -> Shell:
    """At the first node."""
    return Shell(tmp_path, local.nodes[0].dir)


@pytest.mark.slow
def test_run(shell: Shell) -> None:
    """A script travels with its modules; its streams stay apart and its code is ours."""
    assert shell.run("run", "./model.py", "3", "--flag") == (3, "mine ['3', '--flag']\n", "to errors\n")
    assert shell.run("run", "--", "sh", "-c", "kill -9 $$")[0] == 137
    code, out, _ = shell.run("run", "--json", "--", "echo", "{}")
    (told,) = json.loads(out)["results"]
    assert (code, told["returncode"], told["stdout"], told["error"]) == (0, 0, "{}\n", None)


@pytest.mark.slow
def test_our_own_failures_are_125(shell: Shell) -> None:
    """Whatever they are; each is one line."""
    for words in (["./gone"], ["--nope", "ls"], ["--on", "1 +", "ls"], ["--on", "name == 'x'", "ls"], ["no-such-cmd"]):
        code, out, err = shell.run("run", *words)
        assert (code, out, len(err.splitlines())) == (125, "", 1), (words, err)
    assert shell.run("map", "'", "a")[0] == 125


@pytest.mark.slow
def test_run_everywhere_and_somewhere(shell: Shell) -> None:
    """With the node's name before each line; the first code that is not 0 is ours."""
    code, out, _ = shell.run("run", "--all", "--", "printf", r"a\nb")
    assert (code, out) == (0, "n0: a\nn0: b\nn1: a\nn1: b\n")
    assert shell.run("run", "--on", "name == 'n1'", "--", "sh", "-c", "exit 4")[0] == 4


@pytest.mark.slow
def test_map_keeps_the_order(shell: Shell) -> None:
    """Outputs in the order of the items, those of stdin too; the first code that is not 0 is ours."""
    template = "sh -c 'sleep 0.$1; echo out $1; echo err $1 >&2; exit $1' - {}"
    assert shell.run("map", template, "3", "0", "2") == (
        3, "out 3\nout 0\nout 2\n", "err 3\nerr 0\nerr 2\n"
    )  # fmt: skip
    many = [f"item {number}" for number in range(300)]
    code, out, _ = shell.run("map", "echo", "-", said="\n".join(many))
    assert (code, out.splitlines()) == (0, many)
    assert shell.run("map", "echo", "-") == (0, "", "")


@pytest.mark.slow
def test_submit_is_detached(shell: Shell) -> None:
    """It prints the id and goes; a program that ends with another code than 0 has failed, its lines are kept."""
    code, job, _ = shell.run("submit", "--name", "twice", "model.py", "2")
    assert code == 0
    assert shell.run("wait", job.strip())[0] == 1
    assert shell.run("logs", "twice")[1] == "mine ['2']\nto errors\n"
    _, out, _ = shell.run("submit", "--json", "--", "echo", "hi")
    assert shell.run("wait", json.loads(out)["id"])[0] == 0
    row = json.loads(shell.run("result", "last", "--format", "jsonl")[1])
    assert row["value"] == {"args": ["echo", "hi"], "returncode": 0, "stdout": "hi\n", "stderr": ""}
    listed = json.loads(shell.run("jobs", "--json")[1])["jobs"]
    assert [job["name"] for job in listed[:2]] == ["echo", "twice"]  # without a name of its own it is the command's
    assert shell.run("submit", "nothing-here.py")[0] == 2


@pytest.mark.slow
def test_lines_come_while_it_runs_and_an_interrupt_ends_it(shell: Shell) -> None:
    """Ctrl-C: the command is gone, whatever it started too; 130."""
    process = shell.start("run", "--", "sh", "-c", "echo $$; sleep 600 & wait")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SOON_S)
    assert process.returncode == 130
    assert until(lambda: not Path(f"/proc/{pid}").exists(), SOON_S)


@pytest.mark.slow
def test_grid_run_takes_a_script_along(shell: Shell, local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, on every node."""
    monkeypatch.chdir(shell.home)
    with Grid(local.nodes[0].dir, embedded=False) as grid:
        done = {key: future.result(SOON_S) for key, future in grid.run(["./model.py", "0"]).items()}
    assert {key: (one.returncode, one.stdout) for key, one in done.items()} == dict.fromkeys(
        ["n0", "n1"], (0, "mine ['0']\n")
    )


def streams(capfd: pytest.CaptureFixture[str], out: str, *came: str) -> str:
    """Return what is shown of a task whose lines came so."""
    shown = _Streams("")
    for line in came:
        shown.came("stdout", line)
    shown.end(_Done(0, 0, out, "", None))
    return capfd.readouterr().out


def test_what_came_is_not_shown_twice(capfd: pytest.CaptureFixture[str]) -> None:
    """The rest follows, however it was cut, and what came differently is shown as it is."""
    assert streams(capfd, "a\nb\nc", "a", "b") == "a\nb\nc"
    assert streams(capfd, "a\nb\u2028c\n", "a", "b\u2028c") == "a\nb\u2028c\n"
    assert streams(capfd, "10%\r20%\rdone\nx\n", "done") == "done\nx\n"
    assert streams(capfd, "a\nc\n", "a", "b") == "a\nb\nc\n"
    assert streams(capfd, "y" * 5000 + "\nz\n", "y" * 4000, "z") == "y" * 5000 + "\nz\n"
