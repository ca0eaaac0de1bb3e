"""Machines without a network: each has a folder, a clock and a charter, and they meet when a test says so."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import (
    DEFAULT_ROLES,
    SUBMIT,
    WORK,
    Reason,
    Refused,
    role_names,
)
from p2pgrid.core.errors import GridError
from p2pgrid.node.charter import Admitted, Charter, Joining
from p2pgrid.node.identity import open_identity, peer_id

T0, HOUR, DAY, YEAR = 1_800_000_000, 3600, 86_400, 31_557_600
Y1970, Y2040 = 10, 2_208_988_800
WEEK = 7 * DAY
HERE = ("/ip4/127.0.0.1/tcp/9471/p2p/12D3KooWHere",)
USER = SUBMIT | WORK
NEWER = "install the version that the other machine has: p2pgrid --version"


class Box:
    """A machine: a folder, a clock, and the charter that runs in it."""

    def __init__(self, folder: Path, name: str, clock_s: float = T0) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.name = name
        self.clock_s = clock_s
        self.start()

    def start(self) -> Charter:
        """Start it, or start it again: nothing but the disk is left of its former life."""
        identity = open_identity(self.folder, self.name, self.clock_s)
        self.charter = Charter(identity, self.folder, lambda: self.clock_s)
        return self.charter

    def restart(self) -> Charter:
        self.charter.flush_if_dirty()
        return self.start()

    @property
    def public(self) -> bytes:
        return self.charter.public

    @property
    def key(self) -> Ed25519PrivateKey:
        return self.charter._key


def row(box: Box, status: str = "alive") -> dict[str, object]:
    roles = role_names(box.charter.roles)
    return {"id": peer_id(box.public), "name": box.name, "status": status, "roles": roles}


def handshake(caller: Box, called: Box) -> tuple[Admitted, Admitted]:
    """What a connection does: the caller speaks first. Raises Refused."""
    seen = called.charter.admit(caller.charter.certificate, caller.public, dialler=False)
    back = caller.charter.admit(called.charter.certificate, called.public, dialler=True)
    return seen, back


def meet(caller: Box, called: Box) -> None:
    """A connection and what follows: revocations both ways, the joiner's node link, what was signed and not shown."""
    seen, back = handshake(caller, called)
    for one, other in ((caller, called), (called, caller)):
        for lot in one.charter.revocations():
            other.charter.heard(lot)
    for here, there, admitted in ((called, caller, seen), (caller, called, back)):
        signed = here.charter.replacement(admitted)
        for chain in [*([signed] if signed else []), *here.charter.pending_for(there.public)]:
            there.charter.offered(chain)
        here.charter.shown(there.public, there.charter.certificate)


def refused(caller: Box, called: Box) -> Reason:
    with pytest.raises(Refused) as caught:
        handshake(caller, called)
    return caught.value.reason


def join(box: Box, text: str) -> Joining:
    joining = box.charter.join(text)
    box.charter.adopt(joining)
    return joining


def grid_of(folder: Path, *names: str, roles: int = DEFAULT_ROLES) -> list[Box]:
    """The first founds, the others come by one invite of its; all have met."""
    boxes = [Box(folder, name) for name in names]
    text, _ = boxes[0].charter.invite(roles, WEEK, 0, HERE)
    for box in boxes[1:]:
        join(box, text)
        meet(box, boxes[0])
    for one, other in itertools.combinations(boxes, 2):
        meet(one, other)
    return boxes


def tell(records: Iterable[bytes], *boxes: Box) -> None:
    for box in boxes:
        box.charter.heard(list(records))


def error(call: object, *args: object, **more: object) -> GridError:
    with pytest.raises(GridError) as caught:
        call(*args, **more)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value
