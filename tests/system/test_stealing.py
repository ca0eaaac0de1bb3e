"""Five real nodes, one of which was given too much: the others steal it, the record shows it; then all is silent."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from p2pgrid.client.asking import ask
from p2pgrid.client.localgrid import LocalGrid
from tests.system.uneven import Done, durations, linger, must_be_right, shares
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

NODES = 5
TASKS, WORK_S = 150, 10.0
QUIET_S, WATCHED_S = 60.0, 4.0
MESSAGES_PER_S = 25.0
"""A node that talks for nothing says hundreds; the budget of 5 is measured by `python -m benchmarks idle`."""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    """Whoever asks second is given all that is left."""
    with LocalGrid(nodes=NODES, preset="lan", queue="1000s", guided=0.2) as local:
        yield local


def told(local: LocalGrid, *words: str) -> dict[str, Any]:
    """Return what a verb says at the last node, which is not the one that took the job."""
    command = [sys.executable, "-m", "p2pgrid", *words, "--json", "--dir", str(local.nodes[-1].dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def costs(local: LocalGrid) -> dict[str, tuple[int, int]]:
    """Return by node how often it asked for work and how many messages it had, in all; nobody says any for that."""
    found = {}
    for node in local.nodes:
        network = ask(node.dir, "status", {}, 60.0)["network"]
        asked = ask(node.dir, "load", {}, 60.0)["node"]["asked"]
        found[node.name] = (asked, network["messages_sent"] + network["messages_received"])
    return found


def test_a_pool_that_was_emptied_early_is_shared_by_stealing(local: LocalGrid) -> None:
    """Every node runs its part of what one other was given, and anybody can see at any node how that came about."""
    with local.grid(0) as grid:
        parts: dict[str, float] = {}
        took = 0.0
        for _ in range(6):  # on a busy machine a node may come too late for one of them
            started = time.monotonic()
            found = [Done(*each) for each in grid.map(linger, list(enumerate(durations(TASKS, WORK_S))))]
            took = time.monotonic() - started
            must_be_right(found, TASKS)
            parts = shares(found)
            if len(parts) == NODES:
                break

    def row_of(shown: dict[str, Any]) -> dict[str, Any]:
        return next(job for job in told(local, "jobs")["jobs"] if job["id"] == shown["job"]["id"])

    shown = told(local, "show", "last")
    while row_of(shown)["moves"] != shown["moves"]:  # the last beats of its holders are on their way
        shown = told(local, "show", "last")
    stolen = {row["node"]: row["stolen"] for row in shown["moves"] if row["stolen"]}
    why = told(local, "explain", f"{shown['job']['id']}/0-{TASKS - 1}")["lines"]

    def are_thieves_at_top() -> bool:
        top = {row["name"]: row["stolen"] for row in told(local, "top")["nodes"]}
        return all(top[name] for name in stolen)

    print(f"{took:.2f} s, {took * NODES / WORK_S:.3f} × the ideal; stolen {stolen}; shares {parts}")
    assert parts.keys() == {f"n{i}" for i in range(NODES)}, parts
    assert len(stolen) >= 2
    assert shown["job"]["stolen"] == sum(stolen.values())
    assert any("stolen from n" in line for line in why)
    wait_until(are_thieves_at_top)


def test_an_idle_grid_asks_nobody_for_work(local: LocalGrid) -> None:
    """Not once; and there is little else to say."""
    deadline = time.monotonic() + QUIET_S
    before, since = costs(local), time.monotonic()
    while True:
        time.sleep(WATCHED_S)  # this is what is measured: what is said meanwhile
        after, now = costs(local), time.monotonic()
        asked = {name: after[name][0] - before[name][0] for name in after}
        said = {name: (after[name][1] - before[name][1]) / (now - since) for name in after}
        if not any(asked.values()) and max(said.values()) <= MESSAGES_PER_S:
            break
        assert now < deadline, f"asked {asked}, messages per second {said}"
        before, since = after, now
    print(f"asked {asked}, messages per second {said}")
