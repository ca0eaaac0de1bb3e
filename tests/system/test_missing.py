"""What is missing at one node is done at another: a module, by two real interpreters; a program, by two PATHs."""

from __future__ import annotations

import os
import sys
import venv
from collections.abc import Callable, Iterator

import pytest

import p2pgrid as pg
from tests.system.grids import Node, Nodes

pytestmark = pytest.mark.slow

SOON_S = 90.0
SCRIPT = "#!/bin/sh\necho it is $1\n"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Node `bare` runs tasks in an environment of its own with nothing in it, node `rich` in ours, with a program."""
    folder = tmp_path_factory.mktemp("missing")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    tools = folder / "tools"
    tools.mkdir()
    (tools / "a-rare-tool").write_text(SCRIPT)
    (tools / "a-rare-tool").chmod(0o755)
    with Nodes(folder, slots=1) as grid, pytest.MonkeyPatch.context() as patch:
        bare = grid.node("bare", "--python", str(folder / "env" / "bin" / "python")).start()
        patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        rich = grid.node("rich", "--python", sys.executable).start(bare.invite())
        grid.wait_all_alive(SOON_S)
        yield bare, rich


def mean_of() -> Callable[[list[int]], float]:
    """Return a function that needs nothing of this module, for that needs pytest."""

    def mean(numbers: list[int]) -> float:
        import numpy as np  # noqa: PLC0415 - where it runs

        return float(np.mean(numbers))

    return mean


def test_a_module_that_one_node_lacks(nodes: tuple[Node, Node]) -> None:
    """All tasks run where it is, whoever was asked; none has failed, and `explain` says who cannot and why."""
    bare, _ = nodes
    with bare.grid() as grid:
        mean = mean_of()
        futures = [grid.submit(mean, [number, number + 2]) for number in range(20)]

        assert [future.result(SOON_S) for future in futures] == [number + 1 for number in range(20)]
        assert {future.node for future in futures} == {"rich"}
        assert {future.attempts for future in futures} == {1}


def test_who_lacks_a_module_and_who_has_it_is_told(nodes: tuple[Node, Node]) -> None:
    """A task that may run at the node only that lacks it: an error that names both, and the interpreter."""
    bare, _ = nodes
    with bare.grid() as grid:
        mean = mean_of()
        assert grid.submit(mean, [1, 3]).result(SOON_S) == 2
        with pytest.raises(pg.MissingModule) as caught:
            grid.options(where="name == 'bare'").submit(mean, [1, 3]).result(SOON_S)

        assert "module 'numpy' is missing at bare (" in caught.value.message
        assert "env/bin/python" in caught.value.message
        assert "rich has it" in caught.value.message
        assert "-m pip install numpy" in caught.value.next


def test_a_program_that_one_node_lacks(nodes: tuple[Node, Node]) -> None:
    """As with a module: it runs where it is, at the command line too."""
    bare, _ = nodes
    outputs = bare.command("map", "a-rare-tool", *map(str, range(10)))
    single = bare.command("run", "--", "a-rare-tool", "here")

    assert outputs.stdout == "".join(f"it is {number}\n" for number in range(10)), outputs.stderr
    assert (outputs.returncode, single.returncode, single.stdout) == (0, 0, "it is here\n")


def test_a_program_that_nobody_has(nodes: tuple[Node, Node]) -> None:
    """One line that names who was asked, and what to do."""
    bare, _ = nodes
    said = bare.command("run", "--", "a-tool-of-nobody")

    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (125, "", 1), said.stderr
    assert "program 'a-tool-of-nobody' is missing at bare, rich; no node that is known has it; next: " in said.stderr
