"""What frames about objects must look like (`core.messages`: O_FIND and on)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.frame_words import (
    array_of,
    byte_string,
    fields_of,
    list_of,
    malformed,
    node_id,
    ranges_of,
    seconds_of,
)
from p2pgrid.core.pieces import OBJECT_BYTES_MAX, PIECE_BYTES, Manifest, ObjectId, is_id, read_manifest
from p2pgrid.core.ranges import RangeSet

FIND_MAX = 1024
COPIES_MAX = 64
PIECES_MAX = OBJECT_BYTES_MAX // PIECE_BYTES


def object_id(value: Any) -> ObjectId:
    if not is_id(value):
        raise malformed("object id")
    return ObjectId(value)


def _objects(value: Any) -> list[ObjectId]:
    if len(list_of(value)) > FIND_MAX:
        raise malformed("list of objects (too long)")
    return [object_id(one) for one in value]


def object_size(value: Any) -> int:
    if type(value) is not int or not 0 < value <= OBJECT_BYTES_MAX:
        raise malformed("object size")
    return value


def _piece(value: Any) -> int:
    if type(value) is not int or not 0 <= value < PIECES_MAX:
        raise malformed("piece")
    return value


def _pieces(value: Any) -> RangeSet:
    pieces = ranges_of(value)
    if (last := pieces.last()) is not None and last[1] > PIECES_MAX:
        raise malformed("list of pieces")
    return pieces


def _some_pieces(value: Any) -> RangeSet | None:
    return None if value is None else _pieces(value)


def _manifest(body: Any) -> tuple[ObjectId, Manifest]:
    id_, packed = fields_of(body, 2)
    return object_id(id_), read_manifest(id_, byte_string(packed))


def _copies(value: Any) -> int:
    if type(value) is not int or not 0 < value <= COPIES_MAX:
        raise malformed("number of copies")
    return value


def holders_of(value: Any) -> list[str]:
    if len(list_of(value)) > 2 * COPIES_MAX:
        raise malformed("list of holders (too long)")
    return [node_id(one) for one in value]


_OBJECTS: dict[int, Callable[[Any], Any]] = {
    m.O_FIND: array_of(_objects),
    m.O_HAVE: array_of(object_id, object_size, _some_pieces),
    m.O_LACK: array_of(object_id, _some_pieces),
    m.O_LIST: array_of(object_id),
    m.O_LISTED: _manifest,
    m.O_WANT: array_of(object_id, _pieces),
    m.O_PIECE: array_of(object_id, _piece, byte_string),
    m.O_BUSY: array_of(object_id, _pieces, seconds_of),
    m.O_SKIP: array_of(object_id, _pieces),
    m.O_COPY: array_of(object_id, _copies, holders_of),
    m.O_FREE: array_of(object_id),
}


def of_objects(kind: int, body: Any) -> Any:
    """Return the body of a frame about objects, read; None for another type. Raises PeerError."""
    read = _OBJECTS.get(kind)
    return None if read is None else read(body)
