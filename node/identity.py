"""Who this node is: its Ed25519 key, the PeerId made from it, and the proof that it belongs to its grid.

A node that finds no grid founds one: a fresh grid key signs this node as admin and is thrown away; its public half
names the grid (`core.chains` has the layout, `core.trust` the rules).

Rule: private keys never leave this file but as a `NodeKey`, and never get into a log, a crash report or a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import TIME_MAX_S, Reason, Refused, found, public_of
from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import NODE_NAME, grid_name, node_name
from p2pgrid.core.trust import Judge

KEY_FILE = "node.key"
GRID_FILE = "grid.json"
WAY_FILE = "way.json"
NAME_FILE = "name"

_KEY_LENGTH = 32
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_HEAD = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
"""Identity multihash (0x00) of 36 bytes: the protobuf {type = Ed25519 (1), data = 32 bytes}."""
_PEER_ID_LENGTH_MAX = 64
_KEY_WORD = "p2pgrid-ed25519"


@dataclass(frozen=True)
class Identity:
    """What is known of this node before anything runs.

    Attributes:
        id: the PeerId in text form.
        founded: whether the grid was made right now.
    """

    key: Ed25519PrivateKey = field(repr=False)
    public: bytes
    id: str
    name: str
    grid: bytes
    grid_name: str
    chains: tuple[bytes, ...]
    founded: bool


def open_identity(folder: Path, name: str | None, wall_s: float) -> Identity:
    """Return the identity kept in `folder`; what is missing is made. The caller holds the lock of the directory.

    A `name` is kept, so that a node started again without one is called the same: jobs and people ask for it by name.

    Raises:
        GridError: a file cannot be read, is malformed, or others may read the key.
    """
    key = _node_key(folder / KEY_FILE)
    public = key.public_key().public_bytes_raw()
    grid, chains, founded = _membership(folder / GRID_FILE, public, wall_s)
    return Identity(
        key, public, peer_id(public), _name(folder, name) or node_name(public), grid, grid_name(grid), chains, founded
    )


def peer_id(public: bytes) -> str:
    """Return the libp2p PeerId of an Ed25519 public key."""
    return base58(_PEER_ID_HEAD + public)


def peer_public(text: str) -> bytes:
    """Return the Ed25519 public key that a PeerId is made of.

    Raises:
        ValueError: it is no PeerId, or one of another kind of key.
    """
    number = 0
    for letter in text if len(text) <= _PEER_ID_LENGTH_MAX else "":
        number = number * 58 + max(_BASE58.find(letter), 0)  # another letter makes another text below
    length = len(_PEER_ID_HEAD) + _KEY_LENGTH
    data = number.to_bytes(length, "big") if number < 256**length else b""
    public = data[len(_PEER_ID_HEAD) :]
    if peer_id(public) != text or not public:
        msg = f"not the id of a node: {text[:80]!r}"
        raise ValueError(msg)
    return public


def base58(data: bytes) -> str:
    """Return `data` in the alphabet of Bitcoin, as libp2p writes ids."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return _BASE58[0] * zeros + "".join(reversed(digits))


def found_grid(public: bytes, wall_s: float) -> tuple[bytes, bytes]:
    """Return the public half of a fresh grid key and the chain by which it makes this node an admin.

    The private half is gone when this returns.
    """
    grid_key = Ed25519PrivateKey.generate()
    seconds = min(max(wall_s, 0), TIME_MAX_S)  # a clock that is years off shall not keep a node from starting
    return public_of(grid_key), found(grid_key, public, seconds)


def write_membership(folder: Path, grid: bytes, chains: Sequence[bytes]) -> None:
    """Write which grid this node belongs to, and why; on the disk when this returns.

    Raises:
        GridError: the directory cannot be used.
    """
    kept = {"v": 1, "grid": grid.hex(), "chains": [chain.hex() for chain in chains]}
    write_private(folder / GRID_FILE, json.dumps(kept, indent=1).encode() + b"\n")


def write_way(folder: Path, grid: bytes, addresses: Sequence[str]) -> None:
    """Write where the members of a grid are said to be: for a node that has the membership and has met nobody yet.

    Raises:
        GridError: the directory cannot be used.
    """
    kept = {"v": 1, "grid": grid.hex(), "addresses": list(addresses)}
    write_private(folder / WAY_FILE, json.dumps(kept, indent=1).encode() + b"\n")


def read_way(folder: Path, grid: bytes) -> tuple[str, ...]:
    """Return what `write_way` wrote for this grid; nothing if there is none, or none that can be read."""
    try:
        kept = json.loads((folder / WAY_FILE).read_bytes())
        return tuple(map(str, kept["addresses"])) if kept["grid"] == grid.hex() else ()
    except (OSError, ValueError, TypeError, KeyError):
        return ()


# ---- files ----------------------------------------------------------------------------------------------------------


def _name(folder: Path, name: str | None) -> str:
    """Return the name that this node was given, now or the last time; nothing if none can be read."""
    try:
        kept = (folder / NAME_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        kept = ""
    if name and name != kept:
        write_private(folder / NAME_FILE, f"{name}\n".encode())
    return name or (kept if NODE_NAME.fullmatch(kept) else "")


def _node_key(path: Path) -> Ed25519PrivateKey:
    try:
        text = _read_private(path)
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        write_private(path, f"{_KEY_WORD} {key.private_bytes_raw().hex()}\n".encode())
        return key
    word, _, digits = text.strip().partition(b" ")
    try:
        raw = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        raw = b""
    if word != _KEY_WORD.encode() or len(raw) != _KEY_LENGTH:
        raise GridError(
            f"{path} is not a node key",
            next=f"put the right file back, or move it and {GRID_FILE} away: the node then gets a new identity",
            code="directory-unusable",
        )
    return Ed25519PrivateKey.from_private_bytes(raw)


def _read_private(path: Path) -> bytes:
    with _explained(path), path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        # Refused rather than mended: who can have read it may have done so, and only the user knows whom that means.
        if mode & 0o077:
            raise GridError(
                f"{path} can be read by others (mode {mode:04o})",
                next=f"chmod 600 {path}; or delete it and {GRID_FILE}, and the node gets a new identity",
                code="directory-unusable",
            )
        return file.read(4096)


def _membership(path: Path, public: bytes, wall_s: float) -> tuple[bytes, tuple[bytes, ...], bool]:
    try:
        with _explained(path):
            text = path.read_bytes()
    except FileNotFoundError:
        grid, chain = found_grid(public, wall_s)
        write_membership(path.parent, grid, (chain,))
        return grid, (chain,), True
    try:
        kept = json.loads(text)
        grid = bytes.fromhex(kept["grid"])
        chains = tuple(bytes.fromhex(chain) for chain in kept["chains"])
        mine = tuple(chain for chain in chains if _admits(Judge(grid), chain, public))
    except (ValueError, TypeError, KeyError, Refused) as error:
        raise GridError(
            f"{path} is not a membership: {error}",
            next="put the right file back, or move it away: p2pgrid node founds a new grid",
            code="directory-unusable",
        ) from error
    if not mine:
        raise GridError(
            f"{path} admits another node than {KEY_FILE} beside it",
            next=f"put the {KEY_FILE} of that node back, or move {GRID_FILE} away: p2pgrid node founds a new grid",
            code="directory-unusable",
        )
    return grid, mine, False


def _admits(judge: Judge, chain: bytes, public: bytes) -> bool:
    """Whether the chain is ours. Dates do not matter: what is over is for the others to say, and the node still starts.

    Raises:
        Refused: it is no chain of this grid, whoever's it is.
    """
    try:
        judge.check(chain, public, 0)
    except Refused as refused:
        if refused.reason is not Reason.ANOTHERS:
            raise
        return False
    return True


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 so that it is there whole or not at all, after a power cut too."""
    fresh = path.with_name(f".{path.name}.new")
    with _explained(path):
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GridError(
            f"{path} cannot be used: {error.strerror or error}",
            next=f"mend the rights of {path.parent}, or use another directory: p2pgrid node --dir DIR",
            code="directory-unusable",
        ) from error
