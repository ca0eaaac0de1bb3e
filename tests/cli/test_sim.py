"""`p2pgrid sim`: what it prints, its exit codes, and what it says to wrong words."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from p2pgrid.cli.main import main
from p2pgrid.simulations import running
from p2pgrid.simulations.world import Violation


def test_a_seed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything but the timing is the same again."""
    words = ["sim", "run", "smoke", "--seed", "2", "--json", "--procs", "1"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    second = json.loads(capsys.readouterr().out)

    assert first.pop("timing").keys() == second.pop("timing").keys() == {"seconds", "node_hours_per_s"}
    assert first == second
    assert first["ok"] is True
    assert first["seeds"][0]["seed"] == 2


def test_a_violation_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, the invariant, the last events, and the command."""

    def broken(run: running.Run) -> None:
        world = run.world
        world.grid(2)
        raise Violation("I0 nothing breaks", "it did", [world.nodes["n1"]])

    monkeypatch.setattr(running.Run, "_happen", broken)

    assert main(["sim", "run", "smoke", "--seed", "5", "--nodes", "3"]) == 1
    out = capsys.readouterr().out
    assert "seed 5: I0 nothing breaks\n  it did\n" in out
    assert "last events of n1:" in out
    assert "again:  p2pgrid sim run smoke --seed 5@" in out
    assert "--nodes 3" in out


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest name, exit 2."""
    assert main(["sim", "run", "smoek"]) == 2
    assert "did you mean smoke?" in capsys.readouterr().err
    assert main(["sim", "run", "smoke", "--without", "fault:crush"]) == 2
    assert "did you mean fault:crash?" in capsys.readouterr().err
    assert main(["sim", "run", "smoke", "--seed", "x"]) == 2
    assert "is no seed" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "list"]) == 0
    assert "smoke" in capsys.readouterr().out


def test_a_seed_of_another_version_warns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do something else."""
    monkeypatch.setattr(running.Run, "_happen", lambda _: None)

    assert main(["sim", "run", "smoke", "--seed", "5@0.0.1"]) == 0
    assert "figures may differ" in capsys.readouterr().err


def test_a_plot_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other name is given it is called after scenario and seed."""
    monkeypatch.chdir(tmp_path)

    assert main(["sim", "plot", "smoke", "--seed", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    data = (tmp_path / "smoke-2.png").read_bytes()

    assert told["file"] == "smoke-2.png"
    assert sum(told["executions"].values()) > 10
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1440
    assert height > 600
    assert [one.name for one in tmp_path.iterdir()] == ["smoke-2.png"]


def test_a_plot_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, before anything is simulated."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(running.Run, "_happen", lambda _: pytest.fail("it was simulated"))

    assert main(["sim", "plot", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "matplotlib, which is not installed here" in error
    assert 'pip install "p2pgrid[plot]"' in error
    assert error.count("\n") == 1


def test_a_plot_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "plot", "smoke", "--output", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err
