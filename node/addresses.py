"""Where a node listens, and what it tells others to dial.

Listening begins before libp2p is imported: the sockets are bound and listen when the banner names their ports, so no
other process can take one meanwhile, and who connects early waits in the kernel's queue and not for a retry.
A port that was chosen and not given is remembered in `listen.json`, for the addresses of yesterday are what others
look for after a restart.

Rule: multiaddrs are texts here; libp2p's own parser would cost its import.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import ifaddr

from p2pgrid.core.errors import GridError

PORT = 9471
PORTS = 10
"""The default port, and how many are tried from there on when it is taken."""
ADDRESSES_MAX = 16
"""A peer dials no more than that (node.net.dial)."""
ADDRESS_LENGTH_MAX = 200
"""With a PeerId behind it, it still fits an invite."""
BACKLOG = 128
LISTEN_FILE = "listen.json"
BRIDGES = ("docker", "br-", "veth", "cni", "podman", "virbr", "lxc", "lxdbr", "flannel", "cali")
"""Interfaces of containers and virtual machines: their addresses mean another machine everywhere else."""

_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/\s]+)/tcp/([0-9]{1,5})(?:/p2p/[^/\s]+)?", re.ASCII)
_HOST_PORT = re.compile(r"(?:\[([^\]\s]+)\]|([^:/\[\]\s]+)):([0-9]{1,5})", re.ASCII)
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_DEFAULT = "default"
_NOT_HERE = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


def read_listen(text: str) -> str:
    """Return what `--listen` was given as a multiaddr; its port may be 0.

    Raises:
        ValueError: it is none, or names no address of a machine.
    """
    host, port = _read(text)
    if host == "localhost":
        host = "127.0.0.1"
    try:
        return multiaddr(str(ip_address(host)), port)
    except ValueError as error:
        raise ValueError(f"{text!r} does not begin with an IP address to listen on, like 0.0.0.0:{PORT}") from error


def read_advertise(text: str) -> str:
    """Return what `--advertise` was given as a multiaddr; port 0 stands for the one we listen on.

    Raises:
        ValueError: it is none.
    """
    return multiaddr(*_read(text))


def _read(text: str) -> tuple[str, int]:
    if found := _MULTIADDR.fullmatch(text):
        kind, host, port = found[1], found[2], found[3]
        if kind.startswith("ip") and multiaddr(str(ip_address(host)), 0).split("/")[1] != kind:
            raise ValueError(f"{text!r} calls {host} an {kind} address")
    elif found := _HOST_PORT.fullmatch(text):
        host, port = found[1] or found[2], found[3]
    else:
        raise ValueError(f"{text!r} is neither HOST:PORT nor a multiaddr like /ip4/0.0.0.0/tcp/{PORT}")
    with contextlib.suppress(ValueError):
        host = str(ip_address(host))
    if int(port) >= 1 << 16:
        raise ValueError(f"{port} is not a port")
    if not _is_ip(host) and not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} is not the name of a machine")
    return host, int(port)


def multiaddr(host: str, port: int) -> str:
    """Return `/ip4/192.168.1.20/tcp/9471`."""
    kind = f"ip{ip_address(host).version}" if _is_ip(host) else "dns"
    return f"/{kind}/{host}/tcp/{port}"


def is_address(text: str) -> bool:
    """Return whether another member's address is one that can be dialled."""
    return len(text) <= ADDRESS_LENGTH_MAX and _MULTIADDR.fullmatch(text) is not None


def place(address: str) -> tuple[str, int]:
    """Return host and port of a multiaddr that this file wrote."""
    _, _, host, _, port, *_ = address.split("/")
    return host, int(port)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# ---- listening ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listening:
    """Sockets that listen, by the multiaddr they listen at; whoever serves them takes them over."""

    sockets: dict[str, socket.socket] = field(default_factory=dict)
    loopback: bool = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs; the host may be a wildcard."""
        return tuple(self.sockets)

    def close(self) -> None:
        """Close what nobody took over. Closing twice does no harm."""
        for sock in self.sockets.values():
            sock.close()


def listen(wanted: Sequence[str], folder: Path, *, loopback: bool = False) -> Listening:
    """Open the sockets of a node and remember the ports that were chosen.

    Args:
        wanted: multiaddrs as `read_listen` gives them; empty: the default.
        folder: the node's directory.
        loopback: without `wanted`, listen for this machine only, on any port.

    Raises:
        GridError: an address that was asked for is taken or not ours; nothing is left open.
    """
    remembered = _remembered(folder)
    chosen: dict[str, int] = {}
    listening = Listening()
    try:
        if not wanted and not loopback:
            chosen[_DEFAULT] = _listen_default(listening, remembered.get(_DEFAULT))
        for address in dict.fromkeys(wanted or ([multiaddr("127.0.0.1", 0)] if loopback else [])):
            host, port = place(address)
            if port:
                _open_one(listening, host, port)
            else:
                chosen[address] = _listen_any(listening, host, remembered.get(address, 0))
    except BaseException:
        listening.close()
        raise
    if any(remembered.get(asked) != port for asked, port in chosen.items()):
        _remember(folder, {**remembered, **chosen})
    listening.loopback = is_local(listening.addresses)
    return listening


def _listen_default(listening: Listening, remembered: int | None) -> int:
    """All addresses of both kinds on one port. Returns it."""
    ports = [*([remembered] if remembered else []), *range(PORT, PORT + PORTS), 0]
    for first in dict.fromkeys(ports):
        opened: dict[str, socket.socket] = {}
        try:
            at = int(first)
            for host in ("0.0.0.0", "::"):  # noqa: S104 - the default is to be reachable; members only are let in
                try:
                    sock = _bound(host, at)
                except OSError as error:
                    if error.errno in _NOT_HERE:  # a machine without IPv6, or without IPv4
                        continue
                    raise
                at = int(sock.getsockname()[1])
                opened[multiaddr(host, at)] = sock
        except OSError:
            for sock in opened.values():
                sock.close()
            continue
        if opened:
            listening.sockets.update(opened)
            return at
    raise GridError(
        "no port to listen on is free", next="name one: p2pgrid node --listen HOST:PORT", code="port-in-use"
    )


def _listen_any(listening: Listening, host: str, remembered: int) -> int:
    if remembered:
        with contextlib.suppress(GridError):
            _open_one(listening, host, remembered)
            return remembered
    return _open_one(listening, host, 0)


def _open_one(listening: Listening, host: str, port: int) -> int:
    try:
        sock = _bound(host, port)
    except OSError as error:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        why = {
            errno.EADDRINUSE: "another program listens there",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "this user may not",
        }.get(error.errno or 0, str(error.strerror or error))
        raise GridError(
            f"cannot listen on {shown}: {why}",
            next="name another: p2pgrid node --listen HOST:PORT, or leave it out",
            code="port-in-use",
        ) from error
    at: int = sock.getsockname()[1]
    listening.sockets[multiaddr(host, at)] = sock
    return at


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Without SO_REUSEPORT: with it a second node would silently share the port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remembered(folder: Path) -> dict[str, int]:
    """Return asked-for address → port. Whatever is wrong with the file costs no more than the old port."""
    try:
        ports = json.loads((folder / LISTEN_FILE).read_bytes())["ports"]
        return {str(asked): port for asked, port in ports.items() if type(port) is int and 0 < port < 1 << 16}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(folder: Path, ports: dict[str, int]) -> None:
    path = folder / LISTEN_FILE
    fresh = path.with_name(f".{LISTEN_FILE}.new")
    with contextlib.suppress(OSError):  # a full disk: then the port is another next time
        fresh.write_text(json.dumps({"v": 1, "ports": ports}) + "\n")
        fresh.replace(path)


# ---- telling others -------------------------------------------------------------------------------------------------


def interfaces() -> list[tuple[str, str]]:
    """Return (interface, address) of this machine, IPv6 zones left out; empty if it cannot be asked."""
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return []
    return [
        (adapter.name, str(ip.ip if isinstance(ip.ip, str) else ip.ip[0])) for adapter in adapters for ip in adapter.ips
    ]


def networks() -> list[IPv4Network | IPv6Network]:
    """Return the networks that this machine is on, loopback left out; empty if it cannot be asked."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for adapter in ifaddr.get_adapters():
            for ip in adapter.ips:
                host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
                if not _is_loopback(host.partition("%")[0]):
                    found.append(ip_network(f"{host.partition('%')[0]}/{ip.network_prefix}", strict=False))
    return found


def advertised(listening: Iterable[str], here: Iterable[tuple[str, str]], told: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the multiaddrs at which others can dial a node that listens there, the likeliest first.

    Bridges of containers, and then loopback, only where there is nothing better.

    Args:
        listening: multiaddrs, wildcards among them.
        here: (interface, address) of this machine.
        told: `--advertise`: these and no others; port 0 means the first we listen on.
    """
    places = [place(address) for address in listening]
    if told:
        port = places[0][1] if places else 0
        dialled = [place(address) for address in told]
        return tuple(dict.fromkeys(multiaddr(host, at or port) for host, at in dialled))[:ADDRESSES_MAX]
    here = list(here)
    found = list(dict.fromkeys(_expanded(places, [one for one in here if not one[0].startswith(BRIDGES)])))
    outside = [(host, port) for host, port in found if not _is_loopback(host)]
    if not outside:  # only containers of this machine, if anybody, can reach it
        outside = [one for one in dict.fromkeys(_expanded(places, here)) if not _is_loopback(one[0])]
    ordered = sorted(outside or found, key=lambda one: ip_address(one[0]).version)
    return tuple(multiaddr(host, port) for host, port in ordered[:ADDRESSES_MAX])


def _expanded(places: Iterable[tuple[str, int]], here: Sequence[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    for host, port in places:
        ip = ip_address(host)
        if not ip.is_unspecified:
            if not _is_local_to_link(ip):
                yield host, port
            continue
        mine = [(name, ip_address(text.partition("%")[0])) for name, text in here]
        same = [(name, other) for name, other in mine if other.version == ip.version and not _is_local_to_link(other)]
        yield from ((str(other), port) for _, other in same)


def _is_local_to_link(ip: IPv4Address | IPv6Address) -> bool:
    """An IPv6 link-local address means nothing without the interface that is named differently on each machine."""
    return ip.version == 6 and ip.is_link_local  # noqa: PLR2004 - the 6 of IPv6


def _is_loopback(host: str) -> bool:
    return _is_ip(host) and ip_address(host).is_loopback


def is_local(addresses: Iterable[str]) -> bool:
    """Return whether they lead to this machine only."""
    return all(_is_loopback(place(address)[0]) for address in addresses)


def described(addresses: Iterable[str]) -> str:
    """Return `tcp 9471 on 192.168.1.20, fd00::20`."""
    by_port: dict[int, list[str]] = {}
    for address in addresses:
        host, port = place(address)
        by_port.setdefault(port, []).append(host)
    return "; ".join(f"tcp {port} on {', '.join(hosts)}" for port, hosts in by_port.items())
