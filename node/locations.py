"""Locations: where jobs are kept, in the grid's DHT, for members that are not connected with any of their keepers.

    Publish  ->  value /p2pgrid/job/HEX = msgpack [node id, …], signed by this node and renewed by the DHT
    Locate   ->  get  ->  Located

Rule: who publishes what, and what comes of an answer, is decided in `locating`. What members wrote is read here, with a
bound, and believed nowhere: it says whom to ask.
"""

from __future__ import annotations

import trio

from p2pgrid.core.errors import PeerError
from p2pgrid.core.wire import pack, unpack
from p2pgrid.dht.records import GRID_NAMESPACE
from p2pgrid.node import events as e
from p2pgrid.node.network import Network

ANSWER_S = 8.0
"""For the DHT to say what it knows."""
KEEPERS_MAX = 16
NODE_MAX = 128


class Locations:
    """What one node says and asks of where jobs are."""

    def __init__(self, net: Network) -> None:
        self._net = net

    def publish(self, effect: e.Publish) -> None:
        """Say who keeps a job; nobody: say it no longer."""
        kad = self._net.kad
        if kad is None:
            return
        if effect.keepers:
            kad.publish(key_of(effect.job), pack(list(effect.keepers)))
        else:
            kad.withdraw(key_of(effect.job))

    def locate(self, effect: e.Locate) -> None:
        """Find out who keeps a job, and tell the machine."""
        if self._net.kad is None:
            self._net.later(e.Located(effect.job, ()))
        else:
            self._net.soon(self._look_for, effect.job)

    async def _look_for(self, job: bytes) -> None:
        payload = None
        kad = self._net.kad
        if kad is not None:
            with trio.move_on_after(ANSWER_S):
                payload = await kad.value(key_of(job))
        self._net.later(e.Located(job, read(payload)))


def key_of(job: bytes) -> bytes:
    """Return under which key the DHT has where a job is."""
    return f"/{GRID_NAMESPACE}/job/{job.hex()}".encode()


def read(payload: bytes | None) -> tuple[str, ...]:
    """Return the nodes that a record names; none if it is malformed: a member may have written anything."""
    if payload is None:
        return ()
    try:
        found = unpack(payload, limit=len(payload))
    except PeerError:
        return ()
    if not isinstance(found, list) or len(found) > KEEPERS_MAX:
        return ()
    return tuple(one for one in found if isinstance(one, str) and 0 < len(one) <= NODE_MAX)
