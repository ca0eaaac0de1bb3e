"""Patience: all nodes of a test run in one process, and wait for their processor together."""

from __future__ import annotations

import pytest

from p2pgrid.node.net import control, dialling, links


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take nobody for mute or gone who has not had a turn yet; what a test is about it sets itself."""
    monkeypatch.setattr(dialling, "REPORT_S", 20.0)
    monkeypatch.setattr(links, "ANSWER_S", 20.0)
    for module in (control, links):
        monkeypatch.setattr(module, "PARTING_S", 3.0)
