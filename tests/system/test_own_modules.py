"""A program with modules of its own, on nodes that were started elsewhere by other interpreters. Real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pgrid as pg
from p2pgrid.client.localgrid import LocalGrid
from tests.pythons import another_python

pytestmark = pytest.mark.slow

ROOT = Path(pg.__file__).parent.parent
PROGRAM = """\
import sys
import p2pgrid as pg
from mypkg.sim import Model, evolve, run
import helper

with pg.Grid(sys.argv[1], embedded=False) as grid:
    print(list(grid.map(run, range(4))))
    print(grid.submit(evolve, Model(3)).result() == Model(4))
    print(list(grid.map(lambda x: run(x) + helper.VALUE, range(3))))
    print(grid.submit(evolve, grid.submit(evolve, grid.put(Model(1)))).result() == Model(3))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package of its own: relative imports, a subpackage, a data file; and a module beside it."""
    package = tmp_path / "mypkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "rates.txt").write_text("7")
    (package / "deep" / "__init__.py").write_text("from .. import deep\ndef scale(x):\n    return 2 * x\n")
    (package / "sim.py").write_text(
        "from dataclasses import dataclass\nfrom importlib.resources import files\nfrom .deep import scale\n"
        "@dataclass\nclass Model:\n    x: int\n"
        "def run(x):\n    return scale(x) * int(files('mypkg').joinpath('rates.txt').read_text())\n"
        "def evolve(m):\n    assert isinstance(m, Model)\n    return Model(m.x + 1)\n"
    )
    (tmp_path / "helper.py").write_text("VALUE = 5\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with nothing installed and another path than ours."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    return folder / "env" / "bin" / "python"


@pytest.fixture(scope="module")
def nodes(bare_python: Path) -> Iterator[LocalGrid]:
    """Two nodes that were started from `/`."""
    before = Path.cwd()
    os.chdir("/")
    try:
        with LocalGrid(nodes=2, slots=1, python=[str(bare_python)]) as local:
            os.chdir(before)
            yield local
    finally:
        os.chdir(before)


def run(project: Path, directory: Path) -> tuple[list[str], str]:
    """Run the program in its folder; return its lines, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "program.py", str(directory)], cwd=project, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_own_modules_travel_and_an_edit_is_seen(project: Path, nodes: LocalGrid) -> None:
    """Nothing of the program is where its tasks run; edited and run again, the new code runs."""
    directory = nodes.nodes[0].dir
    before, said = run(project, directory)
    (project / "mypkg" / "deep" / "__init__.py").write_text("def scale(x):\n    return 3 * x\n")
    after, _ = run(project, directory)

    assert before == ["[0, 14, 28, 42]", "True", "[5, 19, 33]", "True"]
    assert after == ["[0, 21, 42, 63]", "True", "[5, 26, 47]", "True"]
    assert "sending 4 files of mypkg" in said


def test_a_tree_over_its_limit_is_refused_in_one_line(project: Path, nodes: LocalGrid) -> None:
    """Before anything is sent, with the way out."""
    (project / "mypkg" / "big.bin").write_bytes(bytes(21 << 20))
    done = subprocess.run(
        [sys.executable, "program.py", str(nodes.nodes[0].dir)], cwd=project, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip

    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "QuotaExceeded" in line]
    assert "big.bin" in line
    assert ".gitignore" in line


def test_a_missing_module_is_held_against_the_node(nodes: LocalGrid) -> None:
    """It names the module, who lacks it, and what to do; the next task is tried anew."""
    grid = nodes.grid(0)

    def needs() -> None:
        import a_module_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401, PLC0415

    for _ in range(2):
        with pytest.raises(pg.MissingModule) as caught:
            grid.submit(needs).result(30)

        assert "'a_module_that_nobody_has' is missing at n0" in caught.value.message
        assert "n1 (" in caught.value.message


def test_two_interpreters_of_one_node(tmp_path: Path, bare_python: Path) -> None:
    """A function of a module runs in both, a closure in the one whose Python made it; `where` asks for one."""
    other = another_python()
    (tmp_path / "which.py").write_text("import sys\ndef minor(_=None):\n    return sys.version_info[1]\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import which  # type: ignore[import-not-found]  # noqa: PLC0415
    finally:
        sys.path.remove(str(tmp_path))
    with LocalGrid(nodes=1, slots=1, python=[str(other), str(bare_python)]) as local, local.grid(0) as grid:
        (member,) = grid.members()
        versions = [one["version"] for one in member.pythons]
        theirs = int(versions[0].split(".")[1])
        asked = [grid.options(where=f"python == '{version}'").submit(which.minor).result(60) for version in versions]

        assert asked == [theirs, sys.version_info[1]]
        assert grid.submit(lambda: [which.minor()][0]).result(60) == sys.version_info[1]
        assert grid.options(where=f"interpreter == '{other}'").submit(which.minor).result(60) == theirs
        with pytest.raises(pg.Unschedulable, match=f"3.{sys.version_info[1]}"):
            grid.options(where=f"minor == {theirs}", strict=True).submit(lambda: [which.minor()][0]).result(60)
