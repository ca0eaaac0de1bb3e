"""Several node processes are one grid: they share a job, and nothing that happens to one of them changes a result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.grids import Node, Nodes, wait
from tests.system.uneven import Running, burn, shared_by, shares
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

TASKS = 400
CPU_S = 8.0
JOBS_MAX = 3
"""On a busy machine a node may come too late for a short one."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        yield nodes


def test_three_nodes_see_each_other_and_share_a_job(nodes: Nodes) -> None:
    """`members --json` on each lists all three; a job of uneven tasks runs on all of them, none idles."""
    grid = nodes.grid("abc")
    seen_s = nodes.wait_all_alive()
    for node in grid:

        def lists_all(node: Node = node) -> bool:
            done = node.command("members", "--json")
            assert done.returncode == 0, done.stderr
            listed = json.loads(done.stdout)["members"]
            return {(each["name"], each["status"]) for each in listed} == {(name, "alive") for name in "abc"}

        wait(lists_all, SOON_S, f"{node.name} lists all three")

    parts: dict[str, float] = {}
    with grid[0].grid() as session:
        for _ in range(JOBS_MAX):
            parts = shares(Running(session, TASKS, CPU_S, burn).right())
            if parts.keys() == set("abc"):
                break

    print(f"all see all {seen_s:.2f} s after the last was ready (goal ≤ 5 s); shares {parts}")
    assert parts.keys() == set("abc")
    assert min(parts.values()) >= 0.02, parts  # a third each, where nothing else runs


def test_a_killed_worker_node_changes_no_result(nodes: Nodes) -> None:
    """SIGKILL in the middle of a job: what it held runs elsewhere, and the others know that it is dead."""
    a, b, c = nodes.grid("abc")
    nodes.wait_all_alive()
    with a.grid() as session:
        job = Running(session, TASKS, 45.0)
        job.wait(TASKS // 4)
        wait(lambda: "b" in {each.node for each in list(job.got)}, SOON_S, "it has done something")
        before = len(job.got)
        b.kill()
        known_s = nodes.wait_all_see({"a": "alive", "b": "dead", "c": "alive"})
        results = job.right()

    parts = shares(results)
    print(f"killed at {before} of {TASKS}; all knew after {known_s:.2f} s; shares {parts}")
    assert c.runs


def test_a_node_frozen_for_twenty_seconds_is_forgiven(nodes: Nodes) -> None:
    """SIGSTOP and SIGCONT mid-job: right results, each once, and in the end everybody is alive for everybody."""
    a, b, _ = nodes.grid("abc")
    nodes.wait_all_alive()
    with a.grid() as session:
        job = Running(session, TASKS, 80.0)
        job.wait(TASKS // 8)
        b.freeze()
        frozen = time.monotonic()
        nodes.wait_all_see({"b": "dead"})
        known_s = time.monotonic() - frozen
        wait(lambda: time.monotonic() - frozen >= 20, SOON_S, "20 s pass")
        b.thaw()
        alive_s = nodes.wait_all_alive()
        results = job.right()
        shared_by(session, {"a", "b", "c"}, 60, 6.0)  # it gets work again

    print(f"dead for all after {known_s:.1f} s, alive again {alive_s:.1f} s after SIGCONT; shares {shares(results)}")
    nodes.wait_all_alive()


def test_the_accepting_node_frozen_for_eight_seconds_goes_on(nodes: Nodes) -> None:
    """The client waits with it; the others wait for it, or run again what it forgot: each result once."""
    a, *_ = nodes.grid("abc")
    nodes.wait_all_alive()
    with a.grid(timeout=30.0) as session:
        job = Running(session, TASKS, 45.0)
        job.wait(TASKS // 8)
        a.freeze()
        frozen = time.monotonic()
        wait(lambda: time.monotonic() - frozen >= 8, SOON_S, "8 s pass")
        a.thaw()
        results = job.right()

    alive_s = nodes.wait_all_alive()
    print(f"all alive {alive_s:.1f} s after the job's end; shares {shares(results)}")


def test_a_node_that_stops_says_goodbye_and_its_work_goes_on(nodes: Nodes) -> None:
    """SIGTERM is no failure: it has left for everybody at once, and the job ends."""
    a, b, _ = nodes.grid("abc")
    nodes.wait_all_alive()
    with a.grid() as session:
        job = Running(session, TASKS // 2, 15.0)
        job.wait(TASKS // 8)
        assert b.stop() == 0
        left_s = nodes.wait_all_see({"b": "left"})
        job.right()

    print(f"left for all {left_s:.2f} s after its end")
    b.start()
    nodes.wait_all_alive()
