"""What docs/simulator.md shows is so: its examples run, and a failure reads as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.sim import _print_failure
from p2pgrid.node.leases import Leases
from p2pgrid.simulations import checkers, checking, faults, workloads
from p2pgrid.simulations.checkers import CHECKERS
from p2pgrid.simulations.running import run_seed
from p2pgrid.simulations.scenario import parse
from tests.simulations.broken import renew
from tests.simulations.test_mutations import HARSH

GUIDE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
SMALL = """
[grid]
nodes = 3
owners = 1
[run]
storm_s = 10
[[work]]
kind = "{work}"
tasks = 20
at_s = 0.5
[[fault]]
kind = "{fault}"
every_s = 3
"""


def shown(heading: str, kind: str = "python") -> str:
    """Return the example of a section."""
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)
    assert found is not None, f"no {kind} in {heading!r}"
    return found[1]


def made(heading: str, module: Any, name: str, **more: str) -> Any:
    """Run an example as if it stood in a module; return what it defines."""
    source = shown(heading)
    for old, new in more.items():
        source = source.replace(old.strip("_"), new)
    scope = {**vars(module)}
    exec("from __future__ import annotations\n" + source, scope)
    return scope[name]


def test_a_world_in_a_test() -> None:
    exec(shown("In a test"), {})


def test_a_failure_reads_as_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line like the one in the guide, whose machine is broken in the same way: claims never lapse."""
    monkeypatch.setattr(Leases, "lapse", renew)
    text = HARSH.replace("deadline_s = 120", "deadline_s = 40")
    failed = next(one for one in (run_seed(parse("smoke", text), seed) for seed in range(50)) if one.failed)
    _print_failure(failed)
    lines = capsys.readouterr().out.strip().splitlines()
    words = shown("How to read a failure", "").splitlines()

    for line in (lines[0], words[0]):
        assert re.fullmatch(r"seed \d+: L1 every job ends", line)
    for line in (lines[1], words[1]):
        assert re.match(
            r"  job [0-9a-f]{6} at n\d \(\d+ of \d+ results missing, waited \d+ s\): task \d+ is covered at n\d by n\d",
            line,
        )
    for line in (lines[2], words[2]):
        assert re.fullmatch(r"  last events of n\d:", line)
    for line in (lines[3], words[3]):
        assert re.match(r" +\d+\.\d{4}  \w+\(.*\)?  ->  ", line)
    for line in (lines[-1], words[-1]):
        assert re.fullmatch(r"  again:  p2pgrid sim run smoke --seed \d+@\S+", line)


def test_a_scenario_of_ones_own() -> None:
    scenario = parse("mine", shown("Scenarios", "toml"))

    assert scenario.about == "ten nodes, some loss, some deaths"
    assert "Expected:" in scenario.expected


def test_a_fault_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It strikes."""
    monkeypatch.setitem(faults.KINDS, "rot", made("A fault of your own", faults, "rot"))
    outcome = run_seed(parse("mine", SMALL.format(work="map", fault="rot")), 1)

    assert outcome.faults["rot"] > 0
    assert not outcome.failed, outcome.row()


def test_work_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done."""
    monkeypatch.setitem(workloads.KINDS, "shared", made("Work of your own", workloads, "shared"))
    outcome = run_seed(parse("mine", SMALL.format(work="shared", fault="pause")), 1)

    assert outcome.work == ("shared",)
    assert not outcome.failed, outcome.row()


def test_a_checker_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is quiet, and barks where its bound is lower."""
    scenario = parse("mine", SMALL.format(work="map", fault="pause"))
    monkeypatch.setattr(checkers, "CHECKERS", (*CHECKERS, made("A checker of your own", checking, "Modest")))
    assert not run_seed(scenario, 1).failed

    strict = made("A checker of your own", checking, "Modest", _100_000_="0")
    monkeypatch.setattr(checkers, "CHECKERS", (strict,))
    assert run_seed(scenario, 1).invariant == "I13 nobody hoards"
