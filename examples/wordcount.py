"""Shows real files being counted in parallel: `python examples/wordcount.py [FILE…]`.

Without files it counts the words of the standard library's own sources. A task gets a path and reads the file itself,
so the files must be where the tasks run: on this machine.
"""

import re
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import p2pgrid as pg

WORD = re.compile(r"[^\W\d_]{2,}")


def count(path: Path) -> Counter[str]:
    return Counter(WORD.findall(path.read_text(encoding="utf-8", errors="replace").lower()))


def library() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(path for kind in ("*.py", "*/*.py", "*/*.txt") for path in folder.glob(kind))


def main() -> int:
    paths = [Path(name).absolute() for name in sys.argv[1:]] or library()

    began = time.perf_counter()
    total: Counter[str] = Counter()
    with pg.Grid() as grid:
        for words in grid.imap_unordered(count, paths):
            total.update(words)
    grid_s = time.perf_counter() - began

    began = time.perf_counter()
    serial: Counter[str] = Counter()
    for path in paths:
        serial.update(count(path))
    serial_s = time.perf_counter() - began

    for word, times in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:10]:
        print(f"{times:>8}  {word}")
    same = total == serial
    print(f"{total.total()} words of {len(paths)} files: grid {grid_s:.1f} s, serial {serial_s:.1f} s, "
          f"{'identical' if same else 'DIFFERENT'}")  # fmt: skip
    return 0 if same and total else 1


if __name__ == "__main__":
    sys.exit(main())
