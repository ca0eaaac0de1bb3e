"""What keepers of job records say to each other, read: malformed frames raise PeerError before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX, binding, content_id, decode_batch
from p2pgrid.core.errors import PeerError
from p2pgrid.core.frame_words import job_id, malformed
from p2pgrid.core.large import read_large
from p2pgrid.core.listed import OWNER_MAX, TIME_MAX_S
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Spec, unpack_spec
from p2pgrid.core.shapes import read_outcome
from p2pgrid.core.wire import pack, unpack

ROWS_MAX = 65_536
JOBS_MAX = 4096
TAGS_MAX = 1 << 24
KEY_MAX = 4096
META_MAX = 1 << 20
NODE_MAX = 128
DIGEST_LENGTH = 16
TAG_LENGTH = 8
BUCKETS = 256
KIND_MAX = 16
INDEX_LENGTH = 8
ATTEMPTS_MAX = 1 << 31
COPIES_MAX = 64
_KINDS = frozenset({"code", "input", "refs", "result", "close", "seal", "cancel", "state", "try", "attempt", "expiry"})
"""Kinds of rows whose meaning is known; others are kept for a later version."""


class Copy(NamedTuple):
    """How a member's copy of a record is."""

    job: bytes
    digest: bytes
    serves: bool
    asks: bool


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise malformed("number")
    return value


def _digest(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != DIGEST_LENGTH:
        raise malformed("digest")
    return value


def _each(read: Callable[[Any], Any], most: int) -> Callable[[Any], list[Any]]:
    def each(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise malformed("list")
        return [read(one) for one in value]

    return each


def _row(value: Any) -> tuple[bytes, str, bytes, bytes, bytes]:
    match value:
        case [job, str(kind), bytes(key), bytes(meta), bytes(data), *_] if (
            0 < len(kind) <= KIND_MAX and len(key) <= KEY_MAX and len(meta) <= META_MAX
        ):
            _check(kind, key, meta, data)
            return job_id(job), kind, key, meta, data
    raise malformed("row")


def _check(kind: str, key: bytes, meta: bytes, data: bytes) -> None:
    """See whether a row says something that can be taken in, and whether its value is what its key or meta names."""
    match kind, unpack(meta) if kind in _KINDS and kind not in ("code", "refs") else None:
        case "spec", _:
            _spec(key, unpack_spec(meta))
        case "code", _ if content_id(data) == key:
            binding(data)
        case "refs", _:
            read_large(meta)
        case "input", [int(hi), bytes(content), *_] if len(key) == INDEX_LENGTH and content_id(data) == content:
            decode_batch(int.from_bytes(key, "big"), hi, data)
        case "result", [str(node), int(life), int(number), int(lo), int(hi), bool(), int(attempt), bytes(content),
                        bool(), int(size), *rest]:  # fmt: skip
            if content_id(data) != content or key != pack([node, life, number]) or len(node) > NODE_MAX:
                raise malformed("row of results")
            read_outcome([lo, hi, *_pair(unpack(data))])
            _numbers(life, number, size)
            _attempt(attempt)
            _rest(rest)
        case "close", int(count):
            _numbers(count)
        case "seal", [int(lo), int(hi), [str(), int(life), int(number)], *_]:
            _span(lo, hi)
            _numbers(life, number)
        case "cancel", [flat, str(), *_]:
            _flat([] if flat is None else flat)
        case "state", [str(), str(), *_]:
            pass
        case "try", [int(task), str(), str(), int(life), int(number)]:
            _numbers(task, life, number)
        case "attempt", [int(lo), int(hi), int(attempt), *_]:
            _span(lo, hi)
            _attempt(attempt)
        case "expiry", (int() | float()) as until if math.isfinite(until) and 0 <= until < TIME_MAX_S:
            pass
        case _ if kind in _KINDS:
            raise malformed(f"row of kind {kind}")


def _spec(key: bytes, spec: Spec) -> None:
    if key:
        raise malformed("spec")
    check_spec(spec)


def check_spec(spec: Spec) -> None:
    """Raise PeerError if other nodes would not take a job of this spec in."""
    until_s = spec.submitted_s + spec.ttl_s
    if not (0 <= spec.submitted_s < TIME_MAX_S and 0 <= until_s < TIME_MAX_S):
        raise malformed("spec: times that are no dates")
    if len(spec.owner) > OWNER_MAX or not 0 <= spec.copies <= COPIES_MAX:
        raise malformed(f"spec: an owner or a number of copies ({spec.copies}) beyond what there may be")


def _numbers(*values: int) -> None:
    for value in values:
        _number(value)


def _span(lo: int, hi: int) -> None:
    if not 0 <= lo < hi <= TASKS_MAX:
        raise malformed("range")


def _attempt(value: int) -> None:
    if not 0 <= value < ATTEMPTS_MAX:
        raise malformed("attempt")


def _rest(rest: list[Any]) -> None:
    """The name of the node that made a result, and the object that holds it."""
    if rest and (not isinstance(rest[0], str) or len(rest[0]) > NODE_MAX):
        raise malformed("row of results")
    if len(rest) > 1:
        read_large(rest[1])


def _flat(value: Any) -> None:
    try:
        RangeSet.from_flat(_each(_number, META_MAX)(value))
    except ValueError as error:
        msg = f"malformed ranges: {error}"
        raise PeerError(msg) from error


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004 - shape and data
        raise malformed("result")
    return value


def _rows(body: Any) -> tuple[int, list[tuple[bytes, str, bytes, bytes, bytes]]]:
    match body:
        case [number, rows, *_]:
            return _number(number), _each(_row, ROWS_MAX)(rows)
    raise malformed("lot of rows")


def _synced(body: Any) -> tuple[list[int], list[int]]:
    match body:
        case [done, refused, *_]:
            return _each(_number, ROWS_MAX)(done), _each(_number, ROWS_MAX)(refused)
    raise malformed("acknowledgement")


def _copy(value: Any) -> Copy:
    match value:
        case [job, digest, bool(serves), bool(asks), *_]:
            return Copy(job_id(job), _digest(digest), serves, asks)
    raise malformed("copy")


def _bucket(value: Any) -> int:
    if type(value) is not int or not 0 <= value < BUCKETS:
        raise malformed("bucket")
    return value


def _bucket_digest(value: Any) -> tuple[int, bytes]:
    match value:
        case [bucket, digest, *_]:
            return _bucket(bucket), _digest(digest)
    raise malformed("bucket")


def _buckets(body: Any) -> tuple[bytes, list[tuple[int, bytes]]]:
    match body:
        case [job, buckets, *_]:
            return job_id(job), _each(_bucket_digest, BUCKETS)(buckets)
    raise malformed("list of buckets")


def _tags(value: Any) -> list[bytes]:
    if not isinstance(value, bytes) or len(value) % TAG_LENGTH or len(value) > TAGS_MAX:
        raise malformed("list of tags")
    return [value[at : at + TAG_LENGTH] for at in range(0, len(value), TAG_LENGTH)]


def _tagged(body: Any) -> tuple[bytes, list[int] | None, list[bytes]]:
    match body:
        case [job, buckets, tags, *_]:
            return job_id(job), None if buckets is None else _each(_bucket, BUCKETS)(buckets), _tags(tags)
    raise malformed("list of tags")


def _wanted(body: Any) -> tuple[bytes, list[bytes]]:
    match body:
        case [job, tags, *_]:
            return job_id(job), _tags(tags)
    raise malformed("list of tags")


def _keeper(value: Any) -> tuple[bytes, str]:
    match value:
        case [job, str(node), *_] if 0 < len(node) <= NODE_MAX:
            return job_id(job), node
    raise malformed("keeper")


def _runs(value: Any) -> tuple[bytes, RangeSet]:
    match value:
        case [job, flat, *_]:
            _flat(flat)
            return job_id(job), RangeSet.from_flat(flat)
    raise malformed("list of running tasks")


def _copies(body: Any) -> list[Copy]:
    return _each(_copy, JOBS_MAX)(body)


def _keepers(body: Any) -> list[tuple[bytes, str]]:
    return _each(_keeper, JOBS_MAX)(body)


_READ: dict[int, Callable[[Any], Any]] = {
    m.P_ROWS: _rows,
    m.P_SYNCED: _synced,
    m.P_COPIES: _copies,
    m.P_BUCKETS: _buckets,
    m.P_TAGS: _tagged,
    m.P_WANTED: _wanted,
    m.P_KEEPER: _keepers,
    m.P_RUNS: _each(_runs, JOBS_MAX),
}


def from_keeper(kind: int, body: Any) -> Any:
    """Return the body of a frame about copies, read. Raises PeerError if it is malformed or of another type."""
    read = _READ.get(kind)
    if read is None:
        raise malformed(f"frame of type {kind}")
    return read(body)
