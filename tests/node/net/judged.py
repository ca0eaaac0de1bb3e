"""Nodes of a grid with links and DHT on real hosts, as the daemon has them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import public_of
from p2pgrid.dht.records import GRID_NAMESPACE, Signed
from p2pgrid.node.net.kad import Kad
from tests.node.net.grids import OURS, PATIENT, make
from tests.node.net.linked import Linked, grid, linked


@dataclass
class Judged:
    """A node of a grid with links and DHT, as the daemon has them."""

    one: Linked
    kad: Kad
    key: Ed25519PrivateKey
    released: list[str]

    def knows(self, other: Judged) -> None:
        self.kad.member_up(other.one.id, other.one.addresses)


def judged(number: int) -> Judged:
    key, released = Ed25519PrivateKey.generate(), list[str]()
    node = make(key=key)
    namespaces = {GRID_NAMESPACE: Signed(public_of(OURS), lambda _public: True, key)}
    kad = Kad(node.host, namespaces, random.Random(number), PATIENT, release=released.append)
    return Judged(linked(node), kad, key, released)


@asynccontextmanager
async def of_one_grid(*nodes: Judged) -> AsyncIterator[None]:
    async with grid(*(each.one for each in nodes)), trio.open_nursery() as nursery:
        for each in nodes:
            await nursery.start(each.kad.serve)
        yield
        nursery.cancel_scope.cancel()
