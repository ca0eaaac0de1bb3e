"""Source trees in workers: taken up, kept apart, replaced. Real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pgrid.core.batch import content_id, imported_function
from p2pgrid.core.tree import File, pack_tree
from p2pgrid.core.wire import pack
from p2pgrid.node.workers import PoolOptions
from p2pgrid.node.workers_trees import prune
from tests.node.pool_harness import ITEMS, Gate, Harness, pooled, serving
from tests.pythons import another_python
from tests.waiting import SOON_S


def tree_of(**files: str) -> bytes:
    return pack_tree(File(f"{name}.py", executable=False, data=text.encode()) for name, text in files.items())


def calling(name: str, tree: bytes, **options: Any) -> dict[str, Any]:
    """Return what `Harness.start` needs to call a function of a tree."""
    known = content_id(tree)
    return {"function": imported_function(name, known), "codes": {known: tree}, "tree": known, **options}


OLD = tree_of(mine="import os\nNAME = 'old'\ndef who(_=None):\n    return NAME, os.getpid()\n")
NEW = tree_of(mine="import os\nNAME = 'new'\ndef who(_=None):\n    return NAME, os.getpid()\n")


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    with trio.fail_after(SOON_S):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await trio.sleep(0.01)


def value(report: Any) -> Any:
    assert not report.unfit, report.unfit
    return report.values[0]


@pooled()
async def test_a_module_of_a_tree_is_imported(h: Harness) -> None:
    """The first child takes the tree up as it is; what it writes is under the node's directory and read-only."""
    before = h.pid()
    name, pid = value(await h.do(inputs=[()], **calling("mine:who", OLD)))

    assert (name, pid) == ("old", before)
    (file,) = h.pool._trees.glob("*/mine.py")
    assert file.parent.name == content_id(OLD).hex()
    assert not file.stat().st_mode & 0o222


@pooled(slots=2)
async def test_another_tree_gets_a_fresh_child_and_the_other_worker_keeps_its_own(h: Harness) -> None:
    """An edited module is a new tree: the next run has the new code, and who runs the old one goes on with it."""
    kept = value(await h.do(inputs=[()], worker=1, **calling("mine:who", OLD)))
    before = value(await h.do(inputs=[()], **calling("mine:who", OLD)))
    after = value(await h.do(inputs=[()], **calling("mine:who", NEW)))
    again = value(await h.do(inputs=[()], **calling("mine:who", NEW)))
    still = value(await h.do(inputs=[()], worker=1, **calling("mine:who", OLD)))

    assert (before[0], after[0]) == ("old", "new")
    assert after == again
    assert after[1] != before[1]
    assert kept == still
    assert not h.died
    assert h.ready[0] <= 2


@pooled()
async def test_replacing_works_many_times_over(h: Harness) -> None:
    """With a spare at hand or before there is one; no child is left behind but the one in the slot and the spare."""
    for tree in (OLD, NEW) * 4:
        assert value(await h.do(inputs=[()], **calling("mine:who", tree)))[0] == ("old" if tree is OLD else "new")
    await eventually(lambda: len(h.pool._living) <= 2)

    assert not h.died


@pooled(options=PoolOptions(spare_s=0.0))
async def test_a_spare_ends_when_no_run_wants_one(h: Harness) -> None:
    """A minute later, or at once as here, the node is as small as before."""
    await h.do(inputs=[()], **calling("mine:who", OLD))
    await eventually(lambda: not h.pool._spares and len(h.pool._living) == 1)

    assert value(await h.do(inputs=[()], **calling("mine:who", NEW)))[0] == "new"


@pooled()
async def test_a_function_without_a_tree_runs_on_any_child(h: Harness) -> None:
    """It needs none, so none is replaced for it."""
    pid = value(await h.do(inputs=[()], **calling("mine:who", OLD)))[1]

    assert value(await h.do(os.getpid, [()])) == pid


@pooled()
async def test_what_is_recalled_before_its_child_is_born_comes_back(h: Harness) -> None:
    """The run waits in the slot; nothing of it has begun."""
    await h.do(inputs=[()], **calling("mine:who", OLD))
    for spare in h.pool._spares.values():
        spare.condemn(None)
    h.pool._spares.clear()
    number = h.start(inputs=[()], **calling("mine:who", NEW))
    h.pool.recall(0)
    report = await h.finished(number)

    assert report.returned == [(0, 1)]
    assert value(await h.do(inputs=[()], **calling("mine:who", NEW)))[0] == "new"


@pooled()
async def test_a_child_that_dies_in_another_ones_place_gives_its_run_back(h: Harness) -> None:
    """A spare that was killed just when it got the slot: the run is not charged with that."""
    await h.do(inputs=[()], **calling("mine:who", OLD))
    await eventually(lambda: h.pool._spares)
    (spare,) = h.pool._spares.values()
    spare.process.kill()
    number = h.start(inputs=[()], **calling("mine:who", NEW))
    await h.until(lambda: h.died or h.reports[number].final)

    assert all(died.index is None for died in h.died)
    await eventually(lambda: h.pool.states()[0].state == "idle")
    assert value(await h.do(inputs=[()], **calling("mine:who", NEW)))[0] == "new"


@pooled()
async def test_a_tree_that_did_not_arrive_or_is_malformed_makes_the_node_unfit(h: Harness) -> None:
    """Neither fails a task, and nothing is written outside of the tree's folder."""
    lost = await h.do(imported_function("mine:who", b"x" * 16), [()], tree=b"x" * 16)
    evil = pack(["tree", [["../../evil.py", False, b"1"]]])
    bad = await h.do(inputs=[()], **calling("evil:f", evil))

    assert lost.returned == bad.returned == [(0, 1)]
    assert "did not arrive" in lost.unfit
    assert "outside" in bad.unfit
    assert not list(h.pool._trees.parent.rglob("evil.py"))
    assert value(await h.do(inputs=[()], **calling("mine:who", OLD)))[0] == "old"


@pytest.mark.parametrize("shape", [0, ITEMS])
def test_a_module_that_is_missing_is_the_interpreters_fault(tmp_path: Path, shape: int) -> None:
    """At the top of a module, inside a function, or in an argument: the tasks come back, with its name."""
    tree = tree_of(
        top="import nosuchthing_a\ndef f(_): return 1\n",
        inside="def f(x):\n    if x == 1:\n        import nosuchthing_b.part\n    return x\n",
    )

    @pooled()
    async def main(h: Harness) -> None:
        top = await h.do(inputs=[0 if shape else (0,)], shape=shape, **calling("top:f", tree))
        inputs = list(range(3)) if shape else [(i,) for i in range(3)]
        inside = await h.do(inputs=inputs, shape=shape, **calling("inside:f", tree))

        assert top.returned == [(0, 1)]
        assert top.unfit.startswith("no module nosuchthing_a in ")
        assert inside.values == {0: 0}
        assert inside.returned == [(1, 3)]
        assert inside.unfit.startswith("no module nosuchthing_b")

    main(tmp_path)


@pooled()
async def test_an_import_error_that_a_task_provokes_about_what_is_there_is_its_own(h: Harness) -> None:
    """A part that a present module does not have is the task's failure."""
    tree = tree_of(here="def f():\n    import json.nothing\n")
    report = await h.do(inputs=[()], **calling("here:f", tree))

    assert isinstance(report.errors[0], ModuleNotFoundError)


@pooled()
async def test_a_recall_behind_a_running_task_of_another_tree(h: Harness) -> None:
    """A task of the old tree runs on undisturbed while the machine knows nothing of children."""
    with Gate(h.pool._scratch.parent) as gate:
        tree = tree_of(
            waits="import socket\ndef f(gate):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(gate)\n"
            "    s.sendall(b'x')\n    s.recv(1)\n    return 1\n"
        )
        number = h.start(inputs=[(gate.path,)], **calling("waits:f", tree))
        await gate.arrival()
        gate.open()
        assert value(await h.finished(number)) == 1
    assert value(await h.do(inputs=[()], **calling("mine:who", NEW)))[0] == "new"


@pytest.mark.slow
def test_a_slot_changes_its_interpreter(tmp_path: Path) -> None:
    """A run for another interpreter of the node gets a child of that one."""
    other = another_python()

    async def main() -> None:
        async with serving(tmp_path, 1, [Path(sys.executable), other], PoolOptions()) as h:
            tree = tree_of(version="import sys\ndef minor():\n    return sys.version_info[1]\n")
            minors = [
                value(await h.do(inputs=[()], place=place, **calling("version:minor", tree))) for place in (0, 1, 0)
            ]
            versions = [interpreter.version[1] for interpreter in await h.pool.interpreters()]

        assert minors == [versions[0], versions[1], versions[0]]

    trio.run(main)


def test_old_trees_go(tmp_path: Path) -> None:
    """What was used longest ago goes first; what a child serves stays; what is half-written goes."""
    names = [bytes([i]) * 16 for i in range(5)]
    for age, name in enumerate(names):
        (tmp_path / name.hex()).mkdir()
        os.utime(tmp_path / name.hex(), (1000 - age, 1000 - age))
    (tmp_path / f"{(b'z' * 16).hex()}.77").mkdir()
    prune(tmp_path, {names[4]}, keep=2)

    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(name.hex() for name in (*names[:2], names[4]))
