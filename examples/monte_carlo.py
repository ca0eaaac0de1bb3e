"""Shows 10,000 random walks of 1,000 steps, each a short task, whose mean is bit-identical to that of the serial run.

Each walk draws from a generator of its own, seeded by its number: it does not matter who walks it, when, or how often.
`map` returns in order, so that the floats are added up in the same order too.
"""

import math
import random
import sys
import time

import p2pgrid as pg

WALKS, STEPS, SEED = 10_000, 1_000, 2024


def distance(walk: int) -> float:
    """Walk on a grid, a step east, west, north or south at a time; return how far from home it ended."""
    end = sum(random.Random(SEED * WALKS + walk).choices((1, -1, 1j, -1j), k=STEPS))
    return math.sqrt(end.real**2 + end.imag**2)


def mean(distances: list[float]) -> float:
    return sum(distances) / WALKS


def main() -> int:
    began = time.perf_counter()
    with pg.Grid() as grid:
        there = mean(list(grid.map(distance, range(WALKS))))
    grid_s = time.perf_counter() - began

    began = time.perf_counter()
    here = mean([distance(walk) for walk in range(WALKS)])
    serial_s = time.perf_counter() - began

    expected = math.sqrt(math.pi * STEPS) / 2
    print(f"grid    {there!r}   {grid_s:.2f} s")
    print(f"serial  {here!r}   {serial_s:.2f} s")
    print(f"theory  {expected:.2f}   {'bit-identical' if there == here else 'DIFFERENT'}")
    return 0 if there == here and abs(there - expected) < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
