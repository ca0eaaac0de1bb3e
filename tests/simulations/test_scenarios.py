"""Scenario files: all that are shipped can be read, what is wrong in one is named with its line."""

from __future__ import annotations

import random
from pathlib import Path

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


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """It need not be installed; wherever it lies, a seed of it draws the same."""
    text = '# Mine.\nabout = "mine"\n[grid]\nnodes = [2, 3]\n[[work]]\nkind = "map"\ntasks = [1, 90]\n'
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.toml").write_text(text)

    here, there = load(str(tmp_path / "mine.toml")), load(str(tmp_path / "below" / "mine.toml"))
    assert here.about == "mine"
    assert run_seed(here, 1).digest == run_seed(there, 1).digest
    assert run_seed(here, 1).reproducer.startswith(f"p2pgrid sim run {tmp_path / 'mine.toml'} --seed 1@")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"smok\.toml cannot be read: .*did you mean smoke\?"):
        load("smok.toml")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(GridError, match="it is not UTF-8"):
        load(str(tmp_path / "odd.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nnodes = 3\nslotz = 2\n", r"line 3: 'slotz' in \[grid\] means nothing; did you mean slots\?"),
        ('[[fault]]\nkind = "crush"\n', r"line 2: 'crush', a kind of fault, means nothing; did you mean crash\?"),
        ('[grid]\nnodes = "many"\n', r"line 2: nodes = 'many' in \[grid\] is no int"),
        ("[run]\n\nstorm_s = [1, 2, 3]\n", r"line 3: storm_s"),
        ("[expect]\nefficiency = 0.9\n", r"line 2: efficiency in \[expect\] is not \[least, most\]"),
        ("[grid\n", "is not TOML"),
        ('[work]\nkind = "map"\n', r"line 1: work is not written as \[\[work\]\]"),
        ("work = 3\n", r"line 1: work is not written as \[\[work\]\]"),
        ("[[work]]\ntasks = 5\n", r"line 1: a \[\[work\]\] has no kind: map, "),
        ("[grid]\nnodes = 0\n", r"line 2: nodes = 0 in \[grid\] is too small"),
        ("[grid]\nnodes = [5, 2]\n", r"line 2: nodes = \[5, 2\] in \[grid\] is not \[least, most\]"),
        ("[grid]\nnodes = { any = [] }\n", r"line 2: nodes in \[grid\] is any of nothing"),
        ("[run]\nstorm_s = -1\n", r"line 2: storm_s = -1 in \[run\] is too small"),
        ('[[fault]]\nkind = "crash"\nevery_s = 0\n', r"line 3: every_s = 0 in \[fault\] is too small"),
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
