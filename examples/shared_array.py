"""Shows an array that is written once and mapped by every task, and large results that come back the same way.

Each task smooths its band of a picture and returns it; the second stage takes the bands as they lie (`keep="ref"`) and
never brings them here. The picture that is put together equals the one made without a grid.
"""

import itertools
import sys
import time

import numpy as np

import p2pgrid as pg

HEIGHT, WIDTH, BANDS, ROUNDS = 2_000, 1_500, 16, 5


def smoothed(picture: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Return rows [top, bottom) after some rounds of averaging with the neighbours above and below."""
    lo, hi = max(0, top - ROUNDS), min(len(picture), bottom + ROUNDS)
    rows = picture[lo:hi].astype(np.float64)  # a copy of its own: what is shared can only be read
    for _ in range(ROUNDS):
        padded = np.pad(rows, ((1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return rows[top - lo : bottom - lo]


def brightest(band: np.ndarray) -> float:
    return float(band.max())


def main() -> int:
    picture = np.random.default_rng(1).random((HEIGHT, WIDTH))
    edges = [HEIGHT * band // BANDS for band in range(BANDS + 1)]
    expected = np.vstack([smoothed(picture, top, bottom) for top, bottom in itertools.pairwise(edges)])

    began = time.perf_counter()
    with pg.Grid() as grid:
        shared = grid.put(picture)
        tasks = [(shared, top, bottom) for top, bottom in itertools.pairwise(edges)]
        bands = list(grid.starmap(smoothed, tasks))
        refs = list(grid.options(keep="ref").starmap(smoothed, tasks))
        peak = max(grid.map(brightest, refs))
        writable = any(band.flags.writeable for band in bands)
        again = np.vstack(grid.get(refs))
    took_s = time.perf_counter() - began

    same = np.array_equal(np.vstack(bands), expected) and np.array_equal(again, expected)
    print(f"{picture.nbytes / 1e6:.0f} MB shared, {expected.nbytes / 1e6:.0f} MB back, twice: {took_s:.2f} s")
    print(f"brightest {peak:.6f}   {'IDENTICAL' if same else 'DIFFERENT'}; {'writable' if writable else 'read-only'}")
    return 0 if same and peak == expected.max() and not writable else 1


if __name__ == "__main__":
    sys.exit(main())
