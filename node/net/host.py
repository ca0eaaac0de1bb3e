"""The host of a node: libp2p with every known trap closed, and the certificate exchange in its handshake.

    membership = Membership(certificate, admit)
    host = make_host(key, membership)
    host.set_stream_handler(PROTOCOL, handler)             # before running: later ones are pushed to all peers
    async with running(host, [Multiaddr("/ip4/0.0.0.0/tcp/4001")]):
        connection = await dial_any(host, peer_id, addresses)
        member = membership.member_of(connection)

Never used: `host.run`, `host.connect`, bootstrap, mDNS, pnet, QUIC, the health monitor. A handler that raises a
`PeerError` drops its peer, any other exception its stream; to return is to close the stream.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import new_host
from libp2p.abc import IHost, ISecureTransport
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.network.config import ConnectionConfig
from libp2p.security.noise.transport import PROTOCOL_ID as PLAIN_NOISE
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from p2pgrid.core.chains import Reason, refuse
from p2pgrid.node.net.dial import dial_any
from p2pgrid.node.net.door import Door
from p2pgrid.node.net.entrance import (
    UPGRADE_TIMEOUT_S,
    bound_upgrades,
    guard_connections,
    guard_streams,
    stop_auto_connecting,
)
from p2pgrid.node.net.membership import PROTOCOL, MemberNoise, Membership, close_quietly
from p2pgrid.node.net.tcp import GridTCP
from p2pgrid.node.net.yamux import install

__all__ = ["CannotListen", "dial_any", "make_host", "plain_host", "running", "strangers_host", "test_host"]

CONNECTIONS_MAX = 256
STRANGERS_MAX = 32
"""Connections of strangers, where the DHT is open to them."""
CLOSING_TIMEOUT_S = 5.0
NEVER_S = 1e9


class CannotListen(OSError):
    """A port is taken, or the address is not ours."""


def make_host(
    key: Ed25519PrivateKey,
    membership: Membership,
    door: Door | None = None,
    connections_max: int = CONNECTIONS_MAX,
    opened: Mapping[str, socket.socket] | None = None,
    strangers: IHost | None = None,
) -> IHost:
    """Return a host that only members reach; it is not running yet.

    `opened` are sockets that listen already, by multiaddr: `running` serves them where it is told to listen there.
    Who comes to them under plain `/noise` comes to `strangers`, if there is such a host, and is refused otherwise.
    """
    key_pair = create_new_key_pair(key.private_bytes_raw())
    host = _hardened(key_pair, {PROTOCOL: MemberNoise(key_pair, membership)}, connections_max, opened)
    guard_connections(host, door or Door(), strangers)
    guard_streams(host, membership)
    return host


def strangers_host(key: Ed25519PrivateKey, membership: Membership) -> IHost:
    """Return the host that strangers come to where the DHT is open to them.

    It has the node's key and listens nowhere: connections come from the node's own host. That one never learns of
    them, so that nothing which dials, keeps or trusts connections can take a stranger's for a member's, whatever key
    it shows. Beside the handlers that it is given it serves identify and ping, without which js-libp2p asks nobody.
    """
    key_pair = create_new_key_pair(key.private_bytes_raw())
    plain = Noise(key_pair, noise_privkey=create_new_x25519().private_key)
    host = _hardened(key_pair, {PROTOCOL: MemberNoise(key_pair, membership), PLAIN_NOISE: plain}, STRANGERS_MAX)
    for protocol in [each for each in host.multiselect.handlers if each not in {IDENTIFY, PING}]:
        del host.multiselect.handlers[protocol]
    guard_streams(host, None)
    return host


def plain_host(key: Ed25519PrivateKey) -> IHost:
    """Return a host open to everybody under `/noise`: for conformance tests with other libp2ps, for no node."""
    key_pair = create_new_key_pair(key.private_bytes_raw())
    noise = Noise(key_pair, noise_privkey=create_new_x25519().private_key)
    host = _hardened(key_pair, {PLAIN_NOISE: noise}, CONNECTIONS_MAX)
    guard_connections(host, Door())
    guard_streams(host, None)
    return host


def test_host() -> IHost:
    """Return a host as `check_traps.py` wants it: any two of them, in two processes, can connect."""
    word = b"a trap is being checked"

    def admit(certificate: bytes, public: bytes, *, dialler: bool) -> str:
        return "member" if certificate == word else refuse(Reason.FOREIGN)

    return make_host(Ed25519PrivateKey.generate(), Membership(word, admit))


test_host.__test__ = False  # type: ignore[attr-defined]  # pytest: it is no test


def _hardened(
    key_pair: KeyPair,
    security: dict[TProtocol, ISecureTransport],
    connections_max: int,
    opened: Mapping[str, socket.socket] | None = None,
) -> IHost:
    install()
    # It logs as an error what any stranger can provoke as often as he likes; what matters we say ourselves.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    host = new_host(
        key_pair=key_pair,
        transports=[GridTCP(opened)],
        muxer_preference="YAMUX",
        sec_opt=security,
        connection_config=ConnectionConfig(
            max_connections_per_peer=1,  # X1: with more, connecting always lasts 250 ms
            min_connections=0,
            low_watermark=0,
            high_watermark=connections_max,
            max_connections=connections_max,
            auto_connect_interval=NEVER_S,
            inbound_upgrade_timeout=UPGRADE_TIMEOUT_S,
            outbound_upgrade_timeout=UPGRADE_TIMEOUT_S,
        ),
    )
    bound_upgrades(host)
    stop_auto_connecting(host)
    return host


@asynccontextmanager
async def running(host: IHost, addresses: Sequence[Multiaddr]) -> AsyncIterator[IHost]:
    """Run a host, listening on every one of these addresses; leave no socket behind (X2, X3).

    `host.run` only logs that it cannot listen, and leaves sockets open when it is left or cancelled.

    Raises:
        CannotListen: in a group, as everything that leaves a nursery.
    """
    async with host.run(addresses):
        network = host.get_network()
        try:
            if deaf := [str(each) for each in addresses if str(each) not in network.listeners]:
                raise CannotListen(f"cannot listen on {', '.join(deaf)}")
            yield host
        finally:
            with trio.move_on_after(CLOSING_TIMEOUT_S, shield=True):
                async with trio.open_nursery() as nursery:  # host.close alone takes 0.2 s for each connection
                    for connection in network.get_connections():
                        nursery.start_soon(_close_connection, connection)
                await host.close()


async def _close_connection(connection: Any) -> None:
    await connection.close()
    await close_quietly(connection.muxed_conn.secured_conn)  # a close that was cancelled half-way is never tried again
