"""Members connect; strangers are refused before a multiplexer exists, and nothing of them is left."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost, IRawConnection, ISecureConn
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.io.utils import read_exactly
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer import muxer_multistream
from multiaddr import Multiaddr

from p2pgrid.core.chains import ALL_ROLES, CHAIN_BYTES_MAX, Reason, Refused, public_of, refuse
from p2pgrid.core.errors import PeerError
from p2pgrid.node.net import host as net
from p2pgrid.node.net.dial import NoConnection
from p2pgrid.node.net.membership import PROTOCOL, MemberNoise, Membership, RefusedByPeer
from p2pgrid.node.net.yamux import GridYamux
from tests.node.net.grids import (
    LOOPBACK,
    MIB,
    OURS,
    THEIRS,
    Node,
    issue,
    listening,
    make,
    must_echo,
    must_serve,
    nothing_left,
    open_things,
    resident_bytes,
    run,
    silent,
    until,
)
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow


class Endless(MemberNoise):
    """Announces the longest certificate there is, and sends it."""

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        secured = await Noise.secure_outbound(self, conn, peer_id)
        await secured.write(b"\xff\xff" + bytes(65535))
        await read_exactly(secured, 1)
        return secured


class Half(MemberNoise):
    """Hangs up in the middle of its certificate."""

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        secured = await Noise.secure_outbound(self, conn, peer_id)
        await secured.write(b"\x01\x00half of it")
        await conn.close()
        raise ConnectionError


class Mute(MemberNoise):
    """Proves its PeerId, then says nothing."""

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        secured = await Noise.secure_outbound(self, conn, peer_id)
        await read_exactly(secured, 1)
        return secured


def speaking(transport: type[MemberNoise]) -> IHost:
    """Return a host that does the security upgrade in its own way."""
    node = make()
    node.host.get_network().upgrader.security_multistream.transports[PROTOCOL].__class__ = transport
    return node.host


def anybody(certificate: bytes, public: bytes, *, dialler: bool) -> str:
    return "anybody"


def stolen(_public: bytes) -> bytes:
    return issue(OURS, public_of(Ed25519PrivateKey.generate()))


STRANGERS: dict[str, tuple[Callable[[], IHost], Reason | None]] = {
    "plain Noise": (lambda: net.plain_host(Ed25519PrivateKey.generate()), None),
    "another grid": (lambda: make(THEIRS).host, Reason.FOREIGN),
    "expired": (lambda: make(certificate=lambda public: issue(OURS, public, -60)).host, Reason.ENDED),
    "stolen": (lambda: make(certificate=stolen).host, Reason.ANOTHERS),
    "longest": (lambda: make(certificate=lambda _public: bytes(CHAIN_BYTES_MAX)).host, Reason.MALFORMED),
    "too long": (lambda: speaking(Endless), None),
    "half": (lambda: speaking(Half), None),
    "mute": (lambda: speaking(Mute), None),
}


@pytest.fixture
def multiplexers(monkeypatch: pytest.MonkeyPatch) -> list[GridYamux]:
    """Every multiplexer that is made in this process."""
    made: list[GridYamux] = []

    class Counted(GridYamux):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(net, "install", lambda: None)
    monkeypatch.setattr(muxer_multistream, "Yamux", Counted)
    return made


def test_members_connect() -> None:
    """Each knows what `admit` said of the other, and that it has one connection."""

    async def connect() -> tuple[list[int], int]:
        async with listening() as node, silent() as peer:
            connection = await peer.dial(node)
            await must_echo(await peer.open(node))
            (inbound,) = node.connections()
            known = [peer.membership.member_of(connection), node.membership.member_of(inbound)]
            return known, len(peer.connections())

    assert run(connect) == ([ALL_ROLES, ALL_ROLES], 1)


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_refused(name: str, multiplexers: list[GridYamux]) -> None:
    """Before a multiplexer exists; descriptors, tasks, slots and memory are where they were."""
    stranger, told = STRANGERS[name]

    async def knock() -> tuple[float, Reason | None, Node]:
        async with listening() as node:
            await must_serve(node)
            await until(lambda: not node.connections())
            multiplexers.clear()
            before, memory = open_things(), resident_bytes()
            async with net.running(stranger(), []) as host:
                started = trio.current_time()
                with pytest.raises(NoConnection) as caught:
                    await net.dial_any(host, node.host.get_id(), node.addresses)
                took = trio.current_time() - started
            await until(lambda: node.slots() == 0)
            await nothing_left(before)
            assert resident_bytes() - memory < 4 * MIB
            return took, caught.value.refused, node

    took, refused, node = run(knock)

    print(f"{name}: refused after {took:.2f} s")
    assert refused == told
    assert multiplexers == []
    assert (node.door.failed_count, node.connections()) == (1, [])


def test_a_hundred_strangers_leave_nothing() -> None:
    """Half of another grid, half without any certificate; no memory grows with their number."""

    async def knock() -> int:
        async with listening() as node:
            addresses, peer_id = node.addresses, node.host.get_id()
            async with (
                net.running(make(THEIRS).host, []) as foreign,
                net.running(STRANGERS["plain Noise"][0](), []) as bare,
            ):

                async def visit(times: int) -> None:
                    for _ in range(times):
                        for host in (foreign, bare):
                            with pytest.raises(NoConnection):
                                await net.dial_any(host, peer_id, addresses)

                await visit(10)
                await until(lambda: node.slots() == 0)
                before, memory = open_things(), resident_bytes()
                await visit(50)
                await until(lambda: node.slots() == 0)
                await nothing_left(before)
                return resident_bytes() - memory

    grown = run(knock)

    print(f"{grown / 1024:.0f} KiB more after a hundred strangers")
    assert grown < 4 * MIB


def test_a_member_does_not_connect_to_a_strangers_host() -> None:
    """Neither to one without membership, nor to one of another grid that would let everybody in."""

    async def dial() -> list[int]:
        lenient = make(THEIRS)
        lenient.membership.admit = anybody
        left = []
        for outsider in (net.plain_host(Ed25519PrivateKey.generate()), lenient.host):
            async with net.running(outsider, LOOPBACK), silent() as peer:
                with pytest.raises(NoConnection):
                    await net.dial_any(peer.host, outsider.get_id(), outsider.get_transport_addrs())
                await until(lambda outsider=outsider: not outsider.get_network().get_connections())  # type: ignore[misc]
                left.append(len(peer.connections()))
        return left

    assert run(dial) == [0, 0]


def test_another_peer_at_the_address_is_no_member() -> None:
    """A member found where somebody else was expected is not taken for him."""

    async def dial() -> int:
        async with listening() as node, listening() as other, silent() as peer:
            with pytest.raises(NoConnection):
                await peer.dial(node, other.addresses)
            await until(lambda: not other.connections())
            return len(peer.connections())

    assert run(dial) == 0


def test_an_admission_that_fails_admits_nobody() -> None:
    """A malformed certificate, or a bug of ours in judging it: refused, and the next one is judged again."""

    async def dial() -> list[Reason | None]:
        told = []
        async with listening() as node, silent() as peer:
            right = node.membership.admit
            for error in (PeerError("no list of links"), ZeroDivisionError()):

                def fail(certificate: bytes, public: bytes, *, dialler: bool, error: Exception = error) -> None:
                    raise error

                node.membership.admit = fail
                with pytest.raises(NoConnection) as caught:
                    await peer.dial(node)
                told.append(caught.value.refused)
            node.membership.admit = right
            await peer.dial(node)
            return told

    assert run(dial) == [Reason.MALFORMED, None]


def test_an_expelled_peer_is_disconnected_at_once() -> None:
    """Its streams end and no new one is served; others stay, and it cannot come back when `admit` says so."""

    async def expel() -> tuple[int, int, Reason | None]:
        async with listening() as node, silent() as bad, silent() as good:
            await bad.dial(node)
            await good.dial(node)
            stream, other = await bad.open(node), await good.open(node)
            await must_echo(stream)
            await must_echo(other)

            def admit(certificate: bytes, public: bytes, *, dialler: bool) -> str:
                return refuse(Reason.REVOKED) if public == bad.public else "member"

            node.membership.admit = admit
            count = await node.membership.expel(bad.public)
            with trio.fail_after(SOON_S), pytest.raises(StreamError):
                await stream.read(1)
            await until(lambda: len(node.connections()) == 1 and not bad.connections())
            with pytest.raises(NoConnection) as caught:
                await bad.dial(node)
            await must_echo(other)
            return count, len(node.connections()), caught.value.refused

    assert run(expel) == (1, 1, Reason.REVOKED)


def test_who_is_not_in_the_register_gets_no_stream() -> None:
    """The register is asked for every stream, whatever became of the connection meanwhile."""

    async def strike_out() -> int:
        async with listening() as node, silent() as peer:
            await peer.dial(node)
            await must_echo(await peer.open(node))
            node.membership._admitted.clear()
            stream = await peer.host.get_network().new_stream(node.host.get_id())
            with trio.fail_after(SOON_S), pytest.raises(StreamError):
                await stream.read(1)
            await until(lambda: node.slots() == 0)
            return len(node.connections())

    assert run(strike_out) == 0


def test_a_peer_expelled_while_it_connects_is_not_let_in() -> None:
    """Between its admission and the multiplexer: whichever comes first, no connection of it stays."""

    async def race() -> list[int]:
        async with listening() as node, silent() as peer:
            admit = node.membership.admit
            async with trio.open_nursery() as nursery:

                def admit_and_regret(certificate: bytes, public: bytes, *, dialler: bool) -> Any:
                    nursery.start_soon(node.membership.expel, public)
                    return admit(certificate, public, dialler=dialler)

                node.membership.admit = admit_and_regret
                with trio.fail_after(SOON_S):
                    with suppress(NoConnection):
                        await peer.dial(node)
            await until(lambda: node.slots() == 0 and not peer.connections())
            return [len(node.membership._admitted), len(node.connections())]

    assert run(race) == [0, 0]


def test_a_better_certificate_is_shown_from_then_on() -> None:
    """A node that was let in by a voucher is given a shorter chain while it runs."""

    async def improve() -> list[bytes]:
        shown: list[bytes] = []

        def note(certificate: bytes, public: bytes, *, dialler: bool) -> None:
            shown.append(certificate)

        node = make()
        node.membership.admit = note
        async with listening(node), silent() as peer:
            for word in (b"long", b"short"):
                peer.membership.certificate = word
                await (await peer.dial(node)).close()
        return shown

    assert run(improve) == [b"long", b"short"]


def test_a_mute_listener_is_given_up() -> None:
    """Within 6 s also when it accepts and never says a word."""

    async def dial() -> float:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            async with silent() as peer:
                started = trio.current_time()
                with pytest.raises(NoConnection):
                    await peer.dial(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}")])
                return trio.current_time() - started

    assert run(dial) < 6


def test_a_peer_with_another_kind_of_key_is_no_member() -> None:
    """libp2p knows other identities than Ed25519; no chain is about one of them, so `admit` is not even asked."""
    other = ID.from_pubkey(create_new_key_pair().public_key)

    class Secured:
        def get_remote_peer(self) -> ID:
            return other

    with pytest.raises(Refused) as caught:
        Membership(b"x", anybody).judge(b"x", Secured(), dialler=False)

    assert caught.value.reason == Reason.ANOTHERS


def test_a_reason_of_a_newer_version_is_some_reason() -> None:
    """The byte that a peer sends is never an error of ours."""
    assert RefusedByPeer(Reason.from_byte(200)).reason == Reason.OTHER
