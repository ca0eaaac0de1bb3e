"""The swarm in CI: some seeds of `smoke`, those that once failed, and the canary for what does not come from a seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid.simulations.running import Outcome, run_seed
from p2pgrid.simulations.scenario import load

LOTS, PER_LOT = 20, 25
REGRESSIONS = [
    line.split(maxsplit=2)
    for line in (Path(__file__).parent / "regressions.txt").read_text().splitlines()
    if not line.startswith("#")
]


def must_hold(outcome: Outcome) -> None:
    last = "\n".join(f"{node}:\n  " + "\n  ".join(lines) for node, lines in outcome.last.items())

    assert not outcome.failed, f"{outcome.invariant}: {outcome.what}\n{last}\nagain: {outcome.reproducer}"


@pytest.mark.parametrize("lot", range(LOTS))
def test_seeds_of_the_swarm(lot: int) -> None:
    """Each with its own work and faults; five hundred in all."""
    scenario = load("smoke")
    for seed in range(lot * PER_LOT, (lot + 1) * PER_LOT):
        must_hold(run_seed(scenario, seed))


@pytest.mark.parametrize("name", ["blackout", "old-disk", "owner-gone", "owner-never-returns"])
def test_nobody_to_lose(name: str) -> None:
    """Scenarios in which nodes that keep a job, or all nodes, go down amid the work."""
    must_hold(run_seed(load(name), 0))


@pytest.mark.parametrize(("name", "seed", "what"), REGRESSIONS)
def test_what_once_failed(name: str, seed: str, what: str) -> None:
    """And was mended."""
    must_hold(run_seed(load(name), int(seed)))


def test_canary() -> None:
    """Two processes whose hashes of strings differ do the same to the last event."""

    def told(hash_seed: str) -> dict[str, object]:
        command = [sys.executable, "-m", "p2pgrid", "sim", "run", "smoke", "--json", "--seed", "3", "--seeds", "2"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([*command, "--procs", "1"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        assert answer.pop("timing")
        return answer

    first = told("1")

    assert first == told("2")
    assert all(len(row["sha256"]) == 64 for row in first["seeds"])  # type: ignore[attr-defined]
