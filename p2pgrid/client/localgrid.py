"""`LocalGrid`: real node processes on this machine, for tests and for trying things out."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from p2pgrid.client.embedded import spawn_node
from p2pgrid.client.grid import Grid
from p2pgrid.core.errors import GridError, NoNode
from p2pgrid.core.locate import node_file

START_S = 30.0
STOP_S = 15.0
POLL_S = 0.01
LOG_TAIL_BYTES = 2000


class LocalNode:
    """One node process with a directory of its own."""

    def __init__(self, name: str, directory: Path, config: dict[str, Any]) -> None:
        """Describe a node; `start` starts it."""
        self.name = name
        self.dir = directory
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def id(self) -> str:
        """Its PeerId."""
        return str(node_file(self.dir).get("id", ""))

    @property
    def pid(self) -> int | None:
        """Its process, or None while it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it (again, on its directory) and return when it answers.

        Raises:
            NoNode: it does not come up.
        """
        if self.pid is not None:
            return
        log = self.dir / "node.log"
        self._child = spawn_node(self.dir, self._config, log)
        self._guard = _guarded(self._child.pid)
        deadline = time.monotonic() + START_S
        while node_file(self.dir).get("pid") != self._child.pid:
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                msg = f"node {self.name} did not start: {tail.strip()}"
                raise NoNode(msg, next=f"read {log}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait for that."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._dismiss_guard()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash would."""
        if self._child is not None:
            if self._child.poll() is None:
                os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()

    def invite(self) -> NoReturn:
        """Reserved."""
        msg = 'invite comes with "A grid of real nodes"'
        raise GridError(msg, code="not-yet")

    def __repr__(self) -> str:
        return f"<LocalNode {self.name} pid {self.pid}>"


def _guarded(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that ends node `pid` once this program is gone, killed or not: its end of a pipe closes."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -TERM "$1"', "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class LocalGrid:
    """A grid of node processes on this machine, on loopback, in temporary directories; a context manager."""

    def __init__(self, nodes: int = 1, slots: int = 1, **node_flags: Any) -> None:
        """Describe it; entering the `with` starts it.

        Args:
            nodes: how many; more than one comes with "A grid of real nodes".
            slots: tasks at once, per node.
            node_flags: what else the nodes are configured with, as flags of `p2pgrid node`.
        """
        if nodes != 1:
            msg = f'LocalGrid(nodes={nodes}) comes with "A grid of real nodes"'
            raise GridError(msg, code="not-yet", next="LocalGrid(nodes=1)")
        self._names = [f"n{i}" for i in range(nodes)]
        self._config = {"slots": slots, "python": [sys.executable], **node_flags}
        self._root: Path | None = None
        self._grids: list[Grid] = []
        self.nodes: list[LocalNode] = []

    def grid(self, i: int = 0, **options: Any) -> Grid:
        """Return a new `Grid` at node `i`; it is shut down when the local grid ends."""
        grid = Grid(self.nodes[i].dir, embedded=False, **options)
        self._grids.append(grid)
        return grid

    def __enter__(self) -> Self:
        """Start all nodes and wait until they answer."""
        root = self._root = Path(tempfile.mkdtemp(prefix="p2pgrid-"))
        self.nodes = [
            LocalNode(name, root / name, {"dir": str(root / name), "name": name, **self._config})
            for name in self._names
        ]
        try:
            for node in self.nodes:
                node.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """End every process that was started, and remove the directories."""
        self.close()

    def close(self) -> None:
        """End every process that was started, and remove the directories."""
        for grid in self._grids:
            grid.abandon()
        for node in self.nodes:
            node.stop()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
