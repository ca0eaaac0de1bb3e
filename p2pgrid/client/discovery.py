"""Finding the node of this machine, or starting an embedded one; and saying on stderr, once, what was found."""

import hashlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from p2pgrid.client.connection import Connection, ConnectionLost, Welcome, connect
from p2pgrid.client.embedded import EmbeddedNode
from p2pgrid.core.errors import GridError, NoNode
from p2pgrid.core.locate import data_dir, default_dirs, socket_of, user_dir

START_S = 20.0
"""How long an embedded node may take to open its socket; 0.7 s is usual."""
POLL_S = 0.01

_said: set[str] = set()


class LocalFinder:
    """Finds a node by its directory: given, or the usual ones; starts one where that is allowed."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        *,
        embedded: bool | None,
        timeout_s: float,
        invite: str | None = None,
    ) -> None:
        """Look at `directory` only, if given; a node that has to be started joins by `invite`, if given."""
        self._timeout_s = timeout_s
        self._invite = invite
        own = Path(directory).expanduser().absolute() if directory is not None else _from_environment()
        home = own or _directory_for_here()
        self._may_start = embedded is not False
        if embedded:
            self._places = [home]
        elif own is not None:
            self._places = [own]
        else:
            self._places = [*default_dirs(), home]
        self._home = home
        self._started: EmbeddedNode | None = None
        self._found: Path | None = None

    def connect(self, hello: dict[str, Any]) -> Connection:
        """Return a connection to the first node that answers, or to one that is started now.

        Raises:
            NoNode: none answers and none may be started.
            GridError: one answers but cannot be used, or an embedded one does not start.
        """
        for place in self._places:
            connection = self._try(place, hello)
            if connection is not None:
                self._found = place
                _say(_found(connection.welcome), once=str(place))
                return connection
        looked = ", ".join(map(str, self._places))
        if not self._may_start:
            msg = f"no node runs here (looked in {looked})"
            raise NoNode(msg)
        self._found = self._home
        if self._home in self._places and not self._home.exists() and self._home != _directory_for_here():
            looked += ", which was not there"  # a word that was mistyped is noticed
        connection = self._start(hello)
        assert self._started is not None
        if connection.welcome.pid != self._started.pid:
            _say(_found(connection.welcome), once=str(self._home))  # another program was faster
            return connection
        slots = _plural(connection.welcome.slots, "slot")
        _say(
            f"no node runs here (looked in {looked}): started one for this directory, {slots}; "
            "it ends with its last program and job",
            once=str(self._home),
        )
        return connection

    def again(self, hello: dict[str, Any]) -> Connection | None:
        """Try once to reach the node that was found before; an embedded one that died is started again."""
        assert self._found is not None
        connection = self._try(self._found, hello)
        if connection is None and self._may_start and self._found == self._home and self._was_embedded():
            try:
                return self._start(hello)
            except GridError:
                return None
        return connection

    @property
    def flags(self) -> str:
        """What a command needs to reach the node that was found, or nothing where it would look anyway."""
        if self._found is None or self._found == data_dir().absolute():
            return ""
        return f" --dir {shlex.quote(str(self._found))}"

    def _was_embedded(self) -> bool:
        return self._started is not None

    def _try(self, place: Path, hello: dict[str, Any]) -> Connection | None:
        socket = socket_of(place)
        if socket is None:
            return None
        try:
            return connect(socket, hello, self._timeout_s)
        except (OSError, ConnectionLost):
            return None

    def _start(self, hello: dict[str, Any]) -> Connection:
        """Start a node and wait for its socket. Of two that start at once one gives way; either serves both."""
        self._started = EmbeddedNode(self._home, self._invite)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            connection = self._try(self._home, hello)
            if connection is not None:
                self._started.greeted()
                return connection
            failed = self._started.failure()
            if failed:
                raise NoNode(failed, next=f"read {self._started.log}")
            time.sleep(POLL_S)
        msg = f"the node started in {self._home} did not answer within {START_S:g} s"
        raise NoNode(msg, next=f"read {self._started.log}")


def _from_environment() -> Path | None:
    directory = os.environ.get("P2PGRID_DIR")
    return Path(directory).expanduser().absolute() if directory else None


def _directory_for_here() -> Path:
    """Return the directory of the node that belongs to the working directory."""
    here = os.path.realpath(os.getcwd())  # noqa: PTH109 - a plain text to hash
    return user_dir() / "embedded" / hashlib.blake2b(os.fsencode(here), digest_size=8).hexdigest()


def _found(welcome: Welcome) -> str:
    return f"grid {welcome.grid}: {_plural(welcome.nodes, 'node')}, {_plural(welcome.slots, 'slot')}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _say(text: str, *, once: str) -> None:
    if once not in _said:
        _said.add(once)
        print(text, file=sys.stderr)
