"""Who is on this LAN: mDNS, so that nodes of one grid find each other where nobody was told an address (DESIGN §5).

    lan = Lan(me, heard, warn)
    nursery.start_soon(lan.run)
    lan.announce(Notice(tag_of(grid), grid_name, port, addresses))

The record says a hash of the grid's key, its name, our PeerId and where we listen: nothing that is secret, and nothing
that makes a stranger a member. Whatever others announce is hearsay: who is dialled by it proves in the handshake who
it is, addresses that are not on our own networks are left out, and only so many nodes are remembered.

python-zeroconf has threads and an event loop of its own. It is spoken to from worker threads, and what it hears comes
back by the loop's own queue. What fails there is a warning: a node works without mDNS.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, NamedTuple, Protocol

import trio

from p2pgrid.node.addresses import multiaddr, networks

SERVICE = "_p2pgrid._tcp.local."
TAG_WORD = b"p2pgrid lan 1\0"
TAG_LENGTH = 16
FOUND_MAX = 256
"""Nodes that are remembered; the one heard of first is forgotten first."""
HEARD_MAX = 512
"""News that wait for the loop's next turn."""
ADDRESSES_MAX = 4
"""Of one node."""
NAMED_MAX = 8
"""Other grids."""
RESOLVE_MS = 1000
CLOSE_S = 1.0

_PEER = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,60}", re.ASCII)
_TAG = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NAME = re.compile(r"[a-z]{1,20}(?:-[a-z]{1,20}){0,3}", re.ASCII)


class Notice(NamedTuple):
    """What a node says of itself."""

    tag: str
    grid_name: str
    port: int
    addresses: tuple[str, ...]
    """IP addresses on which it listens."""


class Found(NamedTuple):
    """A node on this LAN, by its own word; without a notice: it has gone."""

    peer: str
    notice: Notice | None

    @property
    def dialled(self) -> list[str]:
        """Its addresses as they are dialled."""
        if self.notice is None:
            return []
        return [f"{multiaddr(host, self.notice.port)}/p2p/{self.peer}" for host in self.notice.addresses]


Heard = Callable[[Found], None]


class Air(Protocol):
    """What carries notices; its methods are called from worker threads, one at a time, and may raise anything."""

    def say(self, notice: Notice) -> None: ...
    def close(self) -> None: ...


def tag_of(grid: bytes) -> str:
    """Return what a grid is called on the LAN, of its public key."""
    return hashlib.sha256(TAG_WORD + grid).digest()[:TAG_LENGTH].hex()


class Lan:
    """The LAN as one node knows it.

    Attributes:
        found: the other nodes that are announced, by PeerId.
    """

    def __init__(
        self,
        me: str,
        heard: Heard,
        warn: Callable[[str], None],
        air: Callable[[str, Heard], Air] | None = None,
    ) -> None:
        """Remember; `heard` is called in the loop for every node that comes, changes or goes."""
        self.found: dict[str, Found] = {}
        self._me = me
        self._heard = heard
        self._warn = warn
        self._make = air or Zeroconf
        self._notice: Notice | None = None
        self._changed = trio.Event()
        self._news: deque[Found] = deque(maxlen=HEARD_MAX)
        self._came = trio.Event()
        self._warned = ""

    def announce(self, notice: Notice) -> None:
        """Say this from now on; what could not be said is tried again."""
        if notice != self._notice:
            self._notice = notice
            self._changed.set()

    async def run(self) -> None:
        """Announce and listen until cancelled."""
        token = trio.lowlevel.current_trio_token()
        air = self._make(self._me, partial(self._from_thread, token))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_in)
            try:
                while True:
                    await self._changed.wait()
                    self._changed = trio.Event()
                    if self._notice is not None:
                        await self._say(air, self._notice)
            finally:
                with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(Exception):
                    await trio.to_thread.run_sync(air.close, abandon_on_cancel=True)

    async def _say(self, air: Air, notice: Notice) -> None:
        try:
            await trio.to_thread.run_sync(air.say, notice)
        except Exception as error:  # noqa: BLE001 - the border to a library with threads of its own
            self._notice = None  # whoever announces next tries again
            text = f"nodes on this LAN cannot be looked for (mDNS): {error!r}"
            if text != self._warned:
                self._warned = text
                self._warn(text)

    # ---- what is heard ----------------------------------------------------------------------------------------------

    def _from_thread(self, token: trio.lowlevel.TrioToken, found: Found) -> None:
        self._news.append(found)
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._came.set()

    async def _take_in(self) -> None:
        while True:
            await self._came.wait()
            self._came = trio.Event()
            near = networks()
            while self._news:
                self._take(self._news.popleft(), near)

    def _take(self, found: Found, near: Iterable[IPv4Network | IPv6Network]) -> None:
        if found.peer == self._me:
            return
        if found.notice is not None:
            here = tuple(host for host in found.notice.addresses if any(ip_address(host) in each for each in near))
            found = found._replace(notice=found.notice._replace(addresses=here[:ADDRESSES_MAX]))
        known = self.found.pop(found.peer, None)
        if found.notice is not None:
            self.found[found.peer] = found
            if len(self.found) > FOUND_MAX:
                del self.found[next(iter(self.found))]
        if found != known:
            self._heard(found)

    # ---- answers ----------------------------------------------------------------------------------------------------

    def members(self, grid: bytes) -> list[str]:
        """Return the addresses of the nodes of a grid, as they are dialled."""
        tag = tag_of(grid)
        return [text for found in self.found.values() if found.notice and found.notice.tag == tag
                for text in found.dialled]  # fmt: skip

    def others(self, grid: bytes) -> list[str]:
        """Return the names of the other grids that are here, not too many of them."""
        tag = tag_of(grid)
        names = {found.notice.tag: found.notice.grid_name for found in self.found.values() if found.notice}
        return sorted(name for other, name in names.items() if other != tag)[:NAMED_MAX]


class Zeroconf:
    """The air, by python-zeroconf; see `Air`."""

    def __init__(self, me: str, heard: Heard) -> None:
        self._me = me
        self._heard = heard
        self._interfaces: list[str] = []
        self._zeroconf: Any = None
        self._browser: Any = None
        self._info: Any = None

    def say(self, notice: Notice) -> None:
        """Announce on the interfaces that have these addresses."""
        import zeroconf  # noqa: PLC0415 - libp2p has imported it by the time there is a network

        ipv4 = [host for host in notice.addresses if ip_address(host).version == 4]  # noqa: PLR2004 - the 4 of IPv4
        interfaces = ipv4 or list(notice.addresses)
        if interfaces != self._interfaces:
            self.close()
            self._zeroconf = zeroconf.Zeroconf(interfaces=interfaces, use_asyncio=False)
            self._interfaces = interfaces
        info = zeroconf.ServiceInfo(
            SERVICE,
            f"{self._me}.{SERVICE}",
            port=notice.port,
            server=f"{self._me}.local.",
            properties={"v": "1", "grid": notice.tag, "name": notice.grid_name},
            parsed_addresses=list(notice.addresses[:ADDRESSES_MAX]),
        )
        if self._info is None:
            # Whoever has our PeerId is not stopped by a name: the handshake does that.
            self._zeroconf.register_service(info, cooperating_responders=True)
        else:
            self._zeroconf.update_service(info)
        self._info = info
        if self._browser is None:
            self._browser = zeroconf.ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._on_change])

    def close(self) -> None:
        """Say good-bye and stop. Closing twice does no harm."""
        air, self._zeroconf = self._zeroconf, None
        self._interfaces, self._browser, self._info = [], None, None
        if air is not None:
            air.close()

    def _on_change(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """Called in the browser's own thread."""
        peer = name.removesuffix(f".{SERVICE}")
        if not _PEER.fullmatch(peer):
            return
        if state_change.name == "Removed":
            self._heard(Found(peer, None))
            return
        notice = None
        with contextlib.suppress(Exception):  # whatever a malformed answer makes the library raise
            info = zeroconf.get_service_info(service_type, name, RESOLVE_MS)
            notice = None if info is None else read(info.properties, info.port, info.parsed_addresses())
        if notice is not None:
            self._heard(Found(peer, notice))


def read(properties: Any, port: Any, addresses: Iterable[str]) -> Notice | None:
    """Return what a record says, or None if it is none of ours; anybody may have written it."""
    tag, name = ((properties.get(key) or b"").decode("ascii", "replace") for key in (b"grid", b"name"))
    if not (type(port) is int and 0 < port < 1 << 16 and _TAG.fullmatch(tag) and _NAME.fullmatch(name)):
        return None
    hosts = []
    for text in addresses:
        with contextlib.suppress(ValueError):
            hosts.append(str(ip_address(text.partition("%")[0])))
    return Notice(tag, name, port, tuple(hosts))
