"""Shows tasks that start tasks: `python examples/adaptive.py [NEEDLES]`.

An integral over a function with some narrow needles: a task that finds its interval too coarse halves it, has the grid
do both halves, and waits for them. Nobody knows beforehand where the work is. While a task waits, its slot is not idle:
one of its halves runs in it, or somebody else's.
"""

import math
import sys
import time

import p2pgrid as pg

NODES, WEIGHTS = (-0.7745966692414834, 0.0, 0.7745966692414834), (5 / 9, 8 / 9, 5 / 9)
ALONE = 1.0 / 64
"""An interval shorter than this is not worth a task of its own."""


def needles(x: float, count: int) -> float:
    return sum(1.0 / ((x - math.sqrt(k)) ** 2 + 1e-6) for k in range(1, count + 1))


def gauss(lo: float, hi: float, count: int) -> float:
    half, middle = (hi - lo) / 2, (hi + lo) / 2
    return half * sum(w * needles(middle + half * x, count) for x, w in zip(NODES, WEIGHTS, strict=True))


def integral(lo: float, hi: float, count: int, *, alone: bool = False) -> float:
    middle = (lo + hi) / 2
    halves = gauss(lo, middle, count) + gauss(middle, hi, count)
    if abs(halves - gauss(lo, hi, count)) < 1e-9 * (hi - lo):
        return halves
    if alone or hi - lo < ALONE:
        return integral(lo, middle, count, alone=True) + integral(middle, hi, count, alone=True)
    left, right = (pg.submit(integral, *ends, count) for ends in ((lo, middle), (middle, hi)))
    return float(left.result() + right.result())


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with pg.Grid() as grid:
        began = time.perf_counter()
        found = grid.submit(integral, 0.0, 4.0, count).result()
        grid_s = time.perf_counter() - began
    began = time.perf_counter()
    same = found == integral(0.0, 4.0, count, alone=True)
    serial_s = time.perf_counter() - began
    print(f"{count} needles: {found:.6f} in {grid_s:.2f} s, alone {serial_s:.2f} s")
    print("identical" if same else "DIFFERENT")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
