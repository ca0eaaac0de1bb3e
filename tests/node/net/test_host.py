"""Every trap of py-libp2p 0.8.1 that our host must not fall into, by its number in docs: real TCP on loopback."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.network.stream.exceptions import StreamEOF, StreamError, StreamReset
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr
from trio.testing import MockClock

from p2pgrid.core.errors import PeerError
from p2pgrid.node.net import entrance, tcp, yamux
from p2pgrid.node.net import host as net
from p2pgrid.node.net.dial import NoConnection
from p2pgrid.node.net.door import Door, Limits
from p2pgrid.node.net.streams import STREAMS_MAX
from tests.node.net.grids import (
    ECHO,
    HOLD,
    LOOPBACK,
    MIB,
    Node,
    echo,
    listening,
    make,
    must_echo,
    must_serve,
    nothing_left,
    open_things,
    read_exactly,
    resident_bytes,
    run,
    silent,
    until,
    wire_to,
)
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

CRASH, SINK, SLOW = (TProtocol(f"/test/{word}/1") for word in ("crash", "sink", "slow"))


async def sink(stream: INetStream) -> None:
    while await stream.read(MIB):
        pass


def at(port: int) -> Multiaddr:
    return Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")


# ---- S1, S12, X1–X4: connections ------------------------------------------------------------------------------------


def test_s1_an_ended_connection_frees_its_slot() -> None:
    """A node that takes three at a time has served twelve, one after the other."""

    async def come_and_go() -> int:
        async with listening(make(connections_max=3)) as node:
            for _ in range(12):
                async with silent() as peer:
                    await peer.dial(node)
                await until(lambda: node.slots() == 0)
            await must_serve(node)
            await until(lambda: not node.connections())
            return node.slots()

    assert run(come_and_go) == 0


def test_s12_silent_strangers_do_not_keep_peers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred say nothing where eighty have room: a member is served beside them, and nothing of them is left."""
    monkeypatch.setattr(entrance, "UPGRADE_TIMEOUT_S", 10 * SOON_S)  # nobody makes room by giving up

    async def crowd() -> Door:
        async with listening(make(connections_max=80)) as node:
            await must_serve(node)
            before = open_things()
            strangers = [await trio.open_tcp_stream("127.0.0.1", node.port) for _ in range(100)]
            await until(lambda: node.door.displaced_count == 100 - node.door.limits.half_open_max)
            await must_serve(node)
            assert node.door.half_open_count > 0
            for stranger in strangers:
                await stranger.aclose()
            await nothing_left(before)
            return node.door

    door = run(crowd)

    assert (door.half_open_count, door.failed_count) == (0, 100)


def test_an_address_that_fails_again_and_again_is_closed_before_noise() -> None:
    """Nothing is said to it any more, not even to a member behind the same address."""

    async def knock() -> tuple[list[bytes], int]:
        limits = Limits(failures_max=3, trust_loopback=False)
        async with listening(make(door=Door(limits))) as node:
            heard = []
            for count in range(5):
                async with await trio.open_tcp_stream("127.0.0.1", node.port) as stranger:
                    # A closed address is hung up on before this is read: a reset is as good an answer as silence.
                    try:
                        await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
                        heard.append(await stranger.receive_some())
                    except trio.BrokenResourceError:
                        heard.append(b"")
                await until(lambda count=count: node.door.failed_count == min(count + 1, 3))  # type: ignore[misc]
            async with silent() as member:
                with pytest.raises(NoConnection):
                    await member.dial(node)
            return heard, node.door.turned_away_count

    heard, turned_away = run(knock)

    assert [bool(each) for each in heard] == [True, True, True, False, False]
    assert turned_away == 3


def test_random_bytes_leave_nothing() -> None:
    """Two hundred strangers talk nonsense: descriptors, tasks and slots are where they were, and a member is served."""

    async def babble() -> tuple[int, int]:
        async with listening() as node:
            await must_serve(node)
            await until(lambda: not node.connections())
            before, memory = open_things(), resident_bytes()
            for count in range(200):
                stream = await trio.open_tcp_stream("127.0.0.1", node.port)
                prefix = b"\x13/multistream/1.0.0\n" if count % 2 else b""
                await stream.send_all(prefix + os.urandom(1 + count))
                await stream.aclose()
            await until(lambda: node.door.failed_count == 200)
            await nothing_left(before)
            grown = resident_bytes() - memory
            await must_serve(node)
            await until(lambda: node.slots() == 0)
            return node.door.half_open_count, grown

    half_open, grown = run(babble)

    print(f"{grown / MIB:.1f} MiB more after 200 random strings")
    assert half_open == 0
    assert grown < 8 * MIB


def test_x1_connecting_is_quick() -> None:
    """The library sleeps 250 ms after it has succeeded; we have connected before that, by a clock that hardly moves."""
    clock, slowly = MockClock(rate=1.0), 0.01

    async def connect() -> float:
        async with listening() as node, silent() as peer:
            clock.rate = slowly
            started = trio.current_time()
            await peer.dial(node)
            took = trio.current_time() - started
            clock.rate = 1.0
        return took

    took = run(connect, clock=clock)

    print(f"a member connects in {took / slowly * 1000:.0f} ms")
    assert took < 0.25


def test_x2_two_hosts_cannot_listen_on_one_port() -> None:
    """The second says so, and leaves nothing."""

    async def listen_twice() -> None:
        async with listening() as node:
            before = open_things()
            second = make()
            with pytest.raises(ExceptionGroup) as caught:
                async with net.running(second.host, [at(node.port)]):
                    raise AssertionError("it runs")
            assert caught.group_contains(net.CannotListen)
            await nothing_left(before)
            await must_serve(node)

    run(listen_twice)


def test_x3_a_cancelled_host_leaves_no_socket_and_no_task() -> None:
    """With a connection and an open stream, in both directions."""

    async def cancel() -> None:
        async with listening() as node:
            await must_serve(node)
            await until(lambda: not node.connections())
            before = open_things()
            with trio.CancelScope() as scope:
                async with listening() as other:
                    await other.dial(node)
                    await must_echo(await other.open(node))
                    scope.cancel()
            await nothing_left(before)

    run(cancel)


def test_x4_nobody_is_dialled_unasked() -> None:
    """An address in the peer store is no wish to connect."""

    async def tempt() -> int:
        async with listening() as node, silent() as peer:
            network = peer.host.get_network()
            network.peerstore.add_addrs(node.host.get_id(), node.addresses, 60)
            await network.auto_connector.maybe_connect()
            return len(peer.connections())

    assert run(tempt) == 0


# ---- S7, S6: dialling -----------------------------------------------------------------------------------------------


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])


def test_s7_every_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are dead and one is mute, and is not waited for; the fourth answers."""
    monkeypatch.setattr(entrance, "UPGRADE_TIMEOUT_S", 10 * SOON_S)

    async def dial() -> float:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            ports = [dead_port(), dead_port(), mute.getsockname()[1]]
            async with listening() as node, silent() as peer:
                before = open_things()
                started = trio.current_time()
                connection = await peer.dial(node, [*map(at, ports), *node.addresses])
                took = trio.current_time() - started
                await must_echo(await peer.open(node))
                await connection.close()
                await nothing_left(before)
        return took

    took = run(dial)

    print(f"connected by the fourth address in {took * 1000:.0f} ms")


def test_s7_the_error_says_what_became_of_each_address() -> None:
    """Two dead addresses, and then none at all."""

    async def dial() -> list[int]:
        counts = []
        async with listening() as node, silent() as peer:
            for addresses in ([at(dead_port()), at(dead_port())], []):
                with pytest.raises(NoConnection) as caught:
                    await net.dial_any(peer.host, node.host.get_id(), addresses)
                assert caught.value.refused is None
                counts.append(len(caught.value.errors))
        return counts

    assert run(dial) == [2, 0]


def test_s6_a_dial_that_nobody_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that drops SYNs, and one that accepts and is mute; with limits of 0.4 s instead of 5."""
    monkeypatch.setattr(tcp, "DIAL_TIMEOUT_S", 0.4)
    monkeypatch.setattr(entrance, "UPGRADE_TIMEOUT_S", 0.4)

    async def dial() -> list[float]:
        took = []
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_server(("127.0.0.1", 0)) as mute:
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.settimeout(0)
                filler.connect_ex(full.getsockname())
            async with silent() as peer:
                before = open_things()
                for listener in (full, mute):
                    started = trio.current_time()
                    with pytest.raises(NoConnection):
                        await peer.dial(peer, [at(listener.getsockname()[1])])
                    took.append(trio.current_time() - started)
                await nothing_left(before)
            for filler in fillers:
                filler.close()
        return took

    assert all(each > 0.3 for each in run(dial))


def test_s6_a_frozen_peer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of a wire that was cut give up: whoever reads is told, and no connection is left."""
    monkeypatch.setattr(yamux, "KEEPALIVE_S", 0.3)
    monkeypatch.setattr(yamux, "PONG_TIMEOUT_S", 2.0)

    async def freeze() -> float:
        async with listening() as node, wire_to(node) as wire, silent() as peer:
            await peer.dial(node, wire.addresses)
            stream = await peer.open(node)
            await must_echo(stream)
            wire.cut()
            started = trio.current_time()
            with pytest.raises(StreamError):
                await stream.read(1)
            took = trio.current_time() - started
            await until(lambda: not peer.connections() and not node.connections())
            return took

    took = run(freeze)

    print(f"noticed after {took:.1f} s")


# ---- S2, S3: what strangers provoke ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), AssertionError(), ExceptionGroup("two", [KeyError(1)])], ids=repr
)
def test_s2_a_handler_that_raises_ends_its_stream_only(error: Exception) -> None:
    """Other streams of the connection go on, and newcomers are served."""

    async def crash(stream: INetStream) -> None:
        await stream.read(1)
        raise error

    async def provoke() -> None:
        node = make()
        node.host.set_stream_handler(CRASH, crash)
        async with listening(node), silent() as peer:
            await peer.dial(node)
            other = await peer.open(node)
            await must_echo(other)
            stream = await peer.open(node, CRASH)
            await stream.write(b"x")
            with trio.fail_after(SOON_S), pytest.raises(StreamReset):
                await stream.read(1)
            await must_echo(other)
            await must_serve(node)

    run(provoke)


def test_a_handler_that_says_peer_error_drops_that_peer_only() -> None:
    """The peer broke the protocol: its connection ends, that of another goes on."""

    async def crash(stream: INetStream) -> None:
        await stream.read(1)
        raise PeerError("that is no frame")

    async def provoke() -> int:
        node = make()
        node.host.set_stream_handler(CRASH, crash)
        async with listening(node), silent() as bad, silent() as good:
            for peer in (bad, good):
                await peer.dial(node)
            other = await good.open(node)
            await must_echo(other)
            await (await bad.open(node, CRASH)).write(b"x")
            await until(lambda: not bad.connections())
            await must_echo(other)
            return len(good.connections())

    assert run(provoke) == 1


def delimited(text: bytes) -> bytes:
    return bytes([len(text)]) + text


HELLO = delimited(b"/multistream/1.0.0\n")
PUSH = HELLO + delimited(b"/ipfs/id/push/1.0.0\n")
MALFORMED = {
    "name not UTF-8": HELLO + delimited(b"\xff\xfe\n"),
    "header not UTF-8": delimited(b"\xff\xfe\n"),
    "no newline": HELLO + delimited(b"/test/echo/1"),
    "empty name": HELLO + b"\0",
    "endless length": HELLO + b"\xff" * 10,
    "identify push, garbage": PUSH + bytes(range(200)),
    "identify push, bad addresses": PUSH + delimited(b"\x12\x03\xff\xff\xff\x1a\x02\xff\xfe\x0a\x04abcd"),
}


def test_s3_garbage_on_a_stream_concerns_that_stream_only() -> None:
    """Every malformed opening, and random ones; the connection echoes on, and no stream is left."""

    async def babble() -> int:
        async with listening() as node, silent() as peer:
            connection: Any = await peer.dial(node)
            other = await peer.open(node)
            await must_echo(other)
            openings = [*MALFORMED.values(), *(os.urandom(1 + 7 * size) for size in range(20))]
            for opening in openings:
                stream = await peer.host.get_network().new_stream(node.host.get_id())
                await stream.write(opening)
                await must_echo(other)
                await stream.reset()
            await must_serve(node)
            (inbound,) = (each.muxed_conn for each in node.host.get_network().get_connections(peer.host.get_id()))
            await until(lambda: len(connection.muxed_conn.streams) == len(inbound.streams) == 1)
            return len(openings)

    assert run(babble) == 27


# ---- S4, S5, S8–S11: streams ----------------------------------------------------------------------------------------


def test_s4_a_cancelled_write_does_not_ruin_the_connection() -> None:
    """Writes are cut while the peer is frozen; when it reads again, the other streams of the connection work."""

    async def cut() -> float:
        node = make()
        node.host.set_stream_handler(SINK, sink)
        async with listening(node), wire_to(node) as wire, silent() as peer:
            await peer.dial(node, wire.addresses)
            other = await peer.open(node)
            await must_echo(other)
            streams = [await peer.open(node, SINK) for _ in range(32)]
            wire.cut()
            async with trio.open_nursery() as nursery:

                async def write(stream: INetStream) -> None:
                    for _ in range(16):
                        await stream.write(bytes(MIB))

                async def write_for_a_while() -> float:
                    started = trio.current_time()
                    with trio.move_on_after(0.5) as scope:
                        async with trio.open_nursery() as writers:
                            for stream in streams:
                                writers.start_soon(write, stream)
                    assert scope.cancelled_caught
                    return trio.current_time() - started

                async def mend_later() -> None:
                    await trio.sleep(1)
                    wire.mend()

                nursery.start_soon(mend_later)
                took = await write_for_a_while()
            await must_echo(other)
            return took

    took = run(cut)

    print(f"cancelled writes returned after {took:.1f} s")


def test_s5_a_writer_waits_for_a_reader_that_pauses() -> None:
    """Five and a half seconds; the library gives up after five."""

    async def read_later(stream: INetStream) -> None:
        await trio.sleep(5.5)
        await read_exactly(stream, 2 * MIB)
        await stream.write(b"ok")

    async def write() -> bytes:
        node = make()
        node.host.set_stream_handler(SLOW, read_later)
        async with listening(node), silent() as peer:
            await peer.dial(node)
            stream = await peer.open(node, SLOW)
            await stream.write(bytes(2 * MIB))
            return await read_exactly(stream, 2)

    assert run(write) == b"ok"


def test_s8_a_peer_that_ignores_flow_control_cannot_fill_our_memory() -> None:
    """It is cut off soon after its window, and nobody else notices."""

    async def overrun() -> int:
        async with listening() as node, silent() as peer:
            await peer.dial(node)
            stream: Any = await peer.open(node, HOLD)
            muxed, payload, sent = stream.muxed_stream, bytes(60_000), 0
            frame = struct.pack("!BBHII", 0, 0, 0, muxed.stream_id, len(payload)) + payload
            with suppress(IOException):  # we are hung up on, as it should be
                while sent < 64 * MIB and peer.connections():
                    await muxed.conn._write_frame(frame)
                    sent += len(payload)
            await until(lambda: not node.connections())
            await must_serve(node)
            return sent

    sent = run(overrun)

    print(f"cut off after {sent / MIB:.1f} MiB")
    assert sent < 32 * MIB


def test_s9_full_pipes_in_both_directions_do_not_block_each_other() -> None:
    """Bulk both ways, and short streams from both sides are answered all the while."""

    async def flood(stream: INetStream) -> None:
        while True:
            await stream.write(bytes(MIB))

    async def crowd() -> list[int]:
        node, peer, answered = make(), make(), [0, 0]
        node.host.set_stream_handler(SINK, sink)
        node.host.set_stream_handler(SLOW, flood)
        async with listening(node), silent(peer):
            await peer.dial(node)

            async def push() -> None:
                await flood(await peer.open(node, SINK))

            async def pull() -> None:
                await sink(await peer.open(node, SLOW))

            async def ask(asker: Node, asked: Node, place: int) -> None:
                while True:
                    stream = await asker.open(asked, ECHO)
                    await must_echo(stream)
                    await stream.close()
                    answered[place] += 1
                    if min(answered) > 3 and trio.current_time() > started + 2:
                        nursery.cancel_scope.cancel()

            started = trio.current_time()
            with trio.move_on_after(60):
                async with trio.open_nursery() as nursery:
                    for bulk in [push, pull] * 4:
                        nursery.start_soon(bulk)
                    nursery.start_soon(ask, peer, node, 0)
                    nursery.start_soon(ask, node, peer, 1)
        return answered

    answered = run(crowd)

    print(f"streams answered beside bulk, each way: {answered}")
    assert min(answered) > 3


def test_s9_who_cannot_write_still_reads() -> None:
    """While a write is stuck, streams that want an acknowledgement are opened, and data behind them arrives."""

    async def stick() -> bool:
        arrived = trio.Event()

        async def note(stream: INetStream) -> None:
            await read_exactly(stream, 5)
            arrived.set()
            await trio.sleep_forever()

        node = make()
        node.host.set_stream_handler(SLOW, note)
        async with listening(node), silent() as peer:
            connection: Any = await peer.dial(node)
            stream = await peer.open(node, SLOW)
            (inbound,) = (each.muxed_conn for each in node.connections())
            async with inbound._write_lock:
                for _ in range(20):
                    await connection.muxed_conn.open_stream()
                await stream.write(b"hello")
                with trio.move_on_after(SOON_S):
                    await arrived.wait()
            return arrived.is_set()

    assert run(stick)


def test_s10_a_read_that_is_given_up_loses_no_bytes() -> None:
    """Read with limits of 1 ms while others keep the connection busy: every byte arrives, in order."""
    pattern = b"".join(struct.pack("!I", number) for number in range(2 * MIB // 4))

    async def give_up_often() -> tuple[bytes, int]:
        node, received, given_up = make(), bytearray(), 0
        node.host.set_stream_handler(SINK, sink)
        async with listening(node), silent() as peer, trio.open_nursery() as nursery:
            await peer.dial(node)
            echoing = await peer.open(node)

            async def press(stream: INetStream) -> None:
                while True:
                    await stream.write(bytes(65536))

            async def write() -> None:
                for start in range(0, len(pattern), 65536):
                    await echoing.write(pattern[start : start + 65536])

            for _ in range(4):
                nursery.start_soon(press, await peer.open(node, SINK))
            nursery.start_soon(write)
            while len(received) < len(pattern):
                with trio.move_on_after(0.001) as scope:
                    received += await echoing.read(65536)
                given_up += scope.cancelled_caught
            nursery.cancel_scope.cancel()
        return bytes(received), given_up

    received, given_up = run(give_up_often)

    print(f"{given_up} reads given up")
    assert given_up > 3
    assert received == pattern


def test_s11_a_handler_that_returns_has_closed_its_stream() -> None:
    """Of many streams, one after the other, none is left on either side."""

    async def ask_often() -> list[int]:
        async with listening() as node, silent() as peer:
            connection: Any = await peer.dial(node)
            for _ in range(2 * STREAMS_MAX):
                stream = await peer.open(node)
                await must_echo(stream)
                await stream.close()
            (inbound,) = (each.muxed_conn for each in node.connections())
            await until(lambda: not inbound.streams and not connection.muxed_conn.streams)
            return [len(inbound.streams), len(connection.muxed_conn.streams)]

    assert run(ask_often) == [0, 0]


def test_s11_a_peer_that_opens_streams_without_end_is_dropped() -> None:
    """Nobody else notices."""

    async def hoard() -> int:
        async with listening() as node, silent() as peer:
            connection: Any = await peer.dial(node)
            opened = 0
            with trio.move_on_after(SOON_S):
                while peer.connections() and opened < 2 * STREAMS_MAX:
                    with suppress(MuxedStreamError):  # we are hung up on, as it should be
                        await connection.muxed_conn.open_stream()
                        opened += 1
                    await trio.lowlevel.checkpoint()
            await until(lambda: not node.connections())
            await must_serve(node)
            return opened

    assert run(hoard) <= 2 * STREAMS_MAX


def test_a_stuck_reader_holds_up_nobody_else() -> None:
    """One stream is never read; others of the same connection are answered."""

    async def stick() -> float:
        async with listening() as node, silent() as peer:
            await peer.dial(node)
            stuck, other = await peer.open(node, HOLD), await peer.open(node)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stuck.write, bytes(2 * MIB))
                await must_echo(other)
                started = trio.current_time()
                for _ in range(20):
                    await must_echo(other)
                nursery.cancel_scope.cancel()
            return (trio.current_time() - started) / 20

    took = run(stick)

    print(f"round trip beside a stuck stream {took * 1000:.1f} ms")


@pytest.mark.parametrize("how", ["finished", "reset", "connection closed", "cut within a frame"])
def test_s13_only_a_finished_stream_reads_as_finished(how: str) -> None:
    """What was sent before is read; then the end is an end, or it is a reset."""

    async def half_a_frame(stream: Any) -> None:
        muxed = stream.muxed_stream
        await muxed.conn._write_frame(struct.pack("!BBHII", 0, 0, 0, muxed.stream_id, 1000) + bytes(10))
        await muxed.conn.secured_conn.close()

    async def send(stream: Any) -> None:
        await stream.write(b"part")
        await read_exactly(stream, 2)
        if how == "finished":
            await stream.close()
        elif how == "reset":
            await stream.reset()
        elif how == "connection closed":
            await stream.muxed_conn.close()
        else:
            await half_a_frame(stream)

    async def receive() -> type[BaseException]:
        node = make()
        node.host.set_stream_handler(SLOW, send)
        async with listening(node), silent() as peer:
            await peer.dial(node)
            stream = await peer.open(node, SLOW)
            await read_exactly(stream, 4)
            await stream.write(b"ok")
            with trio.fail_after(SOON_S), pytest.raises(StreamError) as caught:
                await stream.read(1)
            return caught.type

    assert run(receive) == (StreamEOF if how == "finished" else StreamReset)


def test_a_reader_is_told_that_its_stream_was_reset_here() -> None:
    """One task reads, another gives the stream up; nothing of it stays in the connection's books."""

    async def give_up() -> list[int]:
        async with listening() as node, silent() as peer:
            muxed: Any = (await peer.dial(node)).muxed_conn
            stream = await peer.open(node)
            await must_echo(stream)
            with trio.fail_after(SOON_S):
                async with trio.open_nursery() as nursery:

                    async def read() -> None:
                        with pytest.raises(StreamReset):
                            await stream.read(1)

                    nursery.start_soon(read)
                    number = stream.muxed_stream.stream_id
                    await until(lambda: muxed.stream_events[number].statistics().tasks_waiting == 1)
                    await stream.reset()
            await until(lambda: not muxed.streams)
            return [len(muxed.streams), len(muxed.stream_buffers), len(muxed.stream_events)]

    assert run(give_up) == [0, 0, 0]


@pytest.mark.parametrize(
    "make_host", [net.test_host, lambda: net.plain_host(Ed25519PrivateKey.generate())], ids=["test", "plain"]
)
def test_the_hosts_for_checks_connect(make_host: Callable[[], Any]) -> None:
    """`check_traps.py` and conformance peers of other languages are served as members are."""

    async def connect() -> bytes:
        first, second = make_host(), make_host()
        first.set_stream_handler(ECHO, echo)
        async with net.running(first, LOOPBACK), net.running(second, []):
            await net.dial_any(second, first.get_id(), first.get_transport_addrs())
            stream = await second.new_stream(first.get_id(), [ECHO])
            await stream.write(b"hello")
            return await read_exactly(stream, 5)

    assert run(connect) == b"hello"
