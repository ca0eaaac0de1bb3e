"""Where tasks work: an empty folder each, and what becomes of files in it. Real processes."""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core import current, files
from p2pgrid.core.files import File
from p2pgrid.core.prints import PRINTS
from tests.node.pool_harness import CALLS, ITEMS, Harness, pooled


def surroundings(leave: str) -> tuple[list[str], bool]:
    me = current.current()
    assert me is not None
    seen = [path.name for path in Path.cwd().iterdir()]
    if leave:
        Path(leave).write_text("x" * 12_000)
    return seen, Path.cwd() == me.dir


@pytest.mark.parametrize("shape", [CALLS, ITEMS])
def test_a_task_starts_in_an_empty_folder_of_its_own(tmp_path: Path, shape: int) -> None:
    """Whatever the task before it left; `pg.current().dir` is that folder."""

    @pooled()
    async def run(h: Harness) -> None:
        names = ["a", "", "b", "", "", "c", ""] * 3
        inputs: list[Any] = [(name,) for name in names] if shape == CALLS else names
        report = await h.do(surroundings, inputs, shape=shape)

        assert list(report.values.values()) == [([], True)] * len(names)

    run(tmp_path)


def litter(kind: str) -> None:
    match kind:
        case "one":
            Path("output.pdf").write_bytes(bytes(12_000))
        case "many":
            Path("results").mkdir()
            for i in range(7):
                Path("results", f"{i}.csv").write_text("1")
        case "hidden":
            Path(".cache").write_text("x")
            Path("__pycache__").mkdir()
            Path("__pycache__", "x.pyc").write_text("x")
        case "returned later":
            Path("x").write_text("x")
            Path("x").unlink()


@pooled()
async def test_files_left_behind_give_one_line(h: Harness) -> None:
    """Their names and sizes, and how to collect them; not what nobody would."""
    report = await h.do(litter, [(kind,) for kind in ("one", "many", "hidden", "returned later", "none")], show=PRINTS)

    assert report.logs == {
        0: b"task 0 left output.pdf (12 kB) uncollected: return pg.File('output.pdf')\n",
        1: b"task 1 left results/0.csv (1 B), results/1.csv (1 B), results/2.csv (1 B) and 4 more uncollected: "
        b"return pg.File('results/0.csv')\n",
    }
    assert next(line.text for event in h.printed for line in event.lines).startswith("task 0 left output.pdf")


def write(x: int) -> tuple[int, File]:
    result = File(f"{x % 3}.txt")
    Path(f"{x % 3}.txt").write_text(f"content {x}")
    return x, result


@pytest.mark.parametrize("shape", [CALLS, ITEMS])
def test_a_file_is_a_result(tmp_path: Path, shape: int) -> None:
    """As it was when the task ended, also of tasks so fast that many run between two looks; nothing counts as left."""

    @pooled()
    async def run(h: Harness) -> None:
        inputs: list[Any] = [(x,) for x in range(200)] if shape == CALLS else list(range(200))
        report = await h.do(write, inputs, shape=shape)
        got = [(x, file.name, file.read_bytes()) for x, file in report.values.values()]

        assert got == [(x, f"{x % 3}.txt", b"content %d" % x) for x in range(200)]
        assert report.logs == {}

    run(tmp_path)


def large() -> File:
    with open("large.bin", "wb") as file:  # noqa: PTH123
        file.writelines(bytes([i % 256]) * 1000 for i in range(3000))
    return File("large.bin")


def unwritten() -> File:
    return File("never.txt")


def folder() -> File:
    Path("out").mkdir()
    return File("out")


@pooled()
async def test_a_large_file_and_one_that_is_none(h: Harness) -> None:
    """What was not written fails its task and says its name; a folder is no file."""
    report = await h.do(large, [()])
    assert report.values[0].size == 3_000_000
    for function, expected in ((unwritten, "never.txt"), (folder, "make_archive")):
        (error,) = (await h.do(function, [()])).errors.values()
        assert expected in str(error) + repr(error.__dict__)


def read(file: Path, expected: str, also: dict[str, list[Path]]) -> tuple[str, list[str], bool, str]:
    (other,) = also["more"]
    return (
        file.name,
        [file.read_text(), other.read_text()],
        file.is_absolute() and not list(Path.cwd().iterdir()),
        str(file),
    )


@pooled()
async def test_a_file_among_arguments_is_a_path(h: Harness) -> None:
    """At any depth, under its own name; gone with the task."""
    one, two = h.pool._scratch.parent / "one.txt", h.pool._scratch.parent / "two.txt"
    one.write_text("first")
    two.write_text("second")
    calls = await h.do(read, [(File(one), "first", {"more": [File(two)]})] * 2)
    items = await h.do(Path.read_text, [File(one), File(two)] * 2, shape=ITEMS)

    for name, texts, alone, path in calls.values.values():
        assert (name, texts, alone) == ("one.txt", ["first", "second"], True)
        assert not os.path.exists(path)  # noqa: PTH110, ASYNC240 - local, and quick
    assert list(items.values.values()) == ["first", "second"] * 2


async def work_beside(x: int) -> tuple[list[str], str]:
    me = current.current()
    assert me is not None
    (me.dir / "mine").write_text(str(x))
    await asyncio.sleep(0.05)
    return [entry.name for entry in me.dir.iterdir()], (me.dir / "mine").read_text()


@pooled()
async def test_async_tasks_have_folders_beside_each_other(h: Harness) -> None:
    """Each its own, though they run at once in one process; each is swept when its task ends."""
    report = await h.do(work_beside, range(30), shape=ITEMS)

    assert list(report.values.values()) == [(["mine"], str(x)) for x in range(30)]
    assert report.logs[7] == b"task 7 left mine (1 B) uncollected: return pg.File('mine')\n"
    assert not list((h.pool._scratch / "0" / "tasks").iterdir())


def look_for_it() -> None:
    open("data.csv")  # noqa: PTH123, SIM115


@pooled()
async def test_who_looks_for_a_file_hears_that_tasks_run_elsewhere(h: Harness) -> None:
    """As a note of the error."""
    (error,) = (await h.do(look_for_it, [()])).errors.values()

    assert isinstance(error, FileNotFoundError)
    assert any("pass a file of your program as pg.File(path)" in note for note in error.__notes__)


def make_it_hard() -> None:
    Path("locked").mkdir()
    Path("locked", "x").write_text("x")
    Path("locked").chmod(0o500)
    os.chdir("/")


@pooled()
async def test_what_cannot_be_removed_is_in_nobodys_way(h: Harness) -> None:
    """The next task starts in an empty folder all the same."""
    await h.do(make_it_hard, [()])
    report = await h.do(surroundings, [("",)])

    assert report.values == {0: ([], True)}


# ---- a File in the program ------------------------------------------------------------------------------------------


def test_what_cannot_be_passed_is_said_at_once(tmp_path: Path) -> None:
    """A folder, and a file that is not there: in one line, before anything is sent."""
    with pytest.raises(IsADirectoryError, match="one archive of it") as folder:
        File(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file to pass"):
        File(tmp_path / "missing")

    assert "\n" not in str(folder.value)


def test_a_file_that_arrived_is_saved(tmp_path: Path) -> None:
    """Under a name, or in a folder under its own; it can be passed on."""
    (tmp_path / "a.txt").write_text("text")
    file = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(File(tmp_path / "a.txt"), 5)), 5))
    (tmp_path / "out").mkdir()

    assert file.save(tmp_path / "out").read_text() == "text"
    assert file.save(tmp_path / "b.txt") == tmp_path / "b.txt"
    assert (file.name, file.size, file.path) == ("a.txt", 4, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "out"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", ".", "..", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    """Whoever made it."""
    with pytest.raises(Exception, match="cannot be received"):
        files.arrived(name, b"")
