"""The files of the tutorial: they are written as the page has them, compile, and compute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```\w*\n# (spread/\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = """
from spread.chart import chart
from spread.model import DAYS_ILL, run
from spread.towns import TOWNS
import spread.collect, spread.long, spread.scan
assert run("Ash", 2.0, 1) == run("Ash", 2.0, 1)
assert 3 < run("Cedar", 2.4, 0).total <= TOWNS["Cedar"]
print(chart("Birch", 2.0).name, list(TOWNS), DAYS_ILL)
"""


def test_the_files_of_the_tutorial_compute(tmp_path: Path) -> None:
    """By themselves, without a node; what the page changes with `sed` is there to be changed."""
    for name, text in FILE.findall(PAGE):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Birch.svg ['Ash', 'Birch', 'Cedar'] 5"
    assert (tmp_path / "Birch.svg").read_text().startswith("<svg")
    for line in re.findall(r"sed -i 's/(.*?)/.*?/' spread/model.py", PAGE)[:1]:
        assert line in (tmp_path / "spread/model.py").read_text()
