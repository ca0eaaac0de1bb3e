"""`LocalGrid`: real node processes on this machine, for tests and for trying things out."""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pgrid.client.embedded import secret_file
from p2pgrid.client.grid import Grid
from p2pgrid.client.localnode import LocalNode
from p2pgrid.client.members import ALIVE
from p2pgrid.core.errors import GridError, NoNode

READY_S = 60.0
POLL_S = 0.05
LOG_TAIL_CHARS = 300


class LocalGrid:
    """A grid of node processes on this machine, on loopback, in temporary directories; a context manager.

    The first node founds the grid; the others are started with one invite of it.

    Attributes:
        nodes: the node processes, `LocalNode`: `.id .name .pid .dir`, `.kill() .stop() .start() .invite()`.
    """

    def __init__(self, nodes: int = 1, slots: int = 1, **node_flags: Any) -> None:
        """Describe it; entering the `with` starts it.

        Args:
            nodes: how many.
            slots: tasks at once, per node.
            node_flags: what else the nodes are configured with, as flags of `p2pgrid node`; `name` may be a list.
        """
        if nodes < 1:
            msg = f"nodes={nodes}: expected at least 1"
            raise ValueError(msg)
        names = node_flags.pop("name", None) or [f"n{i}" for i in range(nodes)]
        self._names = [names] if isinstance(names, str) else list(names)
        if len(self._names) != nodes:
            msg = f"name={names!r}: expected {nodes} of them"
            raise ValueError(msg)
        defaults = {"python": [sys.executable], "listen": ["127.0.0.1:0"], "preset": "local"}
        self._config = {"slots": slots, **defaults, **node_flags}
        self._root: Path | None = None
        self._grids: list[Grid] = []
        self.nodes: list[LocalNode] = []

    def grid(self, i: int = 0, **options: Any) -> Grid:
        """Return a new `Grid` at node `i`; it is shut down when the local grid ends."""
        grid = Grid(self.nodes[i].dir, embedded=False, **options)
        self._grids.append(grid)
        return grid

    def add(self, name: str, invite: str) -> LocalNode:
        """Start one more node, which joins by an invite (`nodes[i].invite()`); return at once.

        Args:
            name: of the node.
            invite: the text of the invite.
        """
        assert self._root is not None, "enter the `with` first"
        directory = self._root / f"n{len(self.nodes)}"
        node = LocalNode(name, directory, {"dir": str(directory), "name": name, **self._config})
        node.join = secret_file(self._root / f"invite-{len(self.nodes)}", invite)
        self.nodes.append(node)
        node.launch()
        return node

    def wait_members(self, n: int | None = None, timeout: float = READY_S) -> None:
        """Wait until every node that runs here is connected with `n` that are alive: all that run here, and itself.

        Args:
            n: how many; by default as many as run here. Say more where others have joined.
            timeout: seconds.

        Raises:
            GridError: it did not come to that (code `timed-out`); the message says who misses whom.
            NoNode: a node ended meanwhile, by itself.
        """
        deadline = time.monotonic() + timeout
        while True:
            running = [node for node in self.nodes if node.pid is not None]
            wanted = len(running) if n is None else n
            views = {node.name: _alive(node) for node in running}
            ids = {node.id for node in running}
            if running and all(ids <= view.keys() and len(view) == wanted for view in views.values()):
                return
            for node in self.nodes:
                if node.has_failed:
                    msg = f"node {node.name} ended: {node.log_tail()[-LOG_TAIL_CHARS:]}"
                    raise NoNode(msg, next="mend what its log says")
            if time.monotonic() > deadline:
                msg = f"after {timeout:g} s not every node sees {wanted} alive: {_who_misses_whom(running, views)}"
                raise GridError(msg, code="timed-out", next="give it more time: wait_members(timeout=...)")
            time.sleep(POLL_S)

    def __enter__(self) -> Self:
        """Start all nodes; return when all are alive in all views."""
        root = self._root = Path(tempfile.mkdtemp(prefix="p2pgrid-"))
        self.nodes = [
            LocalNode(name, root / f"n{i}", {"dir": str(root / f"n{i}"), "name": name, **self._config})
            for i, name in enumerate(self._names)
        ]
        try:
            self._start(root)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, root: Path) -> None:
        first, *others = self.nodes
        first.start()
        if not others:
            return
        invite = secret_file(root / "invite", first.invite())
        for node in others:
            node.join = invite
            node.launch()
        for node in others:
            node.wait_answering()
        self.wait_members(len(self.nodes))
        for node in others:
            node.join = ""

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """End every process that was started, and remove the directories."""
        self.close()

    def close(self) -> None:
        """End every process that was started, and remove the directories."""
        for grid in self._grids:
            grid.abandon()
        for node in self.nodes:
            node.ask_to_end()
        for node in self.nodes:
            node.wait_ended()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<LocalGrid {' '.join(self._names)}>"


def _alive(node: LocalNode) -> dict[str, str]:
    """Return names by id of those that a node sees alive and is connected with."""
    return {member.id: member.name for member in node.members() if member.status == ALIVE and member.connected}


def _who_misses_whom(running: list[LocalNode], views: dict[str, dict[str, str]]) -> str:
    said = []
    for node in running:
        view = views[node.name]
        missing = [other.name for other in running if other.id not in view]
        seen = ", ".join(sorted(view.values())) or "nobody (it does not answer)"
        lacks = f", not {', '.join(missing)}" if missing else ""
        tail = f" (its log ends: {node.log_tail()[-LOG_TAIL_CHARS:]})" if missing else ""
        said.append(f"{node.name} sees {seen}{lacks}{tail}")
    return "; ".join(said)
