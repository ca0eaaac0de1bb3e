"""The default grid: made when first used, and one per process, also after a fork."""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from p2pgrid.client.future import Future
from p2pgrid.client.grid import Grid
from p2pgrid.client.job import Job
from p2pgrid.client.results import Results
from p2pgrid.core.ref import Ref

_lock = threading.Lock()
_grids: dict[int, Grid] = {}


def default_grid() -> Grid:
    """Return the grid behind `p2pgrid.submit`, `map` and `start`."""
    with _lock:
        grid = _grids.get(os.getpid())
        if grid is None or grid.is_shut:
            _grids.clear()
            grid = _grids[os.getpid()] = Grid()
        return grid


def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
    """Call `Grid.submit` of the default grid."""
    return default_grid().submit(fn, *args, **kwargs)


def map(fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Any) -> Results:  # noqa: A001 - the contract's name
    """Call `Grid.map` of the default grid."""
    return default_grid().map(fn, *iterables, **options)


def start(fn: Callable[..., Any], /, *iterables: Iterable[Any], name: str | None = None) -> Job:
    """Call `Grid.start` of the default grid."""
    return default_grid().start(fn, *iterables, name=name)


def put(value: Any) -> Ref:
    """Call `Grid.put` of the default grid."""
    return default_grid().put(value)


def get(ref_or_refs: Ref | Iterable[Ref]) -> Any:
    """Call `Grid.get` of the default grid."""
    return default_grid().get(ref_or_refs)
