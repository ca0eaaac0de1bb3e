"""Bulk and control on one connection: what a large frame reaches beside a raw stream, and what it costs small ones.

Two processes on loopback, or wherever they are started by hand (`python -m benchmarks.links listen IP`, then
`… dial ADDRESS MB raw|links`, in network namespaces for instance). Goals (DESIGN §4): a busy round trip of at most
twice the idle one and 5 ms; 0.8 of a raw stream's rate. Raw and links take turns, because machines drift.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from p2pgrid.core.member import Card, shown
from p2pgrid.core.messages import L_HELLO
from p2pgrid.core.wire import frame
from p2pgrid.node.net.host import make_host, running
from p2pgrid.node.net.links import Links
from p2pgrid.node.net.membership import Membership

SINK = TProtocol("/benchmark/sink/1")
ECHO, ECHOED, BULK, TAKEN = 9001, 9002, 9003, 9004
MEGABYTES = 100.0
IDLE_S = 1.5
EVERY_S = 0.02
PIECE = 65507
END = b"END!"
DIAL_S = 10.0


class Side:
    """One node that has links; `heard` is told of every frame."""

    def __init__(self, heard: Callable[[Side, str, int, Any], None]) -> None:
        key = Ed25519PrivateKey.generate()
        self.heard = heard
        membership = Membership(b"anybody", lambda _certificate, _public, *, dialler: dialler)
        self.host = make_host(key, membership)
        self.host.set_stream_handler(SINK, _sink)
        self.id = str(self.host.get_id())
        card = Card(1, 1, b"a life..", False, (), {}, ())  # noqa: FBT003 - a card's fields stand in order
        hello = [frame(L_HELLO, {"v": 1, "version": "0", "card": shown(card)})]
        self.links = Links(self.id, self.host, membership, self, lambda: hello, _say, random.Random())

    def up(self, peer: str, hello: dict[str, Any], member: Any) -> None: ...
    def down(self, peer: str, *, reset: bool, why: str) -> None: ...

    def frame(self, peer: str, kind: int, body: Any) -> None:
        self.heard(self, peer, kind, body)

    def say(self, peer: str, kind: int, body: Any) -> None:
        self.links.send(peer, kind, body)
        self.links.flush()

    @asynccontextmanager
    async def lives(self, listen: list[Multiaddr]) -> Any:
        async with running(self.host, listen), trio.open_nursery() as nursery:
            await nursery.start(self.links.serve)
            yield
            nursery.cancel_scope.cancel()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


async def _sink(stream: INetStream) -> None:
    while True:
        if (await stream.read(1 << 20)).endswith(END):
            await stream.write(b"k")


def _answer(side: Side, peer: str, kind: int, body: Any) -> None:
    if kind == ECHO:
        side.say(peer, ECHOED, body)
    elif kind == BULK:
        side.say(peer, TAKEN, len(body))


async def listen(ip: str) -> None:
    """Answer whoever dials; the first line says where."""
    side = Side(_answer)
    async with side.lives([Multiaddr(f"/ip{'6' if ':' in ip else '4'}/{ip}/tcp/0")]):
        where = str(side.host.get_transport_addrs()[0]).partition("/p2p/")[0]
        print(f"{where}/p2p/{side.id}", flush=True)
        await trio.sleep_forever()


async def dial(address: str, megabytes: float, mode: str) -> dict[str, float]:
    """Send so much, `raw` on a stream of its own or as one frame of `links`, and measure round trips meanwhile."""
    asked: dict[int, float] = {}
    trips: list[float] = []
    taken = trio.Event()

    def heard(_side: Side, _peer: str, kind: int, body: Any) -> None:
        if kind == ECHOED:
            trips.append((trio.current_time() - asked.pop(body)) * 1e3)
        elif kind == TAKEN:
            taken.set()

    side = Side(heard)
    size = int(megabytes * 1e6)
    async with side.lives([]), trio.open_nursery() as nursery:
        peer = await side.links.dial(address, DIAL_S)

        async def echoes() -> None:
            for number in range(1 << 30):
                asked[number] = trio.current_time()
                side.say(peer, ECHO, number)
                await trio.sleep(EVERY_S)

        nursery.start_soon(echoes)
        await trio.sleep(IDLE_S)
        idle, trips[:] = trips[3:], []
        started = time.perf_counter()
        if mode == "raw":
            await _send_raw(side, size)
        else:
            side.say(peer, BULK, bytes(size))
            await taken.wait()
        took_s = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    return {"mb_s": size / took_s / 1e6, "idle_ms": median(idle), "busy_ms": median(trips or [0]), "max_ms": max(trips)}


async def _send_raw(side: Side, size: int) -> None:
    (connection,) = side.host.get_network().get_connections()
    stream = await connection.new_stream()
    await side.host.multiselect_client.select_one_of([SINK], MultiselectCommunicator(stream), 5)
    data = memoryview(bytes(size - len(END)) + END)
    for at in range(0, size, PIECE):
        await stream.write(data[at : at + PIECE])
    await stream.read(1)


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints them on stderr."""
    itself = [sys.executable, "-m", "benchmarks.links"]
    figures: dict[str, dict[str, list[float]]] = {"raw": {}, "links": {}}
    with subprocess.Popen([*itself, "listen", "127.0.0.1"], stdout=subprocess.PIPE, text=True) as listener:
        try:
            assert listener.stdout is not None
            address = listener.stdout.readline().strip()
            for _ in range(rounds):
                for mode, rows in figures.items():
                    command = [*itself, "dial", address, str(MEGABYTES), mode]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
                    for what, value in json.loads(done.stdout).items():
                        rows.setdefault(what, []).append(value)
        finally:
            listener.terminate()
    medians = {mode: {what: median(values) for what, values in rows.items()} for mode, rows in figures.items()}
    for mode, row in medians.items():
        print(
            f"{mode:6}{row['mb_s']:9.2f} MB/s   round trip idle {row['idle_ms']:6.2f} ms, "
            f"busy {row['busy_ms']:6.2f} ms (goal {2 * row['idle_ms'] + 5:.2f}), worst {row['max_ms']:.1f} ms",
            file=sys.stderr,
        )
    print(f"links {medians['links']['mb_s'] / medians['raw']['mb_s']:.2f} × raw (goal ≥ 0.8)", file=sys.stderr)
    return {"rounds": rounds, "megabytes": MEGABYTES, "medians": medians}


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        trio.run(listen, sys.argv[2])
    else:
        print(json.dumps(trio.run(dial, sys.argv[2], float(sys.argv[3]), sys.argv[4])))
