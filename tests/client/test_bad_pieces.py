"""What bad holders do to whoever fetches from them, on real nodes: nothing but cost time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from p2pgrid.core.ref import Ref
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow

MB = 1_000_000
TRIES = 5


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """Three nodes; the last test kills one."""
    with LocalGrid(nodes=3, slots=1) as grid:
        yield grid


@pytest.fixture
def grids(shared: LocalGrid) -> Iterator[list[Grid]]:
    grids = [shared.grid(number) for number in range(3)]
    yield grids
    for grid in grids:
        grid.abandon()


def figures(grid: Grid) -> dict[str, int]:
    found: dict[str, int] = grid._session.request("status", {})["objects"]
    return found


def held_by(shared: LocalGrid, ref: Ref, *numbers: int) -> Ref:
    """Return a Ref that says which nodes have it."""
    return Ref(ref.raw, ref.size, tuple(shared.nodes[number].id for number in numbers))


def spoil(grid: Grid, ref: Ref) -> None:
    """Write over an object in the shared memory of its node, as a program with a wild pointer would."""
    memory = grid._session.sharing()._memory
    assert memory is not None
    at = grid._session.request("want", {"token": memory.token, "id": ref.raw, "holders": []})
    memory.mapped._view[at["offset"] : at["offset"] + at["size"]] = bytes(at["size"])


def test_a_wrong_piece_is_dropped_and_fetched_elsewhere(shared: LocalGrid, grids: list[Grid]) -> None:
    """Its sender is marked; what arrives is what was put."""
    one, two, three = grids
    for seed in range(TRIES):  # where the bad one has no turn before all is there, nothing was wrong
        value = np.random.default_rng(5 + seed).random(MB)
        ref = one.put(value)
        assert np.array_equal(three.get(ref), value)
        spoil(one, ref)

        assert np.array_equal(two.get(held_by(shared, ref, 0, 2)), value)
        if figures(two)["wrong_pieces"] >= 1:
            break
    assert figures(two)["wrong_pieces"] >= 1


def test_nothing_wrong_is_given_out_if_nobody_has_it_right(shared: LocalGrid, grids: list[Grid]) -> None:
    """Rather no value than another one."""
    one, two, _ = grids
    ref = one.put(np.random.default_rng(6).random(MB // 10))
    spoil(one, ref)

    with pytest.raises(pg.ObjectLost):
        two.get(ref)


def test_another_holder_goes_on_where_one_died(shared: LocalGrid, grids: list[Grid]) -> None:
    """Killed in the midst of it."""
    one, two, three = grids

    def begun(seed: int) -> tuple[Any, list[Any], threading.Thread]:
        """Begin to get a value; return it, where it arrives, and who waits for it."""
        value = np.random.default_rng(seed).random(8 * MB)
        ref = one.put(value)
        assert three.get(ref)[17] == value[17]
        got: list[Any] = []
        getting = threading.Thread(target=lambda: got.append(two.get(held_by(shared, ref, 0, 2))))
        getting.start()
        wait_until(lambda: got or figures(two).get("fetching") == 1)
        return value, got, getting

    value, got, getting = begun(7)
    for seed in range(8, 7 + TRIES):
        if not got:
            break
        getting.join(SOON_S)  # it was over before anybody had looked
        value, got, getting = begun(seed)
    shared.nodes[0].kill()
    getting.join(SOON_S)

    assert np.array_equal(got[0], value)
