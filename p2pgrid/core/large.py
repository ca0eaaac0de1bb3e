"""The outcome of a task whose value is an object: shape LARGE of `node.events.Outcome`.

    data = msgpack [name, size, [holder, …], is_ref]          a fifth element, where the node adds it: the offset

`name` is the object's id (33 bytes, `core.pieces`); on the way from a worker child to its own node, and from there to a
reader on the same machine, it may be the 16-byte key of its place, since hashing 256 MB takes longer than handing it
over. Whatever is recorded, written down or leaves the node has the id. `holders` are ids of nodes that had it then.
`is_ref`: the task was submitted with keep="ref", and what its reader gets is the Ref, not the value.

Who wants to use such a result as the input of another task needs no more than `core.ref.value_of(name, holders)` in
its pickled arguments: a Ref among arguments is the same call.

Rule: msgpack only, since worker children import it; no id is made or checked here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack

LARGE = 3
INLINE_BYTES_MAX = 64 * 1024
"""A larger value becomes an object. To ask for a place costs 60 to 100 µs, as much as to copy 64 KiB four times."""
KEY_BYTES = 16
ID_BYTES = 33
HOLDERS_MAX = 16
NODE_ID_MAX = 128


class Large(NamedTuple):
    """A value that lies in the grid's memory."""

    name: bytes
    size: int
    holders: tuple[str, ...] = ()
    is_ref: bool = False
    offset: int | None = None
    """Where in the shared memory of the node that says this; it counts as one mapping of whoever is told."""

    @property
    def has_id(self) -> bool:
        """Whether its name means anything outside its node."""
        return len(self.name) == ID_BYTES

    def packed(self) -> bytes:
        """Return it as the data of an outcome."""
        place = [] if self.offset is None else [self.offset]
        return pack([self.name, self.size, list(self.holders), self.is_ref, *place])


def read_large(data: object) -> Large:
    """Return what the data of an outcome of shape LARGE says. Raises PeerError: it is malformed."""
    match unpack(data) if isinstance(data, bytes) else None:
        case [bytes(name), int(size), list(holders), bool(is_ref), *rest] if (
            len(name) in (KEY_BYTES, ID_BYTES)
            and size > 0
            and len(holders) <= HOLDERS_MAX
            and all(isinstance(one, str) and 0 < len(one) <= NODE_ID_MAX for one in holders)
        ):
            offset = rest[0] if rest and type(rest[0]) is int else None
            return Large(name, size, tuple(holders), is_ref, offset)
    raise PeerError("a malformed name of a stored result")


def outcome_bytes(shape: int, data: Any) -> int:
    """Return how many bytes of result an outcome brings its reader, who gives credit for as many."""
    if shape == LARGE:
        return read_large(data).size
    return len(data) if isinstance(data, bytes) else sum(map(len, data))
