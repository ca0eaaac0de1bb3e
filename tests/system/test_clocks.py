"""Clocks that are years off: a node runs, joins, works and warns; a machine without a battery wakes up in 1970."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.grids import Nodes, wait
from tests.system.uneven import shared_by

pytestmark = pytest.mark.slow

YEARS = {"1970": 86_400.0, "2040": 2_209_032_000.0}
"""Unix seconds in these years."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        yield nodes


@pytest.mark.parametrize("year", YEARS)
def test_a_node_whose_clock_is_years_off_joins_and_warns(year: str, nodes: Nodes) -> None:
    """It is let in by an invite of today, works, comes back, and says that its clock is wrong; the others do not."""
    a, b = nodes.grid("ab")
    odd = nodes.node("odd", clock=True)
    odd.set_clock(YEARS[year] - time.time())
    odd.start(a.invite())
    nodes.wait_all_alive()

    with odd.grid() as session:
        shared_by(session, {"a", "b", "odd"}, 60, 3.0)
    wait(lambda: "clock" in odd.warnings(), 90, "it warns")
    print(odd.warnings())
    assert not [node for node in (a, b) if "clock" in node.warnings()]
    odd.stop()
    odd.start()
    nodes.wait_all_alive()


def test_a_grid_founded_in_2040_lets_others_in(nodes: Nodes) -> None:
    """The first machine's clock is wrong and the others' are right: they are one grid nevertheless."""
    odd = nodes.node("odd", clock=True)
    odd.set_clock(YEARS["2040"] - time.time())
    odd.start()
    b, c = nodes.node("b"), nodes.node("c")
    b.start(odd.invite())
    nodes.wait_all_alive()
    c.start(odd.invite())
    nodes.wait_all_alive()

    with b.grid() as session:
        shared_by(session, {"b", "c", "odd"}, 60, 3.0)
