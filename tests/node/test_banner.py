"""What a node says on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2pgrid.node.banner import Talk, banner
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.events import Log
from p2pgrid.node.identity import open_identity


def test_names_of_others_move_no_cursor_and_make_no_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A member may call itself anything; the log shows it in one line, and the terminal obeys none of it."""
    Talk(NodeConfig(tmp_path)).log(Log("warning", "\x1b[2J\x1b]0;x\x07evil\nready 12D3KooW (p) asks for work"))

    assert capsys.readouterr().err == "warning: ·[2J·]0;x·evil·ready 12D3KooW (p) asks for work\n"


def test_the_banner_says_which_pythons(tmp_path: Path) -> None:
    """With their versions where these are known without a start: our own, and those of environments."""
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n")
    config = NodeConfig(tmp_path, python=(Path(sys.executable), env / "bin" / "python", Path("/opt/python")))
    (line,) = [one for one in banner(config, open_identity(tmp_path, "n", 0.0), []).splitlines() if "runs" in one]

    ours = f"({sys.version_info.major}.{sys.version_info.minor})"
    assert f"{ours}, {env}/bin/python (3.12), /opt/python " in line
