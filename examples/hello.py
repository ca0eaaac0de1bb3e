"""Shows the door: a call, a map, and an error that comes back as what it was.

Run it anywhere: `python examples/hello.py`. If no node runs, one is started and ends by itself.
"""

import os
import sys

import p2pgrid as pg


def greet(name: str) -> str:
    return f"hello {name}"


def whoami(_: int) -> int:
    return os.getpid()


def main() -> int:
    with pg.Grid() as grid:
        greeting = grid.submit(greet, "grid").result()
        squares = list(grid.map(lambda x: x * x, range(10)))
        others = set(grid.map(whoami, range(100))) - {os.getpid()}
        try:
            grid.submit(int, "seven").result()
        except ValueError as error:
            mistake = str(error)
        else:
            mistake = ""

    print(greeting)
    print("squares", squares)
    print("made by processes", sorted(others))
    print("a mistake in a task:", mistake)
    right = greeting == "hello grid" and squares == [x * x for x in range(10)] and others and "seven" in mistake
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
