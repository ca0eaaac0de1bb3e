"""Joining where no node runs: the directory is taken as a node would take it, and only its membership is written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from p2pgrid.cli.link import Link, open_link
from p2pgrid.core.errors import GridError, NoNode
from p2pgrid.core.locate import data_dir

STARTING_S = 10.0
"""How long a node may hold its directory before its socket is there."""
POLL_S = 0.05


@contextlib.contextmanager
def running_or_locked(
    directory: Path | None, places: Sequence[Path] | None, check: Callable[[], object]
) -> Iterator[Link | Path]:
    """Yield a link to the node that runs, or the directory where none does, locked until the end.

    `check` is called before a directory is made, and may raise.

    Raises:
        GridError: the directory is in use by a node that does not answer, or cannot be used.
    """
    from p2pgrid.node.config import NodeConfig, explained, prepare_dir
    from p2pgrid.node.local import DirectoryLock

    folder = data_dir() if directory is None else directory
    patience = time.monotonic() + STARTING_S
    while True:
        try:
            link = open_link(directory, "p2pgrid join", places)
        except NoNode:
            pass
        else:
            with link:
                yield link
            return
        check()
        prepare_dir(NodeConfig(dir=folder))
        lock = DirectoryLock(folder)
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            with explained(folder):
                ours = lock.take()
            if ours:
                yield folder
                return
            if time.monotonic() > patience:
                raise lock.in_use()
        time.sleep(POLL_S)


def check_invite(string: str) -> None:
    """See that an invite may be good, before anything is made for it.

    Raises:
        GridError: `bad-invite`.
    """
    from p2pgrid.core.chains import Reason, Refused
    from p2pgrid.core.invite import bad_invite, read_invite

    try:
        read_invite(string).check_invite(time.time())
    except Refused as refused:
        error = bad_invite(refused.reason)
        if refused.reason in {Reason.EXPIRED, Reason.ENDED}:
            # Nobody can be asked here what time it is, so our own clock has to do; members know better.
            advice = f"{error.next}; if this machine's clock is wrong, let members judge: p2pgrid node --join @FILE"
            raise GridError(f"{error.message}, by this machine's clock", next=advice, code=error.code) from None
        raise error from None


def join_offline(folder: Path, string: str, *, leave: bool) -> dict[str, Any]:
    """Write the membership that an invite gives; nothing is written if it is no good (`check_invite`).

    The caller holds the lock.

    Raises:
        GridError: `bad-invite`; or the node is in a grid with other members and shall not leave it.
    """
    from p2pgrid.node.charter import Charter
    from p2pgrid.node.identity import open_identity, write_way

    identity = open_identity(folder, None, time.time())
    charter = Charter(identity, folder, time.time)
    joining = charter.join(string)
    told = {"grid": joining.grid_name, "id": identity.id, "name": identity.name, "reached": 0, "running": False}
    if joining.already:
        return told | {"joined": False}
    if joining.grid != charter.grid and not charter.alone and not leave:
        raise GridError(
            f"this node is in grid {charter.grid_name}, which has other members",
            code="in-a-grid",
            next="leave that one for it: p2pgrid join --leave INVITE",
        )
    write_way(folder, joining.grid, joining.addresses)
    charter.adopt(joining)
    return told | {"joined": True}
