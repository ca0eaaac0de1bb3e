"""Is a task over its time, or are the workers over their memory? Called ten times a second while anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.core.units import format_size
from p2pgrid.node import workers_memory
from p2pgrid.node.page import START
from p2pgrid.node.workers_child import Child, Verdict


def check_time(child: Child, now: float) -> None:
    """Kill a child whose task runs longer than it may."""
    running = child.running()
    since = dict(child.starts)  # of those that wait for others, which may run below them
    if running is not None:
        since.setdefault(running, child.page.floats[START])
    for (run, index), start_s in since.items():
        limit_s = child.runs[run].timeout_s if run in child.runs else None
        if limit_s is not None and now - start_s > limit_s:
            child.condemn(Verdict("timeout", f"task {index} ran longer than {limit_s:g} s", (run, index)))


def check_memory(children: Sequence[Child], budget: int) -> None:
    """Kill each child that holds more than its task asked for, and the largest if all together hold too much."""
    held = {child: workers_memory.roughly(child.process.pid) for child in children}
    for child, size in held.items():
        running = child.running()
        limit = child.runs[running[0]].memory if running is not None else None
        # The cheap figure is too high where a task forked: look closely before a kill.
        if limit is not None and size > limit and (exact := workers_memory.exactly(child.process.pid)) > limit:
            _kill(child, f"held {format_size(exact)} of memory, its limit is {format_size(limit)}")
    if sum(held.values()) > budget:
        exactly = {child: workers_memory.exactly(child.process.pid) for child in children}
        if sum(exactly.values()) > budget:
            largest = max(exactly, key=exactly.__getitem__)
            have = f"all workers of this node together may hold {format_size(budget)}"
            _kill(largest, f"held {format_size(exactly[largest])} of memory, {have}")


def recycle(child: Child, grown_max: int) -> None:
    """Replace an idle child that kept more from its tasks than a warm interpreter is worth."""
    if child.ready and workers_memory.roughly(child.process.pid) > grown_max:
        exact = workers_memory.exactly(child.process.pid)
        if exact > grown_max:
            child.condemn(Verdict("killed", f"recycled: it had grown to {format_size(exact)}", None))


def _kill(child: Child, detail: str) -> None:
    child.condemn(Verdict("memory", detail, child.running()))
