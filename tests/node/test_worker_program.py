"""What a worker child does with a command: the words, both streams, the end, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.missing import NoProgram, missing_program
from p2pgrid.node import worker_program
from p2pgrid.node.worker_functions import unfit_at
from p2pgrid.node.worker_program import Program


def test_words_become_a_command_line(tmp_path: Path) -> None:
    """Texts stay, files are where the tree is, and python is the interpreter of the worker."""
    (tmp_path / "a.py").write_text("import sys; print(sys.argv[1:], sys.executable)")
    done = Program([["python"], ["file", "a.py"], "x y"], str(tmp_path))()
    assert (done.returncode, done.stdout) == (0, f"['x y'] {sys.executable}\n")


@pytest.mark.parametrize(
    ("words", "said"), [(["echo", "a{}b", "{}{}"], "aX Yb X YX Y\n"), (["echo"], "X Y\n"), (["echo", "c"], "c X Y\n")]
)
def test_an_item_takes_the_place_of_each_hole(words: list[str], said: str) -> None:
    """As one word, whatever is in it; without a hole it comes last."""
    assert Program(words, "")("X Y").stdout == said


def test_an_item_that_is_a_hole_is_put_in_once() -> None:
    """What an item says is no template."""
    assert Program(["echo", "{}"], "")("{}").stdout == "{}\n"


def test_without_an_item_holes_are_text() -> None:
    """`p2pgrid run -- echo {}` means it."""
    assert Program(["echo", "{}"], "")().stdout == "{}\n"


def test_both_streams_and_the_code_come_back_and_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8 survive; nothing can be read."""
    done = Program(["sh", "-c", r"printf '\377'; echo err >&2; wc -c; exit 7"], "")()
    assert done.returncode == 7
    assert done.stdout.encode(errors="surrogateescape").split() == [b"\xff0"]
    assert done.stderr == "err\n"
    assert capfd.readouterr().err == "err\n"


def test_what_is_killed_says_by_what() -> None:
    """As `subprocess` does."""
    assert Program(["sh", "-c", "kill -9 $$"], "")().returncode == -9


def test_check_makes_a_failure_of_a_code() -> None:
    """For jobs that nobody watches."""
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        Program(["sh", "-c", "exit 3"], "")(check=True)
    assert Program(["true"], "")(check=True).returncode == 0


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """It names the command; that is held against the node, unless it is the item that names it."""
    script = tmp_path / "model"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(NoProgram, match=r"no such command .*no-such-command") as bare:
        Program(["no-such-command"], "")("an item")
    with pytest.raises(NoProgram) as sent:
        Program([["file", "model"]], str(tmp_path))()
    with pytest.raises(FileNotFoundError) as named:
        Program(["{}", "--version"], "")("no-such-command")

    assert [unfit_at(one.value, 3) is not None for one in (bare, sent, named)] == [True, True, False]
    assert str(unfit_at(bare.value, 3)) == missing_program("no-such-command")
    assert str(unfit_at(sent.value, 3)) == missing_program("model, or what its first line names,")


def test_nothing_is_left_of_a_program_that_has_ended() -> None:
    """Neither does anybody wait for what it put into the background."""
    done = Program(["sh", "-c", "sleep 600 & echo $!"], "")()
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_output_has_a_limit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """An endless program is ended, not the node's memory."""
    monkeypatch.setattr(worker_program, "OUTPUT_MAX", 1 << 20)
    with pytest.raises(QuotaExceeded, match="printed more than 1 MiB"):
        Program(["yes"], "")()
    assert len(capfd.readouterr().out) < 1 << 22


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"
