"""Jobs that outlive whoever asked for them: the program that is killed, and what another node tells of its job.

    sent = Sent(node, 2000, task_s=0.05)     # a program of its own: starts the job, prints the id, waits
    sent.wait(0.3)                           # until so much of it was executed
    sent.kill(); node.kill()
    sent.must_be_right(other)                # `p2pgrid result ID` there: the serial answer, every index once

What each execution of a task leaves is a line in a file of the test, not of the grid: so they are counted, whatever
becomes of the results.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any, Self

from p2pgrid.cli.jobs import job_json
from p2pgrid.core.ids import job_name
from tests.system.grids import Node, wait

ENDS_S = 240.0
ASKED_S = 90.0
_PROGRAM = """
    # Starts a job and says its id; then there is nothing that it is needed for.
    import os, sys, time
    import p2pgrid as pg

    folder, tasks, seconds, executed, name, failing = sys.argv[1:]
    failing = {int(each) for each in failing.split()}
    seconds = float(seconds)

    def answer(index):
        here = pg.current()
        fd = os.open(executed, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{index} {here.node}\\n".encode())
        os.close(fd)
        time.sleep(seconds)
        if index in failing:
            raise ValueError(f"task {index} fails")
        return index * 2654435761 % 2**32

    grid = pg.Grid(folder, embedded=False)
    print(grid.start(answer, range(int(tasks)), name=name or None).id, flush=True)
    sys.stdin.read()  # whoever started this program is gone
    os._exit(0)
"""
_numbers = count()


def answer(index: int) -> int:
    """Return what the task with this index returns."""
    return index * 2654435761 % 2**32


class Sent:
    """A job, and the program that asked for it.

    Attributes:
        id: of the job, as the program printed it; by then the grid has promised to end it.
    """

    def __init__(
        self, node: Node, tasks: int, task_s: float = 0.05, *, name: str = "", failing: Sequence[int] = ()
    ) -> None:
        number = next(_numbers)
        folder = node.log_file.parent
        self.tasks = tasks
        self.failing = set(failing)
        self._executed = folder / f"executed-{number}"
        program = folder / f"program-{number}.py"
        program.write_text(textwrap.dedent(_PROGRAM))
        words = [node.dir, tasks, task_s, self._executed, name, " ".join(map(str, failing))]
        self._program = subprocess.Popen(
            [sys.executable, program, *map(str, words)], cwd=folder, env=node.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._program.stdout is not None
        self.id = self._program.stdout.readline().strip()
        if not self.id:
            raise AssertionError(f"no job: {self._program.communicate()[1]}")

    def kill(self) -> None:
        """SIGKILL of the program."""
        self._program.kill()
        self._program.communicate()

    def executions(self) -> list[tuple[int, str]]:
        """Return which task began, and at which node, in order."""
        text = self._executed.read_text() if self._executed.exists() else ""
        return [(int(index), node) for index, node in map(str.split, text.splitlines())]

    @property
    def begun(self) -> int:
        """How many executions have begun; of any task."""
        return self._executed.read_bytes().count(b"\n") if self._executed.exists() else 0

    @property
    def again(self) -> int:
        """How many executions were in vain: of tasks that were executed more than once."""
        return self.begun - len(Counter(index for index, _ in self.executions()))

    def wait(self, part: float, within_s: float = ENDS_S) -> None:
        """Wait until so much of it was executed."""
        wait(lambda: self.begun >= part * self.tasks, within_s, f"{part:.0%} of {self.id} was executed")

    def result(self, node: Node, within_s: float = ENDS_S) -> subprocess.CompletedProcess[str]:
        """`p2pgrid result ID` at a node."""
        return node.command("result", self.id, timeout_s=within_s)

    def must_be_right(self, node: Node, within_s: float = ENDS_S) -> None:
        """What a node prints is what a loop would have printed: every index once."""
        done = self.result(node, within_s)
        expected = [str(answer(index)) for index in range(self.tasks) if index not in self.failing]
        printed = done.stdout.splitlines()
        assert printed == expected, _difference(printed, expected, done.stderr)
        assert done.returncode == (1 if self.failing else 0), done.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill()


def listed(node: Node) -> dict[str, str]:
    """Return the states of all jobs that a node lists, by id."""
    rows: list[dict[str, Any]] = node.ask("jobs", mine=None)["jobs"]
    told = [job_json(row) for row in rows]
    return {str(one["id"]): str(one["state"]) for one in told}


def has_rows_of(node: Node, name: str) -> bool:
    """Whether anything of a job is in the journal of a node: it keeps a copy, or kept one."""
    with contextlib.closing(sqlite3.connect(f"file:{node.dir}/journal.db?mode=ro", uri=True, timeout=10)) as journal:
        return any(job_name(job) == name for (job,) in journal.execute("SELECT DISTINCT job FROM entries"))


def stranger_to(sent: Sent, nodes: Sequence[Node], rng: random.Random) -> Node:
    """Draw a node that runs and never saw the program; one that has nothing of its job on disk, if there is one."""
    running = [node for node in nodes if node.runs]
    return rng.choice([node for node in running if not has_rows_of(node, sent.id)] or running)


def _difference(printed: list[str], expected: list[str], said: str) -> str:
    differ = [at for at, (one, other) in enumerate(zip(printed, expected, strict=False)) if one != other]
    return f"{len(printed)} lines instead of {len(expected)}, the first that differ: {differ[:5]}; it said: {said}"
