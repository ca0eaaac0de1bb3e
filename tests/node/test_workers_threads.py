"""Thread counts of numerical libraries in workers. Real processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from p2pgrid.core.threads import THREADS
from tests.node.pool_harness import Harness, pooled


def counts() -> tuple[int, list[str | None]]:
    return os.getpid(), [os.environ.get(name) for name in THREADS]


def blas_threads() -> int:
    """Multiply something large; return how many threads the process has besides those it had."""
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    import numpy as np  # noqa: PLC0415

    square = np.ones((600, 600))
    square @ square
    return len(os.listdir("/proc/self/task")) - before  # noqa: PTH208


async def at(h: Harness, cpu: float | None) -> tuple[int, list[str | None]]:
    context: dict[str, Any] = {} if cpu is None else {"cpu": cpu}
    report = await h.do(counts, [()], **context)
    return report.values[0]  # type: ignore[no-any-return]


@pooled()
async def test_libraries_may_start_as_many_threads_as_a_task_asked_for_cpus(h: Harness) -> None:
    """The first run decides for a child; one with another count gets a fresh one, and again a fresh one back."""
    born = h.pid()
    four, still, half, one = await at(h, 4), await at(h, 4.0), await at(h, 0.5), await at(h, None)

    assert four == still == (born, ["4"] * len(THREADS))
    assert half == one == (half[0], ["1"] * len(THREADS))
    assert half[0] != born
    assert await at(h, 2.9) == (h.pid(), ["2"] * len(THREADS))
    assert not h.died


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
"""That this process may use: a library starts no more threads than that."""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task") or CORES < 2, reason="counts threads")  # noqa: PTH112
@pooled()
async def test_numpy_keeps_to_it(h: Harness) -> None:
    """Two cpus: one thread besides the task's own; one: none."""
    pytest.importorskip("numpy")
    two = await h.do(blas_threads, [()], cpu=2)
    one = await h.do(blas_threads, [()])

    assert (two.values[0], one.values[0]) == (1, 0)
