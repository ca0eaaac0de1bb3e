"""Shows a pipeline whose stages wait for each other in the grid: `python examples/pipeline.py [SIGNALS]`.

Each signal is made, filtered, and summed up; then all are compared with one reference, which was put once. A stage gets
the future of the one before it as an argument: the program submits everything at once and may go away meanwhile.
"""

import sys
import time

import numpy as np

import p2pgrid as pg

POINTS = 200_000


def make(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sin(np.linspace(0, 40, POINTS)) + rng.normal(0, 0.5, POINTS)


def smooth(signal: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(signal, np.ones(width) / width, mode="same")


def distance(signal: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((signal - reference) ** 2)))


def best(distances: dict[int, float]) -> tuple[int, float]:
    return min(distances.items(), key=lambda item: item[1])


def main() -> int:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
    reference = np.sin(np.linspace(0, 40, POINTS))

    with pg.Grid() as grid:
        began = time.perf_counter()
        truth = grid.put(reference)
        signals = [grid.submit(make, seed) for seed in seeds]
        smoothed = [grid.submit(smooth, signal, 501) for signal in signals]
        distances = {seed: grid.submit(distance, one, truth) for seed, one in zip(seeds, smoothed, strict=True)}
        winner = grid.submit(best, distances)  # waits for all of them
        submitted_s = time.perf_counter() - began
        seed, rest = winner.result()
    grid_s = time.perf_counter() - began

    serial = {seed: distance(smooth(make(seed), 501), reference) for seed in seeds}
    same = (seed, rest) == best(serial)
    print(f"{len(seeds)} signals: submitted in {submitted_s:.2f} s, done in {grid_s:.2f} s")
    print(f"signal {seed} is the nearest, {rest:.4f} away: {'identical' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
