"""Two real nodes and a program at the first of them, for the test files that have no nodes of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Two nodes of one slot."""
    with LocalGrid(nodes=2) as local:
        yield local


@pytest.fixture
def grid(local: LocalGrid) -> Iterator[Grid]:
    """A program at the first of them."""
    grid = local.grid(0)
    yield grid
    grid.shutdown(cancel_futures=True)
