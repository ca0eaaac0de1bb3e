"""What a node costs while nothing happens, in a grid of nine, beside a bare py-libp2p host measured in the same run.

The bare host imports libp2p, makes a host with its defaults and listens; it knows nobody. Figures are those of the
daemon's own process; those of its worker and its reaper stand beside them. A tenth member is a leaf (`--preset edge`):
what counts there is all its processes together. Goals: DESIGN §13; of the leaf issue 8 and DESIGN §6.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.grids import Node, Nodes

NODES = 9
SETTLE_S = 20.0
WATCHED_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BARE_READY_S = 60.0
GOAL_PSS_MORE, GOAL_CPU, GOAL_MESSAGES_PER_S = 15e6, 0.005, 5.0
GOAL_LEAF_PSS, GOAL_LEAF_MESSAGES_PER_S = 110e6, 0.3
GOAL_READY_MORE_S, GOAL_JOINED_MORE_S = 0.5, 2.0
BARE = """
import sys, trio
from libp2p import new_host
from multiaddr import Multiaddr

async def main():
    async with new_host().run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: bytes, and CPU seconds since its start."""

    pss: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Cost:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        pss = sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return cls(pss, (int(stat[11]) + int(stat[12])) / TICKS_PER_S)


def descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text(encoding="ascii").split()):
            found += [child, *descendants(child)]
    return found


@contextmanager
def bare_host(environment: dict[str, str]) -> Iterator[tuple[int, float]]:
    """Run one; yield its pid and how long it took to listen."""
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", BARE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], BARE_READY_S)
        assert readable, "the bare host does not come up"
        child.stdout.readline()
        yield child.pid, time.monotonic() - started
    finally:
        child.kill()
        child.communicate()


def _messages(node: Node) -> int:
    network = node.network()
    return int(network["messages_sent"]) + int(network["messages_received"])


def run(rounds: int) -> dict[str, Any]:
    """Watch `rounds` minutes; return the medians over the nodes; prints the table on stderr."""
    environment = {**os.environ}
    with (
        tempfile.TemporaryDirectory() as folder,
        Nodes(Path(folder), preset="lan") as nodes,
        bare_host(environment) as (bare_pid, bare_ready_s),
    ):
        started = time.monotonic()
        first = nodes.node("n0").start()
        ready_s = time.monotonic() - started
        invite = first.invite()
        joined = []
        for i in range(1, NODES):
            started = time.monotonic()
            nodes.node(f"n{i}").start(invite)
            joined.append(time.monotonic() - started)
        leaf = nodes.node("leaf", "--preset", "edge").start(invite)
        seen_s = nodes.wait_all_alive(60)
        time.sleep(SETTLE_S)
        before = {node.name: (_messages(node), Cost.of(node.pid)) for node in nodes.all}
        bare_before = Cost.of(bare_pid)
        started = time.monotonic()
        time.sleep(WATCHED_S * rounds)
        took = time.monotonic() - started
        bare = Cost.of(bare_pid)
        rows: list[dict[str, Any]] = []
        for node in nodes.all:
            cost = Cost.of(node.pid)  # before it is asked, which costs as well
            messages = _messages(node)
            below = [Cost.of(pid) for pid in descendants(node.pid)]
            rows.append({
                "name": node.name, "pss": cost.pss, "cpu": (cost.cpu_s - before[node.name][1].cpu_s) / took,
                "messages_per_s": (messages - before[node.name][0]) / took,
                "pss_below": sum(each.pss for each in below),
            })  # fmt: skip
    rows, (edge,) = [row for row in rows if row["name"] != leaf.name], [row for row in rows if row["name"] == leaf.name]
    figures = ("pss", "cpu", "messages_per_s", "pss_below")
    medians = {what: statistics.median(row[what] for row in rows) for what in figures}
    worst = {what: max(row[what] for row in rows) for what in figures}
    host = {"pss": bare.pss, "cpu": (bare.cpu_s - bare_before.cpu_s) / took, "ready_s": bare_ready_s}
    starts = {"ready_s": ready_s, "joined_s": statistics.median(joined), "all_see_all_s": seen_s}
    _print(host, medians, worst, edge, starts)
    return {
        "nodes": NODES, "watched_s": took, "python": sys.version.split()[0], "bare": host, "medians": medians,
        "worst": worst, "leaf": {what: edge[what] for what in figures}, "starts": starts,
    }  # fmt: skip


def _print(
    host: dict[str, Any], medians: dict[str, Any], worst: dict[str, Any], edge: dict[str, Any], starts: dict[str, Any]
) -> None:
    print(f"{'':24}{'PSS':>12}{'CPU':>10}{'messages/s':>12}{'workers PSS':>14}", file=sys.stderr)
    print(f"{'bare libp2p host':24}{host['pss'] / 1e6:9.1f} MB{host['cpu']:10.2%}", file=sys.stderr)
    for name, row in (("node of nine, median", medians), ("node of nine, worst", worst), ("leaf beside them", edge)):
        print(
            f"{name:24}{row['pss'] / 1e6:9.1f} MB{row['cpu']:10.2%}{row['messages_per_s']:12.2f}"
            f"{row['pss_below'] / 1e6:11.1f} MB",
            file=sys.stderr,
        )
    print(
        f"goals: PSS ≤ bare + {GOAL_PSS_MORE / 1e6:.0f} MB ({(medians['pss'] - host['pss']) / 1e6:+.1f}), CPU ≤ "
        f"{GOAL_CPU:.1%}, ≤ {GOAL_MESSAGES_PER_S:g} messages/s sent and received\n"
        f"ready {starts['ready_s']:.2f} s, joined {starts['joined_s']:.2f} s after the start; bare host "
        f"{host['ready_s']:.2f} s (goals: + {GOAL_READY_MORE_S:g} s, + {GOAL_JOINED_MORE_S:g} s); all saw all after "
        f"{starts['all_see_all_s']:.2f} s\n"
        f"goals of the leaf: all its processes ≤ {GOAL_LEAF_PSS / 1e6:.0f} MB "
        f"({(edge['pss'] + edge['pss_below']) / 1e6:.1f}), ≤ {GOAL_LEAF_MESSAGES_PER_S:g} messages/s sent and received",
        file=sys.stderr,
    )
