"""Every example runs as a stranger would run it: as a program, in an empty folder, with no node there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import environment, left

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = [*sorted(FOLDER.glob("*.py")), FOLDER / "risk" / "risk.py"]
LINES_MAX = 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    """At most 60 lines, and a docstring."""
    text = path.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= LINES_MAX
    assert text.startswith('"""Shows ')


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_right(path: Path, tmp_path: Path) -> None:
    """It checks its own result; the node it started ends by itself."""
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "started one for this directory" in done.stderr
    assert left(tmp_path) == []


def test_there_are_eleven() -> None:
    """The ones the README names."""
    stems = ["adaptive", "hello", "invoices", "julia", "machines", "monte_carlo", "pipeline", "primes", "shared_array"]

    assert [path.stem for path in EXAMPLES] == [*stems, "wordcount", "risk"]
