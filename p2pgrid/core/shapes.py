"""What the bodies of frames must look like before a machine looks at them (`core.messages` says what they mean).

Everything a client or a member may get wrong in a frame is refused here, as a whole, with PeerError: a handler that
has begun to act on a body never finds out half-way that it is malformed. Ranges come out as `RangeSet`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from p2pgrid.core import listed
from p2pgrid.core import messages as m
from p2pgrid.core.batch import ID_BYTES, TASKS_MAX
from p2pgrid.core.chains import CHAIN_BYTES_MAX, SIGNATURE_LENGTH
from p2pgrid.core.errors import PeerError
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.listed import Listed
from p2pgrid.core.member import BUCKETS, INCARNATION_MAX, LEFT, LIFE_BYTES, Card, Update
from p2pgrid.core.pieces import OBJECT_BYTES_MAX, PIECE_BYTES, Manifest, ObjectId, is_id, read_manifest
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import is_shallow, pack, unpack

TEXT_SHOWN = 300
WHY_MAX = 1000
"""Of why a member gives tasks back; it is kept, shown and may become the message of an exception."""
VALUES, PACKED, FAILURE, CRASH = 0, 1, 2, 4
"""Shapes of outcomes (`node.events.Outcome`); the fifth is `core.large.LARGE`, a value that is an object."""
CLAIM_PARTS_MAX = 4096
WATCH_S_MAX = 3600.0


class ResultEntry(NamedTuple):
    """One lot of results from its holder; outcome number i of it is batch `batch[1]` + i of incarnation `batch[0]`."""

    job: bytes
    batch: tuple[int, int]
    attempt: int
    outcomes: list[tuple[int, int, int, Any]]
    logs: list[tuple[int, bytes]]
    busy_s: float


def malformed(what: str) -> PeerError:
    """Return what to raise where something that came is not what it has to be."""
    return PeerError(f"a malformed {what}")


def _fields(body: Any, count: int) -> list[Any]:
    """Return the first elements of an array; what a later version appends is passed over."""
    if not isinstance(body, list | tuple) or len(body) < count:
        raise malformed("frame body")
    return list(body[:count])


def _optional(body: Any, at: int, read: Callable[[Any], Any], default: Any) -> Any:
    """Return an element that an earlier version did not send."""
    return read(body[at]) if len(body) > at else default


def job_id(value: Any) -> bytes:
    """Return the id of a job, read. Raises PeerError."""
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise malformed("job id")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < TASKS_MAX:
        raise malformed("number")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise malformed("time")
    return float(value)


def _data(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise malformed("byte string")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise malformed("text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise malformed("list")
    return value


def _ranges(value: Any) -> RangeSet:
    flat = [_whole(bound) for bound in _list(value)]
    try:
        return RangeSet.from_flat(flat)
    except ValueError as error:
        msg = f"malformed ranges: {error}"
        raise PeerError(msg) from error


def _some_ranges(value: Any) -> RangeSet | None:
    return None if value is None else _ranges(value)


def _span(value: Any) -> tuple[int, int]:
    lo, hi = _fields(value, 2)
    if not _whole(lo) < _whole(hi):
        raise malformed("range")
    return lo, hi


def _rid(value: Any) -> tuple[int, int]:
    incarnation, number = _fields(value, 2)
    return _whole(incarnation), _whole(number)


def read_outcome(value: Any) -> tuple[int, int, int, Any]:
    """Return (lo, hi, shape, data) of an outcome as it travels (node.events.Outcome). Raises PeerError."""
    lo, hi = _span(value)
    shape, data = _fields(value, 4)[2:]
    match shape:
        case int() if shape == VALUES and isinstance(data, list) and len(data) == hi - lo:
            for one in data:
                _data(one)
        case int() if shape == PACKED and isinstance(data, bytes):
            pass
        case int() if shape == FAILURE and hi == lo + 1:
            failure = unpack(_data(data))
            if not isinstance(failure, dict) or not is_shallow(failure):
                raise malformed("failure")
        case int() if shape == LARGE and hi == lo + 1:
            if not is_id(read_large(data).name):
                raise malformed("name of a stored result")
        case int() if shape == CRASH and hi == lo + 1:
            for part in _fields(unpack(_data(data)), 3):
                _text(part)
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
    verb, arguments = _fields(body, 2)
    if not isinstance(arguments, dict) or not is_shallow(arguments):
        raise malformed("request")
    return _text(verb), arguments


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value) or not is_shallow(value):
        raise malformed("mapping")
    return value


def _ask(body: Any) -> tuple[tuple[int, int], str, dict[str, Any]]:
    rid, verb, arguments = _fields(body, 3)
    return _rid(rid), _text(verb), _mapping(arguments)


class Claimed(NamedTuple):
    """What a member holds of a job, what of that it runs, and what it handed to whom, who may not claim it yet."""

    held: RangeSet
    running: RangeSet
    handed: Mapping[str, RangeSet]


def _handed(value: Any) -> dict[str, RangeSet]:
    if len(_list(value)) > HANDED_MAX:
        raise malformed("list of hand-overs (too long)")
    return {_node(thief): _ranges(spans) for thief, spans in (_fields(one, 2) for one in value)}


def _claims(value: Any) -> dict[bytes, Claimed]:
    rows = [(_fields(one, 3), _optional(one, 3, _handed, {})) for one in _list(value)]
    return {job_id(job): Claimed(_ranges(held), _ranges(running), handed) for (job, held, running), handed in rows}


def _granted_range(value: Any) -> tuple[int, int, int, bool]:
    lo, hi = _span(value)
    attempt = _whole(_fields(value, 3)[2])
    return lo, hi, attempt, len(value) > 3 and value[3] is True  # noqa: PLR2004


def _code(value: Any) -> tuple[bytes, bytes]:
    code, union = _fields(value, 2)
    return job_id(code), _data(union)


def _granted_batch(value: Any) -> tuple[int, int, bytes]:
    return (*_span(value), _data(_fields(value, 3)[2]))


def _result(value: Any) -> ResultEntry:
    job, batch, attempt, outcomes = _fields(value, 4)
    logs = _optional(value, 4, _each(_log), [])
    busy_s = _optional(value, 5, _seconds, 0.0)
    return ResultEntry(
        job_id(job), _rid(batch), _whole(attempt), [read_outcome(one) for one in _list(outcomes)], logs, busy_s
    )


def _log(value: Any) -> tuple[int, bytes]:
    index, text = _fields(value, 2)
    return _whole(index), _data(text)


def _want(body: Any) -> tuple[tuple[int, int], int, float, float]:
    rid, slots, speed = _fields(body, 3)
    return _rid(rid), _whole(slots), _seconds(speed), _optional(body, 3, _seconds, 0.0)


HANDED_MAX = 256
HINTS_MAX = 64
RATES_MAX = 64
HAS_MAX = 1024


def _hints(value: Any) -> list[tuple[str, float]]:
    if len(_list(value)) > HINTS_MAX:
        raise malformed("list of hints (too long)")
    return [(_node(node), _seconds(seconds)) for node, seconds in (_fields(one, 2) for one in value)]


def _none(body: Any) -> tuple[tuple[int, int], list[tuple[str, float]]]:
    return _rid(_fields(body, 1)[0]), _optional(body, 1, _hints, [])


def _rates(value: Any) -> dict[bytes, float]:
    if len(_list(value)) > RATES_MAX:
        raise malformed("list of rates (too long)")
    return {job_id(code): _seconds(seconds) for code, seconds in (_fields(one, 2) for one in value)}


def _has(value: Any) -> set[tuple[bytes, Any]]:
    out: set[tuple[bytes, Any]] = set()
    for job, codes, flat in (_fields(one, 3) for one in _list(value)):
        bounds = [_whole(bound) for bound in _list(flat)]
        if len(bounds) % 2:
            raise malformed("list of runs")
        out |= {(job_id(job), job_id(code)) for code in _list(codes)}
        out |= {(job_id(job), run) for run in zip(bounds[::2], bounds[1::2], strict=True)}
        if len(out) > HAS_MAX:
            raise malformed("list of what is there (too long)")
    return out


def _claim(body: Any) -> tuple[int, int, float, dict[bytes, Claimed], int, int]:
    incarnation, seq, interval, claims = _fields(body, 4)
    part, parts = _optional(body, 4, _whole, 0), _optional(body, 5, _whole, 1)
    if not part < parts <= CLAIM_PARTS_MAX:
        raise malformed("part of a claim")
    return _whole(incarnation), _whole(seq), _seconds(interval), _claims(claims), part, parts


def _returned(body: Any) -> tuple[bytes, RangeSet, str, bool]:
    job, spans, why = _fields(body, 3)
    return (
        job_id(job),
        _ranges(spans),
        _text(why)[:WHY_MAX],
        _optional(body, 3, lambda value: value is True, default=False),
    )


def _ack(value: Any) -> tuple[bytes, int, int]:
    job, incarnation, number = _fields(value, 3)
    return job_id(job), _whole(incarnation), _whole(number)


def _each(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [read(one) for one in _list(value)]


def _array(*reads: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda body: tuple(read(one) for read, one in zip(reads, _fields(body, len(reads)), strict=True))


def _input(body: Any) -> tuple[bytes, int, int, bytes]:
    job, lo, hi, data = _fields(body, 4)
    return job_id(job), _whole(lo), _whole(hi), _data(data)


REFS_MAX = 65_536


def _refs(value: Any) -> list[Large]:
    if len(_list(value)) > REFS_MAX:
        raise malformed("list of objects (too long)")
    return [
        Large(_object(id_), _object_size(size), tuple(_holders(holders)), is_ref=True)
        for id_, size, holders in (_fields(one, 3) for one in value)
    ]


WAITED_FOR_MAX = 4096


def _waited_for(value: Any) -> list[tuple[bytes, RangeSet]]:
    if len(_list(value)) > WAITED_FOR_MAX:
        raise malformed("list of jobs (too long)")
    return [(job_id(job), _ranges(spans)) for job, spans in (_fields(one, 2) for one in value)]


def _nothing(body: Any) -> tuple[()]:
    return ()


# ---- membership -----------------------------------------------------------------------------------------------------

NODE_ID_MAX = 128
ADDRESSES_MAX = 16
ADDRESS_MAX = 256
LOAD_MAX = 16
FACTS_BYTES_MAX = 4096
FACTS_LEVELS_MAX = 8
SLOTS_MAX = 65_536
UPDATES_MAX = 1024


def _node(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NODE_ID_MAX or not value.isascii():
        raise malformed("node id")
    return value


def _incarnation(value: Any) -> int:
    if type(value) is not int or not 0 <= value < INCARNATION_MAX:
        raise malformed("incarnation")
    return value


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


_FACTS: dict[str, Callable[[Any], bool]] = {
    "resources": lambda value: isinstance(value, dict) and all(map(_is_amount, value.values())),
    "slots": lambda value: type(value) is int and 0 <= value <= SLOTS_MAX,
    "cpus": _is_amount,
    "ram": _is_amount,
    "minor": lambda value: type(value) is int,
    "reachable": lambda value: type(value) is bool,
    "tags": lambda value: isinstance(value, list) and all(isinstance(tag, str) for tag in value),
    "pythons": lambda value: isinstance(value, list),
    **dict.fromkeys(("id", "name", "arch", "os", "host", "python", "version"), lambda value: isinstance(value, str)),
}
"""What decisions depend on must be of the right kind; other facts are only shown and matched."""


def _facts(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise malformed("facts")
    if not is_shallow(value, FACTS_LEVELS_MAX):
        raise malformed("facts (nested too deep)")
    if len(pack(value)) > FACTS_BYTES_MAX:
        raise malformed("facts (too long)")
    for key, is_right in _FACTS.items():
        if key in value and not is_right(value[key]):
            raise malformed(f"fact {key!r}")
    return value


def read_card(value: Any) -> Card:
    """Return what a member says of itself, read. Raises PeerError unless it is well formed."""
    incarnation, seq, life, leaf, addresses, facts, load, chain, proof = _fields(value, 9)
    if len(_data(life)) != LIFE_BYTES or not isinstance(leaf, bool):
        raise malformed("card")
    if len(_list(addresses)) > ADDRESSES_MAX or len(_list(load)) > LOAD_MAX:
        raise malformed("card (too long)")
    if any(len(_text(address)) > ADDRESS_MAX for address in addresses):
        raise malformed("address")
    if len(_data(chain)) > CHAIN_BYTES_MAX or len(_data(proof)) > SIGNATURE_LENGTH:
        raise malformed("card (too long)")
    load = tuple(_whole(number) for number in load)
    inc, counter = _incarnation(incarnation), _whole(seq)
    return Card(inc, counter, life, leaf, tuple(addresses), _facts(facts), load, chain, proof)


def _update(value: Any) -> Update:
    node, incarnation, status, by, card = _fields(value, 5)
    if type(status) is not int or not 0 <= status <= LEFT:
        raise malformed("status")
    read = None if card is None else read_card(card)
    if read is not None and read.incarnation > _incarnation(incarnation):
        raise malformed("card (of a later life than its member)")
    return Update(_node(node), _incarnation(incarnation), status, _node(by), read)


def _updates(value: Any) -> list[Update]:
    if len(_list(value)) > UPDATES_MAX:
        raise malformed("list of updates (too long)")
    return [_update(one) for one in value]


def _hashes(value: Any) -> tuple[int, ...]:
    if len(_data(value)) != 8 * BUCKETS:
        raise malformed("digest")
    return tuple(int.from_bytes(value[at : at + 8], "big") for at in range(0, len(value), 8))


def _buckets(value: Any) -> list[int]:
    if len(_list(value)) > BUCKETS or not all(type(one) is int and 0 <= one < BUCKETS for one in value):
        raise malformed("list of buckets")
    return list(value)


def _watch(body: Any) -> tuple[bytes, RangeSet, float, int, bool]:
    job, had = _fields(body, 2)
    patience_s = min(_optional(body, 2, _seconds, m.WATCH_S), WATCH_S_MAX)
    show, stable = _optional(body, 3, _whole, 0), _optional(body, 4, bool, default=False)
    return job_id(job), _ranges(had), patience_s, show, stable


def _read(body: Any) -> tuple[tuple[int, int], bytes, RangeSet, bool]:
    rid, job, had = _fields(body, 3)
    return _rid(rid), job_id(job), _ranges(had), _optional(body, 3, bool, default=False)


def _credit(of: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, int, int | None]]:
    def read(body: Any) -> tuple[Any, int, int | None]:
        which, size = _fields(body, 2)
        return of(which), _whole(size), _optional(body, 2, lambda one: None if one is None else _whole(one), None)

    return read


def _entry(value: Any) -> list[Any]:
    """Read a result as a reader gets it."""
    node, attempt = _fields(value, 6)[4:]
    return [*read_outcome(value), _text(node), _whole(attempt)]


_TOLD: dict[int, Callable[[Any], Any]] = {
    m.RESULT: lambda body: [job_id(_fields(body, 2)[0]), [_entry(one) for one in _list(body[1])]],
    m.CANCELLED: lambda body: [job_id(_fields(body, 2)[0]), _ranges(body[1]).flat()],
    m.NOTICE: lambda body: [job_id(_fields(body, 2)[0]), _text(body[1])[:WHY_MAX]],
    m.STATE: lambda body: [job_id(_fields(body, 3)[0]), _text(body[1])[:WHY_MAX], _text(body[2])[:WHY_MAX]],
    m.REFUSED: lambda body: [job_id(_fields(body, 4)[0]), "watch", 0, _refusal(body[3])],
}


def _refusal(value: Any) -> dict[str, str]:
    said = _mapping(value)
    return {key: str(said.get(key, ""))[:WHY_MAX] for key in ("code", "message", "next")}


def _told(body: Any) -> tuple[tuple[int, int], int, int, Any]:
    rid, number, kind, told = _fields(body, 4)
    read = _TOLD.get(kind) if type(kind) is int else None
    if read is None:
        raise malformed("frame for a reader")
    return _rid(rid), _whole(number), kind, read(told)


def _entries(value: Any) -> list[Listed]:
    if len(_list(value)) > UPDATES_MAX:
        raise malformed("list of jobs (too long)")
    return [listed.read(one) for one in value]


def _digest(value: Any) -> bytes:
    if len(_data(value)) not in (8, 8 * BUCKETS):
        raise malformed("digest")
    return bytes(value)


_CLIENT: dict[int, Callable[[Any], Any]] = {
    m.OPEN: _array(job_id, _data),
    m.CODE: _array(job_id, job_id, _data),
    m.REFS: _array(job_id, _refs),
    m.INPUT: _input,
    m.CLOSE: _array(job_id, _whole),
    m.WATCH: _watch,
    m.UNWATCH: _array(job_id),
    m.CANCEL: _array(job_id, _some_ranges),
    m.GOT: _credit(job_id),
    m.REQUEST: _request,
    m.GOODBYE: _nothing,
    m.WAIT: _array(_whole, job_id, _whole, lambda value: value is True, _waited_for),
    m.WAITED: _array(_whole),
}
_PEER: dict[int, Callable[[Any], Any]] = {
    m.P_WANT: _want,
    m.P_GRANT: _array(_rid, job_id, _text, _each(_granted_range), _each(_code), _each(_granted_batch)),
    m.P_GRANT_ACK: _array(_rid, _whole),
    m.P_NONE: _none,
    m.P_COMING: _array(_rid),
    m.P_CLAIM: _claim,
    m.P_RESULTS: _each(_result),
    m.P_RESULTS_ACK: _each(_ack),
    m.P_DROP: _array(job_id, _some_ranges),
    m.P_WORK: _nothing,
    m.P_RETURN: _returned,
    m.P_ASK: _ask,
    m.P_ANSWER: _array(_rid, _mapping),
    m.P_ERROR: _array(_rid, _mapping),
    m.P_STEAL: _array(_rid, _rates, _has),
    m.P_HANDOVER: _array(_rid, _node, job_id, _text, _each(_granted_range), _each(_code), _each(_granted_batch)),
    m.P_HANDED: _array(_rid, lambda value: value is True),
    m.P_NOTHING: _array(_rid, _hints),
    m.P_LIFELINE: _array(_rid, _seconds, _rates, _has),
    m.P_READ: _read,
    m.P_TOLD: _told,
    m.P_TAKEN: _credit(_rid),
    m.P_UNREAD: _array(_rid),
    m.P_JOBS: _array(_entries),
    m.P_JOBS_DIGEST: _array(_digest),
    m.P_JOBS_RECORDS: _array(_buckets, _entries),
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


def _probe(body: Any) -> tuple[int, int, int]:
    """Read what an idle grid says most: three small numbers."""
    if type(body) is list and len(body) >= 3:  # noqa: PLR2004 - seq, incarnation, accused
        seq, incarnation, accused = body[:3]
        if type(seq) is type(incarnation) is type(accused) is int:  # and if they are out of bounds, it is said which
            return _whole(seq), _incarnation(incarnation), _incarnation(accused)
    return _three(body)


_three = _array(_whole, _incarnation, _incarnation)
_NEIGHBOUR: dict[int, Callable[[Any], Any]] = {
    m.P_PING: _probe,
    m.P_ACK: _probe,
    m.P_PING_REQ: _array(_whole, _node, _incarnation),
    m.P_NACK: _array(_whole),
    m.P_GOSSIP: _array(_updates),
    m.P_DIGEST: _array(_hashes),
    m.P_RECORDS: _array(_buckets, _updates),
    m.P_CLOCK: _array(_whole),
    m.P_CLOCK_IS: _array(_whole, _seconds),
}


def from_neighbour(kind: int, body: Any) -> Any:
    """Return the body of a frame about membership, read; None for another type. Raises PeerError."""
    read = _NEIGHBOUR.get(kind)
    return None if read is None else read(body)


# ---- objects --------------------------------------------------------------------------------------------------------

FIND_MAX = 1024
COPIES_MAX = 64
PIECES_MAX = OBJECT_BYTES_MAX // PIECE_BYTES


def _object(value: Any) -> ObjectId:
    if not is_id(value):
        raise malformed("object id")
    return ObjectId(value)


def _objects(value: Any) -> list[ObjectId]:
    if len(_list(value)) > FIND_MAX:
        raise malformed("list of objects (too long)")
    return [_object(one) for one in value]


def _object_size(value: Any) -> int:
    if type(value) is not int or not 0 < value <= OBJECT_BYTES_MAX:
        raise malformed("object size")
    return value


def _piece(value: Any) -> int:
    if type(value) is not int or not 0 <= value < PIECES_MAX:
        raise malformed("piece")
    return value


def _pieces(value: Any) -> RangeSet:
    pieces = _ranges(value)
    if (last := pieces.last()) is not None and last[1] > PIECES_MAX:
        raise malformed("list of pieces")
    return pieces


def _some_pieces(value: Any) -> RangeSet | None:
    return None if value is None else _pieces(value)


def _manifest(body: Any) -> tuple[ObjectId, Manifest]:
    id_, packed = _fields(body, 2)
    return _object(id_), read_manifest(id_, _data(packed))


def _copies(value: Any) -> int:
    if type(value) is not int or not 0 < value <= COPIES_MAX:
        raise malformed("number of copies")
    return value


def _holders(value: Any) -> list[str]:
    if len(_list(value)) > 2 * COPIES_MAX:
        raise malformed("list of holders (too long)")
    return [_node(one) for one in value]


_OBJECTS: dict[int, Callable[[Any], Any]] = {
    m.O_FIND: _array(_objects),
    m.O_HAVE: _array(_object, _object_size, _some_pieces),
    m.O_LACK: _array(_object, _some_pieces),
    m.O_LIST: _array(_object),
    m.O_LISTED: _manifest,
    m.O_WANT: _array(_object, _pieces),
    m.O_PIECE: _array(_object, _piece, _data),
    m.O_BUSY: _array(_object, _pieces, _seconds),
    m.O_SKIP: _array(_object, _pieces),
    m.O_COPY: _array(_object, _copies, _holders),
    m.O_FREE: _array(_object),
}


def of_objects(kind: int, body: Any) -> Any:
    """Return the body of a frame about objects, read; None for another type. Raises PeerError."""
    read = _OBJECTS.get(kind)
    return None if read is None else read(body)
