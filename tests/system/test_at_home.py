"""What a person meets in the first hour: what tasks print, how far they are. Real nodes, one grid for all of it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid

pytestmark = pytest.mark.slow

SOON_S = 60.0


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Two nodes of one slot."""
    with LocalGrid(nodes=2) as local:
        yield local


@pytest.fixture
def grid(local: LocalGrid) -> Iterator[Grid]:
    """A program at the first of them."""
    grid = local.grid(0)
    yield grid
    grid.shutdown(cancel_futures=True)


@pytest.fixture
def far(local: LocalGrid, grid: Grid) -> Grid:
    """As `grid`, for tasks at the second node only."""
    return grid.options(where="name == 'n1'")


def wait_until(ready: Callable[[], object], timeout_s: float = SOON_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Heard:
    """What was printed so far, from the first look on."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._out = self._err = ""

    def look(self) -> Heard:
        said = self._capfd.readouterr()
        self._out += said.out
        self._err += said.err
        return self

    @property
    def out(self) -> str:
        return self.look()._out

    @property
    def err(self) -> str:
        return self.look()._err


@pytest.fixture
def heard(capfd: pytest.CaptureFixture[str]) -> Heard:
    """What this program prints."""
    return Heard(capfd)


def talk(path: str) -> None:
    import os  # noqa: PLC0415

    print("one")
    print("two", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo four"], check=True)
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)


def test_lines_appear_as_they_come_from_any_node(far: Grid, heard: Heard, tmp_path: object) -> None:
    """While the task runs, at another node than the program's, in its order, each stream as what it is."""
    gate = f"{tmp_path}/gate"
    future = far.submit(talk, gate)
    wait_until(lambda: "four" in heard.out and "two" in heard.err)
    assert not future.done()
    open(gate, "w").close()  # noqa: PTH123
    future.result(SOON_S)

    assert heard.out.splitlines() == ["n1#0 one", "n1#0 four"]
    assert [line for line in heard.err.splitlines() if line.startswith("n1")] == ["n1#0 two"]
    assert sorted(future.logs().split()) == ["four", "one", "two"]


def test_records_keep_their_level_where_the_program_logs(far: Grid, caplog: pytest.LogCaptureFixture) -> None:
    """They go through the program's own logger of that name."""
    with caplog.at_level(logging.WARNING, logger="sim"):
        far.submit(lambda: logging.getLogger("sim").error("badly")).result(SOON_S)
        wait_until(lambda: caplog.records)

    assert [(one.name, one.levelname, one.getMessage()) for one in caplog.records] == [("sim", "ERROR", "n1#0 badly")]


def test_prints_false_shows_nothing_and_keeps_it(far: Grid, heard: Heard) -> None:
    """`p2pgrid logs` has it all the same."""
    future = far.options(prints=False).submit(print, "quiet")
    future.result(SOON_S)
    far.submit(print, "loud").result(SOON_S)
    wait_until(lambda: "loud" in heard.out)

    assert "quiet" not in heard.out
    assert future.logs() == "quiet\n"


def flood(lines: int) -> None:
    for i in range(lines):
        print(i)


def test_a_flood_is_cut_and_counted(far: Grid, local: LocalGrid, heard: Heard) -> None:
    """At most 50 lines a second, and then how many more there were, with the command that shows them."""
    future = far.submit(flood, 1290)
    future.result(SOON_S)
    wait_until(lambda: " more: p2pgrid logs " in heard.err)
    shown = heard.out.count("n1#0 ")
    (more,) = [line for line in heard.err.splitlines() if " more: " in line]

    assert shown <= 50
    job = future.id.partition("/")[0]
    assert more == f"… {1290 - shown:,} more: p2pgrid logs {job} --dir {local.nodes[0].dir}"
    assert len(future.logs().splitlines()) == 1290


def say_and_sleep() -> None:
    print("so far")
    time.sleep(600)


@pytest.mark.parametrize("where", ["n0", "n1"])
def test_what_a_cancelled_task_printed_is_kept(grid: Grid, heard: Heard, where: str) -> None:
    """At the program's node or another: killed, its log is there."""
    future = grid.options(where=f"name == '{where}'").submit(say_and_sleep)
    wait_until(lambda: "so far" in heard.out)
    assert future.cancel()
    wait_until(lambda: future.logs() == "so far\n")


def step(x: int) -> int:
    for i in range(3):
        pg.progress(i, 3, f"step {i}")
        time.sleep(0.12)
    return x


def test_progress_true_shows_how_far_a_map_is(grid: Grid, heard: Heard) -> None:
    """As lines where there is no terminal, one for each tenth."""
    assert list(grid.map(step, range(10), progress="steps")) == list(range(10))
    told = [line.partition(" in ")[0] for line in heard.err.splitlines() if line.startswith("steps: ")]

    assert told[-1] == "steps: 10/10"
    assert 2 <= len(told) <= 10
