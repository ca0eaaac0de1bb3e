"""Other Pythons on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MINORS = (12, 13, 14, 11)


def another_python() -> Path:
    """Return an interpreter of another minor version that we run on, with nothing installed; skip where none is."""
    for path in _candidates():
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(path)
    pytest.skip("no other Python here: name one in $P2PGRID_TEST_PYTHON2")


def _candidates() -> Iterator[str]:
    if named := os.environ.get("P2PGRID_TEST_PYTHON2"):
        yield named
        return
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for minor in MINORS:
        if minor == sys.version_info.minor:
            continue
        if path := shutil.which(f"python3.{minor}"):
            yield path
        yield from map(str, sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python3.{minor}")))
