"""The demo, whole: real nodes, a real program, real kills and signals; and nothing is left of it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from p2pgrid.cli import julia
from p2pgrid.cli.demo import JOINS, MAY_DIE, NAMES, TAKES
from tests.cli.processes import environment, left, p2pgrid

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("seed", "size"), [("1", "800x600"), ("2", "400x300")])
def test_demo_ends_identical(tmp_path: Path, seed: str, size: str) -> None:
    """The program is killed, the node that took the job, one more; and the picture is the serial one."""
    done = p2pgrid(tmp_path, "demo", "--seed", seed, "--size", size, "--no-input")

    assert done.returncode == 0, done.stderr
    acts = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [line[0] for line in acts] == ["1", "2", "3", "4", "5"]
    assert "the program that asked is dead" in acts[2]
    assert f"{TAKES}, the node that took the job, is dead" in done.stdout
    assert sum(f": {name} is dead" in done.stdout for name in MAY_DIE) == 1
    assert f"{JOINS} " in done.stdout
    assert "which never saw the program:   p2pgrid result " in acts[3]
    assert "IDENTICAL" in done.stdout
    assert "your turn" not in done.stdout
    for name in ("julia.png", "who-made-what.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert left(tmp_path) == []


def test_demo_as_json(tmp_path: Path) -> None:
    """One object on stdout; the picture is what its seed says; who was killed is named, each with its pid."""
    done = p2pgrid(tmp_path, "demo", "--seed", "1", "--size", "200x150", "--json")

    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert (told["v"], told["seed"], told["identical"], told["rows"]) == (1, 1, True, 150)
    assert told["program"]
    assert told["owner"] == TAKES
    assert told["owner_killed"]
    assert told["killed"]
    assert told["victim"] in MAY_DIE
    assert list(told["nodes"]) == [*NAMES, JOINS]
    assert sum(told["nodes"].values()) == 150
    pictures = {
        hashlib.sha256(b"".join(julia.row(julia.Scene(200, 150, c), y) for y in range(150))).hexdigest()
        for c in julia.CONSTANTS
    }
    assert told["sha256"] in pictures


def test_the_person_watching_says_who_dies(tmp_path: Path) -> None:
    """On a terminal it asks; the key that is pressed names the victim, whatever the seed says."""
    keyboard, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 100))
    demo = subprocess.Popen(
        [sys.executable, "-m", "p2pgrid", "demo", "--seed", "1", "--size", "800x600"],
        cwd=tmp_path, env={**environment(tmp_path), "TERM": "xterm-256color"},
        stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(terminal)

    shown = _typed_when_asked(keyboard, b"f")
    _, err = demo.communicate(timeout=240)
    os.close(keyboard)

    assert demo.returncode == 0, err
    assert "[w]ren [f]ox [l]ynx" in shown
    assert "fox is dead" in shown
    assert "▀" in shown
    assert "IDENTICAL" in shown
    assert left(tmp_path) == []


def _typed_when_asked(keyboard: int, key: bytes) -> str:
    """Read all that the demo shows; press the key at the question."""
    shown = b""
    asked = False
    while True:
        try:
            shown += os.read(keyboard, 65536)
        except OSError:  # its other end is closed: the demo has ended
            return shown.decode(errors="replace")
        if not asked and b"your turn" in shown:
            asked = True
            os.write(keyboard, key)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle of the picture: 130, and no process of it lives."""
    demo = _until_rows_come(tmp_path)

    os.kill(demo.pid, number)
    _, err = demo.communicate(timeout=240)

    assert demo.returncode == 130, err
    assert "Traceback" not in err
    assert left(tmp_path) == []
    assert not list(tmp_path.glob("p2pgrid-*"))


def test_killed_demo_leaves_nothing(tmp_path: Path) -> None:
    """Even SIGKILL: the nodes have their guards."""
    demo = _until_rows_come(tmp_path)

    demo.kill()
    demo.communicate(timeout=240)

    assert left(tmp_path) == []


def _until_rows_come(home: Path) -> subprocess.Popen[str]:
    demo = subprocess.Popen(
        [sys.executable, "-m", "p2pgrid", "demo", "--seed", "1"],
        cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert demo.stdout is not None
    for line in demo.stdout:
        if "10 %" in line:
            return demo
    raise AssertionError(demo.communicate()[1])
