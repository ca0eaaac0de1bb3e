"""`Ref`: a value that the grid keeps, by its name. Small whatever it stands for.

Rule: standard library only. What a Ref keeps alive is its session's business (`client.sharing`).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Protocol

from p2pgrid.core.errors import GridError
from p2pgrid.core.units import format_size


class Hold(Protocol):
    """What keeps an object alive as long as its session has a Ref to it."""

    def for_good(self) -> None:
        """Keep it until the session ends: a copy of the Ref went where nobody counts."""


class Ref:
    """A value that `Grid.put` gave to the grid; `Grid.get` returns it. Two refs to equal bytes are equal."""

    __slots__ = ("__weakref__", "_hold", "_holders", "_id", "_size")

    def __init__(self, id_: bytes, size: int, holders: tuple[str, ...] = (), hold: Hold | None = None) -> None:
        """Name an object; made by `put`."""
        self._id = id_
        self._size = size
        self._holders = holders
        self._hold = hold

    @property
    def id(self) -> str:
        """Its name, which is a hash of what it stands for: 66 hexadecimal digits."""
        return self._id.hex()

    @property
    def size(self) -> int:
        """How many bytes the value takes."""
        return self._size

    @property
    def raw(self) -> bytes:
        """The id as it travels."""
        return self._id

    @property
    def hold(self) -> Hold | None:
        """What counts this Ref; None: it came from elsewhere, and nobody does."""
        return self._hold

    @property
    def holders(self) -> tuple[str, ...]:
        """Nodes that had it when this was made, by id."""
        return self._holders

    def __eq__(self, other: object) -> bool:
        return self._id == other._id if isinstance(other, Ref) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._id)

    def as_argument(self) -> tuple[Any, ...]:
        """Travel to a task as what it stands for (a pickle's reduce value); from now on the job needs it."""
        return value_of, (self._id, self._holders)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a name; from now on the object lives as long as the session that put it."""
        if self._hold is not None:
            self._hold.for_good()
        return Ref, (self._id, self._size, self._holders)

    def __repr__(self) -> str:
        return f"<Ref {self.id[2:14]} of {format_size(self._size)}>"


_providers: list[Callable[[bytes, tuple[str, ...]], Any]] = []


def provide(provider: Callable[[bytes, tuple[str, ...]], Any]) -> None:
    """Say who resolves Refs in arguments, in this process: a worker child."""
    _providers[:] = [provider]


def value_of(id_: bytes, holders: tuple[str, ...]) -> Any:
    """Return what a Ref stands for: called as a task's arguments are unpickled. Raises ObjectLost, QuotaExceeded."""
    if not _providers:
        raise GridError("a Ref in arguments can be resolved in a worker only", code="not-yet", next="Grid().get(ref)")
    return _providers[0](id_, holders)


class _AsValue:
    """Pickles as what a Ref stands for."""

    def __init__(self, id_: bytes, holders: tuple[str, ...]) -> None:
        self._call = value_of, (id_, holders)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def pickled_value(id_: bytes, holders: tuple[str, ...]) -> bytes:
    """Return a pickle of what a Ref stands for: in a worker it unpickles as the value."""
    return pickle.dumps(_AsValue(id_, holders), 5)
