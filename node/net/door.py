"""The door: how many strangers may stand in it at once, and to whom it stays closed. Plain decisions, no sockets.

A stranger is *half open* from the accepted connection until Noise, membership and multiplexer are agreed on, which
takes a member 15 ms. Whoever is still silent while others wait has no claim to his place: the oldest goes (S12). An
address that fails again and again is closed before Noise, which is what costs us CPU.

All processes of this machine share the loopback addresses, so only the common limit counts there: many nodes on one
machine are usual, and who is on it already needs no network to be a nuisance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import count


@dataclass(frozen=True)
class Limits:
    """What strangers may do before they are members."""

    half_open_max: int = 64
    half_open_per_address_max: int = 4
    failures_max: int = 10
    failures_window_s: float = 60.0
    addresses_max: int = 1024
    """Whose failures we remember; the address that failed longest ago is forgotten first."""
    trust_loopback: bool = True


class Door:
    """Who stands in the door, and whose failures are remembered.

    Attributes:
        failed_count: handshakes that came to nothing, ever.
        displaced_count: how many of them had to make room for another.
        turned_away_count: connections from addresses that were closed.
    """

    def __init__(self, limits: Limits | None = None, on_failed: Callable[[str], None] = lambda _: None) -> None:
        """`on_failed` hears of every handshake that came to nothing, and from which address."""
        self.limits = limits or Limits()
        self._on_failed = on_failed
        self.failed_count = 0
        self.displaced_count = 0
        self.turned_away_count = 0
        self._tickets = count()
        self._half_open: dict[int, str] = {}  # ticket to origin, the oldest first
        self._failures: dict[str, deque[float]] = {}  # the address that failed longest ago first

    @property
    def half_open_count(self) -> int:
        return len(self._half_open)

    def turns_away(self, address: str, now: float) -> bool:
        """Say whether this address is closed now; ask once for each connection."""
        times = self._failures.get(origin(address))
        if times is None:
            return False
        while times and times[0] <= now - self.limits.failures_window_s:
            times.popleft()
        closed = len(times) >= self.limits.failures_max
        self.turned_away_count += closed
        return closed

    def enter(self, address: str) -> tuple[int, list[int]]:
        """Let somebody in; return his ticket and the tickets of those who must go now."""
        place = origin(address)
        displaced = []
        mine = [ticket for ticket, other in self._half_open.items() if other == place]
        if self._is_limited(address) and len(mine) >= self.limits.half_open_per_address_max:
            displaced.append(mine[0])
        elif len(self._half_open) >= self.limits.half_open_max:
            displaced.append(next(iter(self._half_open)))
        for ticket in displaced:
            self.displaced_count += 1
            del self._half_open[ticket]
        ticket = next(self._tickets)
        self._half_open[ticket] = place
        return ticket, displaced

    def leave(self, ticket: int, address: str, now: float, *, failed: bool) -> None:
        """Note how it ended, also for one who was displaced: silence is a failure, too."""
        self._half_open.pop(ticket, None)
        if not failed:
            return
        self.failed_count += 1
        self._on_failed(address)
        if not self._is_limited(address):
            return
        place = origin(address)
        times = self._failures.pop(place, None) or deque(maxlen=self.limits.failures_max)
        times.append(now)
        self._failures[place] = times
        if len(self._failures) > self.limits.addresses_max:
            del self._failures[next(iter(self._failures))]

    def _is_limited(self, address: str) -> bool:
        return not (self.limits.trust_loopback and ip_address(bare(address)).is_loopback)


def origin(address: str) -> str:
    """Return what counts as one stranger: an IPv4 address, or the /64 that an IPv6 host is usually given as a whole."""
    ip = ip_address(bare(address))
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))
    return str(ip)


def bare(address: str) -> str:
    """Return the address without its zone (fe80::1%eth0), and an IPv4 address in IPv6 form as IPv4."""
    ip = ip_address(address.partition("%")[0])
    return str((isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip)
