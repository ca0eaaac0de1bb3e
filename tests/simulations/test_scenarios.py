"""Scenario files: all that are shipped can be read, what is wrong in one is named with its line."""

from __future__ import annotations

import random

import pytest

from p2pgrid.core.errors import GridError
from p2pgrid.simulations.running import Less, run_seed
from p2pgrid.simulations.scenario import draw, load, names, parse
from p2pgrid.simulations.shrinking import shrink

BROKEN = """
[grid]
nodes = 4
owners = 1
[run]
storm_s = 10
deadline_s = 20
[[work]]
kind = "map"
tasks = 40
seconds = 0.5
[[work]]
kind = "submits"
tasks = 10
[[fault]]
kind = "pause"
[[fault]]
kind = "weather"
loss = 1.0
for_ever = true
"""


@pytest.mark.parametrize("name", names())
def test_a_shipped_scenario_can_be_drawn(name: str) -> None:
    """It says what it is about, what is expected, and draws the same twice."""
    scenario = load(name)

    assert scenario.about
    assert "Expected:" in scenario.expected
    assert draw(scenario, random.Random(1)) == draw(scenario, random.Random(1))


def test_an_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(GridError, match="did you mean smoke"):
        load("smoky")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nnodes = 3\nslotz = 2\n", r"line 3: 'slotz' in \[grid\] means nothing; did you mean slots\?"),
        ('[[fault]]\nkind = "crush"\n', r"line 2: 'crush', a kind of fault, means nothing; did you mean crash\?"),
        ('[grid]\nnodes = "many"\n', r"line 2: nodes = 'many' in \[grid\] is no int"),
        ("[run]\n\nstorm_s = [1, 2, 3]\n", r"line 3: storm_s"),
        ("[expect]\nefficiency = 0.9\n", r"line 2: efficiency in \[expect\] is not \[least, most\]"),
        ("[grid\n", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(GridError, match=message):
        parse("mine", text)


def test_what_cannot_end_is_a_violation_and_shrinks() -> None:
    """A network that carries nothing: stopped at the deadline, with who waits, and made small."""
    scenario = parse("mine", BROKEN.replace("loss = 1.0", "loss = 1.0\nspike = 1.0\nspike_s = 1000.0"))
    failed = next(one for one in (run_seed(scenario, seed) for seed in range(20)) if one.failed)
    small = shrink(scenario, failed, lambda _: None)

    assert small.invariant == failed.invariant
    assert small.less != Less()
    assert small.nodes <= failed.nodes
    assert small.reproducer.startswith(f"p2pgrid sim run mine --seed {failed.seed}@")
