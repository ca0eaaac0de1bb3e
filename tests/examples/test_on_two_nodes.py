"""Programs of the kind people bring, as they are, given to one node and run by another that knows nothing of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.client.localgrid import LocalGrid
from tests.cli.processes import environment

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Two nodes, of which the first only takes jobs: whatever is done, the other has done it."""
    with LocalGrid(nodes=1, no_work=True) as local:
        local._config["no_work"] = False
        local.add("n1", local.nodes[0].invite()).wait_answering()
        local.wait_members(2)
        yield local


@pytest.mark.parametrize(
    ("program", "says"),
    [("primes.py", "148933 primes"), ("risk/risk.py", "as the serial run"), ("invoices.py", "40 PDF files in made")],
)
def test_a_program_runs_as_it_is(local: LocalGrid, tmp_path: Path, program: str, says: str) -> None:
    """In the style of `multiprocessing`; a Monte Carlo with a class of its own module; a PDF file per task."""
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLES, folder)  # where no node has ever been
    home = {**environment(tmp_path), "P2PGRID_DIR": str(local.nodes[0].dir)}
    done = subprocess.run(
        [sys.executable, Path(program).name, *(["made"] if program == "invoices.py" else [])],
        cwd=(folder / program).parent, env=home, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout
    assert f"grid {_grid(local)}: 2 nodes" in done.stderr
    assert ("sending 3 files of market (" in done.stderr) == (program == "risk/risk.py")


def _grid(local: LocalGrid) -> str:
    with local.grid(0) as grid:
        return str(grid).split()[1].rstrip(">")
