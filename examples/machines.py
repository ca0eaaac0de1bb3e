"""Shows which machine does what: asks each of the grid what it is, then counts where 400 short tasks ran.

Alone it starts a node for itself. To see two machines at work, type on one of them `p2pgrid node` and, beside it,
`p2pgrid invite > invite`, bring that file to the other, type there `p2pgrid node --join - < invite`, and start this
program on either. Kill the other node in the middle: the sum stays right.
"""

import platform
import sys
import time
from collections import Counter

import p2pgrid as pg

TASKS = 400


def machine() -> str:
    return f"{platform.machine()}, Python {platform.python_version()}"


def work(number: int) -> tuple[str, int]:
    time.sleep(0.01)
    here = pg.current()
    assert here is not None, "not called by a node"
    return here.node, number * number


def main() -> int:
    with pg.Grid() as grid:
        for name, told in grid.run(machine).items():
            print(f"{name:<16}{told.result()}")
        done = list(grid.map(work, range(TASKS)))
    for name, tasks in Counter(name for name, _ in done).most_common():
        print(f"{name:<16}{tasks} tasks")
    return 0 if [square for _, square in done] == [number * number for number in range(TASKS)] else 1


if __name__ == "__main__":
    sys.exit(main())
