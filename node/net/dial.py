"""Dialling: all addresses of a peer, one after the other but without waiting for the dead ones (S7).

libp2p's own `connect` tries one address per kind of transport and then refuses the peer for 60 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from libp2p.abc import IHost, INetConn
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.core.chains import Reason, Refused
from p2pgrid.node.net.membership import HANDSHAKE_TIMEOUT_S, RefusedByPeer, close_quietly
from p2pgrid.node.net.tcp import DIAL_TIMEOUT_S

STAGGER_S = 0.15
"""RFC 8305 suggests 0.25; our addresses are mostly on one LAN. The next is tried at once when one has failed."""
ADDRESSES_MAX = 16
"""Addresses come from other members, who may be wrong in any number."""
CAUSES_MAX = 8


class NoConnection(ConnectionError):
    """No address led to the peer.

    Attributes:
        errors: what each address came to.
        refused: why the peer did not let us in, when that is what happened.
    """

    def __init__(self, peer_id: ID, errors: Sequence[Exception]) -> None:
        refusals = [found for found in map(_refusal, errors) if found]
        told = [str(each) for each in refusals or errors] or ["there is no address"]
        super().__init__(f"no address of {peer_id} answered: {'; '.join(dict.fromkeys(told))}")
        self.errors = tuple(errors)
        self.refused: Reason | None = next((each.reason for each in refusals if isinstance(each, RefusedByPeer)), None)


def _refusal(error: BaseException | None) -> Refused | None:
    """Find our own reason below the library's."""
    for _ in range(CAUSES_MAX):
        if error is None or isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None


async def answers_at(host: IHost, peer_id: ID, address: Multiaddr, timeout_s: float) -> bool:
    """Say whether that peer answers at an address: TCP and the handshake, on a connection that is closed at once.

    It is no connection of the host: nobody hears of it, and whatever connects the two already stays as it is.
    """
    network = host.get_network()
    connection = None
    with trio.move_on_after(timeout_s):
        try:
            connection = await network.transport_manager.transport_for_dialing(address).dial(address)
            await network.upgrader.upgrade_security(connection, True, peer_id)  # noqa: FBT003 - the library's signature
        except Exception:  # noqa: BLE001 - the border to strangers: any error means that it does not
            return False
        else:
            return True
        finally:
            if connection is not None:
                await close_quietly(connection)
    return False


async def dial_any(
    host: IHost, peer_id: ID, addresses: Sequence[Multiaddr], timeout_s: float = DIAL_TIMEOUT_S + HANDSHAKE_TIMEOUT_S
) -> INetConn:
    """Return a connection with the peer: one that is open already, or that of the first address that answers.

    Two nodes that dial each other at once get two connections; which one stays is for the caller to decide.

    Raises:
        NoConnection: none answered in time, or the peer or we refused.
    """
    network = host.get_network()
    for connection in network.get_connections(peer_id):
        if not connection.is_closed:
            return connection
    won: list[INetConn] = []
    errors: list[Exception] = []

    async def attempt(address: Multiaddr, failed: trio.Event) -> None:
        try:
            # One attempt, no `dial_peer`: that one sleeps 250 ms after it has succeeded (X1).
            connection = await network._dial_addr_single_attempt(address, peer_id)
        except Exception as error:  # noqa: BLE001 - the border to strangers: any error means that this one failed
            errors.append(error)
            failed.set()
            return
        won.append(connection)
        nursery.cancel_scope.cancel()

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for address in addresses[:ADDRESSES_MAX]:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()
    if not won:
        raise NoConnection(peer_id, errors)
    for surplus in won[1:]:
        await surplus.close()
    return won[0]
