"""The demo's program: gives a picture to a node, its rows as tasks, and says the job's id. Then it may be killed.

Rule: nothing of click or rich here; workers import this file for `make_row`.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import p2pgrid
from p2pgrid.cli.julia import Scene, row
from p2pgrid.core.current import current
from p2pgrid.core.errors import GridError

Told = tuple[int, str, int, str]
"""A row as its task returns it: something that `p2pgrid result --format jsonl` shows as it is."""


class Made(NamedTuple):
    """A row, and who made it."""

    y: int
    node: str
    pid: int
    rgb: bytes

    @classmethod
    def told(cls, value: Told) -> Self:
        """Read what a task returned."""
        y, node, pid, pixels = value
        return cls(y, node, pid, base64.b64decode(pixels))


def make_row(scene: Scene, y: int) -> Told:
    """Render a row, and say who did."""
    here = current()
    assert here is not None
    return y, here.node, os.getpid(), base64.b64encode(row(scene, y)).decode()


class Program:
    """The process of it.

    Attributes:
        job: the id it printed: from then on the grid needs it no more.
        pid: of the process.
    """

    def __init__(self, node: Path, scene: Scene) -> None:
        """Start it, and wait until it has said the id of its job.

        Raises:
            GridError: it has said something else.
        """
        words = [node, scene.width, scene.height, *scene.c]
        root = str(Path(p2pgrid.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from p2pgrid.cli.demo_program import main; main()", *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.job = self._process.stdout.readline().strip()
        if not self.job:
            _, said = self._process.communicate()
            raise GridError(f"the program of the demo ended: {said.strip()[-300:]}", code="gone", next="p2pgrid demo")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        """Nothing more to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        self.kill()


def main() -> None:
    """Start the job that the arguments name, and wait to be killed."""
    folder, width, height, re, im = sys.argv[1:]
    scene = Scene(int(width), int(height), (float(re), float(im)))
    grid = p2pgrid.Grid(folder, embedded=False)
    print(grid.start(partial(make_row, scene), range(scene.height), name="julia").id, flush=True)
    sys.stdin.read()  # its end: the demo is gone, killed or not
    os._exit(0)
