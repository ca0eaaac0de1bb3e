"""Shows a script that was written for `multiprocessing.Pool`, with two lines changed: longest gaps between primes.

What such scripts have is here: functions and constants of the script itself, a cache in a module global, `map`,
`starmap`, `imap_unordered` with a chunk size, and the guard at the end.
"""

import itertools
import sys
import time

import p2pgrid as pg  # was: import multiprocessing

LIMIT, BLOCK, EXPECTED = 2_000_000, 50_000, 148_933

_small: list[int] = []


def small_primes() -> list[int]:
    """Sieve up to √LIMIT, once per worker process."""
    if not _small:
        flags = bytearray([1]) * (int(LIMIT**0.5) + 1)
        for n in range(2, len(flags)):
            if flags[n]:
                _small.append(n)
                flags[n * n :: n] = bytes(len(range(n * n, len(flags), n)))
    return _small


def primes(lo: int, hi: int) -> list[int]:
    flags = bytearray([1]) * (hi - lo)
    for p in small_primes():
        first = max(p * p, -(-lo // p) * p)
        if first < hi:
            flags[first - lo :: p] = bytes(len(range(first, hi, p)))
    return [lo + i for i, flag in enumerate(flags) if flag and lo + i > 1]


def count(block: tuple[int, int]) -> int:
    return len(primes(*block))


def widest(found: list[int]) -> tuple[int, int]:
    return max((b - a, a) for a, b in itertools.pairwise(found))


def main() -> int:
    blocks = [(lo, min(lo + BLOCK, LIMIT)) for lo in range(0, LIMIT, BLOCK)]
    began = time.perf_counter()
    with pg.Grid() as pool:  # was: with multiprocessing.Pool() as pool
        total = sum(pool.imap_unordered(count, blocks, chunksize=4))
        found = [prime for part in pool.starmap(primes, blocks) for prime in part]
        gap, after = max(pool.map(widest, [found[i : i + 10_001] for i in range(0, len(found), 10_000)]))
    took_s = time.perf_counter() - began
    same = total == len(found) == EXPECTED and (gap, after) == widest(found)
    print(f"{total} primes below {LIMIT}; the widest gap is {gap}, after {after}; {took_s:.1f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
