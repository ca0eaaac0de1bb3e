"""The tutorial, from its first line to its last: files are written, commands are typed, on two machines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_readme import LINE, ROOT, Shell, two_machines

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (spread/\S+)\n")


class Typed(NamedTuple):
    """A line that was typed, and what came of it."""

    shell: str
    line: str
    status: int
    text: str


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[dict[str, Shell]]:
    """Two machines that have the commands, each with a folder of its own."""
    with two_machines(tmp_path, folders=True) as shells:
        yield shells


def follow(page: Path, shells: dict[str, Shell]) -> Iterator[Typed]:
    """Do what the tutorial says, block by block; `page` is where the first machine keeps the project."""
    for _, block in BLOCKS:
        if named := FILE.match(block):
            path = page / named[1]
            path.parent.mkdir(exist_ok=True)
            text = block[named.end() :] if path.suffix == ".csv" else block
            path.write_text(text, encoding="utf-8")
            continue
        for shell, line in LINE.findall(block):
            yield Typed(shell, line, *shells[shell].must(line))


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path, shells: dict[str, Shell]) -> None:
    """No command fails; the table is the same on two machines as on one; the job outlives the machine that took it."""
    first, second = tmp_path / "at-first", tmp_path / "at-second"
    done = []
    for one in follow(first, shells):
        assert one.status == 0, f"{one.shell}$ {one.line}: {one.text}"
        if one.line == "p2pgrid invite > invite":
            shutil.move(first / "invite", second / "invite")  # as a person would carry it over
        done.append(one)

    def said(line: str) -> list[str]:
        return [one.text for one in done if one.line == line]

    alone, both, changed = (
        re.findall(r"^(?:Ash|Birch|Cedar) .*$", text, re.MULTILINE) for text in said("python -m spread.scan")
    )
    assert len(alone) == 3
    assert alone == both
    assert alone != changed
    assert not (second / "spread").exists()
    members = said("p2pgrid members")[0]
    assert set(re.findall(r"^(otter|wren) +alive ", members, re.MULTILINE)) == {"otter", "wren"}
    assert "svg" in (first / "Cedar.svg").read_text()
    assert (second / "outbreaks.txt").read_text().count("Outbreak(") == 300
    assert "Ash, seed 0: " in said("p2pgrid logs long/0")[0]
    assert "300 outbreaks, " in said("python -m spread.collect")[0]
