"""Notebooks: a real kernel, and a node that it talks to."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client import html, notebook
from p2pgrid.client.localgrid import LocalGrid

SOON_S = 60.0


class Kernel:
    """A notebook named `analysis.ipynb`, cell by cell."""

    def __init__(self, home: Path, directory: Path) -> None:
        manager = pytest.importorskip("jupyter_client.manager", reason="no jupyter_client here")
        pytest.importorskip("ipykernel", reason="no ipykernel here")
        self.home, self.directory = home, directory
        self.manager, self.client = manager.start_new_kernel(
            cwd=str(home), extra_arguments=["--HistoryManager.enabled=False"]
        )
        self.greet()

    def greet(self) -> None:
        """What a first cell does; the server of notebooks says in the environment which one it is."""
        self.run(
            "import os, time\nos.environ['JPY_SESSION_NAME'] = '/work/analysis.ipynb'\n"
            f"import p2pgrid as pg\ngrid = pg.Grid({str(self.directory)!r}, embedded=False)"
        )

    def start(self, code: str) -> str:
        """Run a cell without waiting for it."""
        return str(self.client.execute(code))

    def ended(self, cell: str, *, until: str = "") -> tuple[Mapping[str, Any], str, str]:
        """Wait for the end of a cell, or for a text that it prints; return its value, that text, the error."""
        value: Mapping[str, Any] = {}
        said = error = ""
        deadline = time.monotonic() + SOON_S
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                pytest.fail(f"the cell did not end: {said}{error}")
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream" if content["name"] == "stdout":
                    said += content["text"]
                    if until and until in said:
                        return value, said, error
                case "execute_result":
                    value = content["data"]
                case "error":
                    error = content["ename"]
                case "status" if content["execution_state"] == "idle":
                    return value, said, error

    def run(self, code: str) -> str:
        """Run a cell that must not fail; return what it printed."""
        _, said, error = self.ended(self.start(code))
        assert not error, (code, error)
        return said.strip()

    def shown(self, code: str) -> str:
        """Return the HTML of a cell's value."""
        value, _, error = self.ended(self.start(code))
        assert not error
        return str(value["text/html"])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all, at a node of one slot."""
    with LocalGrid(nodes=1) as local:
        kernel = Kernel(tmp_path_factory.mktemp("notebook"), local.nodes[0].dir)
        try:
            yield kernel
        finally:
            kernel.client.stop_channels()
            kernel.manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_redefined_function_is_a_new_function(kernel: Kernel) -> None:
    """As is a function that calls one which was redefined."""
    kernel.run("def f(x):\n    return x + 1\ndef g(x):\n    return f(x)")
    assert kernel.run("print(list(grid.map(g, range(3))), grid.submit(f, 1).result())") == "[1, 2, 3] 2"
    kernel.run("def f(x):\n    return x * 10")
    assert kernel.run("print(list(grid.map(g, range(3))), grid.submit(f, 1).result())") == "[0, 10, 20] 10"


@pytest.mark.slow
def test_tables_and_bars_are_rich_output(kernel: Kernel) -> None:
    """Of the grid, of a job, of results that nobody has taken."""
    assert "<td>n0</td><td>alive</td>" in kernel.shown("grid")
    assert "<td>done</td><td>2</td>" in kernel.shown("job = grid.start(abs, [1, 2], name='<b>')\njob.wait()\njob")
    assert "&lt;b&gt;" in kernel.shown("job")
    assert "<progress" in kernel.shown("results = grid.map(abs, [1, -2])\nresults")
    assert kernel.run("print(list(results))") == "[1, 2]"
    assert kernel.shown("grid.map(abs, [])") == "&lt;Results of nothing&gt;"


@pytest.mark.slow
def test_interrupt_cancels_what_the_cell_submitted(kernel: Kernel) -> None:
    """What earlier cells submitted goes on, unless it is waited for."""
    kernel.run("before = grid.submit(time.sleep, 300)")
    cell = kernel.start(
        "waiting = grid.submit(time.sleep, 301)\nbeside = grid.map(time.sleep, [302, 303])\n"
        "print('waits', flush=True)\nwaiting.result()"
    )
    kernel.ended(cell, until="waits")
    kernel.manager.interrupt_kernel()
    assert kernel.ended(cell)[2] == "KeyboardInterrupt"
    assert kernel.run("print(waiting.cancelled(), grid.job(beside.id).state, before.cancelled())") == (
        "True cancelled False"
    )

    # Said from beside, when the cell waits by then.
    cell = kernel.start(
        "import threading\nthreading.Timer(1.0, print, ('waits',), {'flush': True}).start()\nbefore.result()"
    )
    kernel.ended(cell, until="waits")
    kernel.manager.interrupt_kernel()
    assert kernel.ended(cell)[2] == "KeyboardInterrupt"
    assert kernel.run("print(before.cancelled())") == "True"


@pytest.mark.slow
def test_after_a_restart_what_was_running_is_found(kernel: Kernel) -> None:
    """By the name of the notebook; and its results are there."""
    kernel.run("job = grid.start(abs, [-1, -2], name='kept')\nlost = grid.submit(abs, -3)\nlost.result()")
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=SOON_S)
    kernel.greet()
    assert kernel.run("print('kept' in [job.name for job in grid.jobs(mine=True)])") == "True"
    assert kernel.run(
        "print(next(list(job.results(30)) for job in grid.jobs(mine=True) if job.name == 'kept'))"
    ) == "[1, 2]"  # fmt: skip
    assert kernel.run("print([row['program'] for row in grid._session.request('jobs', {})['jobs']][:1])") == (
        "['/work/analysis.ipynb']"
    )


def test_a_program_is_no_notebook() -> None:
    """It goes by the name of its script, as before."""
    assert notebook.shell() is None
    assert "/" not in notebook.program_name()


def test_tables_are_escaped_and_bounded() -> None:
    """Names come from other machines; a thousand rows are no table."""
    made = html.table("<t>", ["<h>"], [[f"<{number}>"] for number in range(1000)])
    assert "<t>" not in made
    assert "&lt;49&gt;" in made
    assert "&lt;50&gt;" not in made
    assert "… and 950 more" in made
    assert "<progress" not in html.job("Job", {"id": "a", "state": "queued", "done": 0, "failed": 0, "total": None})


@pytest.mark.parametrize(
    ("word", "name"), [("/a/scan.py", "scan.py"), ("/a/spread/__main__.py", "spread"), ("-c", "-c"), ("", "python")]
)
def test_what_a_program_is_called(monkeypatch: pytest.MonkeyPatch, word: str, name: str) -> None:
    """Its script; of `python -m package`, the package."""
    monkeypatch.setattr(sys, "argv", [word])

    assert notebook.program_name() == name
