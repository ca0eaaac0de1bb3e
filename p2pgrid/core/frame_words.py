"""The words of which bodies of frames are made, read one by one: numbers, times, texts, ids, ranges, arrays of these.

Whatever is not what it has to be is refused with PeerError; `shapes` and its like put these words together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from p2pgrid.core.batch import ID_BYTES, TASKS_MAX
from p2pgrid.core.errors import PeerError
from p2pgrid.core.member import BUCKETS
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import is_shallow

NODE_ID_MAX = 128


def malformed(what: str) -> PeerError:
    """Return what to raise where something that came is not what it has to be."""
    return PeerError(f"a malformed {what}")


def fields_of(body: Any, count: int) -> list[Any]:
    """Return the first elements of an array; what a later version appends is passed over."""
    if not isinstance(body, list | tuple) or len(body) < count:
        raise malformed("frame body")
    return list(body[:count])


def optional(body: Any, at: int, read: Callable[[Any], Any], default: Any) -> Any:
    """Return an element that an earlier version did not send."""
    return read(body[at]) if len(body) > at else default


def job_id(value: Any) -> bytes:
    """Return the id of a job, read. Raises PeerError."""
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise malformed("job id")
    return value


def whole_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < TASKS_MAX:
        raise malformed("number")
    return value


def seconds_of(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise malformed("time")
    return float(value)


def byte_string(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise malformed("byte string")
    return value


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise malformed("text")
    return value


def list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise malformed("list")
    return value


def ranges_of(value: Any) -> RangeSet:
    flat = [whole_number(bound) for bound in list_of(value)]
    try:
        return RangeSet.from_flat(flat)
    except ValueError as error:
        msg = f"malformed ranges: {error}"
        raise PeerError(msg) from error


def some_ranges(value: Any) -> RangeSet | None:
    return None if value is None else ranges_of(value)


def span_of(value: Any) -> tuple[int, int]:
    lo, hi = fields_of(value, 2)
    if not whole_number(lo) < whole_number(hi):
        raise malformed("range")
    return lo, hi


def request_id(value: Any) -> tuple[int, int]:
    incarnation, number = fields_of(value, 2)
    return whole_number(incarnation), whole_number(number)


def mapping_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value) or not is_shallow(value):
        raise malformed("mapping")
    return value


def node_id(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NODE_ID_MAX or not value.isascii():
        raise malformed("node id")
    return value


def buckets_of(value: Any) -> list[int]:
    if len(list_of(value)) > BUCKETS or not all(type(one) is int and 0 <= one < BUCKETS for one in value):
        raise malformed("list of buckets")
    return list(value)


def each_of(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [read(one) for one in list_of(value)]


def array_of(*reads: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda body: tuple(read(one) for read, one in zip(reads, fields_of(body, len(reads)), strict=True))
