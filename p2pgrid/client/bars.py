"""Bars: how far a map is (`progress=True`), and what its tasks say with `pg.progress`.

In a notebook by ipywidgets where they are installed, on a terminal by rich, and elsewhere as lines of text, one for
each tenth. All of it goes to stderr: stdout is for what was asked.
"""

import contextlib
import sys
import threading
import time
from typing import Any, Protocol

from p2pgrid.core.prints import Said

ROWS_MAX = 8
"""Tasks that have a bar of their own at a time."""
TENTHS = 10
LABEL_MAX = 60
SAY_AFTER_S = 5.0
"""Where the number of tasks is not known, a line of text comes so often."""


class Bar(Protocol):
    """How far one map is."""

    def moved(self, done: int, failed: int) -> None:
        """So many tasks have ended, `failed` of them badly."""

    def said(self, node: str, said: Said) -> None:
        """A task said how far it is."""

    def over(self, lo: int, hi: int) -> None:
        """These tasks have ended."""

    def grew(self, total: int) -> None:
        """It is known now how many tasks there are."""

    def ended(self) -> None:
        """Nothing more comes."""


def bar(label: str, total: int | None) -> Bar:
    """Return the bar that fits where this program runs."""
    label = label[:LABEL_MAX]
    if _in_notebook():
        with contextlib.suppress(ImportError):
            return WidgetBar(label, total)
        return TextBar(label, total)
    if sys.stderr is not None and sys.stderr.isatty():
        return RichBar(label, total)
    return TextBar(label, total)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "kernel" in type(shell).__module__  # not the shell of a terminal


def _told(done: int, failed: int, total: int | None) -> str:
    text = f"{done:,}/{total:,}" if total is not None else f"{done:,}"
    return f"{text}, {failed:,} failed" if failed else text


class TextBar:
    """Lines of text."""

    def __init__(self, label: str, total: int | None) -> None:
        """Begin; nothing is said yet."""
        self._label = label
        self._total = total
        self._began_s = self._said_s = time.monotonic()
        self._step = 0
        self._last = (0, 0)
        self._told: tuple[int, int] | None = None

    def moved(self, done: int, failed: int) -> None:
        """Say so at each tenth."""
        self._last = (done, failed)
        now = time.monotonic()
        if self._total:
            step = done * TENTHS // self._total
            if step == self._step:
                return
            self._step = step
        elif now - self._said_s < SAY_AFTER_S:
            return
        self._say(now)

    def _say(self, now: float) -> None:
        self._said_s, self._told = now, self._last
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{self._label}: {_told(*self._last, self._total)} in {now - self._began_s:.1f} s\n")
            sys.stderr.flush()

    def said(self, node: str, said: Said) -> None:
        """Tasks have no lines of their own here."""

    def over(self, lo: int, hi: int) -> None:
        """As `said`."""

    def grew(self, total: int) -> None:
        """Count in tenths of it from now on."""
        self._total = total

    def ended(self) -> None:
        """Say how it ended."""
        if self._told != self._last:
            self._say(time.monotonic())


class RichBar:
    """A row of the one rich display of this process, and below it rows of its tasks."""

    def __init__(self, label: str, total: int | None) -> None:
        """Add the row."""
        self._display = display()
        self._label = label
        self._row = self._display.add(label, total)
        self._tasks: dict[int, Any] = {}

    def moved(self, done: int, failed: int) -> None:
        """Move the row."""
        self._display.update(self._row, done, f"{self._label}, {failed:,} failed" if failed else self._label)

    def said(self, node: str, said: Said) -> None:
        """Show the task's own row."""
        text = f"  {node}#{said.task} {said.text}"[:LABEL_MAX]
        total = said.total if said.total >= 0 else None
        row = self._tasks.get(said.task)
        if row is None:
            if len(self._tasks) >= ROWS_MAX:
                return
            row = self._tasks[said.task] = self._display.add(text, total)
        self._display.update(row, said.done, text, total)

    def over(self, lo: int, hi: int) -> None:
        """Take away the rows of tasks that have ended."""
        for task in [task for task in self._tasks if lo <= task < hi]:
            self._display.remove(self._tasks.pop(task))

    def grew(self, total: int) -> None:
        """Show how much there is."""
        self._display.update(self._row, None, self._label, total)

    def ended(self) -> None:
        """Leave the row as it is."""
        self.over(0, 1 << 62)
        self._display.let_go(self._row)


class _Display:
    """One live display for all bars: rich allows no second one."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.fields[of]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._used = 0
        self._lock = threading.Lock()

    def add(self, label: str, total: float | None) -> Any:
        with self._lock:
            if not self._used:
                self._progress.start()
            self._used += 1
        return self._progress.add_task(_plain(label), total=total, of=_of(total))

    def update(self, row: Any, done: float | None, label: str, total: float | None = None) -> None:
        more: dict[str, Any] = {} if total is None else {"total": total, "of": _of(total)}
        if done is not None:
            more["completed"] = done
        self._progress.update(row, description=_plain(label), **more)

    def remove(self, row: Any) -> None:
        self._progress.remove_task(row)
        self.let_go(row)

    def let_go(self, row: Any) -> None:
        global _shared  # noqa: PLW0603 - there is one terminal
        with self._lock:
            self._used -= 1
            if not self._used:
                self._progress.stop()
                _shared = None


_shared: _Display | None = None


def display() -> _Display:
    """Return the display of this process; it ends with the last bar on it."""
    global _shared  # noqa: PLW0603 - as above
    if _shared is None:
        _shared = _Display()
    return _shared


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _of(total: float | None) -> str:
    return "?" if total is None else f"{total:,.0f}"


class WidgetBar:
    """A bar in a notebook. Raises ImportError where ipywidgets are not installed."""

    def __init__(self, label: str, total: int | None) -> None:
        """Show it below the cell that runs."""
        import ipywidgets
        from IPython.display import display as show

        self._label, self._total = label, total
        self._bar = ipywidgets.IntProgress(value=0, min=0, max=total or 1)
        self._text = ipywidgets.Label(value=f"{label} {_told(0, 0, total)}")
        self._tasks: dict[int, str] = {}
        self._rows = ipywidgets.Label(value="")
        show(ipywidgets.VBox([ipywidgets.HBox([self._bar, self._text]), self._rows]))

    def moved(self, done: int, failed: int) -> None:
        """Move the bar."""
        self._bar.value = min(done, self._bar.max)
        self._text.value = f"{self._label} {_told(done, failed, self._total)}"

    def said(self, node: str, said: Said) -> None:
        """Show what tasks say, in one line."""
        if said.task in self._tasks or len(self._tasks) < ROWS_MAX:
            of = f"/{said.total:g}" if said.total >= 0 else ""
            self._tasks[said.task] = f"{node}#{said.task} {said.done:g}{of} {said.text}".rstrip()
            self._rows.value = "   ".join(self._tasks.values())

    def over(self, lo: int, hi: int) -> None:
        """Take away what ended tasks said."""
        for task in [task for task in self._tasks if lo <= task < hi]:
            del self._tasks[task]
            self._rows.value = "   ".join(self._tasks.values())

    def grew(self, total: int) -> None:
        """Show how much there is."""
        self._total = self._bar.max = total

    def ended(self) -> None:
        """Leave it as it is."""
        self._rows.value = ""
