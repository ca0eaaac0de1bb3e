"""What the shell adds to the machine's answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.completing import Completing
from p2pgrid.node.timers import Lag
from tests.node.boxes import Box, grid_of, tell

SAID = {"node": {"slots": 2}, "grid": {"name": "blue-otter", "nodes": 9, "slots": 30}}


def status(box: Box) -> dict[str, Any]:
    """Return the answer of a node whose machine has seen many members."""
    network = SimpleNamespace(charter=box.charter, addresses=(), warnings=lambda _: [], stats=dict)
    shell: Any = SimpleNamespace(refused=0)
    completing = Completing(cast("Any", network), shell, shell, Lag(), list)

    async def ask() -> e.Reply:
        completing.asked(e.ClientSent(1, m.REQUEST, 7, ["status", {}]))
        return completing.completed(e.Reply(1, m.ANSWER, 7, SAID))

    body: dict[str, Any] = trio.run(ask).body
    return body


def test_a_node_that_was_revoked_says_so_and_is_alone(tmp_path: Path) -> None:
    """Whatever members it had seen until then."""
    founder, a, b = grid_of(tmp_path, "f", "a", "b")
    before = status(b)["grid"]
    tell(founder.charter.revoke(b.public).records, a, b)
    grid = founder.charter.grid.hex()

    assert before == {"name": "blue-otter", "nodes": 9, "slots": 30, "id": grid, "revoked": False}
    assert status(b)["grid"] == {"name": "blue-otter", "nodes": 1, "slots": 2, "id": grid, "revoked": True}
    assert status(a)["grid"] == before
    b.restart()
    assert status(b)["grid"]["revoked"] is True
