"""Shows rows of a Julia set as tasks: they arrive as they are made, and the picture is that of the serial render.

`python examples/julia.py [FILE.pgm]` prints it small, and writes it to a file if one is named.
"""

import sys
import time
from pathlib import Path

import p2pgrid as pg

WIDTH, HEIGHT, STEPS, C = 640, 480, 200, complex(-0.8, 0.156)
ESCAPE = 4.0
SHADES = " .:-=+*#%@"


def row(y: int) -> tuple[int, bytes]:
    line = bytearray()
    for x in range(WIDTH):
        z = complex((x - WIDTH / 2) * 3.2 / WIDTH, (y - HEIGHT / 2) * 3.2 / WIDTH)
        step = 0
        while step < STEPS and z.real * z.real + z.imag * z.imag < ESCAPE:
            z = z * z + C
            step += 1
        line.append(255 * step // STEPS)
    return y, bytes(line)


def small(picture: dict[int, bytes]) -> str:
    lines = (picture[y][:: WIDTH // 80] for y in range(0, HEIGHT, HEIGHT // 24))
    return "\n".join("".join(SHADES[min(9, level * 30 // 255)] for level in line) for line in lines)


def main() -> int:
    began = time.perf_counter()
    with pg.Grid() as grid:
        picture = dict(grid.imap_unordered(row, range(HEIGHT)))
    grid_s = time.perf_counter() - began

    began = time.perf_counter()
    serial = dict(map(row, range(HEIGHT)))
    serial_s = time.perf_counter() - began

    print(small(picture))
    same = picture == serial
    print(f"grid {grid_s:.1f} s, serial {serial_s:.1f} s, {'identical' if same else 'DIFFERENT'}")
    if len(sys.argv) > 1:
        pixels = b"".join(picture[y] for y in range(HEIGHT))
        Path(sys.argv[1]).write_bytes(b"P5 %d %d 255\n" % (WIDTH, HEIGHT) + pixels)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
