"""Two grids for the tests, hosts in them, a wire that can be cut, and what a process has open."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.custom_types import TProtocol
from multiaddr import Multiaddr

from p2pgrid.core.chains import ALL_ROLES, public_of, sign_link
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import pack
from p2pgrid.dht.machine import Options
from p2pgrid.dht.patience import PatienceOptions
from p2pgrid.node.net import host as net
from p2pgrid.node.net.door import Door
from p2pgrid.node.net.membership import Membership
from tests.waiting import SOON_S

OURS = Ed25519PrivateKey.from_private_bytes(bytes(32))
THEIRS = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
LOOPBACK = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
ECHO, HOLD = TProtocol("/test/echo/1"), TProtocol("/test/hold/1")
JUDGE = Judge(public_of(OURS))
PATIENT = Options(patience=PatienceOptions(floor_s=8.0, first_s=8.0, cap_s=8.0))
"""Of a DHT: on a machine that is busy with other things an answer may take seconds; whom tests ask is there."""
HOUR_S = 3600
TEST_S = 280.0
"""The most that a test may take: shorter than the deadline of pytest, which says less of what went on."""
MIB = 1 << 20


def issue(grid: Ed25519PrivateKey, public: bytes, lifetime_s: int = HOUR_S) -> bytes:
    """Return the shortest chain: the grid's key signs the node."""
    now = int(time.time())
    return pack([sign_link(grid, public_of(grid), "n", public, ALL_ROLES, now - HOUR_S, now + lifetime_s, b"")])


def admit(certificate: bytes, public: bytes, *, dialler: bool) -> int:
    return JUDGE.check(certificate, public, time.time())


@dataclass
class Node:
    """A host, and what belongs to it."""

    host: IHost
    membership: Membership
    door: Door

    @property
    def public(self) -> bytes:
        return bytes(self.host.get_public_key().to_bytes())

    @property
    def addresses(self) -> list[Multiaddr]:
        return list(self.host.get_transport_addrs())

    @property
    def port(self) -> int:
        return int(self.addresses[0].value_for_protocol("tcp"))

    def connections(self) -> list[INetConn]:
        return [each for each in self.host.get_network().get_connections() if not each.is_closed]

    def slots(self) -> int:
        return int(self.host.get_network()._inbound_limiter.borrowed_tokens)

    async def dial(self, other: Node, addresses: list[Multiaddr] | None = None) -> INetConn:
        return await net.dial_any(self.host, other.host.get_id(), addresses or other.addresses)

    async def open(self, other: Node, protocol: TProtocol = ECHO) -> INetStream:
        return await self.host.new_stream(other.host.get_id(), [protocol])


def make(
    grid: Ed25519PrivateKey = OURS,
    *,
    certificate: Callable[[bytes], bytes] | None = None,
    door: Door | None = None,
    key: Ed25519PrivateKey | None = None,
    **options: Any,
) -> Node:
    """Return a node that is not running; without further words it is a member of our grid and echoes."""
    key = key or Ed25519PrivateKey.generate()
    shown = certificate(public_of(key)) if certificate else issue(grid, public_of(key))
    membership, door = Membership(shown, admit), door or Door()
    host = net.make_host(key, membership, door, **options)
    host.set_stream_handler(ECHO, echo)
    host.set_stream_handler(HOLD, hold)
    return Node(host, membership, door)


@asynccontextmanager
async def listening(node: Node | None = None) -> AsyncIterator[Node]:
    node = node or make()
    async with net.running(node.host, LOOPBACK):
        yield node


@asynccontextmanager
async def silent(node: Node | None = None) -> AsyncIterator[Node]:
    """A node that does not listen."""
    node = node or make()
    async with net.running(node.host, []):
        yield node


async def echo(stream: INetStream) -> None:
    while data := await stream.read(65536):
        await stream.write(data)


async def hold(_stream: INetStream) -> None:
    await trio.sleep_forever()


async def read_exactly(stream: INetStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


async def must_echo(stream: INetStream) -> None:
    with trio.fail_after(SOON_S):
        await stream.write(b"hello")
        assert await read_exactly(stream, 5) == b"hello"


async def must_serve(node: Node) -> None:
    """A newcomer connects and is answered."""
    async with silent() as newcomer:
        with trio.fail_after(SOON_S):
            await newcomer.dial(node)
        await must_echo(await newcomer.open(node))


async def until(condition: Callable[[], bool], within_s: float = SOON_S) -> float:
    """Wait for a condition; return how long it took."""
    started = trio.current_time()
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is the library's and has no event
            await trio.sleep(0.01)
    return trio.current_time() - started


def open_things() -> tuple[int, int]:
    """Return how many file descriptors and trio tasks this process has."""
    return len(list(Path("/proc/self/fd").iterdir())), trio.lowlevel.current_statistics().tasks_living


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def nothing_left(before: tuple[int, int]) -> None:
    """Wait until descriptors and tasks are where they were."""

    def settled() -> bool:
        fds, tasks = open_things()
        return fds <= before[0] and tasks <= before[1]

    try:
        await until(settled)
    except trio.TooSlowError:
        raise AssertionError(f"descriptors and tasks: {before} before, {open_things()} now") from None


class Wire:
    """A port that leads to another one, until it is cut: then both ends believe in a peer that is frozen."""

    def __init__(self) -> None:
        self.whole = trio.Event()
        self.whole.set()
        self.port = 0

    @property
    def addresses(self) -> list[Multiaddr]:
        return [Multiaddr(f"/ip4/127.0.0.1/tcp/{self.port}")]

    def cut(self) -> None:
        self.whole = trio.Event()

    def mend(self) -> None:
        self.whole.set()

    async def carry(self, near: trio.SocketStream, to_port: int) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", to_port)
        async with far, near, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
            nursery.start_soon(self._pump, far, near, nursery.cancel_scope)

    async def _pump(self, source: trio.SocketStream, sink: Any, scope: trio.CancelScope) -> None:
        try:
            while True:
                await self.whole.wait()
                data = await source.receive_some(65536)
                await self.whole.wait()
                if not data:
                    break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.whole.wait()  # beyond a cut nobody learns that the other end has hung up
        scope.cancel()


@asynccontextmanager
async def wire_to(node: Node) -> AsyncIterator[Wire]:
    wire, to_port = Wire(), node.port

    async def carry(stream: trio.SocketStream) -> None:
        await wire.carry(stream, to_port)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        wire.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield wire
        nursery.cancel_scope.cancel()


def run(test: Callable[..., Awaitable[Any]], *arguments: Any, clock: trio.abc.Clock | None = None) -> Any:
    async def bounded() -> Any:
        with trio.fail_after(TEST_S):
            return await test(*arguments)

    return trio.run(bounded, clock=clock)
