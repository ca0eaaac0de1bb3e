"""The objects of a node: the first who asks for any has the shared memory made (`Sharing`).

A node whose programs put nothing, and whose members keep nothing here, pays for none of it. Where the memory cannot be
had, whoever asks hears why; what the machine wants of objects is not done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, error_to_wire
from p2pgrid.node import events as e
from p2pgrid.node.banner import Talk
from p2pgrid.node.local import LocalServer
from p2pgrid.node.workers import WorkerPool

if TYPE_CHECKING:
    from p2pgrid.core.wire import Frame
    from p2pgrid.node.sharing import Sharing
    from p2pgrid.node.workers_child import Child


class OnDemand:
    """The objects of this node, once somebody has asked for them. `make` may raise OSError."""

    def __init__(self, make: Callable[[], Sharing], server: LocalServer, pool: WorkerPool, talk: Talk) -> None:
        self._make = make
        self._server = server
        self._pool = pool
        self._talk = talk
        self._sharing: Sharing | None = None

    def _made(self) -> Sharing:
        """Return the objects of this node. Raises GridError."""
        if self._sharing is None:
            try:
                self._sharing = self._make()
            except OSError as error:
                self._talk.line(f"warning: no shared memory: {error.strerror or error}")
                msg = f"this node has no shared memory: {error}"
                raise GridError(msg, code="no-shared-memory", next="p2pgrid status") from error
        return self._sharing

    def perform(self, effect: e.Effect) -> None:
        """Do what the machine wants of objects; without shared memory none can be kept."""
        with contextlib.suppress(GridError):
            self._made().perform(effect)

    def keeper(self) -> Sharing | None:
        """Return the objects of this node, to a member who asks it to keep some."""
        with contextlib.suppress(GridError):
            return self._made()
        return None

    def worker_asks(self, child: Child, asks: list[Frame]) -> None:
        """Hand on what a worker says about objects."""
        try:
            sharing = self._made()
        except GridError as error:
            self._pool.refuse(child, asks, error)
            return
        sharing.visitors.worker_asks(self._pool, child, asks)

    def worker_gone(self, child: Child) -> None:
        """Let go of what a worker had."""
        if self._sharing is not None:
            self._sharing.visitors.gone(-child.process.pid)

    def answer(self, client: int, id_: int, verb: str, arguments: dict[str, Any]) -> None:
        """Hand on a request about objects."""
        try:
            sharing = self._made()
        except GridError as error:
            self._server.reply(e.Reply(client, m.ERROR, id_, dict(error_to_wire(error))))
            self._server.flush()
            return
        sharing.visitors.answer(client, id_, verb, arguments)

    def shown(self, reply: e.Reply) -> e.Reply:
        """Return an answer as its client is to see it: large results in the memory that it maps."""
        if self._sharing is None or reply.kind != m.RESULT:
            return reply
        return self._sharing.belongings.shown(reply)

    def stats(self) -> dict[str, Any]:
        """Return the figures of `status`."""
        return {} if self._sharing is None else self._sharing.stats()
