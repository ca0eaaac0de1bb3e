"""One node process of a `LocalGrid`: started, asked to end, killed, started again on its directory."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from p2pgrid.client.asking import ask
from p2pgrid.client.embedded import spawn_node
from p2pgrid.client.members import Member, members_from
from p2pgrid.core.errors import GridError, NoNode
from p2pgrid.core.locate import node_file
from p2pgrid.core.units import parse_duration

START_S = 30.0
STOP_S = 15.0
ORPHANS_S = 5.0
"""How long the processes of a killed node's tasks may live; its reaper kills them at once."""
ASK_S = 5.0
INVITE_S = 30.0
"""A node that has just started says yes once it listens."""
POLL_S = 0.01
LOG_TAIL_BYTES = 2000


class LocalNode:
    """One node process with a directory of its own."""

    def __init__(self, name: str, directory: Path, config: dict[str, Any]) -> None:
        """Describe a node; `start` starts it."""
        self.name = name
        self.dir = directory
        self.join = ""
        """An invite, as the flag takes it, until the node was in the grid."""
        self._config = config
        self._id = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def id(self) -> str:
        """Its PeerId; empty before its first start."""
        return self._id

    @property
    def pid(self) -> int | None:
        """Its process, or None while it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it (again, on its directory) and return when it answers; a member of a grid finds the others itself.

        Raises:
            NoNode: it does not come up.
        """
        self.launch()
        self.wait_answering()

    def launch(self) -> None:
        """Start it and return at once."""
        if self.pid is None:
            self._dismiss_guard()
            config = self._config | ({"join": self.join} if self.join else {})
            self._child = spawn_node(self.dir, config, self._log)
            self._guard = _guarded(self._child.pid)

    def wait_answering(self) -> None:
        """Wait until its socket is open. Raises NoNode."""
        assert self._child is not None
        deadline = time.monotonic() + START_S
        while (said := node_file(self.dir)).get("pid") != self._child.pid:
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                msg = f"node {self.name} did not start: {self.log_tail()}"
                raise NoNode(msg, next="mend what its log says")
            time.sleep(POLL_S)
        self._id = str(said.get("id", ""))

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait for that."""
        self.ask_to_end()
        self.wait_ended()

    def ask_to_end(self) -> None:
        """Ask it to end and return at once."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def wait_ended(self) -> None:
        """Wait until it ended; kill it if that takes long."""
        if self._child is not None:
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            _wait_session_ended(self._child.pid)
        self._dismiss_guard()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash would."""
        if self._child is not None:
            if self._child.poll() is None:
                os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._dismiss_guard()

    def invite(self, roles: str = "submit,work,admin", expires: float | str = "7d") -> str:
        """Return an invite to its grid. Whoever holds it can run code on every node with the work role.

        Raises:
            GridError: this node may not invite.
        """
        arguments = {"roles": roles, "expires": parse_duration(expires), "member_until": 0}
        return str(ask(self.dir, "invite", arguments, INVITE_S)["invite"])

    def members(self) -> list[Member]:
        """Return who is in the grid as this node knows it; empty if it does not answer."""
        try:
            return members_from(ask(self.dir, "members", {}, ASK_S))
        except GridError:
            return []

    @property
    def has_failed(self) -> bool:
        """Whether it ended by itself, with an error; not: killed, or asked to end."""
        return self._child is not None and (self._child.poll() or 0) > 0

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        with contextlib.suppress(OSError):
            return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    @property
    def _log(self) -> Path:
        return self.dir / "node.log"

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()

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


def _wait_session_ended(session: int) -> None:
    """Wait, within limits, until no process is left in a session that a node led: those of its tasks (Linux)."""
    deadline = time.monotonic() + ORPHANS_S
    while _is_populated(session) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_populated(session: int) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, _, _, its_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                return True
    return False
