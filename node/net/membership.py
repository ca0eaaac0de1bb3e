"""Membership inside the security upgrade: who is not in the grid never gets as far as a multiplexer.

Right after Noise XX has proved both PeerIds, encrypted, under `/p2pgrid/noise/1.0.0`:

    dialler  -> u16 length, certificate
    listener -> u16 length, certificate     or u16 0, one byte: refused, and why

The dialler speaks first: a stranger who connects learns a PeerId and nothing else; the dialler is safe because Noise
has checked the PeerId that it asked for. What a certificate is and whom it admits is not decided here:
`admit` returns what is known of the member or raises `Refused`. It does not wait, so that whoever is expelled is either
refused by it or already in the register, and nothing lies between.

Rule: there is one register of who was admitted, and it is asked again for every stream.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519
from libp2p.custom_types import TProtocol
from libp2p.io.utils import read_exactly
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as Noise

from p2pgrid.core.chains import CHAIN_BYTES_MAX, KEY_LENGTH, Reason, Refused, refuse
from p2pgrid.core.errors import PeerError

PROTOCOL = TProtocol("/p2pgrid/noise/1.0.0")
ED25519_HEAD = bytes.fromhex("002408011220")
"""What the PeerId of an Ed25519 key begins with; the key itself follows."""
HANDSHAKE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0

log = logging.getLogger(__name__)


class RefusedByPeer(Refused):
    """The peer did not let us in, and said why."""


class Admit(Protocol):
    def __call__(self, certificate: bytes, public: bytes, *, dialler: bool) -> Any:
        """Return what is known of the member with this key, or raise `Refused`; `dialler`: we called (core.trust)."""


class Membership:
    """What we show, whom we admit, and whom we have admitted.

    The register is kept by secured connection, not by PeerId: it forgets nobody who is still connected by another
    connection, and it cannot grow beyond what is open.
    """

    def __init__(self, certificate: bytes, admit: Admit) -> None:
        self.certificate = certificate
        self.admit = admit
        self.refused_count = 0
        self.last_refusal = ""
        self._admitted: WeakKeyDictionary[Any, tuple[bytes, Any]] = WeakKeyDictionary()

    @property
    def certificate(self) -> bytes:
        """What new connections are shown; a better one may replace it at any time."""
        return self._certificate

    @certificate.setter
    def certificate(self, certificate: bytes) -> None:
        assert 0 < len(certificate) <= CHAIN_BYTES_MAX
        self._certificate = certificate

    def judge(self, certificate: bytes, secured: Any, *, dialler: bool) -> None:
        """Admit the other end of a connection, or raise `Refused`. Nothing may be awaited in between."""
        public = _public_of(secured.get_remote_peer().to_bytes())
        try:
            member = self.admit(certificate, public, dialler=dialler)
        except Refused as refused:
            self.last_refusal = refused.reason.sentence
            raise
        except PeerError as error:
            raise Refused(Reason.MALFORMED) from error
        self._admitted[secured] = public, member

    def member_of(self, place: Any) -> Any:
        """Return what `admit` said of the other end of a connection or stream.

        Raises:
            Refused: it is no member's, or no longer.
        """
        known = self._admitted.get(place.muxed_conn.secured_conn)
        if known is None:
            refuse(Reason.REVOKED)
        return known[1]

    async def expel(self, public: bytes) -> int:
        """End every connection with the holder of a key, those that are still being made included; return how many.

        From the moment of the call on, no stream of the peer is served. That it does not come back is for `admit`.
        """
        gone = [secured for secured, (other, _) in self._admitted.items() if other == public]
        for secured in gone:
            del self._admitted[secured]
        for secured in gone:
            await close_quietly(secured)
        return len(gone)


class MemberNoise(Noise):
    """Noise, and then the certificates."""

    def __init__(self, key_pair: KeyPair, membership: Membership) -> None:
        super().__init__(key_pair, noise_privkey=create_new_x25519().private_key)
        self.membership = membership

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        async def handshake() -> ISecureConn:
            secured = await super(MemberNoise, self).secure_outbound(conn, peer_id)
            await _send(secured, self.membership.certificate)
            self.membership.judge(await _receive(secured), secured, dialler=True)
            return secured

        return await self._bounded(conn, handshake)

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        async def handshake() -> ISecureConn:
            secured = await super(MemberNoise, self).secure_inbound(conn)
            try:
                self.membership.judge(await _receive(secured), secured, dialler=False)
            except Refused as error:
                await secured.write(struct.pack("!HB", 0, error.reason))
                raise
            await _send(secured, self.membership.certificate)
            conn.is_members = True  # for `entrance`: how it ends is no stranger's failure
            return secured

        return await self._bounded(conn, handshake)

    async def _bounded(self, conn: IRawConnection, handshake: Callable[[], Awaitable[ISecureConn]]) -> ISecureConn:
        """`HandshakeFailure` is what the swarm expects; outbound, nothing else limits the time of this phase (S6)."""
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                return await handshake()
        except Exception as error:
            self.membership.refused_count += 1
            await close_quietly(conn)
            raise HandshakeFailure(f"no membership: {error!r}") from error


async def close_quietly(conn: Any) -> None:
    """Close, whatever state it is in, also when we are being cancelled: what is left open here is never tried again."""
    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            await conn.close()
        except Exception as error:  # noqa: BLE001 - the border to strangers: it is closed, or it was
            log.debug("close: %r", error)


def _public_of(peer_id: bytes) -> bytes:
    """Return the key that a PeerId is made of. Not `get_remote_public_key`: that is the Noise key, whatever it says."""
    head, public = peer_id[: len(ED25519_HEAD)], peer_id[len(ED25519_HEAD) :]
    if head != ED25519_HEAD or len(public) != KEY_LENGTH:
        refuse(Reason.ANOTHERS)  # libp2p knows other kinds of keys; no link is about one of them
    return public


async def _send(secured: Any, certificate: bytes) -> None:
    await secured.write(struct.pack("!H", len(certificate)) + certificate)


async def _receive(secured: Any) -> bytes:
    (size,) = struct.unpack("!H", await read_exactly(secured, 2))
    if size == 0:
        raise RefusedByPeer(Reason.from_byte((await read_exactly(secured, 1))[0]))
    if size > CHAIN_BYTES_MAX:
        refuse(Reason.SIZE)
    return bytes(await read_exactly(secured, size))
