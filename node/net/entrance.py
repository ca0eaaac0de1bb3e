"""What strangers reach: connections, and the streams on them. Whatever they provoke concerns them alone.

`except Exception` stands here on purpose, at the border: the library's negotiation raises whatever a malformed message
makes it raise, and a handler's bug must not be a way to end a node. Machines are not called from handlers but from the
node's loop, so their assertions are not caught here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import IHost, INetStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF, StreamError

from p2pgrid.core.errors import PeerError
from p2pgrid.node.net.door import Door
from p2pgrid.node.net.membership import PROTOCOL, Membership, close_quietly
from p2pgrid.node.net.tcp import peer_address

UPGRADE_TIMEOUT_S = 5.0
"""Noise, certificates and multiplexer, all together."""
RESET_TIMEOUT_S = 1.0
STRANGER_S = 300.0
"""How long a stranger may stay connected where the DHT is open: their places are few."""

log = logging.getLogger(__name__)


class Entrance:
    """Takes the place of the swarm's handler of inbound connections.

    `strangers` is the swarm for those who come under another security protocol than that of members, if they may.
    """

    def __init__(self, swarm: Any, door: Door, strangers: Any = None) -> None:
        self._swarm = swarm
        self._door = door
        self._strangers = strangers
        self._handshakes: dict[int, trio.CancelScope] = {}

    async def handle(self, stream: Any, listening: Any, _failure: Any) -> None:
        """S1: the original waits for the end of the swarm, not of the connection, and so never frees its slot."""
        connection = RawConnection(stream, False)  # noqa: FBT003 - the library's signature
        try:
            address = peer_address(stream)
            if address is None or self._door.turns_away(address, trio.current_time()):
                return
            if upgraded := await self._upgraded(connection, listening, address):
                is_strangers = self._strangers is not None and not getattr(connection, "is_members", False)
                with trio.move_on_after(STRANGER_S if is_strangers else math.inf):
                    await upgraded.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - see the top
            log.debug("inbound connection: %r", error)
        finally:
            await close_quietly(connection)

    async def _upgraded(self, connection: Any, listening: Any, address: str) -> Any:
        """Return the connection when it is a member's; None when it took too long or had to make room (S12)."""
        ticket, displaced = self._door.enter(address)
        for other in displaced:
            self._handshakes[other].cancel()
        upgraded = None
        with trio.move_on_after(UPGRADE_TIMEOUT_S) as self._handshakes[ticket]:
            try:
                if self._strangers is None:
                    upgraded = await self._swarm.upgrade_inbound_raw_conn(connection, listening)
                else:
                    upgraded = await self._sorted(connection)
            finally:
                del self._handshakes[ticket]
                # A member that hangs up after the handshake wanted to know no more than that we are here.
                failed = upgraded is None and not getattr(connection, "is_members", False)
                self._door.leave(ticket, address, trio.current_time(), failed=failed)
        return upgraded

    async def _sorted(self, connection: Any) -> Any:
        """Let the peer choose the security protocol, and by that one of the two swarms."""
        secured = await self._strangers.upgrader.upgrade_security(connection, False)  # noqa: FBT003 - as above
        is_members = secured.negotiated_security_protocol == PROTOCOL
        swarm = self._swarm if is_members else self._strangers
        muxed = await swarm.upgrader.upgrade_connection(secured, secured.get_remote_peer())
        await swarm.add_conn(muxed, direction="inbound")
        return muxed


def guard_connections(host: IHost, door: Door, strangers: IHost | None = None) -> None:
    """S1, S12: see `Entrance`."""
    swarm = host.get_network()
    swarm._do_handle_inbound_connection = Entrance(swarm, door, strangers and strangers.get_network()).handle


def guard_streams(host: IHost, membership: Membership | None) -> None:
    """S2, S3, S11: an inbound stream is a member's, its failure ends nothing else, and to return is to close it.

    In the library an exception in a stream's task ends the whole host, whether it is ours or one that a malformed
    protocol name provokes; and a stream that its handler does not close stays for the life of the connection.
    """
    original: Callable[[INetStream], Awaitable[None]] = host._swarm_stream_handler

    async def handle(stream: INetStream) -> None:
        try:
            if membership is not None:
                membership.member_of(stream)
            with suppress(StreamEOF):  # the peer has said all it had to say: the usual end
                await original(stream)
            stream.muxed_stream.abandoned = True
            await stream.close()
        except StreamError as error:
            log.debug("stream of peer %s: %r", stream.muxed_conn.peer_id, error)
            await _reset(stream)
        except PeerError as error:
            log.info("peer %s is dropped: %s", stream.muxed_conn.peer_id, error)
            await close_quietly(stream.muxed_conn.secured_conn)
        except Exception as error:  # noqa: BLE001 - see the top
            # Without a protocol it never came to a handler: a malformed opening, which a peer can send without end.
            level = logging.DEBUG if stream.get_protocol() is None else logging.WARNING
            log.log(level, "stream of peer %s failed: %r", stream.muxed_conn.peer_id, error)
            await _reset(stream)

    host.get_network().set_stream_handler(handle)


async def _reset(stream: INetStream) -> None:
    with trio.move_on_after(RESET_TIMEOUT_S, shield=True):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001 - as above: the connection is gone, usually
            log.debug("reset: %r", error)


def bound_upgrades(host: IHost) -> None:
    """S6: outbound, nothing in the library limits how long a peer may be mute before Noise."""
    swarm = host.get_network()
    upgrade = swarm.upgrade_outbound_raw_conn

    async def bounded(*arguments: Any) -> Any:
        with trio.fail_after(UPGRADE_TIMEOUT_S):
            return await upgrade(*arguments)

    swarm.upgrade_outbound_raw_conn = bounded


def stop_auto_connecting(host: IHost) -> None:
    """X4: whom to know is the grid's decision; the library dials every address it has heard of, every 30 s."""

    async def do_nothing(*_arguments: Any, **_options: Any) -> None:
        return

    host.get_network().auto_connector.maybe_connect = do_nothing
