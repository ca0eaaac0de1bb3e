"""`import p2pgrid`: light, and the same names for Python and for type checkers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import p2pgrid as pg

ROOT = Path(pg.__file__).parent.parent
HEAVY = ("trio", "libp2p", "click", "rich", "cloudpickle", "msgpack", "asyncio", "numpy", "typing")


def test_import_is_light() -> None:
    """The import brings nothing that costs time."""
    code = f"import sys; old = set(sys.modules); import p2pgrid; print(sorted((set(sys.modules) - old) & {{*{HEAVY}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_fetched() -> None:
    """`__all__` holds what it says."""
    missing = [name for name in pg.__all__ if getattr(pg, name, None) is None]

    assert missing == []
    assert pg.__version__ == "0.1.0"


def test_stub_names_the_same_things() -> None:
    """What type checkers see is what there is."""
    tree = ast.parse((ROOT / "p2pgrid" / "__init__.pyi").read_text())
    named = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert named == set(pg.__all__)


def test_reserved_and_unknown_names() -> None:
    """What comes later says when; what never was is an AttributeError."""
    with pytest.raises(pg.GridError, match="The simulator"):
        getattr(pg, "Simulator")  # noqa: B009 - no type checker knows it
    with pytest.raises(AttributeError):
        getattr(pg, "nonsense")  # noqa: B009 - as above


def test_current_outside_a_task() -> None:
    """Outside a task there is no current one, and progress goes nowhere."""
    pg.progress(1, 2)

    assert pg.current() is None
