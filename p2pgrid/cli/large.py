"""Large results, for the verbs that show values: their bytes, from the shared memory of this machine's node.

Nothing is unpickled here. Two links of their own are opened when the first large value is met: one that brings the
memory and stays open as long as it is mapped, one to ask where things are.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from p2pgrid.cli.link import Link, open_link
from p2pgrid.cli.reading import whole
from p2pgrid.client.arena import take_over
from p2pgrid.core import messages as m
from p2pgrid.core.errors import GridError, PeerError
from p2pgrid.core.large import KEY_BYTES, Large
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import taken_apart

FETCH_S = 600.0


class LargeValues:
    """Large values at one node, while it is used in a `with`."""

    def __init__(self, directory: Path) -> None:
        """Open nothing yet."""
        self._directory = directory
        self._token = os.urandom(KEY_BYTES)
        self._memory: Link | None = None
        self._asks: Link | None = None
        self._mapped: Mapped | None = None

    def parts(self, large: Large) -> list[bytes]:
        """Return the pickle of a value and its buffers.

        Raises:
            GridError: nobody has it any more, or this node has no room for it.
        """
        asks, mapped = self._attached()
        at = asks.ask("want", within_s=FETCH_S, token=self._token, id=large.name, holders=list(large.holders))
        view = mapped.view(whole(at.get("offset")), whole(at.get("size")), int)
        try:
            return [bytes(part) for part in taken_apart(view)]
        except PeerError as error:
            raise GridError(str(error), next="p2pgrid --version") from error
        finally:
            asks.ask("let_go", token=self._token, views=[[large.name, 1]])

    def _attached(self) -> tuple[Link, Mapped]:
        if self._asks is None or self._mapped is None:
            self._memory = open_link(self._directory, "p2pgrid result")
            self._memory.send(m.REQUEST, ["arena", {"token": self._token}])
            try:
                self._mapped = take_over(self._memory.socket)
            except (OSError, PeerError) as error:
                raise GridError(
                    f"the node did not hand over its shared memory: {error}", code="no-shared-memory",
                    next="p2pgrid status",
                ) from error  # fmt: skip
            self._asks = open_link(self._directory, "p2pgrid result")
        return self._asks, self._mapped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for link in (self._asks, self._memory):
            if link is not None:
                link.close()
