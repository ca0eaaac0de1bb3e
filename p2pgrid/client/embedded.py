"""An embedded node: a process of its own, in its own session, that ends after its last program and job."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import p2pgrid
from p2pgrid.core.errors import GridError, NoNode

LOG_TAIL_BYTES = 2000
DIRECTORY_IN_USE = 2
INVITES = ("P2PGRID_JOIN", "P2PGRID_NODE_JOIN")

_children: list[subprocess.Popen[bytes]] = []
"""Kept, so that they are reaped when they end and nobody is warned of them."""


def spawn_node(directory: Path, config: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """Start a node process: own session (Ctrl-C does not reach it), output to `log`.

    `config` is seen in the list of processes: an invite goes into a file (`secret_file`), as `"join": "@file"`.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # An invite that this program was started with is not meant for the nodes it starts.
    environment = {name: text for name, text in os.environ.items() if name not in INVITES}
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


def invite_text(given: str) -> str:
    """Return the invite: the text itself, or what is in `@file`.

    Raises:
        GridError: the file cannot be read, or there is nothing in it.
    """
    text = given.strip()
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text().strip()
        except (OSError, UnicodeError) as error:
            msg = f"join={given!r}: {getattr(error, 'strerror', None) or 'that file is no text'}"
            raise GridError(msg, code="bad-invite", next="print one where the grid runs: p2pgrid invite") from error
    if not text:
        msg = "join=: there is no invite in it"
        raise GridError(msg, code="bad-invite", next="print one where the grid runs: p2pgrid invite")
    return text


def secret_file(path: Path, text: str) -> str:
    """Write a file that this user alone can read; return how a flag names it: `@path`."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return f"@{path}"


class EmbeddedNode:
    """A node that was started for a directory."""

    def __init__(self, directory: Path, invite: str | None = None) -> None:
        """Start it; whether it lives is seen at its socket. With an invite it joins, and others can reach it."""
        self.log = directory / "node.log"
        self._secret = directory / "invite"
        config: dict[str, Any] = {"dir": str(directory), "embedded": True, "python": [sys.executable]}
        try:
            if invite is not None:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                config["join"] = secret_file(self._secret, invite)
            self._child = spawn_node(directory, config, self.log)
        except OSError as error:
            msg = f"cannot start a node in {directory}: {error}"
            raise NoNode(msg, next="give a directory you may write to: Grid(dir=...)") from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    def greeted(self) -> None:
        """It answers, so it has read what it was started with."""
        self._secret.unlink(missing_ok=True)

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
