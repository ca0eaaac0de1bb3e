"""How fast the simulator is: 100 nodes, preset `lan`, 10 % busy, checkers on every 64th step, log hash on.

Node-hours per second of processor time, on one core. Budget: at least 5, then 10 (DESIGN §13). "10 % busy" is read in
two ways, neither of which stands in the design: `maps`, every node is busy for a tenth of the time (once a minute
somebody submits a map of 600 tasks of a second), and `singles`, a tenth of the nodes are busy at any time (ten tasks of
a second are submitted each second, each by itself). Beside them the same grid with nothing to do, where the time goes,
and the figures of ALGORITHMS §8.2 as the scenarios give them (`--rounds 1` leaves these out).
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from typing import Any

from p2pgrid.simulations import Plan, World
from p2pgrid.simulations.checkers import Safety
from p2pgrid.simulations.running import GARBAGE, run_seed
from p2pgrid.simulations.scenario import load

NODES = 100
BUSY = 0.1
TASK_S = 1.0
WARM_S = 60.0
"""Before it counts: all have met, and nothing is told of it any more."""
SPAN_S = 300.0
MAP_EVERY_S = 60.0
GOAL = 5.0
SCENARIOS = ("lan", "wan", "heterogeneous", "stragglers", "idle", "idle-wan", "lossy-edge", "churn")


def speed(seed: int, busy: str) -> tuple[float, int, float]:
    """Return node-hours per second of processor time, steps per second of it, and steps per node-hour."""
    world = World(seed)
    nodes = world.grid(NODES, slots=1)
    safety = Safety(world)
    if busy:
        WORK[busy](world, nodes, BUSY * NODES / TASK_S)
    world.pause(WARM_S)
    usual = gc.get_threshold()
    gc.set_threshold(*GARBAGE)  # as for every seed
    steps, began_s = world.steps, time.process_time()
    world.pause(SPAN_S)
    took_s = time.process_time() - began_s
    gc.set_threshold(*usual)
    assert safety.looks > 0
    assert world.digest()
    hours, steps = NODES * SPAN_S / 3600, world.steps - steps
    return hours / took_s, round(steps / took_s), steps / hours


def _singles(world: World, nodes: list[Any], rate: float) -> None:
    """Submit so many tasks per second for as long as the world turns, in one open job at one node."""
    count = round((WARM_S + SPAN_S) * rate)
    job = world.client(nodes[0]).submit(count, Plan(TASK_S), at_once=False, batch=1)

    def one() -> None:
        if job.sent < count:
            job.more(job.sent + 1)
            world.at(1 / rate, one)

    one()


def _maps(world: World, nodes: list[Any], rate: float) -> None:
    """Submit a map each minute, of as many tasks as that makes."""
    client = world.client(nodes[0])

    def one() -> None:
        client.submit(round(MAP_EVERY_S * rate), Plan(TASK_S), packed=True)
        world.at(MAP_EVERY_S, one)

    one()


WORK = {"maps": _maps, "singles": _singles}


def run(rounds: int) -> dict[str, Any]:
    """Run all and return medians; prints the table on stderr."""
    found: dict[str, Any] = {}
    for name in ("maps", "singles", ""):
        speeds, fast, steps = zip(*(speed(seed, name) for seed in range(rounds)), strict=True)
        each_us = 1e6 / statistics.median(fast)
        found[name or "idle"] = {
            "node_hours_per_s": statistics.median(speeds), "steps_per_s": statistics.median(fast),
            "steps_per_node_hour": statistics.median(steps), "step_us": each_us,
        }  # fmt: skip
        print(
            f"{name or 'idle':<8} {statistics.median(speeds):6.2f} node-hours per second and core "
            f"({min(speeds):.2f} to {max(speeds):.2f}): {statistics.median(steps):,.0f} steps per node-hour, "
            f"{each_us:.1f} µs each", file=sys.stderr,
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
