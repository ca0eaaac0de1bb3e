"""Making a failing run small: fewer nodes, fewer tasks, fewer kinds of faults and of work, as long as it still fails.

What is left out changes what the rest draws, so a smaller run may fail in another way: any violation of the same
invariant counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from p2pgrid.simulations.running import Less, Outcome, run_seed
from p2pgrid.simulations.scenario import Scenario

TRIES_MAX = 200
TASKS_MIN = 0.01
NODES_MIN = 2


def shrink(scenario: Scenario, failed: Outcome, say: Callable[[str], object]) -> Outcome:
    """Return the smallest run that was found to break the same invariant."""
    best = failed
    tries = 0
    while True:
        for less in _smaller(best):
            tries += 1
            if tries > TRIES_MAX:
                return best
            tried = run_seed(scenario, failed.seed, less)
            if tried.invariant == failed.invariant:
                best = tried
                say(f"still fails: {less.flags()}")
                break
        else:
            return best


def _smaller(outcome: Outcome) -> Iterator[Less]:
    """Yield smaller runs, the boldest first."""
    less = outcome.less
    for kind in [*(f"fault:{one}" for one in outcome.faults), *(f"work:{one}" for one in dict.fromkeys(outcome.work))]:
        if kind not in less.without:
            yield replace(less, without=(*less.without, kind))
    for nodes in (outcome.nodes // 2, outcome.nodes - 1):
        if NODES_MIN <= nodes < outcome.nodes:
            yield replace(less, nodes=nodes)
    for tasks in (less.tasks / 8, less.tasks / 2):
        if tasks >= TASKS_MIN:
            yield replace(less, tasks=tasks)
