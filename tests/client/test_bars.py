"""Bars: rows on a terminal, lines of text elsewhere, widgets in a notebook that has them."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
import types
from typing import Any

import pytest

from p2pgrid.client import bars
from p2pgrid.core.prints import Said


def test_text_says_each_tenth_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever number of tasks ends at a time; failed ones are counted."""
    bar = bars.bar("squares", 200)
    for done in range(1, 201):
        bar.moved(done, 3 if done > 190 else 0)
        bar.said("n0", Said(done, 1.0, 2.0, "half"))
        bar.over(done, done + 1)
    bar.ended()
    told = [line.partition(" in ")[0] for line in capsys.readouterr().err.splitlines()]

    assert told == [*(f"squares: {20 * i}/200" for i in range(1, 10)), "squares: 200/200, 3 failed"]


def test_text_without_a_total_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """An endless map is told every few seconds; once its end is known, in tenths."""
    bar = bars.bar("endless", None)
    bar.moved(7, 0)
    assert capsys.readouterr().err == ""
    bar.ended()

    assert capsys.readouterr().err.startswith("endless: 7 in ")


class Terminal:
    """stderr as a terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        monkeypatch.setattr(sys, "stderr", self.stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        self.shown = ""

    def until(self, text: str) -> str:
        deadline = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 0.1)[0]:
                self.shown += os.read(self._master, 1 << 16).decode(errors="replace")
        return self.shown


def test_on_a_terminal_there_is_one_display_for_all_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two maps at once, and a row for a task that says how far it is, until it has ended."""
    terminal = Terminal(monkeypatch)
    first, second = bars.bar("first [x]", 4), bars.bar("second", None)
    first.moved(3, 1)
    first.said("heron", Said(17, 5.0, 10.0, "half way"))
    second.moved(2, 0)
    terminal.until("heron#17 half way")
    terminal.until("5/10")
    first.over(17, 18)
    first.ended()
    second.grew(9)
    second.ended()
    shown = terminal.until("2/9")

    assert "first [x], 1 failed" in shown
    assert bars._shared is None
    terminal.stream.close()


def test_a_notebook_with_widgets_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one without gets text."""
    shown: list[Any] = []

    class Widget:
        def __init__(self, children: Any = (), **values: Any) -> None:
            self.children = children
            self.__dict__.update(values)

    shell = type("ZMQInteractiveShell", (), {"__module__": "ipykernel.zmqshell"})()
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    display: Any = types.ModuleType("IPython.display")
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert isinstance(bars.bar("plain", 4), bars.TextBar)
    widgets: Any = types.ModuleType("ipywidgets")
    widgets.IntProgress = widgets.Label = widgets.VBox = widgets.HBox = Widget
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    bar = bars.bar("squares", 4)
    bar.moved(3, 1)
    bar.said("heron", Said(2, 1.0, 4.0, "first"))
    ((row, tasks),) = [box.children for box in shown]

    assert (row.children[0].value, row.children[0].max) == (3, 4)
    assert row.children[1].value == "squares 3/4, 1 failed"
    assert tasks.value == "heron#2 1/4 first"
    bar.over(2, 3)
    assert tasks.value == ""
