"""What the bodies of frames must look like before a machine looks at them (`core.messages` says what they mean).

Everything a client or a member may get wrong in a frame is refused here, as a whole, with PeerError: a handler that
has begun to act on a body never finds out half-way that it is malformed. Ranges come out as `RangeSet`. Frames about
membership, objects and copies of jobs have files of their own: `member_shapes`, `object_shapes`, `keeper_shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from p2pgrid.core import listed
from p2pgrid.core import messages as m
from p2pgrid.core.errors import PeerError
from p2pgrid.core.frame_words import (
    array_of,
    buckets_of,
    byte_string,
    each_of,
    fields_of,
    job_id,
    list_of,
    malformed,
    mapping_of,
    node_id,
    optional,
    ranges_of,
    request_id,
    seconds_of,
    some_ranges,
    span_of,
    text_of,
    whole_number,
)
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.listed import Listed
from p2pgrid.core.member import BUCKETS
from p2pgrid.core.object_shapes import holders_of, object_id, object_size
from p2pgrid.core.pieces import is_id
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import is_shallow, unpack

TEXT_SHOWN = 300
WHY_MAX = 1000
"""Of why a member gives tasks back; it is kept, shown and may become the message of an exception."""
VALUES, PACKED, FAILURE, CRASH = 0, 1, 2, 4
"""Shapes of outcomes (`node.events.Outcome`); the fifth is `core.large.LARGE`, a value that is an object."""
CLAIM_PARTS_MAX = 4096
WATCH_S_MAX = 3600.0
ENTRIES_MAX = 1024


class ResultEntry(NamedTuple):
    """One lot of results from its holder; outcome number i of it is batch `batch[1]` + i of incarnation `batch[0]`."""

    job: bytes
    batch: tuple[int, int]
    attempt: int
    outcomes: list[tuple[int, int, int, Any]]
    logs: list[tuple[int, bytes]]
    busy_s: float


def read_outcome(value: Any) -> tuple[int, int, int, Any]:
    """Return (lo, hi, shape, data) of an outcome as it travels (node.events.Outcome). Raises PeerError."""
    lo, hi = span_of(value)
    shape, data = fields_of(value, 4)[2:]
    match shape:
        case int() if shape == VALUES and isinstance(data, list) and len(data) == hi - lo:
            for one in data:
                byte_string(one)
        case int() if shape == PACKED and isinstance(data, bytes):
            pass
        case int() if shape == FAILURE and hi == lo + 1:
            failure = unpack(byte_string(data))
            if not isinstance(failure, dict) or not is_shallow(failure):
                raise malformed("failure")
        case int() if shape == LARGE and hi == lo + 1:
            if not is_id(read_large(data).name):
                raise malformed("name of a stored result")
        case int() if shape == CRASH and hi == lo + 1:
            for part in fields_of(unpack(byte_string(data)), 3):
                text_of(part)
        case _:
            raise malformed("outcome")
    return lo, hi, int(shape), data


def failure_text(data: bytes) -> str:
    """Return what a failed task raised, in one short line, from the bytes of an outcome; never raises."""
    try:
        failure = unpack(data)
        text = failure["text"]
        said = text if isinstance(text, str) else ""
        line = f"{failure['qualname']}: {said}" if said else str(failure["qualname"])
    except (PeerError, KeyError, TypeError):
        return ""
    return " ".join(line.split())[:TEXT_SHOWN]


def lineage(data: bytes) -> list[tuple[str, str]]:
    """Return (module, qualname) of the classes of an encoded failure, as far as they are well formed."""
    value = unpack(data)
    mro = value.get("mro") if isinstance(value, dict) else None
    return [
        (one[0], one[1])
        for one in (mro if isinstance(mro, list) else [])
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], str)  # noqa: PLR2004
    ]


def _request(body: Any) -> tuple[str, dict[str, Any]]:
    verb, arguments = fields_of(body, 2)
    if not isinstance(arguments, dict) or not is_shallow(arguments):
        raise malformed("request")
    return text_of(verb), arguments


def _ask(body: Any) -> tuple[tuple[int, int], str, dict[str, Any]]:
    rid, verb, arguments = fields_of(body, 3)
    return request_id(rid), text_of(verb), mapping_of(arguments)


class Claimed(NamedTuple):
    """What a member holds of a job, what of that it runs, and what it handed to whom, who may not claim it yet."""

    held: RangeSet
    running: RangeSet
    handed: Mapping[str, RangeSet]


def _handed(value: Any) -> dict[str, RangeSet]:
    if len(list_of(value)) > HANDED_MAX:
        raise malformed("list of hand-overs (too long)")
    return {node_id(thief): ranges_of(spans) for thief, spans in (fields_of(one, 2) for one in value)}


def _claims(value: Any) -> dict[bytes, Claimed]:
    rows = [(fields_of(one, 3), optional(one, 3, _handed, {})) for one in list_of(value)]
    return {job_id(job): Claimed(ranges_of(held), ranges_of(running), handed) for (job, held, running), handed in rows}


def _granted_range(value: Any) -> tuple[int, int, int, bool]:
    lo, hi = span_of(value)
    attempt = whole_number(fields_of(value, 3)[2])
    return lo, hi, attempt, len(value) > 3 and value[3] is True  # noqa: PLR2004


def _code(value: Any) -> tuple[bytes, bytes]:
    code, union = fields_of(value, 2)
    return job_id(code), byte_string(union)


def _granted_batch(value: Any) -> tuple[int, int, bytes]:
    return (*span_of(value), byte_string(fields_of(value, 3)[2]))


def _result(value: Any) -> ResultEntry:
    job, batch, attempt, outcomes = fields_of(value, 4)
    logs = optional(value, 4, each_of(_log), [])
    busy_s = optional(value, 5, seconds_of, 0.0)
    return ResultEntry(
        job_id(job),
        request_id(batch),
        whole_number(attempt),
        [read_outcome(one) for one in list_of(outcomes)],
        logs,
        busy_s,
    )


def _log(value: Any) -> tuple[int, bytes]:
    index, text = fields_of(value, 2)
    return whole_number(index), byte_string(text)


def _want(body: Any) -> tuple[tuple[int, int], int, float, float]:
    rid, slots, speed = fields_of(body, 3)
    return request_id(rid), whole_number(slots), seconds_of(speed), optional(body, 3, seconds_of, 0.0)


HANDED_MAX = 256
HINTS_MAX = 64
RATES_MAX = 64
HAS_MAX = 1024


def _hints(value: Any) -> list[tuple[str, float]]:
    if len(list_of(value)) > HINTS_MAX:
        raise malformed("list of hints (too long)")
    return [(node_id(node), seconds_of(seconds)) for node, seconds in (fields_of(one, 2) for one in value)]


def _none(body: Any) -> tuple[tuple[int, int], list[tuple[str, float]]]:
    return request_id(fields_of(body, 1)[0]), optional(body, 1, _hints, [])


def _rates(value: Any) -> dict[bytes, float]:
    if len(list_of(value)) > RATES_MAX:
        raise malformed("list of rates (too long)")
    return {job_id(code): seconds_of(seconds) for code, seconds in (fields_of(one, 2) for one in value)}


def _has(value: Any) -> set[tuple[bytes, Any]]:
    out: set[tuple[bytes, Any]] = set()
    for job, codes, flat in (fields_of(one, 3) for one in list_of(value)):
        bounds = [whole_number(bound) for bound in list_of(flat)]
        if len(bounds) % 2:
            raise malformed("list of runs")
        out |= {(job_id(job), job_id(code)) for code in list_of(codes)}
        out |= {(job_id(job), run) for run in zip(bounds[::2], bounds[1::2], strict=True)}
        if len(out) > HAS_MAX:
            raise malformed("list of what is there (too long)")
    return out


def _claim(body: Any) -> tuple[int, int, float, dict[bytes, Claimed], int, int]:
    incarnation, seq, interval, claims = fields_of(body, 4)
    part, parts = optional(body, 4, whole_number, 0), optional(body, 5, whole_number, 1)
    if not part < parts <= CLAIM_PARTS_MAX:
        raise malformed("part of a claim")
    return whole_number(incarnation), whole_number(seq), seconds_of(interval), _claims(claims), part, parts


def _returned(body: Any) -> tuple[bytes, RangeSet, str, bool]:
    job, spans, why = fields_of(body, 3)
    return (
        job_id(job),
        ranges_of(spans),
        text_of(why)[:WHY_MAX],
        optional(body, 3, lambda value: value is True, default=False),
    )


def _ack(value: Any) -> tuple[bytes, int, int]:
    job, incarnation, number = fields_of(value, 3)
    return job_id(job), whole_number(incarnation), whole_number(number)


def _input(body: Any) -> tuple[bytes, int, int, bytes]:
    job, lo, hi, data = fields_of(body, 4)
    return job_id(job), whole_number(lo), whole_number(hi), byte_string(data)


REFS_MAX = 65_536


def _refs(value: Any) -> list[Large]:
    if len(list_of(value)) > REFS_MAX:
        raise malformed("list of objects (too long)")
    return [
        Large(object_id(id_), object_size(size), tuple(holders_of(holders)), is_ref=True)
        for id_, size, holders in (fields_of(one, 3) for one in value)
    ]


WAITED_FOR_MAX = 4096


def _waited_for(value: Any) -> list[tuple[bytes, RangeSet]]:
    if len(list_of(value)) > WAITED_FOR_MAX:
        raise malformed("list of jobs (too long)")
    return [(job_id(job), ranges_of(spans)) for job, spans in (fields_of(one, 2) for one in value)]


def _nothing(body: Any) -> tuple[()]:
    return ()


def _watch(body: Any) -> tuple[bytes, RangeSet, float, int, bool]:
    job, had = fields_of(body, 2)
    patience_s = min(optional(body, 2, seconds_of, m.WATCH_S), WATCH_S_MAX)
    show, stable = optional(body, 3, whole_number, 0), optional(body, 4, bool, default=False)
    return job_id(job), ranges_of(had), patience_s, show, stable


def _read(body: Any) -> tuple[tuple[int, int], bytes, RangeSet, bool]:
    rid, job, had = fields_of(body, 3)
    return request_id(rid), job_id(job), ranges_of(had), optional(body, 3, bool, default=False)


def _credit(of: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, int, int | None]]:
    def read(body: Any) -> tuple[Any, int, int | None]:
        which, size = fields_of(body, 2)
        index = optional(body, 2, lambda one: None if one is None else whole_number(one), None)
        return of(which), whole_number(size), index

    return read


def _entry(value: Any) -> list[Any]:
    """Read a result as a reader gets it."""
    node, attempt = fields_of(value, 6)[4:]
    return [*read_outcome(value), text_of(node), whole_number(attempt)]


_TOLD: dict[int, Callable[[Any], Any]] = {
    m.RESULT: lambda body: [job_id(fields_of(body, 2)[0]), [_entry(one) for one in list_of(body[1])]],
    m.CANCELLED: lambda body: [job_id(fields_of(body, 2)[0]), ranges_of(body[1]).flat()],
    m.NOTICE: lambda body: [job_id(fields_of(body, 2)[0]), text_of(body[1])[:WHY_MAX]],
    m.STATE: lambda body: [job_id(fields_of(body, 3)[0]), text_of(body[1])[:WHY_MAX], text_of(body[2])[:WHY_MAX]],
    m.REFUSED: lambda body: [job_id(fields_of(body, 4)[0]), "watch", 0, _refusal(body[3])],
}


def _refusal(value: Any) -> dict[str, str]:
    said = mapping_of(value)
    return {key: str(said.get(key, ""))[:WHY_MAX] for key in ("code", "message", "next")}


def _told(body: Any) -> tuple[tuple[int, int], int, int, Any]:
    rid, number, kind, told = fields_of(body, 4)
    read = _TOLD.get(kind) if type(kind) is int else None
    if read is None:
        raise malformed("frame for a reader")
    return request_id(rid), whole_number(number), kind, read(told)


def _entries(value: Any) -> list[Listed]:
    if len(list_of(value)) > ENTRIES_MAX:
        raise malformed("list of jobs (too long)")
    return [listed.read(one) for one in value]


def _digest(value: Any) -> bytes:
    if len(byte_string(value)) not in (8, 8 * BUCKETS):
        raise malformed("digest")
    return bytes(value)


_CLIENT: dict[int, Callable[[Any], Any]] = {
    m.OPEN: array_of(job_id, byte_string),
    m.CODE: array_of(job_id, job_id, byte_string),
    m.REFS: array_of(job_id, _refs),
    m.INPUT: _input,
    m.CLOSE: array_of(job_id, whole_number),
    m.WATCH: _watch,
    m.UNWATCH: array_of(job_id),
    m.CANCEL: array_of(job_id, some_ranges),
    m.GOT: _credit(job_id),
    m.REQUEST: _request,
    m.GOODBYE: _nothing,
    m.WAIT: array_of(whole_number, job_id, whole_number, lambda value: value is True, _waited_for),
    m.WAITED: array_of(whole_number),
}
_PEER: dict[int, Callable[[Any], Any]] = {
    m.P_WANT: _want,
    m.P_GRANT: array_of(request_id, job_id, text_of, each_of(_granted_range), each_of(_code), each_of(_granted_batch)),
    m.P_GRANT_ACK: array_of(request_id, whole_number),
    m.P_NONE: _none,
    m.P_COMING: array_of(request_id),
    m.P_CLAIM: _claim,
    m.P_RESULTS: each_of(_result),
    m.P_RESULTS_ACK: each_of(_ack),
    m.P_DROP: array_of(job_id, some_ranges),
    m.P_WORK: _nothing,
    m.P_RETURN: _returned,
    m.P_ASK: _ask,
    m.P_ANSWER: array_of(request_id, mapping_of),
    m.P_ERROR: array_of(request_id, mapping_of),
    m.P_STEAL: array_of(request_id, _rates, _has),
    m.P_HANDOVER: array_of(
        request_id, node_id, job_id, text_of, each_of(_granted_range), each_of(_code), each_of(_granted_batch)
    ),
    m.P_HANDED: array_of(request_id, lambda value: value is True),
    m.P_NOTHING: array_of(request_id, _hints),
    m.P_LIFELINE: array_of(request_id, seconds_of, _rates, _has),
    m.P_READ: _read,
    m.P_TOLD: _told,
    m.P_TAKEN: _credit(request_id),
    m.P_UNREAD: array_of(request_id),
    m.P_JOBS: array_of(_entries),
    m.P_JOBS_DIGEST: array_of(_digest),
    m.P_JOBS_RECORDS: array_of(buckets_of, _entries),
}


def from_client(kind: int, body: Any) -> Any:
    """Return the body of a client's frame, read. Raises PeerError unless it is well formed."""
    read = _CLIENT.get(kind)
    if read is None:
        msg = f"an unknown frame type {kind}"
        raise PeerError(msg)
    return read(body)


def from_peer(kind: int, body: Any) -> Any:
    """Return the body of a member's frame, read; None for a type of a later version. Raises PeerError."""
    read = _PEER.get(kind)
    return None if read is None else read(body)
