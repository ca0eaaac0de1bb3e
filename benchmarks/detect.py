"""How soon a dead node's tasks run elsewhere, and how soon all members know: killed, and vanished.

Killed is SIGKILL: the machine lives and refuses connections. Vanished is SIGSTOP: connections stay open and nothing
comes. The other nodes have free slots, so that what is measured is noticing, not waiting for one. Goals: DESIGN §13.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import p2pgrid as pg
from tests.system.grids import Node, Nodes, wait

HELD = 3
SLOTS = 4
DEADLINE_S = 60.0
GOALS = {"killed": ("≤ 2 s", "none: nothing waits for it"), "vanished": ("≤ 6 s", "≤ 7.5 s")}
"""Tasks run elsewhere, all members know (DESIGN §13)."""


def hold(job: tuple[int, str]) -> int:
    """Say in a file that this task has started, and wait until another file says that it may end."""
    number, folder = job
    here = pg.current()
    note = f"{number} {here.node if here else ''} {time.monotonic()}\n"
    fd = os.open(f"{folder}/started", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, note.encode())
    os.close(fd)
    while not os.path.exists(f"{folder}/go"):  # noqa: PTH110 - in a loop
        time.sleep(0.01)
    return number


def _starts(folder: Path) -> list[tuple[int, str, float]]:
    """Return (task, node, monotonic time) of every start."""
    file = folder / "started"
    rows = [row.split() for row in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return [(int(number), node, float(at)) for number, node, at in rows]


def _elsewhere(folder: Path, numbers: set[int], node: str) -> float:
    """Return when the last of these tasks had started on another node; 0: not all have."""
    first: dict[int, float] = {}
    for number, where, at in _starts(folder):
        if number in numbers and where != node:
            first.setdefault(number, at)
    return max(first.values()) if first.keys() == numbers else 0.0


def harm(nodes: Nodes, folder: Path, how: Callable[[Node], None]) -> tuple[Node, float, float]:
    """Harm the node that runs most of a few tasks.

    Returns:
        The node, seconds until its tasks ran elsewhere, and seconds until all others knew.
    """
    folder.mkdir()
    first = nodes.all[0]
    with first.grid() as session:
        away = session.options(where=f"name != {first.name!r}")
        futures = [away.submit(hold, (number, str(folder))) for number in range(HELD)]
        wait(lambda: len(_starts(folder)) >= HELD, DEADLINE_S, "all tasks have started")
        where = {number: node for number, node, _ in _starts(folder)}
        name = statistics.mode(where.values())
        (victim,) = (node for node in nodes.all if node.name == name)
        others = [node for node in nodes.all if node is not victim]
        mine = {number for number, node in where.items() if node == name}
        started = time.monotonic()
        how(victim)
        moved = known = 0.0

        def seen() -> bool:
            nonlocal moved, known
            moved = moved or _elsewhere(folder, mine, name)
            if not known and all(node.view().get(name) in {"dead", None} for node in others):
                known = time.monotonic()
            return bool(moved and known)

        wait(seen, DEADLINE_S, "it is noticed and its tasks run elsewhere")
        (folder / "go").touch()
        assert sorted(future.result(DEADLINE_S) for future in futures) == list(range(HELD))
    return victim, moved - started, known - started


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    ways: dict[str, Callable[[Node], None]] = {"killed": Node.kill, "vanished": Node.freeze}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder), preset="lan", slots=SLOTS) as nodes:
        nodes.grid("abcd")
        for number in range(rounds):
            for name, how in ways.items():
                nodes.wait_all_alive(DEADLINE_S)
                victim, moved, known = harm(nodes, Path(folder) / f"{name}{number}", how)
                figures[name].append((moved, known))
                print(f"{name:10} elsewhere {moved:.2f} s, known {known:.2f} s", file=sys.stderr)
                victim.end()
                victim.start()
    medians = {}
    for name, rows in figures.items():
        moves, knows = ([row[i] for row in rows] for i in (0, 1))
        medians[name] = {
            "elsewhere_s": statistics.median(moves), "known_s": statistics.median(knows),
            "elsewhere_worst_s": max(moves), "known_worst_s": max(knows),
        }  # fmt: skip
        print(
            f"{name:10} tasks run elsewhere after {statistics.median(moves):.2f} s (worst {max(moves):.2f}, goal "
            f"{GOALS[name][0]}), all know after {statistics.median(knows):.2f} s "
            f"(worst {max(knows):.2f}, goal {GOALS[name][1]})",
            file=sys.stderr,
        )
    return {"rounds": rounds, "python": sys.version.split()[0], "medians": medians}
