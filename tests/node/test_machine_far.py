"""Clusters far from each other: little is asked for, and all end together."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from tests.node.driver import Client, Faults, Node, Task, World

JOB = b"j" * 16
CLUSTER = 4
NEAR_S, FAR_S = (0.0004, 0.0006), (0.049, 0.051)


class Clusters(World):
    """Nodes are near those of their own cluster, and 50 ms from all others."""

    def _carry(self, source: Node, effect: e.Send, body: Any, size: int) -> None:
        same = int(source.name[1:]) // CLUSTER == int(effect.peer[1:]) // CLUSTER
        self.faults.delay_s = NEAR_S if same else FAR_S
        super()._carry(source, effect, body, size)


@pytest.mark.parametrize(("sigma", "least"), [(0.0, 0.96), (0.8, 0.94)], ids=["alike", "unlike"])
def test_far_clusters_ask_seldom_and_end_together(sigma: float, least: float) -> None:
    """Three of four by four nodes are 50 ms away, and may be four times as slow as others: 10 s of work for each."""
    for seed in range(2):
        rng = random.Random(seed)
        world = Clusters(seed, Faults(ordered=True))
        speeds = [rng.lognormvariate(0, sigma) for _ in range(4 * CLUSTER)]
        nodes = [world.add(f"n{i}", slots=1, speed=speed) for i, speed in enumerate(speeds)]
        client = Client(nodes[0], 1, b"s" * 16)
        client.connect()
        world.run(lambda: False, 2)
        seconds = [0.1 * (0.5 + rng.random()) for _ in range(int(100 * sum(speeds)))]
        start = world.now
        one = client.submit(JOB, len(seconds), lambda i, s=seconds: Task(s[i]), packed=True, batch=2000)  # type: ignore[misc]
        assert world.run(lambda one=one: one.ended, 100)  # type: ignore[misc]

        assert sum(seconds) / sum(speeds) / (world.now - start) >= least, f"seed {seed}"
        asked = (world.sent[m.P_WANT] + world.sent[m.P_STEAL]) / len(nodes)
        assert asked <= 25, f"seed {seed}"
        assert max(world.runs.values()) <= 2
        assert sum(world.runs.values()) <= 1.02 * len(seconds)
