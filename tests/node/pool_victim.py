"""A program with a pool whose tasks never end; it says what it started, and waits to be killed.

    python -m tests.node.pool_victim FOLDER

One line on stdout when all is running: the pool's token, and the number of the reaper.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from p2pgrid.node.workers import PoolOptions
from tests.node.pool_harness import Gate, serving, spin, start_family


async def main(folder: Path) -> None:
    """Start two workers: one spins, one has started a family."""
    async with serving(folder, 2, [Path(sys.executable)], PoolOptions()) as harness:
        with Gate(folder) as gate:
            harness.start(spin, [()], worker=0)
            harness.start(start_family, [(gate.path,)], worker=1)
            await gate.arrival()
            reaper = harness.pool._reaper._process
            assert reaper is not None
            sys.stdout.write(f"{harness.pool._token} {reaper.pid}\n")
            sys.stdout.flush()
            await trio.sleep_forever()


trio.run(main, Path(sys.argv[1]))
