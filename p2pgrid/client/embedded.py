"""An embedded node: a process of its own, in its own session, that ends after its last program and job."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import p2pgrid
from p2pgrid.core.errors import NoNode

LOG_TAIL_BYTES = 2000
DIRECTORY_IN_USE = 2

_children: list[subprocess.Popen[bytes]] = []
"""Kept, so that they are reaped when they end and nobody is warned of them."""


def spawn_node(directory: Path, config: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """Start a node process: own session (Ctrl-C does not reach it), output to `log`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = dict(os.environ)
    # The node finds this very package, also where it is not installed; appended, so that it shadows nothing.
    root = str(Path(p2pgrid.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), root]))
    environment["PYTHONSAFEPATH"] = "1"
    log.touch(mode=0o600)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "p2pgrid.node.daemon", json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
            close_fds=True,
        )
    _children[:] = [one for one in _children if one.poll() is None]
    _children.append(child)
    return child


class EmbeddedNode:
    """A node that was started for a directory."""

    def __init__(self, directory: Path) -> None:
        """Start it; whether it lives is seen at its socket."""
        self.log = directory / "node.log"
        try:
            self._child = spawn_node(
                directory, {"dir": str(directory), "embedded": True, "python": [sys.executable]}, self.log
            )
        except OSError as error:
            msg = f"cannot start a node in {directory}: {error}"
            raise NoNode(msg, next="give a directory you may write to: Grid(dir=...)") from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    def failure(self) -> str:
        """Return why it ended, if it did and no other node has the directory."""
        code = self._child.poll()
        if code is None or code == DIRECTORY_IN_USE:
            return ""
        tail = b""
        with contextlib.suppress(OSError):
            tail = self.log.read_bytes()[-LOG_TAIL_BYTES:]
        last = tail.decode(errors="replace").strip().rpartition("\n")[2]
        return f"the node started in {self.log.parent} ended with code {code}: {last}"
