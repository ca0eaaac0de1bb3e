"""What a node says on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.node.banner import Talk
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.events import Log


def test_names_of_others_move_no_cursor_and_make_no_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A member may call itself anything; the log shows it in one line, and the terminal obeys none of it."""
    Talk(NodeConfig(tmp_path)).log(Log("warning", "\x1b[2J\x1b]0;x\x07evil\nready 12D3KooW (p) asks for work"))

    assert capsys.readouterr().err == "warning: ·[2J·]0;x·evil·ready 12D3KooW (p) asks for work\n"
