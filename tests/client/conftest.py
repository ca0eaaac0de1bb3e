"""A scripted node and grids at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.client.scripted import ScriptedNode

Start = Callable[..., ScriptedNode]
Connect = Callable[..., Grid]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ScriptedNode]:
    """A node that runs tasks at once."""
    node = ScriptedNode(tmp_path).start()
    yield node
    node.stop()


@pytest.fixture
def connect(node: ScriptedNode) -> Iterator[Connect]:
    """Make grids at the scripted node; they are left at the end whatever happened."""
    grids: list[Grid] = []

    def make(**options: Any) -> Grid:
        grids.append(Grid(node.dir, embedded=False, **options))
        return grids[-1]

    yield make
    for grid in grids:
        grid.abandon()


@pytest.fixture
def grid(shared: LocalGrid) -> Iterator[Grid]:
    """A program at the first of a test file's own nodes; it is left at the end whatever happened."""
    grid = shared.grid(0)
    yield grid
    grid.abandon()
