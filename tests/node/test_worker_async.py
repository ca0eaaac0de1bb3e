"""`async def` tasks in a worker child: many at once, on one loop. Real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.node.pool_harness import Harness, pooled


async def wait_for(index: int, gate: str) -> int:
    """Wait for a file; the first few do not."""
    while index >= FIRST and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - a task has only files
        await asyncio.sleep(0.01)
    return index


FIRST, ALL = 5, 20


@pooled()
async def test_a_result_does_not_wait_for_those_that_run_beside_it(h: Harness) -> None:
    """Whoever reads it would wait for the next one to end, which may take an hour."""
    gate = h.pool._scratch.parent / "gate"
    number = h.start(wait_for, [(index, str(gate)) for index in range(ALL)])
    await h.until(lambda: number in h.reports and len(h.reports[number].values) == FIRST)
    assert not h.reports[number].final
    gate.touch()

    assert (await h.finished(number)).values == {index: index for index in range(ALL)}
