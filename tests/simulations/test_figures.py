"""The figures of the shipped scenarios, checked loosely on small versions of them.

All of it is virtual time: no machine is too slow for it, and a figure that is missed was missed by the protocols.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pgrid.simulations.running import Less, run_seed
from p2pgrid.simulations.scenario import load


def figures(name: str, nodes: int, tasks: float = 1.0, **course: Any) -> dict[str, float]:
    """Run one seed of a scenario with so many nodes, times so many tasks; return its figures."""
    scenario = load(name)
    scenario = replace(scenario, expect={}, run={**scenario.run, **course})
    outcome = run_seed(scenario, 1, Less(nodes=nodes, tasks=tasks))

    assert not outcome.failed, f"{outcome.invariant}: {outcome.what}"
    return dict(outcome.figures)


@pytest.mark.parametrize(
    ("name", "nodes", "tasks", "least"),
    [
        ("lan", 16, 0.6 * 16 / 256, 0.96),
        ("wan", 12, 0.35 * 12 / 256, 0.93),
        ("heterogeneous", 12, 0.6 * 12 / 256, 0.88),
    ],
)
def test_nodes_are_busy_to_the_end(name: str, nodes: int, tasks: float, least: float) -> None:
    """A little less than with all 256, since their work is shorter."""
    found = figures(name, nodes, tasks)

    assert found["efficiency"] >= least
    assert found["executions"] <= 1.05
    assert found["steal_requests"] <= 40


@pytest.mark.parametrize(("name", "knows_s"), [("idle", 7.5), ("idle-wan", 20.0)])
def test_idle_nodes_say_little_and_miss_the_dead(name: str, knows_s: float) -> None:
    found = figures(name, 12, calm_s=60.0)

    assert found["messages"] <= 5
    assert found["steal_polls"] == 0
    assert found["false_deaths"] == 0
    assert found["detection_s"] <= knows_s


def test_leaves_on_a_network_that_loses_a_fifth() -> None:
    """They say next to nothing, nobody is taken for dead who lives, and they are missed within four heartbeats."""
    found = figures("lossy-edge", 8, 0.2, storm_s=60.0, calm_s=240.0)

    assert found["messages_leaf"] <= 0.3
    assert found["false_deaths"] == 0
    assert found["detection_s"] <= 120


def test_few_tasks_run_again_although_nodes_come_and_go() -> None:
    assert figures("churn", 8, 0.05, storm_s=240.0)["executions"] <= 1.05
