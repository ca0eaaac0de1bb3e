"""What a person meets in the first hour: what tasks print, how far they are. Real nodes, one grid for all of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def far(local: LocalGrid, grid: Grid) -> Grid:
    """As `grid`, for tasks at the second node only."""
    return grid.options(where="name == 'n1'")


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
    print("one")
    print("two", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo four"], check=True)
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)


def test_lines_appear_as_they_come_from_any_node(far: Grid, heard: Heard, tmp_path: Path) -> None:
    """While the task runs, at another node than the program's, in its order, each stream as what it is."""
    gate = tmp_path / "gate"
    future = far.submit(talk, str(gate))
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

    def more() -> list[list[str]]:
        return [line.split(" ", 2) for line in heard.err.splitlines() if " more: " in line]

    def shown() -> int:
        return heard.out.count("n1#0 ")

    wait_until(lambda: shown() + sum(int(number.replace(",", "")) for _, number, _ in more()) == 1290)

    assert shown() <= 1290 / 2  # 50, if all of it came within a second
    job = future.id.partition("/")[0]
    assert {(dots, rest) for dots, _, rest in more()} == {("…", f"more: p2pgrid logs {job} --dir {local.nodes[0].dir}")}
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
    assert 1 <= len(told) <= 10


def to_pdf(page: Path) -> pg.File:
    assert page.is_file()
    assert os.listdir() == []  # noqa: PTH208
    Path("notes.txt").write_text("for nobody")
    Path("page.pdf").write_bytes(b"%PDF " + page.read_bytes())
    return pg.File("page.pdf")


def test_files_go_along_and_come_back(grid: Grid, heard: Heard, tmp_path: Path) -> None:
    """As paths to tasks, as a `File` to be saved to the program; what a task leaves is named in one line."""
    pages = []
    for i in range(4):
        pages.append(tmp_path / f"{i}.txt")
        pages[-1].write_text(f"page {i}")
    for i, file in enumerate(grid.map(to_pdf, map(pg.File, pages))):
        file.save(tmp_path / f"{i}.pdf")

    assert [(tmp_path / f"{i}.pdf").read_text() for i in range(4)] == [f"%PDF page {i}" for i in range(4)]
    line = "task 3 left notes.txt (10 B) uncollected: return pg.File('notes.txt')"
    wait_until(lambda: heard.err.count(line) == 1)


def length(path: Path) -> int:
    return path.stat().st_size


def test_a_large_file_is_put_once_and_passed_often(grid: Grid, far: Grid, tmp_path: Path) -> None:
    """A Ref to a File arrives as a path as well, at any node; `get` gives a File."""
    (tmp_path / "large.bin").write_bytes(bytes(3_000_000))
    ref = grid.put(pg.File(tmp_path / "large.bin"))

    assert list(grid.map(length, [ref] * 4)) == [3_000_000] * 4
    assert far.submit(length, ref).result(SOON_S) == 3_000_000
    assert grid.get(ref).save(tmp_path / "copy.bin").stat().st_size == 3_000_000


def pass_on(path: Path) -> str:
    return path.name + ":" + path.read_text()


def test_a_file_goes_from_task_to_task(grid: Grid, tmp_path: Path) -> None:
    """A result that another task takes arrives there as a path, without coming here."""
    (tmp_path / "a.txt").write_text("a")
    made = grid.submit(to_pdf, pg.File(tmp_path / "a.txt"))

    assert grid.submit(pass_on, made).result(SOON_S) == "page.pdf:%PDF a"


def test_what_is_no_file_is_refused_before_anything_is_sent(grid: Grid, tmp_path: Path) -> None:
    """One line, and no job."""
    before = len(grid.jobs())
    with pytest.raises(IsADirectoryError) as folder:
        grid.submit(length, pg.File(tmp_path))
    with pytest.raises(FileNotFoundError):
        grid.map(length, [pg.File(tmp_path / "missing")])
    vanished = tmp_path / "vanished"
    vanished.touch()
    file = pg.File(vanished)
    vanished.unlink()
    with pytest.raises(pg.NotSerializable, match="vanished"):
        grid.submit(length, file)

    assert "\n" not in str(folder.value)
    assert len(grid.jobs()) == before


def look_up(name: str) -> str | None:
    return os.environ.get(name)


def test_env_arrives_and_is_seen_nowhere_else(grid: Grid, local: LocalGrid, tmp_path: Path) -> None:
    """For the tasks that ask for it, not for those after them; its values stand in no log or listing."""
    secret = "hunter2-" + tmp_path.name
    view = grid.options(env={"TOKEN_FOR_TEST": secret})
    futures = [view.submit(look_up, "TOKEN_FOR_TEST") for _ in range(4)]
    assert {future.result(SOON_S) for future in futures} == {secret}
    assert {grid.submit(look_up, "TOKEN_FOR_TEST").result(SOON_S) for _ in range(4)} == {None}
    with pytest.raises(pg.GridError):
        view.options(where="name == 'nowhere'", strict=True).submit(look_up, "TOKEN_FOR_TEST").result(SOON_S)
    job = futures[0].id.partition("/")[0]
    said = ""
    for verb in (["jobs"], ["show", job], ["show", f"{job}/0"], ["explain", job], ["logs", job], ["top"], ["members"]):
        for node in local.nodes:
            command = [sys.executable, "-m", "p2pgrid", *verb, "--json", "--dir", str(node.dir)]
            said += subprocess.run(command, capture_output=True, text=True, check=False).stdout
    logs = [path.read_text(errors="replace") for node in local.nodes for path in Path(node.dir).glob("*.log")]

    assert job in said
    assert secret not in said + "".join(logs) + repr(view) + repr(view._options)


@pytest.mark.parametrize("env", [{"A": 1}, {1: "a"}, {"A": None}, {"A": "x\0y"}, {"A=B": "x"}, {"": "x"}, ["A"]])
def test_env_that_is_not_text_is_refused(grid: Grid, env: object) -> None:
    """In one line that does not repeat the value."""
    with pytest.raises((TypeError, ValueError)) as error:
        grid.options(env=env)

    assert "\n" not in str(error.value)
    assert "x" not in str(error.value).replace("expected", "").replace("text", "")


async def nap(x: int) -> int:
    import asyncio  # noqa: PLC0415

    await asyncio.sleep(1)
    return x


def test_async_tasks_wait_together() -> None:
    """A thousand sleeps of a second on two slots, 100 at once in each; how long it took is printed."""
    with LocalGrid(nodes=1, slots=2) as local, local.grid(0) as grid:
        began = time.monotonic()
        assert list(grid.map(nap, range(1000))) == list(range(1000))
        took = time.monotonic() - began
    print(f"1,000 sleeps of 1 s on 2 slots: {took:.1f} s")

    assert took < 250  # one after the other: 500
