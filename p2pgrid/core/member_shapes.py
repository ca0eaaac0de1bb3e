"""What frames about membership must look like (`core.messages`: P_PING and on): probes, news, cards, clocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.chains import CHAIN_BYTES_MAX, SIGNATURE_LENGTH
from p2pgrid.core.frame_words import (
    array_of,
    buckets_of,
    byte_string,
    fields_of,
    list_of,
    malformed,
    node_id,
    seconds_of,
    text_of,
    whole_number,
)
from p2pgrid.core.member import BUCKETS, INCARNATION_MAX, LEFT, LIFE_BYTES, Card, Update
from p2pgrid.core.wire import is_shallow, pack

ADDRESSES_MAX = 16
ADDRESS_MAX = 256
LOAD_MAX = 16
FACTS_BYTES_MAX = 4096
FACTS_LEVELS_MAX = 8
SLOTS_MAX = 65_536
UPDATES_MAX = 1024


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
    incarnation, seq, life, leaf, addresses, facts, load, chain, proof = fields_of(value, 9)
    if len(byte_string(life)) != LIFE_BYTES or not isinstance(leaf, bool):
        raise malformed("card")
    if len(list_of(addresses)) > ADDRESSES_MAX or len(list_of(load)) > LOAD_MAX:
        raise malformed("card (too long)")
    if any(len(text_of(address)) > ADDRESS_MAX for address in addresses):
        raise malformed("address")
    if len(byte_string(chain)) > CHAIN_BYTES_MAX or len(byte_string(proof)) > SIGNATURE_LENGTH:
        raise malformed("card (too long)")
    load = tuple(whole_number(number) for number in load)
    inc, counter = _incarnation(incarnation), whole_number(seq)
    return Card(inc, counter, life, leaf, tuple(addresses), _facts(facts), load, chain, proof)


def _update(value: Any) -> Update:
    node, incarnation, status, by, card = fields_of(value, 5)
    if type(status) is not int or not 0 <= status <= LEFT:
        raise malformed("status")
    read = None if card is None else read_card(card)
    if read is not None and read.incarnation > _incarnation(incarnation):
        raise malformed("card (of a later life than its member)")
    return Update(node_id(node), _incarnation(incarnation), status, node_id(by), read)


def _updates(value: Any) -> list[Update]:
    if len(list_of(value)) > UPDATES_MAX:
        raise malformed("list of updates (too long)")
    return [_update(one) for one in value]


def _hashes(value: Any) -> tuple[int, ...]:
    if len(byte_string(value)) != 8 * BUCKETS:
        raise malformed("digest")
    return tuple(int.from_bytes(value[at : at + 8], "big") for at in range(0, len(value), 8))


def _probe(body: Any) -> tuple[int, int, int]:
    """Read what an idle grid says most: three small numbers."""
    if type(body) is list and len(body) >= 3:  # noqa: PLR2004 - seq, incarnation, accused
        seq, incarnation, accused = body[:3]
        if (
            type(seq) is type(incarnation) is type(accused) is int
            and 0 <= seq < TASKS_MAX
            and 0 <= incarnation < INCARNATION_MAX
            and 0 <= accused < INCARNATION_MAX
        ):
            return seq, incarnation, accused
    return _three(body)  # which says what is wrong


_three = array_of(whole_number, _incarnation, _incarnation)
_NEIGHBOUR: dict[int, Callable[[Any], Any]] = {
    m.P_PING: _probe,
    m.P_ACK: _probe,
    m.P_PING_REQ: array_of(whole_number, node_id, _incarnation),
    m.P_NACK: array_of(whole_number),
    m.P_GOSSIP: array_of(_updates),
    m.P_DIGEST: array_of(_hashes),
    m.P_RECORDS: array_of(buckets_of, _updates),
    m.P_CLOCK: array_of(whole_number),
    m.P_CLOCK_IS: array_of(whole_number, seconds_of),
}


def from_neighbour(kind: int, body: Any) -> Any:
    """Return the body of a frame about membership, read; None for another type. Raises PeerError."""
    read = _NEIGHBOUR.get(kind)
    return None if read is None else read(body)
