"""Machines that are broken on purpose: what their tests share."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.node.leases import Leases
from p2pgrid.simulations.running import Outcome, run_seed
from p2pgrid.simulations.scenario import parse

SEEDS = 200


def barks(text: str, first: int = 0) -> Outcome:
    """Return the first seed that fails; those from `first` on, of which one is known to, come before the others."""
    scenario = parse("mutation", text)
    for seed in (*range(first, SEEDS), *range(first)):
        outcome = run_seed(scenario, seed)
        if outcome.failed:
            return outcome
    pytest.fail(f"no checker barked in {SEEDS} seeds")


def passes(text: str, seeds: range) -> None:
    """Have seeds pass: what barks at a mutant is not to bark at the machine."""
    for seed in seeds:
        outcome = run_seed(parse("mutation", text), seed)
        assert not outcome.failed, f"seed {seed}: {outcome.invariant}: {outcome.what}"


def renew(self: Leases, now: float) -> list[Any]:
    """Take every claim that is about to lapse for renewed."""
    for holder in self.holders.values():
        holder.heard_s = holder.alive_s = now
        holder.lapses_s = None
    return []
