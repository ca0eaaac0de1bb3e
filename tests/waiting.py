"""Waiting for a condition: tests never sleep for as long as something usually takes."""

from __future__ import annotations

import time
from collections.abc import Callable

SOON_S = 60.0
"""How long anything may take on a machine that is busy with other things as well."""


def wait_until(ready: Callable[[], object], timeout_s: float = SOON_S) -> None:
    """Return once a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s:g} s"
        time.sleep(0.01)
