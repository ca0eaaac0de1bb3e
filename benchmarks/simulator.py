"""How fast the simulator is: 100 nodes, preset `lan`, a tenth of them busy, checkers on every 64th step, log hash on.

Node-hours per second of processor time, on one core. Budget: at least 5, then 10 (DESIGN §13). Beside it the same
grid with nothing to do, and the figures of ALGORITHMS §8.2 as the scenarios give them (`--rounds 1` leaves these out).
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from p2pgrid.simulations import Plan, World
from p2pgrid.simulations.checkers import Safety
from p2pgrid.simulations.running import run_seed
from p2pgrid.simulations.scenario import load

NODES = 100
BUSY = 0.1
TASK_S = 1.0
WARM_S = 60.0
"""Before it counts: all have met, and nothing is told of it any more."""
SPAN_S = 300.0
GOAL = 5.0
SCENARIOS = ("lan", "wan", "heterogeneous", "stragglers", "idle", "idle-wan", "lossy-edge", "churn")


def speed(seed: int, busy: float) -> tuple[float, int]:
    """Return node-hours per second of processor time, and steps per second of it."""
    world = World(seed)
    nodes = world.grid(NODES, slots=1)
    safety = Safety(world)
    if busy:
        _keep_busy(world, nodes, busy * NODES / TASK_S)
    world.pause(WARM_S)
    steps, began_s = world.steps, time.process_time()
    world.pause(SPAN_S)
    took_s = time.process_time() - began_s
    assert safety.looks > 0
    assert world.digest()
    return NODES * SPAN_S / 3600 / took_s, round((world.steps - steps) / took_s)


def _keep_busy(world: World, nodes: list[Any], rate: float) -> None:
    """Submit so many tasks per second for as long as the world turns, in one open job at one node."""
    count = round((WARM_S + SPAN_S) * rate)
    job = world.client(nodes[0]).submit(count, Plan(TASK_S), at_once=False, batch=1)

    def one() -> None:
        if job.sent < count:
            job.more(job.sent + 1)
            world.at(1 / rate, one)

    one()


def run(rounds: int) -> dict[str, Any]:
    """Run all and return medians; prints the table on stderr."""
    found: dict[str, Any] = {}
    for name, busy in (("busy", BUSY), ("idle", 0.0)):
        speeds, steps = zip(*(speed(seed, busy) for seed in range(rounds)), strict=True)
        found[name] = {"node_hours_per_s": statistics.median(speeds), "steps_per_s": statistics.median(steps)}
        print(
            f"{name:<5} {statistics.median(speeds):6.2f} node-hours per second and core "
            f"({min(speeds):.2f} to {max(speeds):.2f}), {statistics.median(steps):,.0f} steps/s", file=sys.stderr,
        )  # fmt: skip
    found["goal"] = GOAL
    if rounds > 1:
        found["figures"] = {name: _figures(name) for name in SCENARIOS}
    return found


def _figures(name: str) -> dict[str, float]:
    outcome = run_seed(load(name), 1)
    bounds = load(name).expect
    for figure, value in outcome.figures.items():
        goal = f"   goal {bounds[figure][0]:g} to {bounds[figure][1]:g}" if figure in bounds else ""
        print(f"{name:<14} {figure:<16} {value:10.4g}{goal}", file=sys.stderr)
    assert not outcome.failed, f"{name}: {outcome.invariant}: {outcome.what}"
    return dict(outcome.figures)


if __name__ == "__main__":
    run(1)
